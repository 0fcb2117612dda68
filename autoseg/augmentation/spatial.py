"""Rotation, scaling and elastic deformation of a patch in one interpolation.

A warp is drawn before its patch is read, so that only the voxels which it needs are read: the patch
alone in most cases. Along an axis that neither turns nor deforms it is one matrix product;
scattered points are left along the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.augmentation.spline import (
    REACH,
    Floats,
    along,
    at_points,
    line_operator,
    nearest,
    prefilter,
    rows_at_points,
)
from autoseg.common.arrays import Triple
from autoseg.plan.augmentation import Spatial

# Smooth random displacements for elastic deformation, drawn where they are smooth: coarsely.

CELLS_PER_SIGMA = 3


def displacement(
    shape: Sequence[int], alpha: float, sigma: float, rng: np.random.Generator
) -> Floats:
    """One component of a displacement field, in voxels: batchgenerators' in distribution.

    There each voxel is a uniform number in [-1, 1], smoothed by a Gaussian and multiplied by alpha
    (Simard et al. 2003). So many of them meet in each displacement that it is normal; only the
    covariance counts, and that is the same, to 1 % of the variance, for normal noise in cells of a
    third of sigma.

    Args:
        shape: (x, y, z).
        alpha: the factor.
        sigma: of the Gaussian, in voxels.
        rng: the random numbers.
    """
    smoothers = [smoother(size, sigma) for size in shape]
    cells = [smooth.shape[1] for smooth in smoothers]
    field = rng.standard_normal(cells, dtype=np.float32)
    field *= alpha / np.sqrt(3)  # the standard deviation of uniform numbers in [-1, 1]
    for axis, smooth in enumerate(smoothers):
        field = along(smooth, field, axis)
    return field


def smoother(size: int, sigma: float) -> Floats:
    """The matrix (size, cells) from noise in the cells of an axis to Gaussian-filtered voxels.

    Beyond the axis there is no noise, as for `scipy.ndimage.gaussian_filter(mode="constant")`. An
    axis of a single voxel is left as it is.
    """
    if size == 1:
        return np.ones((1, 1), np.float32)
    cells = min(size, ceil(CELLS_PER_SIGMA * size / sigma))
    width = size / cells  # in voxels
    middle = (np.arange(cells) + 0.5) * width - 0.5
    reach = int(4 * sigma + 0.5)
    total = _bell(np.arange(-reach, reach + 1.0), sigma).sum()
    kernel = _bell(np.arange(size)[:, None] - middle, sigma) / total
    return np.asarray(np.sqrt(width) * kernel, np.float32)


def _bell(distance: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    bell: NDArray[np.float64] = np.exp(-0.5 * (distance / sigma) ** 2)
    return bell


def draw_warp(spec: Spatial, size: Triple, rng: np.random.Generator) -> Warp | None:
    """Draw what the plan's transform does to one patch; None if nothing.

    The distributions are batchgenerators' own, with its `random_crop=False`.

    Args:
        spec: the plan's chances and ranges.
        size: of the patch (x, y, z). Nothing leaves the plane of one that is a voxel thick.
        rng: the sample's random numbers.
    """
    wide = [axis for axis in range(3) if size[axis] > 1]
    matrix, field = np.eye(3), None
    if rng.random() < spec.elastic_probability:
        alpha, sigma = rng.uniform(*spec.elastic_alpha), rng.uniform(*spec.elastic_sigma)
        field = np.zeros((3, *size), np.float32)
        for axis in wide:
            field[axis] = displacement(size, alpha, sigma, rng)
    turned = rng.random() < spec.rotation_probability
    if turned:
        angles = np.deg2rad([rng.uniform(*limits) for limits in spec.rotation_degrees])
        angles[[not {0, 1, 2} - {axis} <= set(wide) for axis in range(3)]] = 0
        matrix = rotation(*angles)
    scaled = rng.random() < spec.scaling_probability
    if scaled:
        matrix[wide] *= random_factor(spec.scaling, rng)
    return Warp(spec, size, matrix, field) if turned or scaled or field is not None else None


def random_factor(limits: tuple[float, float], rng: np.random.Generator) -> float:
    """Half of all draws below 1 and half above, as batchgenerators draws factors."""
    low, high = limits
    if low < 1 and rng.random() < 0.5:
        return rng.uniform(low, 1)
    return rng.uniform(max(low, 1), high)


def rotation(x: float, y: float, z: float) -> NDArray[np.float64]:
    """The matrix of turns about x, y and z by angles in radians, as batchgenerators combines them.

    It turns the places where a patch looks; the patch itself seems to turn the other way.
    """
    turns = [
        [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]],
        [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]],
        [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]],
    ]
    matrix: NDArray[np.float64] = np.linalg.multi_dot([np.array(turn, float) for turn in turns]).T
    return matrix.copy()


@dataclass(frozen=True)
class Warp:
    """Where each voxel of a patch comes from, in a box about it.

    Relative to the common centre, voxel v of the patch is the box at `matrix @ (v + field[v])`.

    Attributes:
        spec: the plan's orders of interpolation.
        size: of the patch (x, y, z).
        matrix: (3, 3).
        field: displacement of each voxel along x, y, z: (3, *size), or None.
    """

    spec: Spatial
    size: Triple
    matrix: NDArray[np.float64]
    field: Floats | None

    @cached_property
    def box_size(self) -> Triple:
        """The voxels to read: the patch and a margin, the same on both sides, as wide as needed."""
        reach = REACH[max(self.spec.image_order, self.spec.label_order)]
        sizes = list(self.size)
        for axis in range(3):
            if axis in self._moving:
                farthest = float(np.abs(self._points[self._moving.index(axis)]).max())
            elif self.matrix[axis, axis] != 1:
                farthest = float(np.abs(self._line(axis)).max())
            else:
                continue
            sizes[axis] += 2 * max(0, ceil(farthest + reach - (self.size[axis] - 1) / 2))
        x, y, z = sizes
        return x, y, z

    def image(self, volume: Floats) -> Floats:
        """Interpolate a channel: `box_size` in, `size` out."""
        order = self.spec.image_order
        for axis in self._still:
            if self.matrix[axis, axis] != 1:
                places = self._line_in(volume, axis)
                operator = line_operator(places, volume.shape[axis], order)
                volume = along(operator, volume, axis)
        if not self._moving:
            return volume
        if order == 0:
            return self._nearest_points(volume)
        if order == 3:
            for axis in self._moving:
                volume = along(prefilter(volume.shape[axis], order), volume, axis)
        points = self._points_in(volume)
        if not self._still:
            return at_points(volume, points, order).reshape(self.size)
        rows = rows_at_points(self._moving_first(volume), points, order)
        return self._in_order(rows)

    def label(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Interpolate a label map: `box_size` in, `size` out."""
        if self.spec.label_order > 0:
            return self._by_argmax(volume)
        for axis in self._still:
            if self.matrix[axis, axis] != 1:
                volume = volume.take(nearest(self._line_in(volume, axis)), axis=axis)
        return self._nearest_points(volume) if self._moving else volume

    @property
    def active(self) -> tuple[int, ...]:
        """The axes along which a voxel may come from elsewhere."""
        return tuple(
            axis for axis in range(3) if axis in self._moving or self.matrix[axis, axis] != 1
        )

    @cached_property
    def _moving(self) -> tuple[int, ...]:
        """The axes that turn or deform."""
        if self.field is not None:
            return tuple(axis for axis in range(3) if self.size[axis] > 1)
        turns = (self.matrix != 0) & ~np.eye(3, dtype=bool)
        return tuple(axis for axis in range(3) if turns[axis].any() or turns[:, axis].any())

    @property
    def _still(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(3) if axis not in self._moving)

    def _line(self, axis: int) -> NDArray[np.float64]:
        """Where the voxels of a still axis look, relative to the centre."""
        return _centred(self.size[axis]) * float(self.matrix[axis, axis])

    def _line_in(self, volume: NDArray[Any], axis: int) -> NDArray[np.float64]:
        places: NDArray[np.float64] = self._line(axis) + (volume.shape[axis] - 1) / 2
        return places

    @cached_property
    def _points(self) -> Floats:
        """Where the voxels look along the moving axes, relative to the centre: (axes, n)."""
        axes = self._moving
        sizes = [self.size[axis] for axis in axes]
        lines = np.meshgrid(
            *[_centred(n).astype(np.float32) for n in sizes], indexing="ij", sparse=True
        )
        points = np.zeros((len(axes), *sizes), np.float32)
        for row, out in zip(axes, points, strict=True):
            for column, line in zip(axes, lines, strict=True):
                factor = np.float32(self.matrix[row, column])
                if self.field is not None and factor != 0:
                    out += factor * self.field[column].reshape(sizes)
                out += factor * line
        return points.reshape(len(axes), -1)

    def _points_in(self, volume: NDArray[Any]) -> Floats:
        centre = [(volume.shape[axis] - 1) / 2 for axis in self._moving]
        return self._points + np.array(centre, np.float32)[:, None]

    def _nearest_points(self, volume: NDArray[Any]) -> NDArray[Any]:
        table = self._moving_first(volume)
        sizes = table.shape[:-1]
        at = np.zeros(self._points.shape[1], np.intp)
        for size, line in zip(sizes, self._points_in(volume), strict=True):
            at *= size
            at += nearest(line)
        return self._in_order(table.reshape(-1, table.shape[-1]).take(at, axis=0))

    def _moving_first(self, volume: NDArray[Any]) -> NDArray[Any]:
        """The moving axes, then all others as one."""
        turned = volume.transpose(*self._moving, *self._still)
        return turned.reshape(*turned.shape[: len(self._moving)], -1)

    def _in_order(self, rows: NDArray[Any]) -> NDArray[Any]:
        """(points, all others) as (x, y, z)."""
        axes = (*self._moving, *self._still)
        turned = rows.reshape([self.size[axis] for axis in axes])
        return np.ascontiguousarray(turned.transpose(np.argsort(axes)))

    def _by_argmax(self, volume: NDArray[Any]) -> NDArray[Any]:
        """batchgenerators' interpolation of each label, of which the largest wins."""
        from batchgenerators.augmentations.utils import interpolate_img

        at = np.empty((3, *self.size))
        for axis in self._still:
            shape = [-1 if other == axis else 1 for other in range(3)]
            at[axis] = self._line_in(volume, axis).reshape(shape)
        shape = [self.size[axis] if axis in self._moving else 1 for axis in range(3)]
        if self._moving:
            for axis, points in zip(self._moving, self._points_in(volume), strict=True):
                at[axis] = points.reshape(shape)
        warped: NDArray[Any] = interpolate_img(
            volume, at, self.spec.label_order, "constant", is_seg=True
        )
        return warped


def _centred(size: int) -> NDArray[np.float64]:
    """The places of an axis' voxels, relative to its middle."""
    return np.arange(size, dtype=np.float64) - (size - 1) / 2
