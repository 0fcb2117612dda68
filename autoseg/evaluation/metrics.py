"""The metrics by name, and how well a prediction covers the truth, voxel by voxel.

Empty classes follow one policy everywhere. None (null in JSON, a dash in tables) means that there
is no number, and counts in no mean:

| the class is in | Dice, IoU, NSD | HD95, ASSD | ratios of voxels, volumes or lesions |
| --- | --- | --- | --- |
| neither | None | None | None where it is zero by zero |
| the truth alone, or the prediction alone | 0 | the grid's diagonal | as above |

The diagonal is the largest distance that the grid has room for: a class that was missed must not
make a mean distance smaller. Counts, volumes and their difference in ml are numbers always.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import bounding_box, connected_components, members

LabelMap = NDArray[np.integer[Any]]

Better = Literal["higher", "lower", "zero"]
Part = Literal["labels", "surfaces", "volume_ml", "lesions"]


@dataclass(frozen=True)
class Metric:
    """One metric of a class in a case.

    Attributes:
        part: the field of `CaseScores` that holds it.
        attribute: its name there.
        better: which values are good ones: high, low, or close to zero.
        unit: empty for a ratio.
    """

    part: Part
    attribute: str
    better: Better = "higher"
    unit: str = ""


# The name in tables and files -> what it is.
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


@dataclass(frozen=True)
class Masks:
    """One class in the truth and in a prediction, cut to the box that holds both.

    Around the box is a margin of one voxel, in which neither has the class.

    Attributes:
        reference: booleans (x, y, z): the class in the truth.
        predicted: the same shape: the class in the prediction.
        voxels: of the whole grid, as far as they count.
    """

    reference: NDArray[np.bool_]
    predicted: NDArray[np.bool_]
    voxels: int


def cut_masks(
    truth: LabelMap,
    prediction: LabelMap,
    values: tuple[int, ...],
    ignore: int | None = None,
    predicted_values: tuple[int, ...] | None = None,
) -> Masks:
    """One class of two label maps of the same shape.

    Args:
        truth: the reference, integers of any shape.
        prediction: integers of the same shape.
        values: the integers that make the class (several for a region).
        ignore: voxels with this value in the truth don't count at all.
        predicted_values: the integers that make the class in the prediction, where it has others.
    """
    assert truth.shape == prediction.shape, (truth.shape, prediction.shape)
    reference = members(truth, values)
    predicted = members(prediction, predicted_values or values)
    voxels = truth.size
    if ignore is not None:
        counted = truth != ignore
        reference &= counted
        predicted &= counted
        voxels = int(np.count_nonzero(counted))
    box = bounding_box(reference | predicted) or (slice(0),) * reference.ndim
    return Masks(_with_margin(reference[box]), _with_margin(predicted[box]), voxels)


def _with_margin(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # In the order of label maps as they are read; np.pad would turn the memory round.
    wide = np.zeros([size + 2 for size in mask.shape], bool, order="F")
    wide[(slice(1, -1),) * mask.ndim] = mask
    return wide


def confusion(masks: Masks) -> Confusion:
    """Count the voxels of one class."""
    tp = int(np.count_nonzero(masks.reference & masks.predicted))
    fp = int(np.count_nonzero(masks.predicted)) - tp
    fn = int(np.count_nonzero(masks.reference)) - tp
    return Confusion(tp=tp, fp=fp, fn=fn, tn=masks.voxels - tp - fp - fn)


def overlap(counted: Confusion) -> Overlap:
    """The scores that follow from the counts of one class."""
    tp, fp, fn, tn = counted.tp, counted.fp, counted.fn, counted.tn
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


def ratio(part: float, whole: float) -> float | None:
    """None for a ratio by zero."""
    return part / whole if whole else None


# Lesions as things to find: which of them a prediction hits, and which it invents.
#
# A lesion is a connected component of a class, by 26 neighbours: voxels that share a face, an
# edge or a corner belong together. A lesion of the truth is found if the prediction covers at
# least one of its voxels; a lesion of the prediction is false if it covers no voxel of the class
# in the truth.


@dataclass(frozen=True)
class Lesions:
    """The lesions of one class, in one case or in several.

    Attributes:
        reference: lesions in the truth.
        found: those of them that the prediction hits.
        predicted: lesions in the prediction.
        false: those of them that hit nothing.
        recall: found / reference; None without lesions in the truth.
        precision: (predicted - false) / predicted; None without lesions in the prediction.
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
        """From the counts alone."""
        recall, precision = ratio(found, reference), ratio(predicted - false, predicted)
        return Lesions(reference, found, predicted, false, recall, precision)

    @property
    def missed(self) -> int:
        """Lesions of the truth that the prediction does not hit."""
        return self.reference - self.found


def lesions(masks: Masks) -> Lesions:
    """The lesions of one class in one case."""
    reference, found = _hit(masks.reference, masks.predicted)
    predicted, right = _hit(masks.predicted, masks.reference)
    return Lesions.of(reference, found, predicted, predicted - right)


def pool(of_cases: Iterable[Lesions]) -> Lesions:
    """The lesions of several cases as if they were one: each lesion counts the same."""
    cases = list(of_cases)
    return Lesions.of(*(sum(getattr(one, name) for one in cases) for name in Lesions.AMOUNTS))


def _hit(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int]:
    """How many components a mask has, and how many of them the other touches."""
    components, number = connected_components(mask)
    touched = np.bincount(components[other], minlength=number + 1)[1:]
    return number, int(np.count_nonzero(touched))
