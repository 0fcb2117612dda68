"""Resampling by axis operators: exact, fast, and small in memory.

Spline interpolation onto a regular grid is linear and separable. So the whole of scikit-image's
`resize(order, mode="edge", anti_aliasing=False)` is one small matrix per axis, with the spline's
prefilter folded in; three matrix products replace it. Voxel edges are aligned, not centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.preprocessing.channel import Channel

Shape3 = tuple[int, int, int]


@lru_cache(maxsize=64)
def axis_operator(size: int, new_size: int, order: int) -> NDArray[np.float32]:
    """The matrix of shape (new_size, size) that resamples one axis."""
    if size == new_size:
        return np.eye(size, dtype=np.float32)
    from skimage.transform import resize

    unit = np.eye(size)
    operator = resize(
        unit, (new_size, size), order=order, mode="edge", anti_aliasing=False, clip=False
    )
    return np.ascontiguousarray(operator, dtype=np.float32)


def resample_channel(channel: Channel, shape: Shape3, orders: Sequence[int]) -> Channel:
    """Resample a channel to a number of voxels along x, y, z by splines of order 0, 1 or 3.

    Values stay within the channel's own range, as in scikit-image. Two axes are resampled a few
    planes at a time, so that of the old resolution only the last axis is ever held as floats.
    """
    if channel.shape == shape:
        return channel
    first, second, last = most_shrinking_first(channel.shape, shape)
    between = list(shape)
    between[last] = channel.shape[last]
    middle = np.empty_like(channel.stored, np.float32, shape=between)
    for where, slab in channel.slabs(last):
        flat = resample_axis(slab, first, shape[first], orders[first])
        middle[where] = resample_axis(flat, second, shape[second], orders[second])
    values = resample_axis(middle, last, shape[last], orders[last])
    low, high = channel.limits()
    return Channel(np.clip(values, low, high, out=values))


def apply_operators(
    volume: NDArray[np.float32], shape: Shape3, orders: Sequence[int]
) -> NDArray[np.float32]:
    """Apply the three axis operators to a volume (x, y, z), the most shrinking axis first."""
    for axis in most_shrinking_first(volume.shape, shape):
        volume = resample_axis(volume, axis, shape[axis], orders[axis])
    return volume


def most_shrinking_first(shape: Sequence[int], new_shape: Sequence[int]) -> Shape3:
    """The axes in the order that leaves the least to compute."""
    gain = [new / old for new, old in zip(new_shape, shape, strict=True)]
    first, second, last = (int(axis) for axis in np.argsort(gain, kind="stable"))
    return first, second, last


def resample_axis(
    volume: NDArray[np.float32], axis: int, size: int, order: int
) -> NDArray[np.float32]:
    """Resample one axis of a volume (x, y, z) to `size` voxels."""
    if volume.shape[axis] == size:
        return volume
    return _apply(axis_operator(volume.shape[axis], size, order), volume, axis)


def _apply(
    operator: NDArray[np.float32], volume: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    if is_turned(volume):
        return _apply(operator, volume.T, 2 - axis).T
    x, y, z = volume.shape
    if axis == 0:
        return (operator @ volume.reshape(x, y * z)).reshape(-1, y, z)
    if axis == 1:
        product: NDArray[np.float32] = np.matmul(operator, volume)
        return product
    return (volume.reshape(x * y, z) @ operator.T).reshape(x, y, -1)


def is_turned(volume: NDArray[Any]) -> bool:
    """Do x neighbours lie closer together in memory than z neighbours, as read from a file?"""
    return bool(volume.strides[0] < volume.strides[2])


def resampled_shape(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    rounding: str,
) -> Shape3:
    """The number of voxels that keeps the extent in mm: at least one along each axis."""
    exact = np.asarray(shape) * np.asarray(spacing_mm) / np.asarray(new_spacing_mm)
    # A size that is whole but for floating-point noise must not lose a voxel by rounding down.
    whole = np.floor(exact + 1e-6) if rounding == "down" else np.rint(exact)
    x, y, z = np.maximum(whole, 1).astype(int)
    return int(x), int(y), int(z)


def axis_orders(
    order: int,
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    anisotropy: float | None,
) -> Shape3:
    """The spline order along each axis: 0 along a single coarse axis, `order` elsewhere.

    The coarse axis is found in the old spacing, else in the new one, as in nnU-Net: the largest
    spacing is more than `anisotropy` times the smallest, and only one axis has it.
    """
    orders = [order, order, order]
    if anisotropy is not None:
        for spacing in (np.asarray(spacing_mm), np.asarray(new_spacing_mm)):
            if spacing.max() / spacing.min() > anisotropy:
                coarse = np.flatnonzero(spacing == spacing.max())
                if len(coarse) == 1:
                    orders[coarse[0]] = 0
                break
    return orders[0], orders[1], orders[2]
