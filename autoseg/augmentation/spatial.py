"""Rotation, scaling and elastic deformation of a patch in one interpolation.

A warp is drawn before its patch is read, so that only the necessary voxels are read: in most cases
the patch alone. Along axes that are only scaled, interpolation is a matrix product; along rotated
and deformed axes it is evaluated at scattered points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Literal

import numpy as np
from batchgenerators.augmentations.utils import interpolate_img

from autoseg.augmentation import spline
from autoseg.common.arrays import Array, Doubles, Floats, Triple
from autoseg.plan.augmentation import Spatial

CELLS_PER_SIGMA = 3
MIXED_SHARE = (0.25, 0.75)  # of a side of the patch, in a box from another case
Border = Literal["constant", "nearest"]
Rng = np.random.Generator


def draw_warp(spec: Spatial, size: Triple, rng: Rng) -> Warp | None:
    """Draw what the transform of the plan does to one patch; None if it is not applied.

    The distributions are those of batchgenerators with `random_crop=False`.

    Args:
        spec: probabilities and ranges of the plan.
        size: of the patch (x, y, z). A patch of a single plane is deformed within the plane.
        rng: random generator of the sample.
    """
    wide = [axis for axis in range(3) if size[axis] > 1]
    matrix, field = np.eye(3), None
    if rng.random() < spec.elastic_probability:
        alpha, sigma = rng.uniform(*spec.elastic_alpha), rng.uniform(*spec.elastic_sigma)
        field = np.zeros((3, *size), np.float32)
        for axis in wide:
            field[axis] = displacement(size, alpha, sigma, rng)
    if rotated := rng.random() < spec.rotation_probability:
        angles = np.deg2rad([rng.uniform(*limits) for limits in spec.rotation_degrees])
        angles[[not {0, 1, 2} - {axis} <= set(wide) for axis in range(3)]] = 0
        matrix = rotation(*angles)
    if scaled := rng.random() < spec.scaling_probability:
        matrix[wide] *= random_factor(spec.scaling, rng)
    return Warp(spec, size, matrix, field) if rotated or scaled or field is not None else None


def random_factor(limits: tuple[float, float], rng: Rng) -> float:
    """Draw a factor as batchgenerators does: below 1 and above 1 with equal probability."""
    low, high = limits
    if low < 1 and rng.random() < 0.5:
        return rng.uniform(low, 1)
    return rng.uniform(max(low, 1), high)


def rotation(x: float, y: float, z: float) -> Doubles:
    """Return the matrix of rotations about x, y and z (radians), in the order of batchgenerators.

    It rotates the sampling positions, so that the content of the patch rotates the other way.
    """
    rotations = [
        [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]],
        [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]],
        [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]],
    ]
    matrix: Doubles = np.linalg.multi_dot([np.array(one, float) for one in rotations]).T
    return matrix.copy()


@dataclass(frozen=True)
class Warp:
    """A map from the voxels of a patch to positions in the box that is read for it.

    Relative to their common centre, voxel v of the patch is sampled at `matrix @ (v + field[v])`.
    Axes are called coupled if positions along them depend on other axes (rotation) or on the
    displacement field; all others are scaled at most.

    Attributes:
        spec: transform of the plan, with the interpolation orders.
        size: of the patch (x, y, z).
        matrix: (3, 3).
        field: displacement of each voxel along x, y, z: (3, *size), or None.
    """

    spec: Spatial
    size: Triple
    matrix: Doubles
    field: Floats | None

    @cached_property
    def box_size(self) -> Triple:
        """The voxels to read: the patch and a margin as wide as necessary, equal on both sides."""
        reach = spline.REACH[max(self.spec.image_order, self.spec.label_order)]
        sizes = list(self.size)
        for axis in self.active:
            is_coupled = axis in self._coupled
            line = self._points[self._coupled.index(axis)] if is_coupled else self._line(axis)
            farthest = float(np.abs(line).max())
            sizes[axis] += 2 * max(0, ceil(farthest + reach - (self.size[axis] - 1) / 2))
        x, y, z = sizes
        return x, y, z

    def image(self, volume: Floats) -> Floats:
        """Interpolate a channel: `box_size` in, `size` out."""
        order = self.spec.image_order
        for axis in self._uncoupled:
            if self.matrix[axis, axis] != 1:
                positions = self._line_in(volume, axis)
                operator = spline.line_operator(positions, volume.shape[axis], order)
                volume = spline.along(operator, volume, axis)
        if not self._coupled:
            return volume
        if order == 0:
            return self._nearest_points(volume)
        if order == 3:
            for axis in self._coupled:
                volume = spline.along(spline.prefilter(volume.shape[axis], order), volume, axis)
        points = self._points_in(volume)
        if not self._uncoupled:
            return spline.at_points(volume, points, order).reshape(self.size)
        rows = spline.rows_at_points(self._coupled_first(volume), points, order)
        return self._in_order(rows)

    def label(self, volume: Array) -> Array:
        """Interpolate a label map: `box_size` in, `size` out."""
        if self.spec.label_order > 0:
            return self._by_argmax(volume)
        for axis in self._uncoupled:
            if self.matrix[axis, axis] != 1:
                volume = volume.take(spline.nearest(self._line_in(volume, axis)), axis=axis)
        return self._nearest_points(volume) if self._coupled else volume

    @property
    def active(self) -> tuple[int, ...]:
        """The axes along which positions differ from those of the patch."""
        scaled = np.flatnonzero(self.matrix.diagonal() != 1).tolist()
        return tuple(axis for axis in range(3) if axis in (*self._coupled, *scaled))

    @cached_property
    def _coupled(self) -> tuple[int, ...]:
        """The axes that are rotated or deformed."""
        if self.field is not None:
            return tuple(axis for axis in range(3) if self.size[axis] > 1)
        mixed = (self.matrix != 0) & ~np.eye(3, dtype=bool)
        return tuple(axis for axis in range(3) if mixed[axis].any() or mixed[:, axis].any())

    @property
    def _uncoupled(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(3) if axis not in self._coupled)

    def _line(self, axis: int) -> Doubles:
        """Positions along an uncoupled axis, relative to the centre."""
        return _centred(self.size[axis]) * float(self.matrix[axis, axis])

    def _line_in(self, volume: Array, axis: int) -> Doubles:
        return np.asarray(self._line(axis) + (volume.shape[axis] - 1) / 2)

    @cached_property
    def _points(self) -> Floats:
        """Positions along the coupled axes, relative to the centre: (axes, n)."""
        axes = self._coupled
        sizes = [self.size[axis] for axis in axes]
        centred = [_centred(size).astype(np.float32) for size in sizes]
        lines = np.meshgrid(*centred, indexing="ij", sparse=True)
        points = np.zeros((len(axes), *sizes), np.float32)
        for row, out in zip(axes, points, strict=True):
            for column, line in zip(axes, lines, strict=True):
                factor = np.float32(self.matrix[row, column])
                if self.field is not None and factor != 0:
                    out += factor * self.field[column].reshape(sizes)
                out += factor * line
        return points.reshape(len(axes), -1)

    def _points_in(self, volume: Array) -> Floats:
        centre = [(volume.shape[axis] - 1) / 2 for axis in self._coupled]
        return self._points + np.array(centre, np.float32)[:, None]

    def _nearest_points(self, volume: Array) -> Array:
        table = self._coupled_first(volume)
        sizes = table.shape[:-1]
        at = np.zeros(self._points.shape[1], np.intp)
        for size, line in zip(sizes, self._points_in(volume), strict=True):
            at *= size
            at += spline.nearest(line)
        return self._in_order(table.reshape(-1, table.shape[-1]).take(at, axis=0))

    def _coupled_first(self, volume: Array) -> Array:
        """Move the coupled axes to the front and merge the others: (*coupled, others)."""
        ordered = volume.transpose(*self._coupled, *self._uncoupled)
        return ordered.reshape(*ordered.shape[: len(self._coupled)], -1)

    def _in_order(self, rows: Array) -> Array:
        """Undo `_coupled_first` for the patch: (points, others) in, (x, y, z) out."""
        axes = (*self._coupled, *self._uncoupled)
        ordered = rows.reshape([self.size[axis] for axis in axes])
        return np.ascontiguousarray(ordered.transpose(np.argsort(axes)))

    def _by_argmax(self, volume: Array) -> Array:
        """Interpolate each label by batchgenerators, and choose the largest."""
        at = np.empty((3, *self.size))
        for axis in self._uncoupled:
            shape = [-1 if other == axis else 1 for other in range(3)]
            at[axis] = self._line_in(volume, axis).reshape(shape)
        shape = [self.size[axis] if axis in self._coupled else 1 for axis in range(3)]
        if self._coupled:
            for axis, points in zip(self._coupled, self._points_in(volume), strict=True):
                at[axis] = points.reshape(shape)
        warped: Array = interpolate_img(volume, at, self.spec.label_order, "constant", is_seg=True)
        return warped


def _centred(size: int) -> Doubles:
    """Return the voxel positions of an axis relative to its middle."""
    return np.arange(size, dtype=np.float64) - (size - 1) / 2


# Elastic deformation: smooth random displacements, drawn on a coarse grid.


def displacement(shape: Sequence[int], alpha: float, sigma: float, rng: Rng) -> Floats:
    """Draw one component of a displacement field, in voxels, distributed as in batchgenerators.

    There it is uniform noise in [-1, 1], smoothed by a Gaussian and multiplied by alpha (Simard et
    al. 2003). Each displacement averages so many voxels that it is normally distributed; only the
    covariance matters, and normal noise in cells of a third of sigma has the same covariance up to
    1 % of the variance.

    Args:
        shape: (x, y, z).
        alpha: factor of the displacements.
        sigma: of the Gaussian, in voxels.
        rng: random generator of the sample.
    """
    operators = [smoothing_operator(size, sigma) for size in shape]
    cells = [operator.shape[1] for operator in operators]
    field = rng.standard_normal(cells, dtype=np.float32)
    field *= alpha / np.sqrt(3)  # standard deviation of the uniform distribution on [-1, 1]
    for axis, operator in enumerate(operators):
        field = spline.along(operator, field, axis)
    return field


def smoothing_operator(size: int, sigma: float) -> Floats:
    """Return the matrix (size, cells) that maps noise in cells to Gaussian-filtered voxels.

    Beyond the axis there is no noise, as in `scipy.ndimage.gaussian_filter(mode="constant")`. An
    axis of one voxel is kept.
    """
    if size == 1:
        return np.ones((1, 1), np.float32)
    cells = min(size, ceil(CELLS_PER_SIGMA * size / sigma))
    width = size / cells  # in voxels
    middle = (np.arange(cells) + 0.5) * width - 0.5
    reach = int(4 * sigma + 0.5)
    total = _gaussian(np.arange(-reach, reach + 1.0), sigma).sum()
    kernel = _gaussian(np.arange(size)[:, None] - middle, sigma) / total
    return np.asarray(np.sqrt(width) * kernel, np.float32)


def _gaussian(distance: Doubles, sigma: float) -> Doubles:
    return np.asarray(np.exp(-0.5 * (distance / sigma) ** 2))


def random_box(size: Triple, rng: Rng) -> list[slice]:
    """Draw a box of a patch, with a quarter to three quarters of it along each axis, at least 1.

    For CutMix (Yun et al., ICCV 2019), here with the labels of the voxels.
    """
    sides = [max(1, round(n * rng.uniform(*MIXED_SHARE))) for n in size]
    starts = [int(rng.integers(0, n - side + 1)) for n, side in zip(size, sides, strict=True)]
    return [slice(start, start + side) for start, side in zip(starts, sides, strict=True)]
