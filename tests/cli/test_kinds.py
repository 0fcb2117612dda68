"""What else can be learnt, by the commands and on real scans: regions, slices, and a cascade."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from autoseg.cli import evaluate, plan, predict, train
from autoseg.common.arrays import members
from autoseg.common.files import read_json
from autoseg.evaluation.scores import Summary
from autoseg.image.image import read_label
from autoseg.plan.plan import load_plan
from autoseg.preprocessing.store import CaseStore
from tests.cli.making import copy_hippocampus, copy_sparse_regions, settings
from tests.dataset.making import HIPPOCAMPUS

TASK = "Task004_Hippocampus"
SHORT = (
    "training.epochs=2",
    "training.steps_per_epoch=2",
    "training.validation_steps=1",
    "splits.folds=2",
    "sampling.batch_size=2",
)
CASCADE = "default-3d_cascade_fullres"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def where(root: Path) -> list[str]:
    return ["--workspace", str(root), "--device", "cpu"]


def run_plan(root: Path, *arguments: str) -> int:
    return plan.main([TASK, *where(root), "--processes", "1", *arguments, *settings(*SHORT)])


def run_train(root: Path, *arguments: str) -> int:
    return train.main([TASK, *where(root), "--processes", "1", *arguments])


def last_epoch(fold: Path) -> dict[str, dict[str, float]]:
    lines = (fold / "log.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, dict[str, float]] = json.loads(lines[-1])
    return found


def test_sparse_regions_are_trained_predicted_and_scored(tmp_path: Path) -> None:
    raw = tmp_path / "raw" / TASK
    copy_sparse_regions(raw, 4)
    small = settings("network.features=[4,8,8,8]", "sampling.patch_size=[24,32,24]")
    assert run_plan(tmp_path, *small, *settings("inference.overlap=[8,8,8]")) == 0
    folder = tmp_path / "preprocessed" / TASK / "default"
    planned = load_plan(folder / "plan.json")
    assert planned.classes.are_regions
    assert planned.ignore_label == 3
    assert run_train(tmp_path, "fold", "0") == 0

    fold = tmp_path / "models" / TASK / "default" / "fold_0"
    for dice in ("training_dice", "validation_dice"):
        assert list(last_epoch(fold)[dice]) == ["background", "whole", "posterior"]
    summary = Summary.load(fold / "validation" / "summary.json")
    assert summary.labels == ("whole", "posterior")
    for case in summary.cases:
        truth, geometry = read_label(raw / "labelsTr" / f"{case.case}.nii.gz")
        label, found = read_label(fold / "validation" / f"{case.case}.nii.gz")
        assert geometry == found
        assert set(np.unique(label)) <= {0, 1, 2}
        known = truth != 3
        for name, values in {"whole": (1, 2), "posterior": (2,)}.items():
            inside, real = members(label, values) & known, members(truth, values)
            scores = case.labels[name]
            assert (scores.n_pred, scores.n_ref) == (inside.sum(), real.sum())
            assert scores.tp == (inside & real).sum()

    stored = CaseStore(folder / "cases", planned.preprocessing_id).open(summary.cases[0].case)
    assert sorted(stored.foreground) == [1, 2]
    in_whole = stored.label[:][tuple(stored.foreground[1].T)]
    assert set(in_whole) == {1, 2}  # the values of both of its parts
    assert stored.annotated is not None
    out = tmp_path / "out"
    scan = str(next(iter(sorted((HIPPOCAMPUS / "imagesTs").iterdir()))))
    assert predict.main(["-i", scan, "-o", str(out), *where(tmp_path)]) == 0
    assert read_json(out / "labels.json")["labels"]["whole"] == [1, 2]
    truths = str(HIPPOCAMPUS / "labelsTs")
    assert evaluate.main(["-g", truths, "-p", str(out), "--processes", "1"]) == 0
    assert Summary.load(out / "summary.json").labels == ("whole", "posterior")


def test_slices_are_trained_predicted_and_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = copy_hippocampus(tmp_path / "raw" / TASK, 4)
    assert run_plan(tmp_path, "--config", "2d", *settings("network.features=[4,8,8,8]")) == 0
    assert ": 1 x 1 x own mm, patch 40 x 56 x 1," in capsys.readouterr().err
    planned = load_plan(tmp_path / "preprocessed" / TASK / "default-2d" / "plan.json")
    assert planned.sampling.patch_size[2] == 1
    assert planned.target_spacing_mm == (1.0, 1.0, None)
    assert run_train(tmp_path, "0", "--plan", "default-2d") == 0
    fold = tmp_path / "models" / TASK / "default-2d" / "fold_0"
    summary = Summary.load(fold / "validation" / "summary.json")
    assert {case.case for case in summary.cases} < set(names)
    for case in summary.cases:
        found = read_label(fold / "validation" / f"{case.case}.nii.gz")[1]
        assert found == read_label(HIPPOCAMPUS / "labelsTr" / f"{case.case}.nii.gz")[1]


def test_a_cascade_refines_the_low_resolution(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So little memory that a patch covers a small part of even these scans."""
    copy_hippocampus(tmp_path / "raw" / TASK, 4)
    for configuration in ("3d_lowres", "3d_cascade_fullres"):
        few = ("--memory", "0.01", *settings("network.features=[4,8]"))
        assert run_plan(tmp_path, "--config", configuration, *few) == 0
    assert "this plan refines default-3d_lowres: " in capsys.readouterr().err
    assert run_train(tmp_path, "fold", "1", "--plan", "default-3d_lowres") == 0
    capsys.readouterr()
    assert run_train(tmp_path, "fold", "0", "--plan", CASCADE) == 2
    assert "default-3d_lowres, which lacks fold 0: " in capsys.readouterr().err.splitlines()[-1]
    assert run_train(tmp_path, "fold", "0", "--plan", "default-3d_lowres") == 0

    assert run_train(tmp_path, "fold", "0", "--plan", CASCADE) == 0
    models = tmp_path / "models" / TASK
    cases = tmp_path / "preprocessed" / TASK / CASCADE / "cases"
    assert len(list(cases.glob("*/previous.b2nd"))) == 4
    split = read_json(cases.parent / "splits.json")[0]
    summary = Summary.load(models / CASCADE / "fold_0" / "validation" / "summary.json")
    assert [case.case for case in summary.cases] == split["val"]

    scan = next(iter(sorted((HIPPOCAMPUS / "imagesTs").iterdir())))
    out = tmp_path / "out"
    arguments = ["-i", str(scan), "-o", str(out), "-p", CASCADE, *where(tmp_path)]
    assert predict.main(arguments) == 0
    record = read_json(out / "predictions.json")
    assert record["previous_stage"]["folds"] == ["0", "1"]
    label, geometry = read_label(out / scan.name)
    assert geometry.size == label.shape
    assert set(np.unique(label)) <= {0, 1, 2}
