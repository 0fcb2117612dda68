from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoseg.export.model_zip import Order, pack
from autoseg.models.archive import open_archive
from autoseg.workflow.workspace import Workspace
from tests.export.making import TASK, plan_and_train, trained_workspace, write_raw
from tests.making import tiny_plan


def card_of(workspace: Workspace) -> tuple[dict[str, Any], str]:
    out = workspace.root / "model.zip"
    pack(Order(workspace, TASK, "default"), out, overwrite=True)
    found = open_archive(out)
    return json.loads(found.read("card.json")), found.read("card.md").decode()


def test_what_nobody_said_is_not_stated(tmp_path: Path) -> None:
    card, text = card_of(trained_workspace(tmp_path))
    said = ("intended_use", "limits", "licence", "data_name", "data_licence", "contact")
    assert {card[key] for key in said} == {"not stated"}
    assert "## Intended use\n\nnot stated\n" in text
    assert "## Licence of the data\n\nnot stated\n" in text


def test_the_data_set_speaks_for_itself(tmp_path: Path) -> None:
    workspace = trained_workspace(tmp_path)
    write_raw(
        workspace, name="Lungs", description="of mice", licence="CC-BY-SA 4.0", reference="A. B."
    )
    card, text = card_of(workspace)
    assert card["data_name"] == "Lungs"
    assert card["data_description"] == "of mice"
    assert card["data_licence"] == "CC-BY-SA 4.0"
    assert card["data_reference"] == "A. B."
    assert "## Licence of the data\n\nCC-BY-SA 4.0\n" in text
    assert card["licence"] == "not stated"


def test_figures_are_those_of_the_data_and_the_folds(tmp_path: Path) -> None:
    card, text = card_of(trained_workspace(tmp_path))
    assert card["channels"] == ["CT"]
    assert card["classes"] == ["organ", "tumour"]
    assert card["trained_on"] == {
        "cases": 4,
        "smallest_spacing_mm": [1.0, 1.0, 1.0],
        "largest_spacing_mm": [1.0, 1.0, 1.0],
        "smallest_size": [12, 10, 9],
        "largest_size": [12, 10, 9],
        "cases_with": {"organ": 4, "tumour": 4},
    }
    # 125 voxels of the organ's box without the tumour's; the predictions have an island of 8 more.
    organ = [125 - 8, 125 - 12, 125 - 8, 125 - 12]
    expected = sum(2 * n / (2 * n + 8) for n in organ) / 4
    assert abs(card["dice"]["organ"]["mean"] - expected) < 1e-9
    assert card["dice"]["tumour"] == {"mean": 1.0, "std": 0.0, "median": 1.0, "n": 4}
    assert card["training"] == {fold: {"epochs": 4, "seconds": 5.0} for fold in ("0", "1")}
    assert "| 0    |      4 |  5 s |" in text
    assert set(card["packed_with"]) == {"autoseg", "torch", "Python"}


def test_a_model_without_scores_or_log(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_raw(workspace)
    plan_and_train(workspace, tiny_plan(), "all")
    card, text = card_of(workspace)
    assert card["dice"] is None
    assert card["training"] == {"all": None}
    assert "## Dice of the cross-validation\n\nnot stated\n" in text
