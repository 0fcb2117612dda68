from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, write_json
from autoseg.evaluation.evaluate import gather
from autoseg.evaluation.learn_postprocessing import update
from autoseg.export.model_zip import PackOptions, pack
from autoseg.image.image import read_image
from autoseg.models.archive import open_archive, write_archive
from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.folder import open_model, qualification_in
from autoseg.prediction.model import load_model, load_postprocessing, save_previous
from autoseg.prediction.predictor import Predictor
from autoseg.training.transfer import read_pretrained
from autoseg.workflow.workspace import Workspace
from tests.export.making import TASK, plan_and_train, trained_workspace, write_raw
from tests.making import CASCADE, tiny_plan

CPU = torch.device("cpu")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return trained_workspace(tmp_path / "Arbeit für Zoë")


def packed(
    workspace: Workspace, plan: str = "default", folds: tuple[str, ...] | None = None
) -> Path:
    out = workspace.root / "model.zip"
    pack(PackOptions(workspace, TASK, plan, folds), out, overwrite=True)
    return out


def refusal(order: PackOptions, out: Path, overwrite: bool = False) -> str:
    with pytest.raises(AutosegError) as error:
        pack(order, out, overwrite)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_all_files_are_packed(workspace: Workspace) -> None:
    found = open_archive(packed(workspace))
    assert sorted(found.entries) == [
        "card.json",
        "card.md",
        "fingerprint.json",
        "fold_0/final.safetensors",
        "fold_0/validation/summary.json",
        "fold_1/final.safetensors",
        "fold_1/validation/summary.json",
        "labels.json",
        "plan.json",
        "splits.json",
    ]
    plan = tiny_plan()
    assert found.about["plan_id"] == plan.id
    assert found.about["folds"] == ["0", "1"]
    assert json.loads(found.read("labels.json"))["labels"]["tumour"] == [2]
    folder = workspace.models(TASK, "default")
    assert (
        found.read("fold_1/final.safetensors")
        == (folder / "fold_1" / "final.safetensors").read_bytes()
    )


def test_no_folder_of_this_machine_is_revealed(workspace: Workspace) -> None:
    out = packed(workspace)
    assert str(workspace.root).encode() not in out.read_bytes()
    assert workspace.root.name.encode() not in out.read_bytes()
    summary = json.loads(open_archive(out).read("fold_0/validation/summary.json"))
    case = summary["metric_per_case"][0]
    assert case["reference_file"] == f"{case['case']}.nii.gz"


def test_the_same_model_gives_the_same_bytes(workspace: Workspace) -> None:
    first = packed(workspace).read_bytes()
    for path in workspace.root.rglob("*.json"):
        path.touch()
    assert packed(workspace).read_bytes() == first


def test_a_packed_model_predicts_the_same(workspace: Workspace) -> None:
    folder, out = workspace.models(TASK, "default"), packed(workspace)
    image = read_image([workspace.raw(TASK) / "imagesTr" / "case_0_0000.nii.gz"])
    for folds in (None, ["1"]):
        found = Predictor(out, folds, "cpu").predict(image)
        assert found.any()
        assert np.array_equal(found, Predictor(folder, folds, "cpu").predict(image))


def test_learned_postprocessing_is_packed(workspace: Workspace) -> None:
    folder = workspace.models(TASK, "default")
    learned = update(folder, gather(folder, 2), 2, 1)
    assert learned.steps
    out = packed(workspace)
    found = load_postprocessing(load_model(out, None, CPU))
    assert found is not None
    assert [list(step.keep_largest) for step in found.steps] == [
        list(s.keep_largest) for s in learned.steps
    ]
    card = json.loads(open_archive(out).read("card.json"))
    assert card["postprocessing"] == ["keeps the largest component of all foreground"]
    summary = folder / "fold_1" / "validation" / "summary.json"
    summary.write_text(summary.read_text() + "\n")
    order = PackOptions(workspace, TASK, "default")
    assert str(folder / "postprocessing.json") in refusal(order, workspace.root / "other.zip")


def test_some_folds(workspace: Workspace) -> None:
    assert load_model(packed(workspace, folds=("1",)), None, CPU).folds == ("1",)
    with pytest.raises(AutosegError, match=r"model\.zip .*fold 0.*: 1"):
        load_model(workspace.root / "model.zip", ["0"], CPU)
    order = PackOptions(workspace, TASK, "default", ("0", "7"))
    assert "fold 7; there: 0, 1" in refusal(order, workspace.root / "a.zip")


def test_the_previous_stage_of_a_cascade_is_packed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_raw(workspace)
    previous = tiny_plan(name="tiny-3d_lowres", configuration="3d_lowres")
    plan_and_train(workspace, previous, "0", "1")
    cascade = tiny_plan(**CASCADE)
    folder = plan_and_train(workspace, cascade, "0")
    save_previous(folder, previous)
    out = packed(workspace, cascade.name)
    image = read_image([workspace.raw(TASK) / "imagesTr" / "case_0_0000.nii.gz"])
    expected = Predictor(folder, device="cpu").predict(image)
    shutil.rmtree(workspace.models(TASK))
    predictor = Predictor(out, device="cpu")
    assert predictor.previous is not None
    assert predictor.previous.model.folds == ("0", "1")
    assert np.array_equal(predictor.predict(image), expected)


def test_training_can_start_from_a_packed_model(workspace: Workspace) -> None:
    out = packed(workspace)
    with pytest.raises(AutosegError, match=r"fold_0, fold_1.*zip"):
        read_pretrained(out)
    file = workspace.models(TASK, "default") / "fold_1" / "final.safetensors"
    for path in (out / "fold_1", packed(workspace, folds=("1",))):
        found = read_pretrained(path)
        expected = load_checkpoint(file)[0]
        assert found.tensors.keys() == expected.keys()
        assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)
        assert found.plan == tiny_plan()
        assert found.source == read_pretrained(file).source
    with pytest.raises(AutosegError, match=r"fold_0"):
        read_pretrained(out / "fold_0")


def test_an_existing_file_is_kept(workspace: Workspace) -> None:
    order, out = PackOptions(workspace, TASK, "default"), workspace.root / "model.zip"
    out.write_text("precious")
    assert "--overwrite" in refusal(order, out)
    assert out.read_text() == "precious"
    assert ".zip" in refusal(order, workspace.root / "model")
    pack(order, out, overwrite=True)
    assert zipfile.is_zipfile(out)


@pytest.mark.parametrize("name", ["plan.json", "fingerprint.json", "splits.json"])
def test_a_missing_file_is_named(workspace: Workspace, name: str) -> None:
    path = workspace.preprocessed(TASK, "default") / name
    path.unlink()
    order, out = PackOptions(workspace, TASK, "default"), workspace.root / "model.zip"
    assert str(path) in refusal(order, out)
    assert not out.exists()


def test_files_of_different_plans_are_not_mixed(workspace: Workspace) -> None:
    order, out = PackOptions(workspace, TASK, "default"), workspace.root / "model.zip"
    other = tiny_plan(training={"seed": 1})
    other.save(workspace.preprocessed(TASK, "default") / "plan.json")
    message = refusal(order, out)
    assert other.id in message
    assert tiny_plan().id in message
    other.save(workspace.models(TASK, "default") / "plan.json")
    message = refusal(order, out)
    assert "final.safetensors" in message
    assert other.id in message
    assert tiny_plan().id in message


def rewritten(out: Path, **changes: bytes) -> Path:
    """Replace some contents of an archive, with a matching manifest."""
    found = open_archive(out)
    files = {name: found.read(name) for name in found.entries}
    files |= {name.replace("__", "/").replace("_json", ".json"): c for name, c in changes.items()}
    write_archive(out, {}, files)
    return out


def test_a_plan_of_another_format_is_refused(workspace: Workspace) -> None:
    out = packed(workspace)
    plan = json.loads(open_archive(out).read("plan.json"))
    rewritten(out, plan_json=json.dumps(plan | {"format_version": 2}).encode())
    with pytest.raises(AutosegError, match=r"model\.zip/plan\.json .*2"):
        load_model(out, None, CPU)


def test_weights_of_another_plan_are_refused(workspace: Workspace) -> None:
    out = packed(workspace)
    plan = json.loads(open_archive(out).read("plan.json"))
    plan["training"]["seed"] = 99
    rewritten(out, plan_json=json.dumps(plan).encode())
    with pytest.raises(AutosegError, match=r"final\.safetensors"):
        load_model(out, None, CPU)


def test_an_archive_without_plan_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.zip", {}, {"card.md": b"#"})
    with pytest.raises(AutosegError, match=r"a\.zip .*plan\.json"):
        load_model(tmp_path / "a.zip", None, CPU)


def test_a_card_file_is_checked(workspace: Workspace) -> None:
    card = workspace.root / "card.json"
    out = workspace.root / "model.zip"
    write_json(card, {"license": "MIT"})
    order = PackOptions(workspace, TASK, "default", card=card)
    message = refusal(order, out)
    assert message.startswith(str(card))
    assert "'license'" in message
    assert "intended_use, limits, licence" in message
    write_json(card, {"licence": ""})
    assert f"{card}: licence" in refusal(order, out)
    write_json(card, {"content_qualification": "product"})
    assert "PRODUCT" in refusal(order, out)
    write_json(card, ["licence"])
    assert str(card) in refusal(order, out)
    write_json(card, {"licence": "CC0", "intended_use": "research on phantoms"})
    pack(order, out, overwrite=False)
    assert qualification_in(open_model(out)) == "RESEARCH"  # not stated
    found = json.loads(open_archive(out).read("card.json"))
    assert (found["licence"], found["intended_use"]) == ("CC0", "research on phantoms")
    assert found["data_licence"] == found["limits"] == "not stated"
    assert read_json(card) == {"licence": "CC0", "intended_use": "research on phantoms"}


def card_of(workspace: Workspace) -> tuple[dict[str, Any], str]:
    out = workspace.root / "model.zip"
    pack(PackOptions(workspace, TASK, "default"), out, overwrite=True)
    found = open_archive(out)
    return json.loads(found.read("card.json")), found.read("card.md").decode()


def test_unknown_statements_are_not_stated(tmp_path: Path) -> None:
    card, text = card_of(trained_workspace(tmp_path))
    said = ("intended_use", "limits", "licence", "data_name", "data_licence", "contact")
    assert {card[key] for key in said} == {"not stated"}
    assert "## Intended use\n\nnot stated\n" in text
    assert "## Licence of the data\n\nnot stated\n" in text


def test_statements_of_the_data_set(tmp_path: Path) -> None:
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


def test_figures_of_the_data_and_the_folds(tmp_path: Path) -> None:
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
