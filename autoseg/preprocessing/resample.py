"""Resampling by axis operators: exact, fast, and with little memory.

Spline interpolation onto a regular grid is linear and separable. So scikit-image's
`resize(order, mode="edge", anti_aliasing=False)` equals one small matrix per axis, which includes
the prefilter of the spline, and is computed by three matrix products. Voxel edges are aligned, not
centres.

A new voxel depends on nearby old voxels only: outside a band around its diagonal, each matrix is
zero, or below 1e-9 for cubic splines. So a few rows at a time are multiplied with the few old
voxels that they depend on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Array, Doubles, Floats, Triple, in_slabs, without_tiny
from autoseg.plan.sections import whole_sizes

Lengths = Sequence[float]
BAND_ROWS = 32
NEGLIGIBLE = 1e-9  # weight of an old voxel
SLAB_VOXELS = 1 << 16  # new ones that are worth a thread
LABEL_SLAB_VOXELS = 1 << 18  # old or new ones, whichever are more


@lru_cache(maxsize=64)
def axis_operator(size: int, new_size: int, order: int) -> Floats:
    """Return the matrix (new_size, size) that resamples one axis."""
    if size == new_size:
        return np.eye(size, dtype=np.float32)
    from skimage.transform import resize  # here: half a second, not needed without resampling

    options = {"order": order, "mode": "edge", "anti_aliasing": False, "clip": False}
    operator = resize(np.eye(size), (new_size, size), **options)
    return without_tiny(np.ascontiguousarray(operator, dtype=np.float32))


@dataclass(frozen=True, eq=False)
class Axis:
    """Resamples one axis.

    Attributes:
        weights: of the old voxels for each new voxel, (new, old).
        first: for each new voxel the first old voxel that it depends on.
        last: the last one.
    """

    weights: Floats
    first: NDArray[np.intp]
    last: NDArray[np.intp]

    @property
    def is_identity(self) -> bool:
        """Whether the new voxels are the old ones."""
        return len(self.weights) == len(self.weights.T)

    def columns(self, rows: slice) -> slice:
        """The old voxels that some consecutive new ones depend on."""
        return slice(int(self.first[rows].min()), int(self.last[rows].max()) + 1)

    def depending_on(self, first: int, last: int) -> slice | None:
        """The whole bands of new voxels that depend on old ones of this range, if any do.

        Only for the orders 0 and 1.
        """
        start = int(np.searchsorted(self.last, first))
        stop = int(np.searchsorted(self.first, last, side="right"))
        if start >= stop:
            return None
        end = -(-stop // BAND_ROWS) * BAND_ROWS
        return slice(start // BAND_ROWS * BAND_ROWS, min(end, len(self.weights)))

    def apply(
        self, volume: Floats, axis: int, rows: slice | None = None, first_column: int = 0
    ) -> Floats:
        """Some new voxels, or all, along one axis of a volume (x, y, z).

        Args:
            volume: the old voxels.
            axis: 0, 1 or 2.
            rows: which new voxels.
            first_column: index of the first old voxel of the volume along that axis.
        """
        if is_reversed(volume):
            return self.apply(volume.T, 2 - axis, rows, first_column).T
        rows = rows or slice(0, len(self.weights))
        shape = list(volume.shape)
        shape[axis] = rows.stop - rows.start
        out = np.empty(shape, np.float32)
        # Matrices, or stacks of them: the first axis of the result is cut into slabs.
        old, new = volume, out
        if axis == 0:
            old, new = volume.reshape(len(volume), -1).T, out.reshape(len(out), -1).T
        elif axis == 2:
            old, new = volume.reshape(-1, volume.shape[2]), out.reshape(-1, shape[2])

        def slab(part: slice) -> None:
            for start in range(rows.start, rows.stop, BAND_ROWS):
                band = slice(start, min(start + BAND_ROWS, rows.stop))
                columns = self.columns(band)
                weights = self.weights[band, columns]
                at = slice(columns.start - first_column, columns.stop - first_column)
                to = slice(start - rows.start, band.stop - rows.start)
                if axis == 1:
                    np.matmul(weights, old[part, at], out=new[part, to])
                else:
                    np.matmul(old[part, at], weights.T, out=new[part, to])

        in_slabs(slab, len(new), 1 + SLAB_VOXELS * len(new) // out.size)
        return out


@lru_cache(maxsize=64)
def axis_of(size: int, new_size: int, order: int) -> Axis:
    """How `axis_operator` resamples an axis."""
    weights = axis_operator(size, new_size, order)
    used = np.abs(weights) > NEGLIGIBLE
    return Axis(weights, used.argmax(axis=1), size - 1 - used[:, ::-1].argmax(axis=1))


def apply_operators(volume: Floats, shape: Triple, orders: Sequence[int]) -> Floats:
    """Resample a volume (x, y, z) along all axes."""
    for axis in most_shrinking_first(volume.shape, shape):
        volume = resample_axis(volume, axis, shape[axis], orders[axis])
    return volume


def most_shrinking_first(shape: Sequence[int], new_shape: Sequence[int]) -> Triple:
    """Return the axes in the order of least computation."""
    gain = [new / old for new, old in zip(new_shape, shape, strict=True)]
    first, second, last = (int(axis) for axis in np.argsort(gain, kind="stable"))
    return first, second, last


def resample_axis(volume: Floats, axis: int, size: int, order: int) -> Floats:
    """Resample one axis of a volume (x, y, z) to `size` voxels."""
    if volume.shape[axis] == size:
        return volume
    return axis_of(volume.shape[axis], size, order).apply(volume, axis)


def is_reversed(volume: Array) -> bool:
    """Return whether x varies fastest in memory, as in arrays that were read from a file."""
    return bool(volume.strides[0] < volume.strides[2])


def resampled_shape(
    shape: Sequence[int], spacing_mm: Lengths, new_spacing_mm: Lengths, rounding: str
) -> Triple:
    """Return the number of voxels that preserves the extent in mm, at least one along each axis."""
    if rounding == "nearest_ratio":
        exact = np.asarray(spacing_mm) / np.asarray(new_spacing_mm) * np.asarray(shape)
    else:
        exact = np.asarray(shape) * np.asarray(spacing_mm) / np.asarray(new_spacing_mm)
    x, y, z = whole_sizes(exact, rounding)
    return int(x), int(y), int(z)


def axis_orders(
    order: int, spacing_mm: Lengths, new_spacing_mm: Lengths, anisotropy: float | None
) -> Triple:
    """Return the spline order along each axis: 0 along a single coarse axis, `order` elsewhere.

    As in nnU-Net, an axis of the old spacing, or else of the new one, is coarse if it alone has the
    largest spacing, which is more than `anisotropy` times the smallest.
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


# Label maps: the mask of each label is resampled, and the label with the largest weight is chosen.
#
# A new voxel depends on at most two old ones along each axis. If they have the same label, so has
# the new voxel; weights are computed only for the few voxels on borders between labels.

Voxels = Sequence[NDArray[np.intp]]
Ties = Literal["smallest", "nearest"]
TIE = 1e-6  # tolerance of `smallest`
MAJORITY = 0.5 + 1e-9  # no other label has a larger weight


@dataclass(frozen=True)
class _Neighbours:
    """The two old voxels along an axis that each new one depends on: (2, new size) each.

    If there is only one, it is repeated with weight zero. `nearest` is the nearest old voxel.
    """

    index: NDArray[np.intp]
    weight: Doubles
    nearest: NDArray[np.intp]

    def is_identity(self, size: int) -> bool:
        """Whether the new voxels are the `size` old ones."""
        return len(self.nearest) == size and bool((self.index == np.arange(size)).all())

    def part(self, start: int, stop: int) -> _Neighbours:
        at = slice(start, stop)
        return _Neighbours(self.index[:, at], self.weight[:, at], self.nearest[at])

    def relative_to(self, first: int) -> _Neighbours:
        return _Neighbours(self.index - first, self.weight, self.nearest - first)


def resample_label(
    label: Array, shape: Triple, orders: Sequence[int], ties: Ties = "nearest"
) -> Array:
    """Resample a label map (x, y, z) with order 0 (nearest voxel) or 1 along each axis.

    Args:
        label: the label map.
        shape: of the result.
        orders: of the spline along each axis.
        ties: which of several labels with the same, largest weight is chosen. `nearest`: that of
            the nearest voxel, or the smallest value if that label has less weight; equal to
            batchgenerators' `resize_segmentation`. `smallest`: the smallest value, as in 0.1.0;
            structures become thinner, because the background has the smallest value.
    """
    if label.shape == tuple(shape):
        return label
    if reverse := is_reversed(label):
        label, shape, orders = label.T, (shape[2], shape[1], shape[0]), orders[::-1]
    along = [_neighbours(*axis, ties) for axis in zip(label.shape, shape, orders, strict=True)]
    out = np.empty(shape, label.dtype)
    planes = max(1, LABEL_SLAB_VOXELS * shape[0] // max(label.size, out.size))
    for start in range(0, shape[0], planes):
        across = along[0].part(start, start + planes)
        first, last = int(across.index.min()), int(across.index.max())
        near = [across.relative_to(first), *along[1:]]
        slab = np.ascontiguousarray(label[first : last + 1])
        out[start : start + planes] = _resample(slab, near, ties, reverse)
    return out.T if reverse else out


@lru_cache(maxsize=64)
def _neighbours(size: int, new_size: int, order: int, ties: Ties) -> _Neighbours:
    assert order in (0, 1), "label maps are resampled with order 0 or 1"
    # The arithmetic of scipy.ndimage.zoom, so that rounding decides as it does there.
    place = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    nearest = np.clip(np.floor(place + 0.5).astype(np.intp), 0, size - 1)
    if ties == "smallest":
        index, weight = _from_operator(axis_operator(size, new_size, order))
    elif order == 0:
        index, weight = np.stack([nearest, nearest]), np.stack([np.ones(new_size), 0 * place])
    else:
        below = np.floor(place)
        first = below.astype(np.intp)
        weight = np.stack([1 - (place - below), place - below])
        index = np.clip(np.stack([first, first + (weight[1] > 0)]), 0, size - 1)
    return _Neighbours(index, weight, nearest)


def _from_operator(operator: Floats) -> tuple[NDArray[np.intp], Doubles]:
    used = operator != 0
    rows = np.arange(len(operator))
    first = used.argmax(axis=1)
    second = operator.shape[1] - 1 - used[:, ::-1].argmax(axis=1)
    weight = np.stack([operator[rows, first], np.where(first == second, 0, operator[rows, second])])
    return np.stack([first, second]), weight.astype(np.float64)


def _resample(label: Array, near: Sequence[_Neighbours], ties: Ties, reverse: bool) -> Array:
    low = high = label
    for axis in most_shrinking_first(label.shape, [len(axis.nearest) for axis in near]):
        first, second = near[axis].index
        if near[axis].is_identity(label.shape[axis]):
            continue
        ends = low.take(first, axis), low.take(second, axis)
        others = ends if high is low else (high.take(first, axis), high.take(second, axis))
        low, high = np.minimum(*ends), np.maximum(*others)
    if low is high:
        return low
    border = np.nonzero(low != high)
    if border[0].size:
        low[border] = _largest_weight(label, near, border, ties, reverse)
    return low


def _largest_weight(
    label: Array, near: Sequence[_Neighbours], voxels: Voxels, ties: Ties, reverse: bool
) -> Array:
    """Return the label with the largest weight in each of these new voxels."""
    steps = [label.shape[1] * label.shape[2], label.shape[2], 1]
    axes = list(zip(near, voxels, steps, strict=True))
    if reverse:  # weights are summed in the order of x, y, z, whichever varies fastest in memory
        axes = axes[::-1]
    flat = label.reshape(-1)
    x, y, z = (axis.index[:, at] * step for axis, at, step in axes)
    values = flat[_all_corners(x, y, z, np.add)]
    x, y, z = (axis.weight[:, at] for axis, at, _ in axes)
    weights = _all_corners(x, y, z, np.multiply)
    if ties == "smallest":
        none = np.full(len(voxels[0]), -np.inf)
        return _larger(values, weights, none, np.zeros_like(values[0]), TIE)
    x, y, z = (axis.nearest[at] * step for axis, at, step in axes)
    out: Array = flat[x + y + z]
    weight = _weight(values, weights, out)
    rest = np.flatnonzero(weight < MAJORITY)
    if rest.size:
        out[rest] = _larger(values[:, rest], weights[:, rest], weight[rest], out[rest], 0.0)
    return out


def _all_corners(x: Array, y: Array, z: Array, of: np.ufunc) -> Array:
    """Combine two rows for each axis to eight, those of z varying fastest."""
    combined: Array = of(of(x[:, None, None], y[:, None]), z)
    return combined.reshape(8, -1)


def _weight(values: Array, weights: Doubles, wanted: Any) -> Doubles:
    """The weight of a label in each new voxel, summed in the order of the corners."""
    weight = np.zeros(weights.shape[1])
    for corner, value in zip(weights, values, strict=True):
        weight += np.where(value == wanted, corner, 0)
    return weight


def _larger(values: Array, weights: Doubles, best: Doubles, out: Array, tolerance: float) -> Array:
    """Replace labels of the weights `best` where another label has a larger weight."""
    for value in np.unique(values):
        weight = _weight(values, weights, value)
        larger = weight > best + tolerance
        best[larger] = weight[larger]
        out[larger] = value
    return out
