"""The plan's preprocessing steps, in order, and what prediction needs to undo them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import bounding_box
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image
from autoseg.image.label_writer import HIGHEST_LABEL
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, CropToNonzero, Resample, Rescale, ZScore
from autoseg.preprocessing.channel import Channel
from autoseg.preprocessing.resample import (
    axis_orders,
    resample_channel,
    resample_label,
    resampled_shape,
)

IGNORED = -1


@dataclass(frozen=True)
class Prepared:
    """A case as the network sees it, and the way back to its own grid.

    Attributes:
        image: float32, (channel, x, y, z).
        label: int16, (x, y, z): the index of a part of `Plan.classes`, `IGNORED` where unknown.
        geometry: the grid of the file.
        box: start and stop along x, y, z of the part of that grid that was kept.
        spacing_mm: voxel spacing of `image`.
    """

    image: NDArray[np.float32]
    label: NDArray[np.int16] | None
    geometry: Geometry
    box: tuple[tuple[int, int], ...]
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class _Case:
    """A case between two steps.

    Attributes:
        channels: the scan.
        label: class indices (x, y, z), as in `Prepared`.
        box: start and stop of the part of the file's grid that was kept.
        spacing_mm: voxel spacing now.
        nonzero: where any channel of the scan was not zero before the steps; None if no step asks.
    """

    channels: tuple[Channel, ...]
    label: NDArray[np.int16] | None
    box: tuple[tuple[int, int], ...]
    spacing_mm: tuple[float, float, float]
    nonzero: NDArray[np.bool_] | None


def prepare(plan: Plan, image: Image, label: NDArray[np.integer[Any]] | None = None) -> Prepared:
    """Apply the plan's steps to a scan and, if there is one, to its label map (x, y, z)."""
    masked = any(isinstance(step, ZScore) and step.nonzero for step in plan.preprocessing)
    channels = tuple(Channel(values) for values in image.array)
    now = _Case(
        channels=channels,
        label=None if label is None else to_classes(plan, label),
        box=tuple((0, size) for size in image.geometry.size),
        spacing_mm=image.geometry.spacing_mm,
        nonzero=_any_nonzero(channels) if masked else None,
    )
    for step in plan.preprocessing:
        match step:
            case CropToNonzero():
                now = _crop(now)
            case Resample():
                now = _resample(now, step, plan)
            case Clip() | Rescale() | ZScore():
                now = _change(now, step)
    out = np.empty((len(now.channels), *now.channels[0].shape), np.float32)
    for channel, values in zip(now.channels, out, strict=True):
        channel.values(out=values)
    return Prepared(out, now.label, image.geometry, now.box, now.spacing_mm)


def to_classes(plan: Plan, label: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
    """Turn label values into the indices of the plan's parts: its classes, or values of regions."""
    table = np.zeros(HIGHEST_LABEL + 1, np.int16)
    for index, values in enumerate(plan.classes.parts):
        table[list(values)] = index
    if plan.ignore_label is not None:
        table[plan.ignore_label] = IGNORED
    classes: NDArray[np.int16] = table[label]
    return classes


def _any_nonzero(channels: tuple[Channel, ...]) -> NDArray[np.bool_]:
    found = channels[0].nonzero()
    for channel in channels[1:]:
        found |= channel.nonzero()
    return found


def _crop(now: _Case) -> _Case:
    slices = bounding_box(_any_nonzero(now.channels))
    if slices is None:  # an empty scan stays whole
        return now
    offsets = [start for start, _ in now.box]
    return replace(
        now,
        channels=tuple(channel.cut(slices) for channel in now.channels),
        label=None if now.label is None else now.label[slices],
        box=tuple(
            (side.start + offset, side.stop + offset)
            for side, offset in zip(slices, offsets, strict=True)
        ),
        nonzero=None if now.nonzero is None else now.nonzero[slices],
    )


def _resample(now: _Case, step: Resample, plan: Plan) -> _Case:
    spacing = now.spacing_mm
    target = plan.target_spacing_of(spacing)
    shape = resampled_shape(now.channels[0].shape, spacing, target, step.rounding)
    orders = axis_orders(step.image_order, spacing, target, step.anisotropy)
    channels = tuple(resample_channel(channel, shape, orders) for channel in now.channels)
    label = now.label
    if label is not None:
        orders = axis_orders(step.label_order, spacing, target, step.anisotropy)
        label = resample_label(label, shape, orders)
    nonzero = now.nonzero
    if nonzero is not None:
        nonzero = resample_label(nonzero, shape, (0, 0, 0))
    return replace(now, channels=channels, label=label, spacing_mm=target, nonzero=nonzero)


def _change(now: _Case, step: Clip | Rescale | ZScore) -> _Case:
    """A step of single voxels, for the channels that it is for."""
    channels = list(now.channels)
    for index, channel in enumerate(channels):
        if step.channel in (None, index):
            match step:
                case Clip():
                    channels[index] = channel.then(partial(_clip, step.window))
                case Rescale():
                    channels[index] = channel.then(partial(_rescale, step, channel.limits()))
                case ZScore():
                    channels[index] = _z_score(channel, step, now.nonzero)
    return replace(now, channels=tuple(channels))


def _clip(window: tuple[float, float], values: NDArray[np.float32]) -> None:
    np.clip(values, *window, out=values)


def _rescale(step: Rescale, limits: tuple[float, float], values: NDArray[np.float32]) -> None:
    low, high = limits
    start, stop = step.range
    values -= low
    values /= (high - low) or 1.0  # one value only: it becomes `start`
    values *= stop - start
    values += start
    if step.whole_numbers:
        np.rint(values, out=values)


def _z_score(channel: Channel, step: ZScore, nonzero: NDArray[np.bool_] | None) -> Channel:
    # Not asked of the image as it is now: the steps before have moved its zeros.
    if step.nonzero and nonzero is not None and nonzero.any():
        values = channel.values()
        inside = values[nonzero]
        mean, std = _figures(Channel(inside.reshape(-1, 1, 1)), step)
        _standardize(mean, std, inside)
        values[nonzero] = inside
        return Channel(values)
    return channel.then(partial(_standardize, *_figures(channel, step)))


def _figures(channel: Channel, step: ZScore) -> tuple[float, float]:
    """The mean and the standard deviation: the plan's, or else the channel's own."""
    mean, std = step.mean, step.std
    if mean is None or std is None:
        own_mean, own_std = channel.mean_and_std()
        mean, std = (own_mean if mean is None else mean), (own_std if std is None else std)
    return mean, std


def _standardize(mean: float, std: float, values: NDArray[np.float32]) -> None:
    values -= mean
    values /= std or 1.0  # one value only: it becomes 0
