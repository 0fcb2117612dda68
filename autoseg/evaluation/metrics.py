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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from autoseg.common.arrays import Box, LabelMap, Mask, bounding_box, connected_components, members


class Masks(NamedTuple):
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
    box: Box = (),
) -> Masks:
    """The masks of one class in two label maps of the same shape.

    Args:
        reference: integers of any shape.
        prediction: integers of the same shape.
        values: the label values of the class (several for a region).
        ignore: voxels with this value in the reference are ignored.
        predicted_values: the label values of the class in the prediction, if they differ.
        box: contains the class in both, see `value_boxes`; by default all is searched.
    """
    assert reference.shape == prediction.shape, (reference.shape, prediction.shape)
    expected = members(reference[box], values)
    predicted = members(prediction[box], predicted_values or values)
    voxels = reference.size
    if ignore is not None:
        valid = reference[box] != ignore
        expected &= valid
        predicted &= valid
        voxels = int(np.count_nonzero(reference != ignore))
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
    """The confusion matrix of one class in one case.

    Attributes:
        tp: true positive voxels.
        fp: false positive voxels.
        fn: false negative voxels.
        tn: true negative voxels.
    """

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n_ref(self) -> int:
        """Voxels of the class in the reference."""
        return self.tp + self.fn

    @property
    def n_pred(self) -> int:
        """Voxels of the class in the prediction."""
        return self.tp + self.fp


def overlap(masks: Masks) -> Overlap:
    """The overlap of one class in one case."""
    tp = int(np.count_nonzero(masks.reference & masks.predicted))
    fp = int(np.count_nonzero(masks.predicted)) - tp
    fn = int(np.count_nonzero(masks.reference)) - tp
    return Overlap(tp, fp, fn, masks.voxels - tp - fp - fn)


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
    """

    reference: int
    found: int
    predicted: int
    false: int

    @property
    def missed(self) -> int:
        """Reference lesions that the prediction does not hit."""
        return self.reference - self.found


def lesions(masks: Masks) -> Lesions:
    """The lesions of one class in one case."""
    reference, found = _count_hits(masks.reference, masks.predicted)
    predicted, correct = _count_hits(masks.predicted, masks.reference)
    return Lesions(reference, found, predicted, predicted - correct)


def _count_hits(mask: Mask, other: Mask) -> tuple[int, int]:
    """The number of components of a mask, and how many of them the other mask touches."""
    components, count = connected_components(mask)
    touched = np.bincount(components[other], minlength=count + 1)[1:]
    return count, int(np.count_nonzero(touched))


@dataclass(frozen=True)
class Volumes:
    """The volume of one class in reference and prediction of one case, in millilitres."""

    reference: float
    predicted: float

    @property
    def difference(self) -> float:
        """Positive if the prediction is too large."""
        return self.predicted - self.reference


class Metric(NamedTuple):
    """One metric of a class in a case.

    Attributes:
        group: the field of `CaseScores` that it is computed from.
        of: computes it from a value of that field; None for 0 / 0.
        better: which values are good: high, low, or close to zero.
        unit: empty for a ratio.
    """

    group: Literal["labels", "surfaces", "volume_ml", "lesions"]
    of: Callable[[Any], float | None]
    better: Literal["higher", "lower", "zero"] = "higher"
    unit: str = ""


# The name in tables and files -> the metric.
METRICS = {
    "Dice": Metric("labels", lambda o: ratio(2 * o.tp, 2 * o.tp + o.fp + o.fn)),
    "IoU": Metric("labels", lambda o: ratio(o.tp, o.tp + o.fp + o.fn)),  # the Jaccard index
    "Sensitivity": Metric("labels", lambda o: ratio(o.tp, o.tp + o.fn)),  # also called recall
    "Specificity": Metric("labels", lambda o: ratio(o.tn, o.tn + o.fp)),
    "Precision": Metric("labels", lambda o: ratio(o.tp, o.tp + o.fp)),
    "Accuracy": Metric("labels", lambda o: ratio(o.tp + o.tn, o.tp + o.fp + o.fn + o.tn)),
    "HD95_mm": Metric("surfaces", lambda s: s.hd95_mm, "lower", "mm"),
    "ASSD_mm": Metric("surfaces", lambda s: s.assd_mm, "lower", "mm"),
    "NSD": Metric("surfaces", lambda s: s.nsd),
    "VolumeDifference_ml": Metric("volume_ml", lambda v: v.difference, "zero", "ml"),
    "RelativeVolumeDifference": Metric(
        "volume_ml", lambda v: ratio(v.difference, v.reference), "zero"
    ),
    "LesionRecall": Metric("lesions", lambda n: ratio(n.found, n.reference)),
    "LesionPrecision": Metric("lesions", lambda n: ratio(n.predicted - n.false, n.predicted)),
}
COUNTS = {"TP": "tp", "FP": "fp", "FN": "fn", "TN": "tn", "n_pred": "n_pred", "n_ref": "n_ref"}
