"""The scores of a `summary.json`, by scikit-learn and numpy from the label maps themselves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics

from autoseg.image.image import read_label

Json = dict[str, Any]


def check_summary(path: Path, truth: Path, labels: dict[str, tuple[int, ...]]) -> Json:
    """Assert that a summary says what scikit-learn says of the files beside it; returns it."""
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    summary: Json = json.loads(text)
    expected: dict[str, list[Json]] = {name: [] for name in labels}
    for case in summary["metric_per_case"]:
        file = f"{case['case']}.nii.gz"
        pair = [read_label(folder / file)[0] for folder in (truth, path.parent)]
        for name, values in labels.items():
            scores = _scores(*(np.isin(array, values).ravel() for array in pair))
            found = {metric: case["metrics"][name][metric] for metric in scores}
            assert found == pytest.approx(scores), (file, name)
            expected[name].append(scores)
    for name, cases in expected.items():
        for metric in ("Dice", "IoU", "Sensitivity", "Specificity", "Precision", "Accuracy"):
            known = [scores[metric] for scores in cases if scores[metric] is not None]
            for figure, count in (("mean", np.mean), ("median", np.median), ("std", _std)):
                found = summary[figure][name]
                value = float(count(known)) if known else math.nan
                assert found["n"][metric] == len(known)
                assert found[metric] == (None if math.isnan(value) else pytest.approx(value))
    return summary


def _std(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _scores(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> Json:
    nothing: Any = math.nan
    (tn, fp), (fn, tp) = metrics.confusion_matrix(truth, predicted, labels=[False, True]).tolist()
    found = {
        "Dice": metrics.f1_score(truth, predicted, zero_division=nothing),
        # Jaccard's score has no `nan` for zero by zero.
        "IoU": metrics.jaccard_score(truth, predicted) if tp + fp + fn else nothing,
        "Sensitivity": metrics.recall_score(truth, predicted, zero_division=nothing),
        "Specificity": metrics.recall_score(~truth, ~predicted, zero_division=nothing),
        "Precision": metrics.precision_score(truth, predicted, zero_division=nothing),
        "Accuracy": metrics.accuracy_score(truth, predicted),
    }
    counts = {"TP": tp, "FP": fp, "FN": fn, "TN": tn, "n_pred": tp + fp, "n_ref": tp + fn}
    return {name: None if math.isnan(value) else value for name, value in found.items()} | counts
