"""Resampling by axis operators: exact, fast, and small in memory.

Spline interpolation onto a regular grid is linear and separable. So the whole of scikit-image's
`resize(order, mode="edge", anti_aliasing=False)` is one small matrix per axis, with the spline's
prefilter folded in; three matrix products replace it. Voxel edges are aligned, not centres.

A new voxel takes from the old ones near it alone: all but a band about each matrix' diagonal is
zero, or of a cubic spline below 1e-9. So a few rows at a time are multiplied with the few old
voxels that they take from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.plan.sections import whole_sizes
from autoseg.preprocessing.channel import Channel

BAND_ROWS = 32
NEGLIGIBLE = 1e-9  # weight of an old voxel


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


@dataclass(frozen=True)
class Band:
    """Some new voxels along an axis, and the old ones that they take from.

    Attributes:
        rows: the new voxels.
        columns: the old voxels.
        weights: how much each new voxel takes from each old one, (rows, columns).
    """

    rows: slice
    columns: slice
    weights: NDArray[np.float32]


@lru_cache(maxsize=64)
def axis_bands(size: int, new_size: int, order: int) -> tuple[Band, ...]:
    """The matrix of `axis_operator` in bands of consecutive rows."""
    operator = axis_operator(size, new_size, order)
    starts = range(0, new_size, BAND_ROWS)
    return tuple(
        _band(operator, slice(start, min(start + BAND_ROWS, new_size))) for start in starts
    )


def _band(operator: NDArray[np.float32], rows: slice) -> Band:
    used = np.flatnonzero((np.abs(operator[rows]) > NEGLIGIBLE).any(axis=0))
    columns = slice(int(used[0]), int(used[-1]) + 1)
    return Band(rows, columns, np.ascontiguousarray(operator[rows, columns]))


def resample_channel(channel: Channel, shape: Triple, orders: Sequence[int]) -> Channel:
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
    volume: NDArray[np.float32], shape: Triple, orders: Sequence[int]
) -> NDArray[np.float32]:
    """Apply the three axis operators to a volume (x, y, z), the most shrinking axis first."""
    for axis in most_shrinking_first(volume.shape, shape):
        volume = resample_axis(volume, axis, shape[axis], orders[axis])
    return volume


def most_shrinking_first(shape: Sequence[int], new_shape: Sequence[int]) -> Triple:
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
    return apply_bands(axis_bands(volume.shape[axis], size, order), volume, axis)


def apply_bands(
    bands: Sequence[Band], volume: NDArray[np.float32], axis: int, first_column: int = 0
) -> NDArray[np.float32]:
    """The new voxels of consecutive bands along one axis of a volume (x, y, z).

    Args:
        bands: which ones.
        volume: the old voxels.
        axis: 0, 1 or 2.
        first_column: the old voxel along that axis with which the volume begins.
    """
    if is_turned(volume):
        return apply_bands(bands, volume.T, 2 - axis, first_column).T
    shape, first = list(volume.shape), bands[0].rows.start
    shape[axis] = bands[-1].rows.stop - first
    out = np.empty(shape, np.float32)
    for band in bands:
        rows = slice(band.rows.start - first, band.rows.stop - first)
        columns = slice(band.columns.start - first_column, band.columns.stop - first_column)
        _multiply(band.weights, volume, columns, axis, out, rows)
    return out


def _multiply(
    weights: NDArray[np.float32],
    volume: NDArray[np.float32],
    columns: slice,
    axis: int,
    out: NDArray[np.float32],
    rows: slice,
) -> None:
    """Write the weighted sums of a volume's columns into the rows of `out`."""
    x, _, z = volume.shape
    if axis == 0:
        flat = volume.reshape(x, -1)
        np.matmul(weights, flat[columns], out=out.reshape(len(out), -1)[rows])
    elif axis == 1:
        np.matmul(weights, volume[:, columns], out=out[:, rows])
    else:
        flat = volume.reshape(-1, z)
        np.matmul(flat[:, columns], weights.T, out=out.reshape(-1, out.shape[2])[:, rows])


def is_turned(volume: NDArray[Any]) -> bool:
    """Do x neighbours lie closer together in memory than z neighbours, as read from a file?"""
    return bool(volume.strides[0] < volume.strides[2])


def resampled_shape(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    rounding: str,
) -> Triple:
    """The number of voxels that keeps the extent in mm: at least one along each axis."""
    exact = np.asarray(shape) * np.asarray(spacing_mm) / np.asarray(new_spacing_mm)
    x, y, z = whole_sizes(exact, rounding)
    return int(x), int(y), int(z)


def axis_orders(
    order: int,
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    anisotropy: float | None,
) -> Triple:
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


# Resampling of label maps: every label's mask on its own, then the largest share wins.
#
# A new voxel mixes at most two old ones along each axis. Where all of them hold the same label,
# so does the new voxel; shares are computed only for the few that lie on a border.

SLAB_VOXELS = 1 << 19
TIE = 1e-6  # rounding must not decide between equal shares

Voxels = tuple[NDArray[np.intp], ...]


@dataclass(frozen=True)
class _Neighbours:
    """The two old voxels along an axis that each new one mixes: (2, new size) each.

    Where there is only one, it is there twice, the second time without weight.
    """

    index: NDArray[np.intp]
    weight: NDArray[np.float64]

    def part(self, start: int, stop: int) -> _Neighbours:
        return _Neighbours(self.index[:, start:stop], self.weight[:, start:stop])

    def counted_from(self, first: int) -> _Neighbours:
        return _Neighbours(self.index - first, self.weight)


def resample_label(label: NDArray[Any], shape: Triple, orders: Sequence[int]) -> NDArray[Any]:
    """Resample a label map (x, y, z) by order 0 (the nearest voxel) or 1 along each axis.

    Ties go to the smaller value.
    """
    if label.shape == tuple(shape):
        return label
    if is_turned(label):
        x, y, z = shape
        return resample_label(label.T, (z, y, x), orders[::-1]).T
    along = [_neighbours(*axis) for axis in zip(label.shape, shape, orders, strict=True)]
    out = np.empty(shape, label.dtype)
    planes = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], planes):
        across = along[0].part(start, start + planes)
        first, last = int(across.index.min()), int(across.index.max())
        near = [across.counted_from(first), *along[1:]]
        out[start : start + planes] = _resample(np.ascontiguousarray(label[first : last + 1]), near)
    return out


def _neighbours(size: int, new_size: int, order: int) -> _Neighbours:
    operator = axis_operator(size, new_size, order)
    used = operator != 0
    assert used.sum(axis=1).max() <= 2, "a spline of higher order reaches further"
    first = used.argmax(axis=1)
    second = size - 1 - used[:, ::-1].argmax(axis=1)
    rows = np.arange(new_size)
    weight = np.stack([operator[rows, first], np.where(first == second, 0, operator[rows, second])])
    return _Neighbours(np.stack([first, second]), weight.astype(np.float64))


def _resample(label: NDArray[Any], near: Sequence[_Neighbours]) -> NDArray[Any]:
    low = high = label
    for axis, (first, second) in enumerate(neighbours.index for neighbours in near):
        low = np.minimum(low.take(first, axis), low.take(second, axis))
        high = np.maximum(high.take(first, axis), high.take(second, axis))
    border = np.nonzero(low != high)
    if border[0].size:
        low[border] = _largest_share(label, near, border)
    return low


def _largest_share(
    label: NDArray[Any], near: Sequence[_Neighbours], voxels: Voxels
) -> NDArray[Any]:
    """The label with the largest share in each of some new voxels."""
    values, weights = [], []
    for corner in product((0, 1), repeat=3):
        ends = list(zip(near, corner, voxels, strict=True))
        values.append(label[tuple(axis.index[end][at] for axis, end, at in ends)])
        weights.append(prod(axis.weight[end][at] for axis, end, at in ends))
    best = np.full(len(voxels[0]), -np.inf)
    out = np.zeros(len(voxels[0]), label.dtype)
    for value in np.unique(values):
        share = np.where(values == value, weights, 0).sum(axis=0)
        wins = share > best + TIE
        best[wins] = share[wins]
        out[wins] = value
    return out
