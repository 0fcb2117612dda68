"""`autoseg_predict -p A B` and `--save-probabilities`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

from autoseg.cli.predict import main
from autoseg.common.files import read_json
from autoseg.image.image import read_image, read_label
from autoseg.prediction.predictor import Ensemble, Predictor
from autoseg.workflow.workspace import ENVIRONMENT_VARIABLE
from tests.dataset.making import write_scan
from tests.making import tiny_plan
from tests.prediction.making import save_model

STEPS = [{"step": "resample", "anisotropy": None}, {"step": "z_score"}]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models of a task whose plans differ in spacing, and a scan in `in`."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models" / "Task001_Tiny"
    save(folder, "fine", "0", "1", target_spacing_mm=[1, 1, 1])
    save(folder, "coarse", "1", target_spacing_mm=[2, 1.5, 1])
    save(folder, "other", "1", labels={"background": [0], "organ": [1], "lesion": [2]})
    values = np.random.default_rng(0).normal(size=(12, 10, 9)).astype(np.float32)
    write_scan(tmp_path / "in" / "a.nii.gz", values)
    return folder


def save(folder: Path, name: str, *folds: str, **changes: Any) -> None:
    save_model(tiny_plan(name=name, preprocessing=STEPS, **changes), folder / name, *folds)


def run(*arguments: str) -> int:
    return main(["-i", "in", "-o", "out", "--device", "cpu", "--backend", "torch", *arguments])


@pytest.mark.parametrize("by_folder", [False, True])
def test_several_plans_are_averaged(models: Path, by_folder: bool) -> None:
    named = ["-p", "fine", "coarse"]
    if by_folder:
        named = ["-m", str(models / "fine"), str(models / "coarse")]
    assert run(*named, "--save-probabilities") == 0
    assert sorted(path.name for path in Path("out").glob("a*")) == [
        "a.nii.gz",
        "a.probabilities.b2nd",
    ]
    members = [
        Predictor(models / name, device="cpu", backend="torch") for name in ("fine", "coarse")
    ]
    expected = Ensemble(members).predict(read_image([Path("in/a.nii.gz")]))
    found, _ = read_label(Path("out/a.nii.gz"))
    assert (found == expected).all()
    assert blosc2.open("out/a.probabilities.b2nd", mode="r").shape == (3, 12, 10, 9)
    record = read_json(Path("out/predictions.json"))
    assert [one["folds"] for one in record["ensemble"]] == [["0", "1"], ["1"]]


def test_the_named_folds_are_those_of_all_plans(models: Path) -> None:
    assert run("-p", "fine", "coarse", "-f", "1") == 0
    record = read_json(Path("out/predictions.json"))
    assert [one["folds"] for one in record["ensemble"]] == [["1"], ["1"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["-p", "fine", "other"],
            "plans fine and other cannot be averaged: their labels differ",
        ),
        (["-p", "fine", "missing"], "no trained model matches -p missing"),
        (["-p", "fine", "coarse", "-f", "0"], "coarse has no finished fold 0; there: 1"),
        (["-m", "models/Task001_Tiny/fine", "-p", "coarse"], "leave out -t and -p"),
    ],
)
def test_what_cannot_be_averaged_is_told_in_one_line(
    models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("out").exists()
