from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoseg.evaluation.evaluate import evaluate_folders
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.metrics import METRICS
from tests.evaluation.reference_scores import check_summary
from tests.evaluation.scores import write

LABELS: dict[str, tuple[int, ...]] = {"lung": (1,), "infection": (2,), "both": (1, 2)}


def random_map(seed: int, values: list[int]) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, (5, 4, 6)).astype(np.uint8)


CASES = {
    "usual": (random_map(0, [0, 1, 2]), random_map(1, [0, 1, 2])),
    "right": (random_map(2, [0, 1, 2]), random_map(2, [0, 1, 2])),
    "no_infection": (random_map(3, [0, 1]), random_map(4, [0, 1])),
    "invented": (random_map(5, [0, 1]), random_map(6, [0, 1, 2])),
    "missed": (random_map(7, [0, 1, 2]), random_map(8, [0, 1])),
    "nothing": (random_map(9, [0]), random_map(9, [0])),
    "nothing_found": (random_map(10, [0, 1, 2]), random_map(10, [0])),
    "everything": (random_map(11, [1]), random_map(11, [1])),
}


@pytest.mark.parametrize(
    "names", [list(CASES), ["nothing"], ["no_infection", "nothing"], ["everything"]]
)
def test_every_number_is_scikit_learns(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        for folder, label in zip(("truth", "found"), CASES[name], strict=True):
            write(tmp_path / folder / f"{name}.nii.gz", label)
    path = tmp_path / "found" / "summary.json"
    evaluate_folders(tmp_path / "truth", tmp_path / "found", Labels(LABELS)).save(path)
    summary = check_summary(path, tmp_path / "truth", LABELS)
    assert len(summary["metric_per_case"]) == len(names)


def test_what_is_empty_is_null(tmp_path: Path) -> None:
    for folder, label in zip(("truth", "found"), CASES["nothing"], strict=True):
        write(tmp_path / folder / "a.nii.gz", label)
    path = tmp_path / "found" / "summary.json"
    evaluate_folders(tmp_path / "truth", tmp_path / "found", Labels(LABELS)).save(path)
    summary = check_summary(path, tmp_path / "truth", LABELS)
    for figure in ("mean", "median"):
        assert summary[figure]["lung"]["Dice"] is None
        n = summary[figure]["lung"]["n"]
        there = {"Specificity", "Accuracy", "VolumeDifference_ml"}
        assert n == {metric: int(metric in there) for metric in METRICS}
