"""Voxel grids: size, spacing, origin and direction, and whether two grids are the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.common.errors import DataError
from autoseg.common.progress import by_axis, note

if TYPE_CHECKING:
    import SimpleITK as sitk

GEOMETRY_TOLERANCE_MM = 1e-2
PLAUSIBLE_SPACING_MM = (1e-6, 1e4)
DIRECTION_TOLERANCE = 1e-3  # for products of direction vectors
SAME_VOXEL = 0.05  # voxels by which equal grids may differ


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in patient coordinates.

    Attributes:
        size: number of voxels along x, y, z.
        spacing_mm: distance between neighbouring voxel centres along x, y, z.
        origin_mm: position of the centre of the first voxel.
        direction: 3 x 3 direction cosines, row by row.

    >>> import autoseg
    >>> upright = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    >>> grid = autoseg.Geometry((64, 64, 20), (0.8, 0.8, 3.0), (0.0, 0.0, 0.0), upright)
    >>> thinner = autoseg.Geometry((64, 64, 20), (0.8, 0.8, 2.5), (0.0, 0.0, 0.0), upright)
    >>> grid.differences(thinner)[0]
    'spacing by 0.5 mm'
    """

    size: Triple
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]

    def differences(
        self, other: Geometry, tolerance_mm: float = GEOMETRY_TOLERANCE_MM
    ) -> list[str]:
        """Describe where two grids differ; an empty list if they are the same."""
        if self.size != other.size:
            return [f"size {by_axis(self.size)} against {by_axis(other.size)} voxels"]
        found = []
        spacing = np.abs(np.subtract(self.spacing_mm, other.spacing_mm)).max()
        if spacing * max(self.size) > tolerance_mm:
            found.append(f"spacing by {spacing:.4g} mm")
        origin = float(np.linalg.norm(np.subtract(self.origin_mm, other.origin_mm)))
        if origin > tolerance_mm:
            found.append(f"origin by {origin:.4g} mm")
        extent_mm = np.multiply(self.size, self.spacing_mm)
        offset_mm = np.subtract(self.direction, other.direction).reshape(3, 3) @ extent_mm
        if np.linalg.norm(offset_mm) > tolerance_mm:
            found.append(f"direction by {np.linalg.norm(offset_mm):.4g} mm at the far corner")
        return found

    def nearly(self, other: Geometry) -> bool:
        """Whether no voxel is farther from its counterpart than 5 % of a voxel along any axis."""
        if self.size != other.size:
            return False
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.size) - 1)
        apart = self._place(corners) - other._place(corners)
        along = apart @ np.reshape(self.direction, (3, 3)) / self.spacing_mm
        return bool(np.abs(along).max() < SAME_VOXEL)

    def _place(self, indices: NDArray[Any]) -> NDArray[np.float64]:
        """The positions of voxels (n, 3) in mm."""
        axes = np.reshape(self.direction, (3, 3)) * self.spacing_mm
        places: NDArray[np.float64] = indices @ axes.T + self.origin_mm
        return places


def check_same_grid(
    found: Geometry,
    path: Path | str,
    expected: Geometry,
    reference: Path | str,
    advice: str = "resample it onto that grid",
) -> None:
    """Check that two files lie on the same voxel grid; a difference below 5 % of a voxel is noted.

    Raises:
        DataError: they do not; the message names `path` and `reference`, says where the grids
            differ, and ends with `advice`.
    """
    if not (differences := expected.differences(found)):
        return
    if not expected.nearly(found):
        raise DataError(
            f"{path}: not on the grid of {reference}: {', '.join(differences)}; {advice}"
        )
    note(
        f"{path}: its grid differs from that of {reference} by less than 5 % of a voxel "
        f"({', '.join(differences)}); taken as equal"
    )


def geometry_of(image: sitk.Image | sitk.ImageFileReader, path: Path | str) -> Geometry:
    """The grid of a SimpleITK image, or of a reader that has read its header.

    Raises:
        DataError: it is not three-dimensional, is sheared, or has an implausible spacing; the
            message begins with `path`.
    """
    dimensions = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (dimensions, dimensions))
    if dimensions not in (3, 4):
        raise DataError(f"{path}: has {dimensions} dimensions; a scan has 3 (or 4 with channels)")
    sizes, spacing = image.GetSize()[:3], image.GetSpacing()[:3]
    geometry = Geometry(
        size=(int(sizes[0]), int(sizes[1]), int(sizes[2])),
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        origin_mm=tuple(image.GetOrigin()[:3]),
        direction=tuple(float(value) for value in direction[:3, :3].ravel()),
    )
    check_geometry(geometry, path)
    return geometry


def check_geometry(geometry: Geometry, path: Path | str) -> None:
    """Check that a spacing is plausible, and that the axes are perpendicular.

    Raises:
        DataError: they are not; the message begins with `path`.
    """
    axes, spacing = np.reshape(geometry.direction, (3, 3)), geometry.spacing_mm
    if not (PLAUSIBLE_SPACING_MM[0] <= min(spacing) and max(spacing) <= PLAUSIBLE_SPACING_MM[1]):
        raise DataError(f"{path}: implausible spacing {by_axis(spacing, '.4g')} mm; fix the header")
    if not np.abs(axes @ axes.T - np.eye(3)).max() <= DIRECTION_TOLERANCE:  # also true for NaN
        raise sheared(path)


def sheared(path: Path | str) -> DataError:
    """The error for axes that are not perpendicular to each other."""
    return DataError(
        f"{path}: its direction matrix is sheared (not orthonormal), which ITK "
        "refuses; write a rigid sform/qform, or resample it onto an orthonormal grid"
    )
