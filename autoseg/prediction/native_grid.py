"""From probabilities, or logits, on the network's grid to a label map on the scan's own grid.

The probabilities of a whole scan do not fit into memory. So `native_planes` goes through a few
planes (x) at a time, and each class is interpolated on its own, only where it can win:

    slabs          (class, planes, y, z) of the network's grid, in the order of x
    native_planes  16 planes of the scan's grid; `probabilities(index, area)` has shape (16, *area)
    label_map      label values (x, y, z): the most probable class, or regions painted in order,
                   written through a turned view of the array in the scan's own order of axes

Interpolation is linear (or takes the nearest plane). So a probability never exceeds the largest one
around it, which tells where a class cannot win before anything is computed.

The same holds for logits: a class cannot win where none around a voxel is above the background's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from autoseg.common.arrays import Box, LabelMap, Triple, union_of_boxes
from autoseg.image.geometry import SWAPS, Turn
from autoseg.plan.labels import Classes
from autoseg.prediction.sliding_window import Slab
from autoseg.preprocessing.resample import (
    Band,
    apply_bands,
    axis_bands,
    axis_operator,
    most_shrinking_first,
)

PLANES_AT_ONCE = 16
TINY = np.float32(1e-6)  # a probability that stands for zero

Area = Box  # a rectangle of all planes: slices along y and z
Save = Callable[[int, slice, NDArray[np.float32]], None]  # class, planes, probabilities (x, y, z)


class Planes(Protocol):
    """Consecutive planes (x) of a scan's own grid, and the probabilities there.

    Attributes:
        rows: which planes.
        shape: voxels of all of them, (x, y, z).
    """

    rows: slice
    shape: Triple

    def area_above(self, index: int, threshold: float | None) -> Area | None:
        """An area outside of which a class is nowhere more probable than a threshold.

        None: than the first class.
        """

    def probabilities(self, index: int, area: Area) -> NDArray[np.float32]:
        """A class's probabilities in an area of the planes, (x, *area)."""


@dataclass(frozen=True)
class Placement:
    """Where the network's grid lies on the scan's own.

    Attributes:
        low_shape: voxels of the network's grid.
        box: start and stop along x, y, z of the part of the scan's grid that it covers.
        size: voxels of the scan's grid.
        outside: the class of all voxels outside of the box; None for regions, which are absent.
        orders: of the interpolation along x, y, z: 1, or 0 for the nearest plane.
        logits: whether logits are placed, not probabilities.
        float16: whether interpolated values are rounded to float16.
    """

    low_shape: Triple
    box: tuple[tuple[int, int], ...]
    size: Triple
    outside: int | None = 0
    orders: Triple = (1, 1, 1)
    logits: bool = False
    float16: bool = False


def native_planes(slabs: Iterable[Slab], placement: Placement) -> Iterator[Planes]:
    """All planes of the scan's grid in order, `PLANES_AT_ONCE` at a time.

    Args:
        slabs: consecutive planes of probabilities (class, planes, y, z) of the network's grid,
            from x = 0 on. Each is taken as late as possible.
        placement: of the network's grid.
    """
    start, stop = placement.box[0]
    low_x = placement.low_shape[0]
    operator = axis_operator(low_x, stop - start, placement.orders[0])  # (native x, low x)
    buffer = _SlabBuffer(iter(slabs))
    for first in range(0, placement.size[0], PLANES_AT_ONCE):
        rows = slice(first, min(first + PLANES_AT_ONCE, placement.size[0]))
        inside = slice(max(first, start), min(rows.stop, stop))
        if inside.start >= inside.stop:
            yield _OutsidePlanes(rows, placement)
            continue
        mix = operator[inside.start - start : inside.stop - start]
        used = np.flatnonzero(mix.any(axis=0))
        low = buffer.planes(int(used[0]), int(used[-1]) + 1)  # (class, low planes, low y, low z)
        yield _InterpolatedPlanes(rows, inside, placement, low, mix[:, used[0] : used[-1] + 1])
        del low


def label_map(
    planes: Iterable[Planes],
    classes: Classes,
    size: Triple,
    save: Save | None = None,
    view: Turn = SWAPS[0],
    logits: bool = False,
    temperature: float = 1.0,
) -> LabelMap:
    """The label values (x, y, z) of a whole grid; 0 is the background.

    The most probable class wins, the first one of a tie. Regions are painted in order wherever they
    are more probable than 0.5, which is a logit of 0.

    Args:
        planes: all planes of the grid.
        classes: what the probabilities are of, and the value that each class paints.
        size: voxels of the returned grid.
        save: called with all probabilities, one class of some planes at a time.
        view: from the returned grid to that of the planes. Planes are contiguous in memory.
        logits: whether the planes hold logits.
        temperature: of the probabilities that are saved; the label map does not depend on it.
    """
    swap, kind = view.axes[0], np.uint8 if max(classes.painted) < 256 else np.uint16
    label: LabelMap = np.zeros(SWAPS[swap].triple(size), kind).swapaxes(0, swap)
    out = view.array(label)
    for some in planes:
        if classes.are_regions:
            _paint_regions(some, classes.painted[1:], out[some.rows], 0.0 if logits else 0.5)
        else:
            # The winner has at least 1 / classes of a sum of one. A class that is below half of
            # that everywhere cannot win.
            least = None if logits else 0.5 / len(classes.painted)
            _paint_classes(some, classes.painted, out[some.rows], least)
        if save is not None:
            if logits or temperature != 1:
                some = ProbabilityPlanes(some, classes, logits, temperature)
            for index in range(classes.outputs):
                save(index, some.rows, some.probabilities(index, whole_area(some.shape)))
    return label


def _paint_classes(
    planes: Planes, values: tuple[int, ...], out: LabelMap, threshold: float | None
) -> None:
    areas = {index: planes.area_above(index, threshold) for index in range(1, len(values))}
    likely = {index: area for index, area in areas.items() if area is not None}
    hull = union_of_boxes(likely.values())
    if hull is None:
        return
    best = planes.probabilities(0, hull)  # of the winner so far, (x, *hull)
    for index, area in likely.items():
        candidate = planes.probabilities(index, area)
        y, z = (_shifted(side, -of.start) for side, of in zip(area, hull, strict=True))
        rival = best[:, y, z]
        np.copyto(out[:, *area], values[index], where=candidate > rival)
        np.maximum(candidate, rival, out=rival)


def _paint_regions(
    planes: Planes, values: tuple[int, ...], out: LabelMap, threshold: float
) -> None:
    for index, value in enumerate(values):
        if (area := planes.area_above(index, threshold)) is not None:
            np.copyto(out[:, *area], value, where=planes.probabilities(index, area) > threshold)


class ProbabilityPlanes:
    """The probabilities of planes of logits, or of probabilities with another temperature."""

    def __init__(
        self, planes: Planes, classes: Classes, logits: bool = True, temperature: float = 1.0
    ) -> None:
        self.planes, self.classes, self.temperature = planes, classes, temperature
        self.logits, self.rows, self.shape = logits, planes.rows, planes.shape

    def _logits(self, index: int, area: Area) -> NDArray[np.float32]:
        found = self.planes.probabilities(index, area)
        if not self.logits:
            found = to_logits(found, self.classes.are_regions)
        return found / np.float32(self.temperature) if self.temperature != 1 else found

    def area_above(self, index: int, threshold: float | None) -> Area | None:
        """All of the planes: the largest probability is not known from the logits around."""
        return whole_area(self.shape)

    @cached_property
    def _normaliser(self) -> NDArray[np.float32]:
        """The logarithm of the sum of the classes' exponentials."""
        whole = whole_area(self.shape)
        each = (self._logits(i, whole) for i in range(self.classes.outputs))
        total = next(each)
        for logits in each:
            total = np.logaddexp(total, logits)
        return total

    def probabilities(self, index: int, area: Area) -> NDArray[np.float32]:
        """A class's softmax, or a region's sigmoid, in an area of the planes."""
        found = self._logits(index, area)
        if self.classes.are_regions:
            return np.asarray(expit(found), np.float32)
        return np.asarray(np.exp(found - self._normaliser[:, *area]))


def to_logits(probabilities: NDArray[np.float32], are_regions: bool) -> NDArray[np.float32]:
    """Finite logits of which a softmax, or for regions a sigmoid, gives the probabilities."""
    found = np.clip(probabilities, TINY, 1 - TINY)
    return np.asarray(logit(found) if are_regions else np.log(found), np.float32)


class MeanPlanes:
    """The mean of several models' probabilities on the same planes."""

    def __init__(self, members: Sequence[Planes]) -> None:
        self.members = members
        self.rows, self.shape = members[0].rows, members[0].shape

    def area_above(self, index: int, threshold: float | None) -> Area | None:
        """An area outside of which the mean is not above `threshold`: there, no member is."""
        return union_of_boxes(member.area_above(index, threshold) for member in self.members)

    def probabilities(self, index: int, area: Area) -> NDArray[np.float32]:
        """The mean of a class in an area of the planes, (x, *area)."""
        total = self.members[0].probabilities(index, area)
        for member in self.members[1:]:
            total = total + member.probabilities(index, area)
        return total / np.float32(len(self.members))


class _SlabBuffer:
    """The planes of the network's grid that are needed now."""

    def __init__(self, slabs: Iterator[Slab]) -> None:
        self.slabs, self.stop = slabs, 0
        self.parts: list[Slab] = []

    def planes(self, start: int, stop: int) -> NDArray[np.float32]:
        """Planes from `start` to `stop`; planes before `start` are never needed again."""
        self._drop_before(start)
        while self.stop < stop:
            first, planes = next(self.slabs)
            self.stop = first + planes.shape[1]
            self.parts.append((first, planes))
            self._drop_before(start)
        if len(self.parts) > 1:
            kept = [planes[:, max(0, start - first) :] for first, planes in self.parts]
            self.parts = [(start, np.concatenate(kept, axis=1))]
        first, planes = self.parts[0]
        return planes[:, start - first : stop - first]

    def _drop_before(self, start: int) -> None:
        self.parts = [part for part in self.parts if part[0] + part[1].shape[1] > start]


class _OutsidePlanes:
    """Planes that the network's grid does not reach."""

    def __init__(self, rows: slice, placement: Placement) -> None:
        self.rows, self.index = rows, placement.outside
        self.absent, self.present = (-np.inf, 0.0) if placement.logits else (0.0, 1.0)
        self.shape = (rows.stop - rows.start, placement.size[1], placement.size[2])

    def area_above(self, index: int, threshold: float | None) -> Area | None:
        return whole_area(self.shape) if index == self.index else None

    def probabilities(self, index: int, area: Area) -> NDArray[np.float32]:
        shape = (self.shape[0], *(side.stop - side.start for side in area))
        return np.full(shape, self.present if index == self.index else self.absent, np.float32)


class _InterpolatedPlanes:
    """Planes that are interpolated, at least in part, from those of the network's grid.

    Args:
        rows: which planes of the scan's grid.
        inside: those of them that the network's grid reaches.
        placement: of the network's grid.
        low: the planes of the network's grid that they depend on, (class, x, y, z).
        mix: weights of these for each plane inside, (inside, x).
    """

    def __init__(
        self,
        rows: slice,
        inside: slice,
        placement: Placement,
        low: NDArray[np.float32],
        mix: NDArray[np.float32],
    ) -> None:
        self.rows, self.low, self.float16 = rows, low, placement.float16
        self.outside = _OutsidePlanes(rows, placement)
        self.shape = self.outside.shape
        self.inside = _shifted(inside, -rows.start)
        self.x_bands = (Band(slice(0, len(mix)), slice(0, mix.shape[1]), mix),)
        self.sides = tuple(slice(start, stop) for start, stop in placement.box[1:])
        sizes = [side.stop - side.start for side in self.sides]
        self.yz_bands = [
            axis_bands(low_size, size, order)
            for low_size, size, order in zip(
                placement.low_shape[1:], sizes, placement.orders[1:], strict=True
            )
        ]
        self.is_whole = inside == rows and self.sides == whole_area(self.shape)

    def area_above(self, index: int, threshold: float | None) -> Area | None:
        if index == self.outside.index and not self.is_whole:
            return whole_area(self.shape)
        limit = self.low[0] if threshold is None else threshold
        likely = (self.low[index] > limit).any(axis=0)  # (low y, low z)
        if not likely.any():
            return None
        y, z = (
            _reached(bands, np.flatnonzero(likely.any(axis=other)), side.start)
            for bands, other, side in zip(self.yz_bands, (1, 0), self.sides, strict=True)
        )
        return y, z

    def probabilities(self, index: int, area: Area) -> NDArray[np.float32]:
        covered = [_intersection(*pair) for pair in zip(area, self.sides, strict=True)]
        if any(side.start >= side.stop for side in covered):
            return self.outside.probabilities(index, area)
        # Interpolate whole bands, then cut out what is needed of them.
        own = [_shifted(side, -of.start) for side, of in zip(covered, self.sides, strict=True)]
        bands = [_overlapping(*pair) for pair in zip(self.yz_bands, own, strict=True)]
        y, z = (_shifted(side, -of[0].rows.start) for side, of in zip(own, bands, strict=True))
        found = self._interpolated(index, bands)[:, y, z]
        if len(found) == self.shape[0] and covered == list(area):
            return found
        out = self.outside.probabilities(index, area)
        y, z = (_shifted(side, -of.start) for side, of in zip(covered, area, strict=True))
        out[self.inside, y, z] = found
        return out

    def _interpolated(self, index: int, bands: Sequence[Sequence[Band]]) -> NDArray[np.float32]:
        """All planes inside, at these bands of y and z."""
        along = [self.x_bands, *bands]
        needed = [slice(axis[0].columns.start, axis[-1].columns.stop) for axis in along]
        volume: NDArray[np.float32] = self.low[index][tuple(needed)]
        shape = [axis[-1].rows.stop - axis[0].rows.start for axis in along]
        for axis in most_shrinking_first(volume.shape, shape):
            volume = apply_bands(along[axis], volume, axis, needed[axis].start)
        return volume.astype(np.float16).astype(np.float32) if self.float16 else volume


def _reached(bands: Sequence[Band], low: NDArray[np.intp], offset: int) -> slice:
    """The voxels of all bands that depend on any of these low voxels, on the scan's grid.

    If no band does, because the scan's grid is the coarser one, it is a band close by.
    """
    last = [band for band in bands if band.columns.start <= low[-1]][-1:] or [bands[0]]
    first = [band for band in bands if low[0] < band.columns.stop][:1] or [bands[-1]]
    start = min(first[0].rows.start, last[0].rows.start)
    return slice(start + offset, max(first[0].rows.stop, last[0].rows.stop) + offset)


def _overlapping(bands: Sequence[Band], side: slice) -> list[Band]:
    """The bands that hold any of these new voxels."""
    return [band for band in bands if band.rows.start < side.stop and side.start < band.rows.stop]


def _intersection(one: slice, other: slice) -> slice:
    return slice(max(one.start, other.start), min(one.stop, other.stop))


def _shifted(side: slice, by: int) -> slice:
    return slice(side.start + by, side.stop + by)


def whole_area(shape: Triple) -> Area:
    """All of the planes of this shape (x, y, z)."""
    return slice(0, shape[1]), slice(0, shape[2])
