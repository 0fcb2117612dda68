"""Spline interpolation on one core: along single axes, or at scattered points.

The same values as `scipy.ndimage.map_coordinates`, with mirrored borders: a B-spline of order 3
whose coefficients come from a prefilter, or order 1, which needs none. A point is a weighted sum of
the (order + 1)^3 samples about it, which torch sums faster than scipy: its embedding bag the 64 of
order 3, its `grid_sample` the 8 of order 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import embedding_bag, grid_sample

Floats = NDArray[np.float32]

REACH = {0: 1, 1: 2, 3: 6}  # samples beyond the outermost point; at 6 the border's mirror fades
FLOATS_AT_ONCE = 1 << 19  # of a chunk of points; larger ones leave the cache

# Row p: what the p-th power of the distance to a sample adds to the weight of each sample about it.
_POWERS = {
    1: torch.tensor([[1.0, 0.0], [-1.0, 1.0]]),
    3: torch.tensor([[1.0, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]) / 6,
}


@lru_cache(maxsize=32)
def prefilter(size: int, order: int) -> Floats:
    """The matrix (size, size) that turns the samples of an axis into spline coefficients."""
    unit = np.eye(size)
    if order > 1 and size > 1:
        unit = ndimage.spline_filter1d(unit, order, axis=0, mode="mirror")
    return unit.astype(np.float32)


def line_operator(positions: NDArray[np.float64], size: int, order: int) -> Floats:
    """The matrix (len(positions), size) that interpolates an axis of `size` samples there.

    Args:
        positions: in samples, at least the order's `REACH` away from both ends.
        size: samples of the axis.
        order: 0, 1 or 3.
    """
    rows = np.arange(len(positions))
    weights = np.zeros((len(positions), size), np.float32)
    if order == 0:
        weights[rows, nearest(positions)] = 1
        return weights
    first, powers = _about(torch.from_numpy(positions), order)
    values = powers.T @ _POWERS[order].to(powers.dtype)
    for tap in range(order + 1):
        weights[rows, first.numpy() + tap] = values[:, tap]
    product: Floats = weights @ prefilter(size, order)
    return product


def along(operator: Floats, volume: Floats, axis: int) -> Floats:
    """Apply a matrix to one axis of a volume (x, y, z)."""
    x, y, z = volume.shape
    if axis == 0:
        return (operator @ volume.reshape(x, y * z)).reshape(-1, y, z)
    if axis == 1:
        product: Floats = np.matmul(operator, volume)
        return product
    return (volume.reshape(x * y, z) @ operator.T).reshape(x, y, -1)


def nearest(positions: NDArray[np.floating]) -> NDArray[np.intp]:
    """The samples nearest to positions; in the middle between two, the latter."""
    return (positions + 0.5).astype(np.intp)


def at_points(coefficients: Floats, points: Floats, order: int) -> Floats:
    """The spline's values at scattered points.

    Args:
        coefficients: (x, y, z).
        points: (3, n) in samples, at least the order's `REACH` away from all borders.
        order: 1 or 3.

    Returns:
        (n,).
    """
    if order == 1:
        return _linear(coefficients, points)
    windows = _windows(coefficients, order + 1)
    values = np.empty(points.shape[1], np.float32)
    for where, part in _chunks(points, (order + 1) * (order + 3)):
        start, powers = _about(part[2], order)
        rows = _sums(windows, part[:2], order, start)
        values[where] = rows.mul_(powers.T @ _POWERS[order]).sum(1).numpy()
    return values


def _linear(volume: Floats, points: Floats) -> Floats:
    # torch counts from -1 to 1 and names the last axis first.
    grid = np.empty((points.shape[1], 3), np.float32)
    for axis, size in enumerate(volume.shape):
        np.multiply(points[axis], 2 / max(1, size - 1), out=grid[:, 2 - axis])
    grid -= 1
    found = grid_sample(
        torch.from_numpy(np.ascontiguousarray(volume))[None, None],
        torch.from_numpy(grid)[None, None, None],
        padding_mode="border",
        align_corners=True,
    )
    values: Floats = found[0, 0, 0, 0].numpy()
    return values


def rows_at_points(coefficients: Floats, points: Floats, order: int) -> Floats:
    """The same for whole rows of samples at points in the plane, or along a line.

    Args:
        coefficients: (x, y, row), or (x, row).
        points: (2, n), or (1, n), as for `at_points`.
        order: 1 or 3.

    Returns:
        (n, row).
    """
    row = coefficients.shape[-1]
    coefficients = np.ascontiguousarray(coefficients)
    values = np.empty((points.shape[1], row), np.float32)
    for where, part in _chunks(points, (order + 1) ** 2 + row):
        values[where] = _sums(coefficients, part, order, 0).numpy()
    return values


def _windows(volume: Floats, width: int) -> Floats:
    """Each sample with its followers along z: (x, y, z - width + 1, width)."""
    count = volume.shape[2] - width + 1
    return np.stack([volume[:, :, tap : tap + count] for tap in range(width)], axis=3)


def _sums(table: Floats, points: Tensor, order: int, start: Tensor | int) -> Tensor:
    """For each point the weighted sum of the rows of a table about it.

    Args:
        table: (x, y, row) or (x, row); for three axes (x, y, z, row), with `start` along z.
        points: along the table's first axes.
        order: 1 or 3.
        start: added to the index of each row.
    """
    *sizes, width = table.shape
    strides = [int(np.prod(sizes[axis + 1 :])) for axis in range(len(sizes))]
    taps = torch.arange(order + 1, dtype=torch.int32)
    offsets = torch.zeros(1, dtype=torch.int32)
    weights: list[Tensor] = []
    first = start
    for axis, along_axis in enumerate(points):
        begin, powers = _about(along_axis, order)
        first = begin.mul_(strides[axis]).add_(first)
        offsets = (offsets[:, None] + taps * strides[axis]).flatten()
        # Each axis' weights, repeated for all combinations with the other's.
        inner = (order + 1) ** (len(points) - 1 - axis)
        outer = (order + 1) ** axis
        weights.append(powers.T @ _POWERS[order].repeat_interleave(inner, 1).repeat(1, outer))
    assert isinstance(first, Tensor)
    indices = (first[:, None] + offsets).flatten()
    product = weights[0] if len(weights) == 1 else weights[0].mul_(weights[1])
    bags = torch.arange(0, len(indices) + 1, len(offsets), dtype=torch.int32)
    return embedding_bag(
        indices,
        torch.from_numpy(table).view(-1, width),
        bags,
        mode="sum",
        per_sample_weights=product.flatten(),
        include_last_offset=True,
    )


def _about(positions: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """The first sample about each position, and the powers (order + 1, n) of the distance to it."""
    below = positions.floor()
    powers = positions.new_empty((order + 1, len(positions)))
    powers[0] = 1
    torch.sub(positions, below, out=powers[1])
    for power in range(2, order + 1):
        torch.mul(powers[power - 1], powers[1], out=powers[power])
    return below.int() - order // 2, powers


def _chunks(points: Floats, floats_a_point: int) -> Iterator[tuple[slice, Tensor]]:
    step = max(256, FLOATS_AT_ONCE // floats_a_point)
    for start in range(0, points.shape[1], step):
        where = slice(start, start + step)
        yield where, torch.from_numpy(points[:, where])
