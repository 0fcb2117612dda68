"""The preprocessing steps of a plan, and what prediction needs to undo them.

Before all steps, the axes of a scan are brought to the plan's orientation, as a view. The result is
the same to the bit in whatever order the scan is stored. Voxel-wise operations are recorded in a
`Channel`, and applied to a few planes at a time when values are needed. So a large scan is never in
memory as floats of full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from autoseg.common import arrays
from autoseg.common.arrays import Array, Box, ClassMap, Floats, LabelMap, Mask, Triple
from autoseg.image.geometry import SWAPS, Geometry, Turn
from autoseg.image.image import Image
from autoseg.image.label_writer import HIGHEST_LABEL
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, CropToNonzero, Resample, Rescale, ZScore
from autoseg.preprocessing import resample

SLAB_VOXELS = 1 << 20

Operation = Callable[[Floats], None]


@dataclass(frozen=True)
class Channel:
    """The values of one channel (x, y, z).

    Attributes:
        stored: float32, or integers that float32 represents exactly.
        operations: applied to float32 values in place, one after the other. Each is monotonic: it
            never makes the larger of two values the smaller one.
        layout: of the float32 values. The last digits of sums and of products depend on it. `K`
            keeps that of `stored`, `F` is that of a file, whatever that of `stored` is.
    """

    stored: Array
    operations: tuple[Operation, ...] = ()
    layout: Literal["K", "F"] = "K"

    @property
    def shape(self) -> Triple:
        """Voxels along x, y, z."""
        x, y, z = self.stored.shape
        return x, y, z

    def then(self, operation: Operation) -> Channel:
        """Return this channel with one more operation."""
        return replace(self, operations=(*self.operations, operation))

    def crop(self, box: Box) -> Channel:
        """Return the part of this channel within a box."""
        return replace(self, stored=self.stored[box])

    def slabs(self, axis: int | None = None) -> Iterator[tuple[Box, Floats]]:
        """Yield a few planes at a time: their box and a new array of their values.

        Args:
            axis: orthogonal to the planes; by default the one that is fastest to read.
        """
        if axis is None:
            axis = 2 if self.layout == "F" else int(np.argmax(self.stored.strides))
        size = self.shape[axis]
        planes = max(1, SLAB_VOXELS * size // self.stored.size)
        for start in range(0, size, planes):
            part = slice(start, start + planes)
            box = tuple(part if i == axis else slice(None) for i in range(3))
            yield box, self._apply(self.stored[box])

    def values(self, out: Floats | None = None) -> Floats:
        """Return all values, in `out` or in a new C-contiguous array."""
        out = np.empty(self.shape, np.float32) if out is None else out
        for box, slab in self.slabs():
            out[box] = slab
        return out

    def limits(self) -> tuple[float, float]:
        """Return the smallest and the largest value."""
        low, high = self._apply(np.array([self.stored.min(), self.stored.max()]))
        return float(low), float(high)

    def limits_of_planes(self, axis: int) -> Floats:
        """Return the smallest and the largest value of each plane across an axis, (2, plane)."""
        others = tuple(other for other in range(3) if other != axis)
        return self._apply(np.array([self.stored.min(others), self.stored.max(others)]))

    def mean_and_std(self) -> tuple[float, float]:
        """Return mean and standard deviation of all values, in float64."""
        count = self.stored.size
        mean = sum(float(slab.sum(dtype=np.float64)) for _, slab in self.slabs()) / count
        squares = sum(float(np.square(slab - np.float64(mean)).sum()) for _, slab in self.slabs())
        return mean, math.sqrt(squares / count)

    def nonzero(self) -> Mask:
        """Return the mask of nonzero values."""
        mask = np.empty_like(self.stored, np.bool_)
        for box, slab in self.slabs():
            mask[box] = slab != 0
        return mask

    def _apply(self, stored: Array) -> Floats:
        values = stored.astype(np.float32, order=self.layout)
        for operation in self.operations:
            operation(values)
        return values


def resample_channel(
    channel: Channel, shape: Triple, orders: Sequence[int], clip_planes: bool = False
) -> Channel:
    """Resample a channel to a shape (x, y, z) by splines of order 0, 1 or 3 along each axis.

    Values are clipped to the range of the channel, as in scikit-image; with `clip_planes`, to that
    of their old plane across the only axis of order 0. Two axes are resampled a few planes at a
    time, so that floats of the old resolution are needed along the last axis only.
    """
    if channel.shape == shape:
        return channel
    first, second, last = resample.most_shrinking_first(channel.shape, shape)
    between = list(shape)
    between[last] = channel.shape[last]
    middle = np.empty_like(channel.stored, np.float32, channel.layout, shape=between)
    for where, slab in channel.slabs(last):
        flat = resample.resample_axis(slab, first, shape[first], orders[first])
        middle[where] = resample.resample_axis(flat, second, shape[second], orders[second])
    values = resample.resample_axis(middle, last, shape[last], orders[last])
    low, high = (np.asarray(end, np.float32) for end in channel.limits())
    if clip_planes and 0 in orders and max(orders) > 0:
        axis = list(orders).index(0)
        nearest = resample.axis_operator(channel.shape[axis], shape[axis], 0).argmax(axis=1)
        others = [other for other in range(3) if other != axis]
        ends = channel.limits_of_planes(axis)[:, nearest]
        low, high = (np.expand_dims(end, others) for end in ends)
    return Channel(np.clip(values, low, high, out=values))


IGNORED = -1
GREY = 255  # largest value of a scan that was scaled to grey values before it was published


@dataclass(frozen=True)
class Prepared:
    """A preprocessed case, and its position on the turned grid of the raw file.

    Attributes:
        image: float32, (channel, x, y, z).
        label: int16, (x, y, z): index of a part of `Plan.classes`, or `IGNORED`.
        geometry: grid of the raw file, turned to the plan's orientation.
        box: start and stop along x, y, z of the part of that grid that was kept.
        spacing_mm: voxel spacing of `image`.
        turn: from the grid of the raw file to `geometry`.
    """

    image: Floats
    label: ClassMap | None
    geometry: Geometry
    box: tuple[tuple[int, int], ...]
    spacing_mm: tuple[float, float, float]
    turn: Turn = SWAPS[0]


@dataclass(frozen=True)
class _Case:
    """A case between two steps.

    Attributes:
        channels: the scan.
        label: class indices (x, y, z), as in `Prepared`.
        box: as in `Prepared`.
        spacing_mm: current voxel spacing.
        nonzero: mask of voxels where any channel of the raw scan is nonzero; None if no step uses
            it.
    """

    channels: tuple[Channel, ...]
    label: ClassMap | None
    box: tuple[tuple[int, int], ...]
    spacing_mm: tuple[float, float, float]
    nonzero: Mask | None


def prepare(plan: Plan, image: Image, label: LabelMap | None = None) -> Prepared:
    """Turn a scan and its label map (x, y, z), if any, and apply the steps of the plan to them."""
    masked = [step for step in plan.preprocessing if isinstance(step, ZScore) and step.nonzero]
    turn = Turn.of(image.geometry, plan.orientation)
    geometry = turn.geometry(image.geometry)
    layout: Literal["K", "F"] = "K" if plan.orientation is None else "F"
    channels = tuple(Channel(values, layout=layout) for values in turn.array(image.array))
    nonzero = _any_nonzero(channels) if masked else None
    if nonzero is not None and any(step.fill_holes for step in masked):
        nonzero = arrays.fill_holes(nonzero)
    classes = None if label is None else to_classes(plan, turn.array(label))
    box = tuple((0, size) for size in geometry.size)
    case = _Case(channels, classes, box, geometry.spacing_mm, nonzero)
    for step in plan.preprocessing:
        match step:
            case CropToNonzero():
                case = _crop(case)
            case Resample():
                case = _resample(case, step, plan)
            case Clip() | Rescale() | ZScore():
                case = _transform_intensities(case, step)
    out = np.empty((len(case.channels), *case.channels[0].shape), np.float32)
    for channel, values in zip(case.channels, out, strict=True):
        channel.values(out=values)
    return Prepared(out, case.label, geometry, case.box, case.spacing_mm, turn)


def to_classes(plan: Plan, label: LabelMap) -> ClassMap:
    """Replace label values by indices of `Plan.classes.parts`: classes, or values of regions."""
    table = np.zeros(HIGHEST_LABEL + 1, np.int16)
    for index, values in enumerate(plan.classes.parts):
        table[list(values)] = index
    if plan.ignore_label is not None:
        table[plan.ignore_label] = IGNORED
    classes: ClassMap = table[label]
    return classes if plan.orientation is None else np.asfortranarray(classes)


def round_trip_dice(plan: Plan, label: LabelMap, geometry: Geometry) -> float:
    """The mean Dice of a label map (x, y, z) brought to the plan's grid and back; 1 without any."""
    turn = Turn.of(geometry, plan.orientation)
    classes, spacing = to_classes(plan, turn.array(label)), turn.geometry(geometry).spacing_mm
    kept = classes
    for step in plan.preprocessing:
        if isinstance(step, Resample):
            target = plan.target_spacing_of(spacing)
            shape = resample.resampled_shape(classes.shape, spacing, target, step.rounding)
            for size in (shape, classes.shape):
                kept = resample.resample_label(kept, size, (1, 1, 1), step.label_ties)
    length, shared = len(plan.classes.parts) - IGNORED, classes[classes == kept]
    found = (arrays.count_values(each - IGNORED, length) for each in (classes, kept, shared))
    one, other, both = (counts[1 - IGNORED :] for counts in found)  # without the background
    known = one > 0
    return float(np.mean(2 * both[known] / (one + other)[known])) if known.any() else 1.0


def _any_nonzero(channels: tuple[Channel, ...]) -> Mask:
    found = channels[0].nonzero()
    for channel in channels[1:]:
        found |= channel.nonzero()
    return found


def _crop(case: _Case) -> _Case:
    box = arrays.bounding_box(_any_nonzero(case.channels))
    if box is None:  # a scan without nonzero voxels is kept
        return case
    pairs = zip(box, case.box, strict=True)
    return replace(
        case,
        channels=tuple(channel.crop(box) for channel in case.channels),
        label=None if case.label is None else case.label[box],
        box=tuple((side.start + start, side.stop + start) for side, (start, _) in pairs),
        nonzero=None if case.nonzero is None else case.nonzero[box],
    )


def _resample(case: _Case, step: Resample, plan: Plan) -> _Case:
    spacing = case.spacing_mm
    target = plan.target_spacing_of(spacing)
    shape = resample.resampled_shape(case.channels[0].shape, spacing, target, step.rounding)
    orders = resample.axis_orders(step.image_order, spacing, target, step.anisotropy)
    by_plane, label = step.clip == "plane", case.label
    channels = tuple(resample_channel(each, shape, orders, by_plane) for each in case.channels)
    if label is not None:
        orders = resample.axis_orders(step.label_order, spacing, target, step.anisotropy)
        label = resample.resample_label(label, shape, orders, step.label_ties)
    if (nonzero := case.nonzero) is not None:
        nonzero = resample.resample_label(nonzero, shape, (0, 0, 0))
    return replace(case, channels=channels, label=label, spacing_mm=target, nonzero=nonzero)


def _transform_intensities(case: _Case, step: Clip | Rescale | ZScore) -> _Case:
    """Apply a voxel-wise step to the channels that it selects."""
    channels = list(case.channels)
    for index, channel in enumerate(channels):
        if step.channel in (None, index):
            match step:
                case Clip():
                    low, high = channel.limits()
                    if step.scaled_scans == "clip" or not 0 <= low <= high <= GREY:
                        channels[index] = channel.then(partial(_clip, step.window))
                case Rescale():
                    channels[index] = channel.then(partial(_rescale, step, channel.limits()))
                case ZScore():
                    channels[index] = _z_score(channel, step, case.nonzero)
    return replace(case, channels=tuple(channels))


def _clip(window: tuple[float, float], values: Floats) -> None:
    np.clip(values, *window, out=values)


def _rescale(step: Rescale, limits: tuple[float, float], values: Floats) -> None:
    low, high = limits
    start, stop = step.range
    values -= low
    values /= (high - low) or 1.0  # a constant channel becomes `start`
    values *= stop - start
    values += start
    if step.whole_numbers:
        np.rint(values, out=values)


def _z_score(channel: Channel, step: ZScore, nonzero: Mask | None) -> Channel:
    # With the mask of the raw scan, because earlier steps may have changed its zeros.
    if step.nonzero and nonzero is not None and nonzero.any():
        values = channel.values()
        inside = values[nonzero]
        mean, std = _mean_and_std(Channel(inside.reshape(-1, 1, 1)), step)
        _standardize(mean, std, inside)
        values[nonzero] = inside
        return Channel(values)
    return channel.then(partial(_standardize, *_mean_and_std(channel, step)))


def _mean_and_std(channel: Channel, step: ZScore) -> tuple[float, float]:
    """Return mean and standard deviation: those of the plan, or else of the channel."""
    if step.mean is not None and step.std is not None:
        return step.mean, step.std
    mean, std = channel.mean_and_std()
    return mean if step.mean is None else step.mean, std if step.std is None else step.std


def _standardize(mean: float, std: float, values: Floats) -> None:
    values -= mean
    values /= std or 1.0  # a constant channel becomes 0
