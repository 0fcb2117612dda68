"""The figures of one case's label map: how much of each label, in how many pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Box, box_of_content
from autoseg.fingerprint.rounding import rounded

LabelArray = NDArray[np.integer[Any]]
CHUNK = 1 << 20


@dataclass(frozen=True)
class LabelFigures:
    """One label in one case.

    Attributes:
        volume_ml: of its voxels; 1 ml is 1000 cubic millimetres.
        components: pieces of voxels that touch by a face, an edge or a corner (26 neighbours).
        extent_mm: sides of the smallest box around it, along x, y, z; None if it is not there.
    """

    volume_ml: float
    components: int
    extent_mm: tuple[float, float, float] | None

    @property
    def present(self) -> bool:
        """Whether the case has it at all."""
        return self.extent_mm is not None


def count_labels(label: LabelArray) -> dict[int, int]:
    """Label value -> number of voxels, for the values that occur in a label map (x, y, z)."""
    counts = np.zeros(int(label.max()) + 1, dtype=np.int64)
    flat = label.T.reshape(-1)  # .T: in the order of the memory
    for start in range(0, len(flat), CHUNK):  # bincount copies what it counts as int64
        chunk = flat[start : start + CHUNK]
        labelled = _without_background(chunk)
        counts += np.bincount(labelled, minlength=len(counts))
        counts[0] += len(chunk) - len(labelled)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _without_background(flat: LabelArray) -> LabelArray:
    """What is left when most zeros are taken out, eight bytes at a time."""
    words = flat[: len(flat) * flat.itemsize // 8 * 8 // flat.itemsize].view(np.uint64)
    rest = flat[len(words) * 8 // flat.itemsize :]
    return np.concatenate([words[words != 0].view(flat.dtype), rest])


def measure_labels(
    label: LabelArray, labels: Mapping[str, Sequence[int]], spacing_mm: Sequence[float]
) -> dict[str, LabelFigures]:
    """Measure every label but the background.

    Works in the box around each label, with about six bytes for each of its voxels.

    Args:
        label: the label map (x, y, z).
        labels: name -> values that it covers; what covers 0 is left out.
        spacing_mm: along x, y, z.
    """
    from scipy.ndimage import find_objects

    around = box_of_content(label[np.newaxis])
    inside = label[around or np.s_[:1, :1, :1]]  # if all is background, a corner tells as much
    # Entry i is the box of the value i + 1, or None; .T: in the order in which memory holds a file.
    boxes = [box and (box[2], box[1], box[0]) for box in find_objects(inside.T)]
    return {
        name: _measure(inside, values, _around(boxes, values), spacing_mm)
        for name, values in labels.items()
        if 0 not in values
    }


def _around(boxes: Sequence[Box | None], values: Sequence[int]) -> Box | None:
    """The box around the boxes of some values."""
    found = [box for value in values if value <= len(boxes) if (box := boxes[value - 1])]
    if not found:
        return None
    x, y, z = (
        slice(min(along.start for along in axis), max(along.stop for along in axis))
        for axis in zip(*found, strict=True)
    )
    return x, y, z


def _measure(
    label: LabelArray, values: Sequence[int], box: Box | None, spacing_mm: Sequence[float]
) -> LabelFigures:
    if box is None:
        return LabelFigures(0.0, 0, None)
    inside = label[box]
    mask = inside == values[0] if len(values) == 1 else np.isin(inside, values)
    x, y, z = (size * mm for size, mm in zip(mask.shape, spacing_mm, strict=True))
    return LabelFigures(
        volume_ml=rounded(np.count_nonzero(mask) * prod(spacing_mm) / 1000),
        components=count_components(mask),
        extent_mm=(rounded(x), rounded(y), rounded(z)),
    )


def count_components(mask: NDArray[np.bool_]) -> int:
    """How many pieces a mask (x, y, z) has; voxels that share a corner are one piece."""
    import cc3d

    # as bytes: cc3d 4.1.1 reserves too little for tiny Boolean masks of many pieces, and fails
    bytes_ = np.ascontiguousarray(mask.T).view(np.uint8)
    _, count = cc3d.connected_components(bytes_, connectivity=26, return_N=True)
    return int(count)
