"""How well a prediction covers the truth, voxel by voxel.

Empty classes follow one policy everywhere: a ratio of zero by zero is None (null in JSON), and None
does not count in a mean. So a class that neither the truth nor the prediction holds has no Dice; a
class that only one of them holds has Dice 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LabelMap = NDArray[np.integer[Any]]

# The name in tables and files -> the attribute of `Overlap`.
METRICS = {
    "Dice": "dice",
    "IoU": "iou",
    "Sensitivity": "sensitivity",
    "Specificity": "specificity",
    "Precision": "precision",
    "Accuracy": "accuracy",
}
COUNTS = {"TP": "tp", "FP": "fp", "FN": "fn", "TN": "tn", "n_pred": "n_pred", "n_ref": "n_ref"}


@dataclass(frozen=True)
class Confusion:
    """Voxels by what they are and what they were predicted to be.

    Attributes:
        tp: in the class, and predicted so.
        fp: not in the class, but predicted so.
        fn: in the class, but not predicted so.
        tn: not in the class, and not predicted so.
    """

    tp: int
    fp: int
    fn: int
    tn: int


@dataclass(frozen=True)
class Overlap:
    """The scores of one class in one case; None where a ratio is zero by zero.

    Attributes:
        dice: 2 TP / (2 TP + FP + FN).
        iou: TP / (TP + FP + FN), the Jaccard index.
        sensitivity: TP / (TP + FN), also called recall.
        specificity: TN / (TN + FP).
        precision: TP / (TP + FP).
        accuracy: (TP + TN) / all voxels.
        tp: true positive voxels.
        fp: false positive voxels.
        fn: false negative voxels.
        tn: true negative voxels.
        n_ref: voxels of the class in the truth.
        n_pred: voxels of the class in the prediction.
    """

    dice: float | None
    iou: float | None
    sensitivity: float | None
    specificity: float | None
    precision: float | None
    accuracy: float | None
    tp: int
    fp: int
    fn: int
    tn: int
    n_ref: int
    n_pred: int


def members(label_map: LabelMap, values: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where `label_map` holds one of `values`: booleans of the same shape."""
    inside = np.zeros(label_map.shape, dtype=bool)
    for value in values:  # np.isin would hold eight bytes a voxel
        inside |= label_map == value
    return inside


def count(
    truth: LabelMap, prediction: LabelMap, values: tuple[int, ...], ignore: int | None = None
) -> Confusion:
    """Count the voxels of one class in two label maps of the same shape.

    Args:
        truth: the reference, integers of any shape.
        prediction: integers of the same shape.
        values: the integers that make the class (several for a region).
        ignore: voxels with this value in the truth don't count at all.
    """
    assert truth.shape == prediction.shape, (truth.shape, prediction.shape)
    reference, predicted = members(truth, values), members(prediction, values)
    voxels = truth.size
    if ignore is not None:
        counted = truth != ignore
        reference &= counted
        predicted &= counted
        voxels = int(np.count_nonzero(counted))
    tp = int(np.count_nonzero(reference & predicted))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(reference)) - tp
    return Confusion(tp=tp, fp=fp, fn=fn, tn=voxels - tp - fp - fn)


def overlap(confusion: Confusion) -> Overlap:
    """The scores that follow from the counts of one class."""
    tp, fp, fn, tn = confusion.tp, confusion.fp, confusion.fn, confusion.tn
    return Overlap(
        dice=_ratio(2 * tp, 2 * tp + fp + fn),
        iou=_ratio(tp, tp + fp + fn),
        sensitivity=_ratio(tp, tp + fn),
        specificity=_ratio(tn, tn + fp),
        precision=_ratio(tp, tp + fp),
        accuracy=_ratio(tp + tn, tp + fp + fn + tn),
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
        n_ref=tp + fn,
        n_pred=tp + fp,
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
