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


def resample_image(
    image: NDArray[np.float32], shape: Shape3, orders: Sequence[int]
) -> NDArray[np.float32]:
    """Resample an image of shape (channel, x, y, z) to (channel, *shape).

    Args:
        image: the channels.
        shape: the new number of voxels along x, y, z.
        orders: the order of the spline along x, y, z (0, 1 or 3).

    Values stay within each channel's own range, as in scikit-image.
    """
    if image.shape[1:] == tuple(shape):
        return image
    out = np.empty((len(image), *shape), np.float32)
    for channel, resampled in zip(image, out, strict=True):
        values = apply_operators(channel, shape, orders)
        np.clip(values, channel.min(), channel.max(), out=resampled)
    return out


def apply_operators(
    volume: NDArray[np.float32], shape: Shape3, orders: Sequence[int]
) -> NDArray[np.float32]:
    """Apply the three axis operators to a volume (x, y, z), the most shrinking axis first."""
    gain = [new / old for new, old in zip(shape, volume.shape, strict=True)]
    for axis in np.argsort(gain, kind="stable"):
        if volume.shape[axis] != shape[axis]:
            operator = axis_operator(volume.shape[axis], shape[axis], orders[axis])
            volume = _apply(operator, volume, int(axis))
    return volume


def _apply(
    operator: NDArray[np.float32], volume: NDArray[np.float32], axis: int
) -> NDArray[np.float32]:
    x, y, z = volume.shape
    if axis == 0:
        return (operator @ volume.reshape(x, y * z)).reshape(-1, y, z)
    if axis == 1:
        product: NDArray[np.float32] = np.matmul(operator, volume)
        return product
    return (volume.reshape(x * y, z) @ operator.T).reshape(x, y, -1)


def resample_label(label: NDArray[Any], shape: Shape3, orders: Sequence[int]) -> NDArray[Any]:
    """Resample a label map (x, y, z): each value's mask on its own, then the largest wins.

    With order 0 along every axis the nearest voxel is taken. Ties go to the smaller value.
    """
    if label.shape == tuple(shape):
        return label
    if not any(orders):
        indices = [_nearest(old, new) for old, new in zip(label.shape, shape, strict=True)]
        return label[np.ix_(*indices)]
    best = np.full(shape, -np.inf, np.float32)
    out = np.zeros(shape, label.dtype)
    for value in np.unique(label):
        share = apply_operators((label == value).astype(np.float32), shape, orders)
        wins = share > best + 1e-6  # rounding must not decide a tie
        best[wins] = share[wins]
        out[wins] = value
    return out


def _nearest(size: int, new_size: int) -> NDArray[np.intp]:
    nearest: NDArray[np.intp] = np.argmax(axis_operator(size, new_size, 0), axis=1)
    return nearest


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
