"""What many intensities amount to: mean, standard deviation, quantiles.

Scans are mostly whole numbers of 16 bits. These are counted value by value, which gives the same
figures as sorting them and takes a sixth of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from autoseg.common.arrays import (
    CHUNK,
    Box,
    bounding_box,
    connected_components,
    count_values,
    union_of_boxes,
)

# Figures for people: six significant digits, so that JSON stays short and the same.

SIGNIFICANT_DIGITS = 6


def rounded(value: float) -> float:
    """Round to six significant digits."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


SUMMARY_FRACTIONS = (0.0, 0.005, 0.5, 0.995, 1.0)
SAMPLE_SIZE = 500
SAMPLE_FRACTIONS = tuple((i + 0.5) / SAMPLE_SIZE for i in range(SAMPLE_SIZE))
Doubles = NDArray[np.float64]
Ranks = NDArray[np.intp]

Sample = tuple[float, ...]
"""Equally likely intensities of one channel's foreground, ascending; empty without foreground."""


@dataclass(frozen=True)
class Intensities:
    """Statistics of some voxels' intensities, rounded to six significant digits.

    `std` is the population's; `p00_5` and `p99_5` are the 0.5 and the 99.5 percentile.
    """

    mean: float
    std: float
    min: float
    p00_5: float
    median: float
    p99_5: float
    max: float


class Values(Protocol):
    """Some intensities."""

    def __len__(self) -> int:
        """How many."""

    @property
    def mean_and_std(self) -> tuple[float, float]:
        """In double precision."""

    def at(self, ranks: Ranks) -> Doubles:
        """The intensities at some ranks, the least having rank 0."""


@dataclass(frozen=True)
class Counted:
    """Few different intensities, ascending, and how many there are of each."""

    values: Doubles
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def mean_and_std(self) -> tuple[float, float]:
        """In double precision; the sum of whole numbers is exact."""
        mean = float(self.values @ self.counts) / len(self)
        squares = float(np.square(self.values - mean) @ self.counts)
        return mean, (squares / len(self)) ** 0.5

    def at(self, ranks: Ranks) -> Doubles:
        """The intensities at some ranks."""
        places = np.searchsorted(np.cumsum(self.counts), ranks, side="right")
        found: Doubles = self.values[places]
        return found


@dataclass(frozen=True)
class Listed:
    """Intensities of any kind, one by one, and whether they are ascending."""

    values: NDArray[Any]
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mean_and_std(self) -> tuple[float, float]:
        """In double precision, without a copy in double precision."""
        starts = range(0, len(self), CHUNK)
        chunks = [self.values[start : start + CHUNK] for start in starts]
        mean = sum(float(chunk.sum(dtype=np.float64)) for chunk in chunks) / len(self)
        squares = sum(float(np.square(chunk - np.float64(mean)).sum()) for chunk in chunks)
        return mean, (squares / len(self)) ** 0.5

    def at(self, ranks: Ranks) -> Doubles:
        """The intensities at some ranks; putting a few in their places is cheaper than sorting."""
        ordered = self.values if self.ordered else np.partition(self.values, np.unique(ranks))
        found: Doubles = ordered[ranks].astype(np.float64)
        return found


def whole_and_inside(channel: NDArray[Any], mask: NDArray[np.bool_]) -> tuple[Values, Values]:
    """All intensities of a channel (x, y, z), and those in a mask."""
    flat, flags = channel.T.reshape(-1), mask.T.reshape(-1)  # .T: as memory holds a file
    integers = small_integers(flat)
    if integers is None:
        return Listed(flat), Listed(np.sort(flat[flags]), ordered=True)
    return count(integers), count(integers, flags)


def small_integers(values: NDArray[Any]) -> NDArray[Any] | None:
    """The values as integers of up to 16 bits, if that is what they are in any type; else None."""
    if values.dtype.kind in "iu" and values.itemsize <= 2:
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    found = np.empty(len(values), np.int16)
    with np.errstate(invalid="ignore"):  # what does not fit becomes another number
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK]
            found[start : start + CHUNK] = chunk
            if not np.array_equal(found[start : start + CHUNK], chunk):
                return None
    return found


def count(values: NDArray[Any], mask: NDArray[np.bool_] | None = None) -> Counted:
    """Count flat integers of up to 16 bits, or those of them that are in a mask."""
    bits = 8 * values.itemsize
    unsigned = values.view(f"u{values.itemsize}")
    counts = count_values(unsigned, 1 << bits, mask)
    first = 0
    if values.dtype.kind == "i":  # the upper half stands for the negative ones
        first = -len(counts) // 2
        counts = np.roll(counts, first)
    there = np.flatnonzero(counts)
    return Counted((there + first).astype(np.float64), counts[there])


def summary(values: Values) -> Intensities:
    """What at least one intensity amounts to."""
    mean, std = values.mean_and_std
    smallest, low, median, high, largest = quantiles(values, SUMMARY_FRACTIONS)
    return Intensities(
        mean=rounded(mean),
        std=rounded(std),
        min=rounded(smallest),
        p00_5=rounded(low),
        median=rounded(median),
        p99_5=rounded(high),
        max=rounded(largest),
    )


def sample(values: Values) -> Sample:
    """The quantiles at the middles of `SAMPLE_SIZE` equal shares; nothing of nothing."""
    if not len(values):
        return ()
    return tuple(rounded(value) for value in quantiles(values, SAMPLE_FRACTIONS))


def quantiles(values: Values, fractions: Sequence[float]) -> list[float]:
    """Quantiles as NumPy's default (linear) has them."""
    low, high, weight = _ranks(len(values), fractions)
    ordered = values.at(np.concatenate([low, high]))
    below, above = ordered[: len(low)], ordered[len(low) :]
    return [float(value) for value in below + weight * (above - below)]


def _ranks(count: int, fractions: Sequence[float]) -> tuple[Ranks, Ranks, Doubles]:
    """The ranks below and above each fraction, and the weight of the one above."""
    position = np.array(fractions) * (count - 1)
    low = np.floor(position).astype(np.intp)
    return low, np.minimum(low + 1, count - 1), position - low


# The figures of one case's label map: how much of each label, in how many pieces.

LabelArray = NDArray[np.integer[Any]]


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
    around = bounding_box(label)
    inside = label[around or np.s_[:1, :1, :1]]  # if all is background, a corner tells as much
    # Entry i is the box of the value i + 1, or None; .T: in the order in which memory holds a file.
    boxes = [box and (box[2], box[1], box[0]) for box in find_objects(inside.T)]
    return {
        name: _measure(
            inside,
            values,
            union_of_boxes(boxes[value - 1] for value in values if value <= len(boxes)),
            spacing_mm,
        )
        for name, values in labels.items()
        if 0 not in values
    }


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
        components=connected_components(mask)[1],
        extent_mm=(rounded(x), rounded(y), rounded(z)),
    )
