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

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from typing import Any, Protocol

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from autoseg.common.arrays import Box, Floats, LabelMap, Triple, union_of_boxes
from autoseg.image.geometry import SWAPS, Turn
from autoseg.plan.labels import Classes
from autoseg.prediction.sliding_window import Slab
from autoseg.preprocessing.resample import Axis, axis_of, most_shrinking_first

PLANES_AT_ONCE = 16
TINY = np.float32(1e-6)  # a probability that stands for zero

Area = Box  # a rectangle of all planes: slices along y and z
Save = Callable[[int, slice, Floats], None]  # class, planes, probabilities (x, y, z)


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

    def probabilities(self, index: int, area: Area) -> Floats:
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
        on_card: whether all classes are interpolated and painted at once, where the sums are.
    """

    low_shape: Triple
    box: tuple[tuple[int, int], ...]
    size: Triple
    outside: int | None = 0
    orders: Triple = (1, 1, 1)
    logits: bool = False
    float16: bool = False
    on_card: bool = False

    @cached_property
    def axes(self) -> Sequence[Axis]:
        """How each axis of the box is interpolated."""
        sides = [stop - start for start, stop in self.box]
        return [axis_of(*each) for each in zip(self.low_shape, sides, self.orders, strict=True)]


def native_planes(slabs: Iterable[Slab], placement: Placement) -> Iterator[Planes]:
    """All planes of the scan's grid in order, `PLANES_AT_ONCE` at a time.

    Args:
        slabs: consecutive planes of the network's grid, from x = 0 on. Each is taken as late as
            possible.
        placement: of the network's grid.
    """
    buffer = _SlabBuffer(iter(slabs))
    for first in range(0, placement.size[0], PLANES_AT_ONCE):
        rows = slice(first, min(first + PLANES_AT_ONCE, placement.size[0]))
        yield (_CardPlanes if placement.on_card else _NativePlanes)(rows, placement, buffer)


def card_bytes(low_shape: Triple, size: Triple, outputs: int) -> int:
    """Memory of planes and of the label map on a card."""
    y, z = map(max, zip(low_shape[1:], size[1:], strict=True))
    # Planes of the network's grid, the interpolated ones, and two steps on the way.
    return 4 * 4 * outputs * PLANES_AT_ONCE * y * z + math.prod(size)


def label_map(
    planes: Iterable[Planes],
    classes: Classes,
    size: Triple,
    saves: Sequence[Save] = (),
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
        saves: are called with all probabilities, one class of some planes at a time.
        view: from the returned grid to that of the planes. Planes are contiguous in memory.
        logits: whether the planes hold logits.
        temperature: of the probabilities that are saved; the label map does not depend on it.
    """
    swap, kind = view.axes[0], np.uint8 if max(classes.painted) < 256 else np.uint16
    label: LabelMap = np.zeros(SWAPS[swap].triple(size), kind).swapaxes(0, swap)
    out = view.array(label)
    # The winner has at least 1 / classes of a sum of one. A class that is below half of that
    # everywhere cannot win.
    limit = 0.0 if logits else 0.5 if classes.are_regions else 0.5 / len(classes.painted)
    least = None if logits and not classes.are_regions else limit
    on_card: list[Tensor] = []
    box: Box = ()
    for some in planes:
        if isinstance(some, _CardPlanes):
            if some.low is not None:
                on_card.append(some.painted(classes, limit))
                box = tuple(slice(*side) for side in some.placement.box)
        elif classes.are_regions:
            for index, value in enumerate(classes.painted[1:]):
                if (area := some.area_above(index, least)) is not None:
                    is_inside = some.probabilities(index, area) > limit
                    np.copyto(out[some.rows][:, *area], value, where=is_inside)
        else:
            _paint_classes(some, classes.painted, out[some.rows], least)
        if saves:
            if logits or temperature != 1:
                some = ProbabilityPlanes(some, classes, logits, temperature)
            for index in range(classes.outputs):
                shares = some.probabilities(index, whole_area(some.shape))
                for save in saves:
                    save(index, some.rows, shares)
    if on_card:
        out[box] = np.array(classes.painted, kind)[torch.cat(on_card).cpu().numpy()]
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


class ProbabilityPlanes:
    """The probabilities of planes of logits, or of probabilities with another temperature."""

    def __init__(
        self, planes: Planes, classes: Classes, logits: bool = True, temperature: float = 1.0
    ) -> None:
        self.planes, self.classes, self.temperature = planes, classes, temperature
        self.logits, self.rows, self.shape = logits, planes.rows, planes.shape

    def _logits(self, index: int, area: Area) -> Floats:
        found = self.planes.probabilities(index, area)
        if not self.logits:
            found = to_logits(found, self.classes.are_regions)
        return found / np.float32(self.temperature) if self.temperature != 1 else found

    def area_above(self, index: int, threshold: float | None) -> Area | None:
        """All of the planes: the largest probability is not known from the logits around."""
        return whole_area(self.shape)

    @cached_property
    def _normaliser(self) -> Floats:
        """The logarithm of the sum of the classes' exponentials."""
        whole = whole_area(self.shape)
        return reduce(np.logaddexp, (self._logits(i, whole) for i in range(self.classes.outputs)))

    def probabilities(self, index: int, area: Area) -> Floats:
        """A class's softmax, or a region's sigmoid, in an area of the planes."""
        found = self._logits(index, area)
        if self.classes.are_regions:
            return np.asarray(expit(found), np.float32)
        return np.asarray(np.exp(found - self._normaliser[:, *area]))


def to_logits(probabilities: Floats, are_regions: bool) -> Floats:
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

    def probabilities(self, index: int, area: Area) -> Floats:
        """The mean of a class in an area of the planes, (x, *area)."""
        each = (member.probabilities(index, area) for member in self.members)
        return np.asarray(reduce(np.add, each) / np.float32(len(self.members)))


class _SlabBuffer:
    """The planes of the network's grid that are needed now."""

    def __init__(self, slabs: Iterator[Slab]) -> None:
        self.slabs, self.at = slabs, slice(0, 0)
        self.slab: Slab | None = None
        self.low: Tensor | None = None  # the planes `at`

    def planes(self, needed: slice) -> Tensor:
        """Some planes (class, x, y, z); planes before them are never needed again."""
        if self.low is None or needed.stop > self.at.stop:
            slab = self.slab or next(self.slabs)
            kept, done = self.low, max(needed.start, self.at.stop)
            low = slab.empty(needed.stop - needed.start)
            if kept is not None and done > needed.start:
                low[:, : done - needed.start] = kept[:, needed.start - self.at.start :]
            while done < needed.stop:
                if slab.stop <= done:
                    slab = next(self.slabs)
                    continue
                stop = min(needed.stop, slab.stop)
                slab.mean(done, stop, low[:, done - needed.start : stop - needed.start])
                done = stop
            self.slab, self.low, self.at = slab, low, needed
        first = needed.start - self.at.start
        return self.low[:, first : first + needed.stop - needed.start]


class _NativePlanes:
    """Planes of the scan's grid, which are interpolated where the network's grid reaches."""

    def __init__(self, rows: slice, placement: Placement, buffer: _SlabBuffer) -> None:
        self.rows, self.placement = rows, placement
        self.shape = (rows.stop - rows.start, placement.size[1], placement.size[2])
        (start, stop), *sides = placement.box
        self.sides = [slice(*side) for side in sides]
        # Which of the planes the network's grid reaches, counted from its start.
        self.own = _shifted(_intersection(rows, slice(start, stop)), -start)
        self.inside = _shifted(self.own, start - rows.start)
        self.low: Any = None  # an array, on a card a tensor
        if self.own.start < self.own.stop:
            self.low = buffer.planes(placement.axes[0].columns(self.own))
            self.low = self.low if placement.on_card else self.low.numpy()

    def _outside(self, index: int) -> float:
        absent, present = (-math.inf, 0.0) if self.placement.logits else (0.0, 1.0)
        return present if index == self.placement.outside else absent

    def area_above(self, index: int, threshold: float | None) -> Area | None:
        whole = whole_area(self.shape)
        is_whole = self.inside == slice(0, self.shape[0]) and self.sides == [*whole]
        if index == self.placement.outside and not is_whole:
            return whole
        if self.low is None:
            return None
        limit = self.low[0] if threshold is None else threshold
        likely = (self.low[index] > limit).any(axis=0)  # (low y, low z)
        found = []
        for axis, other, side in zip(self.placement.axes[1:], (1, 0), self.sides, strict=True):
            low = np.flatnonzero(likely.any(axis=other))
            if not len(low) or not (rows := axis.depending_on(int(low[0]), int(low[-1]))):
                return None
            found.append(_shifted(rows, side.start))
        return found[0], found[1]

    def probabilities(self, index: int, area: Area) -> Floats:
        shape = (self.shape[0], *(side.stop - side.start for side in area))
        y, z = (_intersection(*pair) for pair in zip(area, self.sides, strict=True))
        if self.low is None or y.start >= y.stop or z.start >= z.stop:
            return np.full(shape, self._outside(index), np.float32)
        rows = [self.own, *map(_shifted, (y, z), (-side.start for side in self.sides))]
        found = self._interpolated(index, rows)
        if found.shape == shape:
            return found
        out = np.full(shape, self._outside(index), np.float32)
        y, z = map(_shifted, (y, z), (-side.start for side in area))
        out[self.inside, y, z] = found
        return out

    def _interpolated(self, index: int, rows: Sequence[slice]) -> Floats:
        """Some voxels of the part of the scan's grid that the network's grid reaches."""
        axes = self.placement.axes
        low: Floats = self.low[index]
        needed = [axis.columns(some) for axis, some in zip(axes, rows, strict=True)]
        found = low[:, needed[1], needed[2]]
        for axis in most_shrinking_first(found.shape, [some.stop - some.start for some in rows]):
            if not axes[axis].is_identity:
                found = axes[axis].apply(found, axis, rows[axis], needed[axis].start)
        if self.placement.float16:
            return found.astype(np.float16).astype(np.float32)
        return np.asarray(found.copy() if np.may_share_memory(found, low) else found)


class _CardPlanes(_NativePlanes):
    """Planes of all classes on the device of the sums, from which only labels come back."""

    def area_above(self, index: int, threshold: float | None) -> Area | None:
        return whole_area(self.shape)

    @cached_property
    def values(self) -> Tensor:
        """Of all classes in the box, (class, x, y, z)."""
        found: Tensor = self.low
        rows = [self.own, *(slice(0, s.stop - s.start) for s in self.sides)]
        sizes = [some.stop - some.start for some in rows]
        for axis in most_shrinking_first(found.shape[1:], sizes):
            if not (of := self.placement.axes[axis]).is_identity:
                weights = _on_device(of, found.device)[rows[axis], of.columns(rows[axis])]
                found = torch.tensordot(found, weights, ([1 + axis], [1])).movedim(-1, 1 + axis)
        return found.half().float() if self.placement.float16 else found

    def _interpolated(self, index: int, rows: Sequence[slice]) -> Floats:
        return self.values[index][:, rows[1], rows[2]].cpu().numpy()

    def painted(self, classes: Classes, threshold: float) -> Tensor:
        """The number of each voxel's class in the box; regions count from 1."""
        kind = torch.uint8 if len(classes.painted) <= 256 else torch.int16
        if not classes.are_regions:
            return self.values.argmax(0).to(kind)
        found = self.values.new_zeros(self.values.shape[1:], dtype=kind)
        for number, values in enumerate(self.values, start=1):
            found.masked_fill_(values > threshold, number)
        return found


@lru_cache(maxsize=16)
def _on_device(axis: Axis, device: torch.device) -> Tensor:
    return torch.from_numpy(axis.weights).to(device)


def _intersection(one: slice, other: slice) -> slice:
    return slice(max(one.start, other.start), min(one.stop, other.stop))


def _shifted(side: slice, by: int) -> slice:
    return slice(side.start + by, side.stop + by)


def whole_area(shape: Triple) -> Area:
    """All of the planes of this shape (x, y, z)."""
    return slice(0, shape[1]), slice(0, shape[2])
