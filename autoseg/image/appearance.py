"""What a scan looks like in a few figures: axes, spacing, extent and intensities inside the body.

The same figures of the training scans are in the fingerprint. All are measured on a regular sample
of at most `POINTS` ** 3 voxels, so that a large scan takes no longer than a small one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import bounding_box
from autoseg.image.image import Image
from autoseg.image.orientation import Turn, orientation_of

POINTS = 32  # along each axis
BODY_SIZE = 32  # quantiles of a body
BODY_FRACTIONS = (np.arange(BODY_SIZE) + 0.5) / BODY_SIZE
RANGE_FRACTIONS = (0.005, 0.995)
PADDING_SHARE = 0.05  # fewer voxels with one value are tissue
PATIENT = "LPS"  # order of the patient's axes: left-right, front-back, foot-head

Lengths = tuple[float, float, float]


@dataclass(frozen=True)
class Appearance:
    """The figures of one scan.

    Attributes:
        orientation: of the axes as they are stored.
        spacing_mm: from left to right, front to back, foot to head.
        extent_mm: of the box of nonzero voxels, in the same order.
        ranges: for each channel the 0.5 and the 99.5 percentile.
        bodies: for each channel the quantiles inside the body; empty if they are not known.
    """

    orientation: str
    spacing_mm: Lengths
    extent_mm: Lengths
    ranges: tuple[tuple[float, float], ...]
    bodies: tuple[tuple[float, ...], ...]


def appearance_of(image: Image) -> Appearance:
    """Measure a scan."""
    orientation, spacing = orientation_of(image.geometry), image.geometry.spacing_mm
    sampled, strides = _sample(image.array)
    box = bounding_box((sampled != 0).any(axis=0)) or tuple(map(slice, sampled.shape[1:]))
    x, y, z = (
        min((side.stop - (side.start or 0)) * stride, size) * mm
        for side, stride, size, mm in zip(box, strides, image.geometry.size, spacing, strict=True)
    )
    ranges = [np.quantile(values, RANGE_FRACTIONS).tolist() for values in sampled]
    return Appearance(
        orientation=orientation,
        spacing_mm=on_patient_axes(spacing, orientation),
        extent_mm=on_patient_axes((x, y, z), orientation),
        ranges=tuple((low, high) for low, high in ranges),
        bodies=tuple(_body(values) for values in sampled),
    )


def on_patient_axes(lengths: Lengths, orientation: str) -> Lengths:
    """Lengths along the axes x, y, z of a scan in the order of the patient's axes."""
    return Turn.between(orientation, PATIENT).triple(lengths)


def body_of(channel: NDArray[Any]) -> tuple[float, ...]:
    """Equally spaced quantiles of a channel (x, y, z) inside the body.

    Padding is outside of the body: the lowest value, and 0, where many voxels share it.
    """
    return _body(_sample(channel[None])[0][0])


def _sample(array: NDArray[Any]) -> tuple[NDArray[Any], tuple[int, ...]]:
    """A regular sample of an array (channel, x, y, z), and the strides along x, y, z."""
    strides = tuple(math.ceil(size / POINTS) for size in array.shape[1:])
    return array[(slice(None), *(slice(None, None, stride) for stride in strides))], strides


def _body(sampled: NDArray[Any]) -> tuple[float, ...]:
    values = np.sort(sampled, axis=None)
    for padding in (values[0], 0):
        start, stop = (
            np.searchsorted(values, padding, "left"),
            np.searchsorted(values, padding, "right"),
        )
        if PADDING_SHARE * sampled.size < stop - start < values.size:
            values = np.delete(values, slice(start, stop))
    found = np.quantile(values, BODY_FRACTIONS)
    return tuple(float(f"{value:.6g}") for value in found)
