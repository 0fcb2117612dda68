"""The plan's preprocessing steps, in order, and what prediction needs to undo them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.image import Geometry, Image
from autoseg.planning.plan import Plan
from autoseg.planning.steps import Clip, CropToNonzero, Resample, Rescale, ZScore
from autoseg.preprocessing.resample import (
    Shape3,
    axis_orders,
    resample_image,
    resample_label,
    resampled_shape,
)

IGNORED = -1


@dataclass(frozen=True)
class Prepared:
    """A case as the network sees it, and the way back to its own grid.

    Attributes:
        image: float32, (channel, x, y, z).
        label: int16, (x, y, z): the class's index in the plan, `IGNORED` where it doesn't count.
        geometry: the grid of the file.
        box: start and stop along x, y, z of the part of that grid that was kept.
        spacing_mm: voxel spacing of `image`.
        nonzero: where any channel of the scan was not zero before the steps; None if no step asks.
    """

    image: NDArray[np.float32]
    label: NDArray[np.int16] | None
    geometry: Geometry
    box: tuple[tuple[int, int], ...]
    spacing_mm: tuple[float, float, float]
    nonzero: NDArray[np.bool_] | None = None

    @property
    def box_shape(self) -> Shape3:
        """Voxels of the kept part on the file's grid."""
        x, y, z = (stop - start for start, stop in self.box)
        return x, y, z


def prepare(plan: Plan, image: Image, label: NDArray[np.integer[Any]] | None = None) -> Prepared:
    """Apply the plan's steps to a scan and, if there is one, to its label map (x, y, z)."""
    masked = any(isinstance(step, ZScore) and step.nonzero for step in plan.preprocessing)
    prepared = Prepared(
        image=np.array(image.array, np.float32, order="C"),  # a copy: the steps work in place
        label=None if label is None else to_classes(plan, label),
        geometry=image.geometry,
        box=tuple((0, size) for size in image.geometry.size),
        spacing_mm=image.geometry.spacing_mm,
        nonzero=(image.array != 0).any(axis=0) if masked else None,
    )
    for step in plan.preprocessing:
        match step:
            case CropToNonzero():
                prepared = _crop(prepared)
            case Clip():
                for channel in _channels(prepared, step.channel):
                    np.clip(channel, *step.window, out=channel)
            case Rescale():
                for channel in _channels(prepared, step.channel):
                    _rescale(channel, step)
            case Resample():
                prepared = _resample(prepared, step, plan)
            case ZScore():
                # Not asked of the image as it is now: the steps before have moved its zeros.
                inside = prepared.nonzero if step.nonzero else None
                for channel in _channels(prepared, step.channel):
                    _z_score(channel, step, inside)
    return prepared


def to_classes(plan: Plan, label: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
    """Turn label values into class indices (0, 1, ... in the plan's order)."""
    table = np.zeros(65536, np.int16)
    for index, values in enumerate(plan.labels.values()):
        table[list(values)] = index
    if plan.ignore_label is not None:
        table[plan.ignore_label] = IGNORED
    classes: NDArray[np.int16] = table[label]
    return classes


def _channels(prepared: Prepared, channel: int | None) -> NDArray[np.float32]:
    """The channels that a step is for, as views."""
    return prepared.image if channel is None else prepared.image[channel : channel + 1]


def _crop(prepared: Prepared) -> Prepared:
    occupied = (prepared.image != 0).any(axis=0)
    if not occupied.any():  # an empty scan has no box: keep it whole
        return prepared
    from acvl_utils.cropping_and_padding.bounding_boxes import (
        bounding_box_to_slice,
        get_bbox_from_mask,
    )

    box = get_bbox_from_mask(occupied)
    slices = bounding_box_to_slice(box)
    nonzero = prepared.nonzero
    offsets = [start for start, _ in prepared.box]
    return replace(
        prepared,
        image=np.ascontiguousarray(prepared.image[(slice(None), *slices)]),
        label=None if prepared.label is None else np.ascontiguousarray(prepared.label[slices]),
        box=tuple(
            (int(start + offset), int(stop + offset))
            for (start, stop), offset in zip(box, offsets, strict=True)
        ),
        nonzero=None if nonzero is None else np.ascontiguousarray(nonzero[slices]),
    )


def _rescale(channel: NDArray[np.float32], step: Rescale) -> None:
    low, high = float(channel.min()), float(channel.max())
    start, stop = step.range
    channel -= low
    channel /= (high - low) or 1.0  # one value only: it becomes `start`
    channel *= stop - start
    channel += start
    if step.whole_numbers:
        np.rint(channel, out=channel)


def _resample(prepared: Prepared, step: Resample, plan: Plan) -> Prepared:
    target, spacing = plan.target_spacing_mm, prepared.spacing_mm
    shape = resampled_shape(prepared.image.shape[1:], spacing, target, step.rounding)
    orders = axis_orders(step.image_order, spacing, target, step.anisotropy)
    image = resample_image(prepared.image, shape, orders)
    label = prepared.label
    if label is not None:
        orders = axis_orders(step.label_order, spacing, target, step.anisotropy)
        label = resample_label(label, shape, orders)
    nonzero = prepared.nonzero
    if nonzero is not None:
        nonzero = resample_label(nonzero, shape, (0, 0, 0))
    return replace(prepared, image=image, label=label, spacing_mm=target, nonzero=nonzero)


def _z_score(channel: NDArray[np.float32], step: ZScore, inside: NDArray[np.bool_] | None) -> None:
    where = slice(None) if inside is None or not inside.any() else inside
    values = channel[where]
    mean = float(values.mean(dtype=np.float64)) if step.mean is None else step.mean
    std = float(values.std(dtype=np.float64)) if step.std is None else step.std
    channel[where] = (values - mean) / (std or 1.0)  # one value only: it becomes 0
