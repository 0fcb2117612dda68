"""Resampling of label maps: every label's mask on its own, then the largest share wins.

A new voxel mixes at most two old ones along each axis. Where all of them hold the same label, so
does the new voxel; shares are computed only for the few that lie on a border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.preprocessing.resample import axis_operator, is_turned

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
