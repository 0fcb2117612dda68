from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, write_json
from autoseg.models.archive import write_archive
from autoseg.models.folder import FINGERPRINT, PLAN, FolderFiles, open_model
from autoseg.prediction.model import training_set_of
from tests.export.making import TASK, trained_workspace
from tests.making import tiny_plan


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of version 0.1.0: its fingerprint is where it was planned."""
    trained_workspace(tmp_path)
    return tmp_path / "models" / TASK / tiny_plan().name


def planned(model: Path) -> Path:
    return model.parents[2] / "preprocessed" / TASK / model.name


def test_the_figures_are_the_fingerprints(model: Path) -> None:
    found = training_set_of(FolderFiles(model))
    assert found is not None
    assert len(found.cases) == 4
    assert found.has_bodies
    case = found.cases[0]
    assert case.spacing_mm == (1.0, 1.0, 1.0)
    assert case.extent_mm == (12.0, 10.0, 9.0)
    values = read_json(planned(model) / FINGERPRINT)
    assert case.orientation == values["cases"]["case_0"]["orientation"]
    assert found.labelled == ((values["foreground"][0]["p00_5"], values["foreground"][0]["p99_5"]),)


def test_a_copy_in_the_model_goes_first(model: Path) -> None:
    values = read_json(planned(model) / FINGERPRINT)
    del values["cases"]["case_3"]
    write_json(model / FINGERPRINT, values)
    found = training_set_of(FolderFiles(model))
    assert found is not None
    assert len(found.cases) == 3


def test_that_of_another_plan_is_not_taken(model: Path) -> None:
    tiny_plan(training={"epochs": 9}).save(planned(model) / PLAN)
    assert training_set_of(FolderFiles(model)) is None


def test_a_packed_model_has_it_or_not(model: Path, tmp_path: Path) -> None:
    files: dict[str, Any] = {PLAN: model / PLAN}
    write_archive(tmp_path / "without.zip", {}, files)
    assert training_set_of(open_model(tmp_path / "without.zip")) is None
    write_archive(tmp_path / "with.zip", {}, files | {FINGERPRINT: planned(model) / FINGERPRINT})
    found = training_set_of(open_model(tmp_path / "with.zip"))
    assert found == training_set_of(FolderFiles(model))


def test_format_2_has_no_bodies(model: Path) -> None:
    values = read_json(planned(model) / FINGERPRINT)
    for case in values["cases"].values():
        for channel in case["channels"]:
            assert np.diff(channel.pop("body")).min() >= 0
    write_json(model / FINGERPRINT, values | {"format": 2})
    found = training_set_of(FolderFiles(model))
    assert found is not None
    assert not found.has_bodies
    assert len(found.cases) == 4


@pytest.mark.parametrize("damage", [{}, {"cases": []}, {"cases": {"a": {}}, "foreground": []}, []])
def test_a_damaged_fingerprint_is_named(model: Path, damage: Any) -> None:
    write_json(model / FINGERPRINT, damage)
    with pytest.raises(AutosegError) as error:
        training_set_of(FolderFiles(model))
    assert str(error.value).startswith(str(model / FINGERPRINT))


def test_a_text_instead_of_a_number_is_named(model: Path) -> None:
    values = read_json(planned(model) / FINGERPRINT)
    values["cases"]["case_1"]["channels"][0]["image"]["p99_5"] = "much"
    write_json(model / FINGERPRINT, values)
    with pytest.raises(AutosegError, match=r"cases\.1\.ranges"):
        training_set_of(FolderFiles(model))
