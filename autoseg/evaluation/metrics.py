"""The metrics by name, and those that compare a reference and a prediction voxel by voxel.

Empty classes follow one policy everywhere. None (null in JSON, a dash in tables) means that the
metric is undefined; it counts in no mean:

| the class is in | Dice, IoU, NSD | HD95, ASSD | ratios of voxels, volumes or lesions |
| --- | --- | --- | --- |
| neither | None | None | None if 0 / 0 |
| only one of reference and prediction | 0 | the diagonal of the grid | as above |

The diagonal is the largest distance that the grid allows (in its plane, if it is one slice): a
missed class must not lower a mean distance. Counts, volumes and their difference in ml are
always defined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from autoseg.common.arrays import LabelMap, Mask, bounding_box, connected_components, members


@dataclass(frozen=True)
class Metric:
    """One metric of a class in a case.

    Attributes:
        group: the field of `CaseScores` that holds it.
        attribute: its name there.
        better: which values are good: high, low, or close to zero.
        unit: empty for a ratio.
    """

    group: Literal["labels", "surfaces", "volume_ml", "lesions"]
    attribute: str
    better: Literal["higher", "lower", "zero"] = "higher"
    unit: str = ""


# The name in tables and files -> the metric.
METRICS = {
    "Dice": Metric("labels", "dice"),
    "IoU": Metric("labels", "iou"),
    "Sensitivity": Metric("labels", "sensitivity"),
    "Specificity": Metric("labels", "specificity"),
    "Precision": Metric("labels", "precision"),
    "Accuracy": Metric("labels", "accuracy"),
    "HD95_mm": Metric("surfaces", "hd95_mm", "lower", "mm"),
    "ASSD_mm": Metric("surfaces", "assd_mm", "lower", "mm"),
    "NSD": Metric("surfaces", "nsd"),
    "VolumeDifference_ml": Metric("volume_ml", "difference", "zero", "ml"),
    "RelativeVolumeDifference": Metric("volume_ml", "relative_difference", "zero"),
    "LesionRecall": Metric("lesions", "recall"),
    "LesionPrecision": Metric("lesions", "precision"),
}
COUNTS = {"TP": "tp", "FP": "fp", "FN": "fn", "TN": "tn", "n_pred": "n_pred", "n_ref": "n_ref"}


@dataclass(frozen=True)
class Masks:
    """One class in a reference and in a prediction, cropped to the box that holds both.

    The box has a margin of one voxel that is empty in both.

    Attributes:
        reference: booleans (x, y, z).
        predicted: booleans of the same shape.
        voxels: number of voxels of the full grid that are not ignored.
        flat: the axes along which the full grid has a single voxel (see `flat_axes`).
    """

    reference: Mask
    predicted: Mask
    voxels: int
    flat: tuple[int, ...] = ()


def cut_masks(
    reference: LabelMap,
    prediction: LabelMap,
    values: tuple[int, ...],
    ignore: int | None = None,
    predicted_values: tuple[int, ...] | None = None,
) -> Masks:
    """The masks of one class in two label maps of the same shape.

    Args:
        reference: integers of any shape.
        prediction: integers of the same shape.
        values: the label values of the class (several for a region).
        ignore: voxels with this value in the reference are ignored.
        predicted_values: the label values of the class in the prediction, if they differ.
    """
    assert reference.shape == prediction.shape, (reference.shape, prediction.shape)
    expected = members(reference, values)
    predicted = members(prediction, predicted_values or values)
    voxels = reference.size
    if ignore is not None:
        valid = reference != ignore
        expected &= valid
        predicted &= valid
        voxels = int(np.count_nonzero(valid))
    box = bounding_box(expected | predicted) or (slice(0),) * reference.ndim
    flat = flat_axes(reference.shape)
    return Masks(_with_margin(expected[box]), _with_margin(predicted[box]), voxels, flat)


def flat_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of size 1, along which a grid has no surfaces; none if it is a single voxel."""
    flat = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return flat if len(flat) < len(shape) else ()


def _with_margin(mask: Mask) -> Mask:
    # Fortran order as in label maps that were read; np.pad would transpose the memory.
    padded = np.zeros([size + 2 for size in mask.shape], bool, order="F")
    padded[(slice(1, -1),) * mask.ndim] = mask
    return padded


@dataclass(frozen=True)
class Overlap:
    """The overlap of one class in one case; None for 0 / 0.

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
        n_ref: voxels of the class in the reference.
        n_pred: voxels of the class in the prediction.
    """

    AMOUNTS: ClassVar = ("tp", "fp", "fn", "tn", "n_ref", "n_pred")

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

    @staticmethod
    def of(tp: int, fp: int, fn: int, tn: int) -> Overlap:
        """The scores that follow from a confusion matrix."""
        return Overlap(
            dice=ratio(2 * tp, 2 * tp + fp + fn),
            iou=ratio(tp, tp + fp + fn),
            sensitivity=ratio(tp, tp + fn),
            specificity=ratio(tn, tn + fp),
            precision=ratio(tp, tp + fp),
            accuracy=ratio(tp + tn, tp + fp + fn + tn),
            tp=tp,
            fp=fp,
            fn=fn,
            tn=tn,
            n_ref=tp + fn,
            n_pred=tp + fp,
        )


def overlap(masks: Masks) -> Overlap:
    """The overlap of one class in one case."""
    tp = int(np.count_nonzero(masks.reference & masks.predicted))
    fp = int(np.count_nonzero(masks.predicted)) - tp
    fn = int(np.count_nonzero(masks.reference)) - tp
    return Overlap.of(tp, fp, fn, masks.voxels - tp - fp - fn)


def ratio(numerator: float, denominator: float) -> float | None:
    """A quotient; None if the denominator is zero."""
    return numerator / denominator if denominator else None


@dataclass(frozen=True)
class Lesions:
    """The lesions of one class, in one case or pooled over several.

    A lesion is a 26-connected component. A reference lesion is found if the prediction covers at
    least one of its voxels. A predicted lesion is false if it covers no voxel of the reference.

    Attributes:
        reference: lesions in the reference.
        found: those that the prediction hits.
        predicted: lesions in the prediction.
        false: those that hit nothing.
        recall: found / reference; None without reference lesions.
        precision: (predicted - false) / predicted; None without predicted lesions.
    """

    AMOUNTS: ClassVar = ("reference", "found", "predicted", "false")

    reference: int
    found: int
    predicted: int
    false: int
    recall: float | None
    precision: float | None

    @staticmethod
    def of(reference: int, found: int, predicted: int, false: int) -> Lesions:
        """The scores that follow from the counts."""
        recall, precision = ratio(found, reference), ratio(predicted - false, predicted)
        return Lesions(reference, found, predicted, false, recall, precision)

    @property
    def missed(self) -> int:
        """Reference lesions that the prediction does not hit."""
        return self.reference - self.found


def lesions(masks: Masks) -> Lesions:
    """The lesions of one class in one case."""
    reference, found = _count_hits(masks.reference, masks.predicted)
    predicted, correct = _count_hits(masks.predicted, masks.reference)
    return Lesions.of(reference, found, predicted, predicted - correct)


def pool(cases: Iterable[Lesions]) -> Lesions:
    """The lesions of several cases counted together: each lesion has the same weight."""
    cases = list(cases)
    return Lesions.of(*(sum(getattr(case, name) for case in cases) for name in Lesions.AMOUNTS))


def _count_hits(mask: Mask, other: Mask) -> tuple[int, int]:
    """The number of components of a mask, and how many of them the other mask touches."""
    components, count = connected_components(mask)
    touched = np.bincount(components[other], minlength=count + 1)[1:]
    return count, int(np.count_nonzero(touched))
