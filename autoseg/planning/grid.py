"""The grid that a configuration works on: target spacing and median shape, from the data.

This module holds the planner's order of the axes: the lowest-resolution axis first, then the others
as z, y, x. nnU-Net settles ties between axes in that order, so the rules compute in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ANISOTROPY_FACTOR = 3
FINE_PERCENTILE = 10  # of an anisotropic axis' spacings


@dataclass(frozen=True, eq=False)
class DataFigures:
    """What the rules look at.

    Attributes:
        spacings_mm: (cases, 3), x, y, z.
        shapes: (cases, 3) voxels along x, y, z after cropping to the non-zero part.
        channels: names of the channels, which decide the normalization.
        label_count: names among the labels, background and an ignore label included.
        relative_size_after_cropping: median over the cases of cropped voxels / all voxels.
    """

    spacings_mm: ArrayLike
    shapes: ArrayLike
    channels: tuple[str, ...]
    label_count: int
    relative_size_after_cropping: float

    @cached_property
    def cases(self) -> int:
        """How many cases there are."""
        return len(self.spacings_zyx)

    @cached_property
    def spacings_zyx(self) -> NDArray[np.float64]:
        """Spacings in mm, (cases, 3)."""
        return _reversed_table(self.spacings_mm)

    @cached_property
    def shapes_zyx(self) -> NDArray[np.float64]:
        """Shapes in voxels, (cases, 3)."""
        return _reversed_table(self.shapes)


@dataclass(frozen=True)
class Grid:
    """Spacing and median shape of the resampled cases, two or three axes in the planner's order.

    Attributes:
        axes: which axis (0 = x, 1 = y, 2 = z) each entry stands for.
        spacing_mm: target spacing.
        median_shape: median voxels along each axis after resampling.
        voxels: voxels of a median case, all three axes.
        evidence: the figures that the spacing was chosen by.
    """

    axes: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    voxels: float
    evidence: str

    def ascending(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Bring one value per axis from the planner's order into x, y, z order."""
        return tuple(values[self.axes.index(axis)] for axis in sorted(self.axes))


def planner_axes(figures: DataFigures) -> tuple[int, int, int]:
    """nnU-Net's `transpose_forward`: the planner's order as axis numbers of z, y, x arrays."""
    return _planner_axes(_target_spacing_zyx(figures)[0])


def full_grid(figures: DataFigures) -> Grid:
    """The grid of full resolution.

    The spacing is the median of the cases' spacings. If the coarsest axis is more than three times
    as coarse as the others and has less than a third of their voxels, it gets the 10th percentile
    of its spacings instead, but stays coarser than the others.
    """
    target, evidence = _target_spacing_zyx(figures)
    resampled = np.rint(figures.spacings_zyx / target * figures.shapes_zyx)
    median_shape = np.maximum(np.median(resampled, axis=0), 1)
    order = _planner_axes(target)
    return Grid(
        axes=tuple(2 - axis for axis in order),
        spacing_mm=tuple(target[list(order)].tolist()),
        median_shape=tuple(median_shape[list(order)].tolist()),
        voxels=float(np.prod(median_shape)),
        evidence=evidence,
    )


def in_plane(full: Grid) -> Grid:
    """The grid of the slices across the lowest-resolution axis."""
    return Grid(
        axes=full.axes[1:],
        spacing_mm=full.spacing_mm[1:],
        median_shape=full.median_shape[1:],
        voxels=full.voxels,
        evidence=f"{full.evidence}; slices across {'xyz'[full.axes[0]]}, the coarsest axis",
    )


def coarser(full: Grid, spacing_mm: NDArray[np.float64], evidence: str) -> Grid:
    """The grid of `full`, resampled to another spacing (the planner's order)."""
    shape = np.divide(full.spacing_mm, spacing_mm) * full.median_shape
    return Grid(
        axes=full.axes,
        spacing_mm=tuple(spacing_mm.tolist()),
        median_shape=tuple(np.maximum(np.rint(shape), 1).tolist()),
        voxels=float(np.prod(shape)),
        evidence=evidence,
    )


def _target_spacing_zyx(figures: DataFigures) -> tuple[NDArray[np.float64], str]:
    target = np.percentile(figures.spacings_zyx, 50, axis=0)
    shape = np.percentile(figures.shapes_zyx, 50, axis=0)
    evidence = f"median spacing {times(target[::-1])} mm of {figures.cases} cases"
    worst = int(np.argmax(target))
    others = float(np.delete(target, worst).max())
    coarse = target[worst] > ANISOTROPY_FACTOR * others
    short = shape[worst] * ANISOTROPY_FACTOR < np.delete(shape, worst).min()
    if not (coarse and short):
        return target, f"{evidence}; not anisotropic"
    fine = float(np.percentile(figures.spacings_zyx[:, worst], FINE_PERCENTILE))
    target[worst] = fine if fine >= others else others + 1e-5
    evidence += (
        f"; anisotropic along {'zyx'[worst]}: median shape {times(shape[::-1])}; "
        f"{FINE_PERCENTILE}th percentile there {fine:.6g} mm"
    )
    return target, evidence


def _planner_axes(target_zyx: NDArray[np.float64]) -> tuple[int, int, int]:
    worst = int(np.argmax(target_zyx))
    first, second = (axis for axis in range(3) if axis != worst)
    return worst, first, second


def _reversed_table(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    assert table.shape == (max(len(table), 1), 3), table.shape
    return table[:, ::-1]


def times(values: Any) -> str:
    """Figures along the axes, as people write them: `160 x 160 x 80`."""
    return " x ".join(f"{value:.6g}" for value in values)
