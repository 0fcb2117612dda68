"""Where the voxels of a scan lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoseg.common.arrays import Triple
from autoseg.common.errors import DataError
from autoseg.common.progress import by_axis

if TYPE_CHECKING:
    import SimpleITK as sitk

GEOMETRY_TOLERANCE_MM = 1e-2
SPACING_MM = (1e-6, 1e4)  # from microscopes to mistakes
DIRECTION_TOLERANCE = 1e-3  # of the products of direction cosines


@dataclass(frozen=True)
class Geometry:
    """Where a voxel grid lies in the patient.

    Attributes:
        size: voxels along x, y, z.
        spacing_mm: distance of neighbouring voxel centres along x, y, z.
        origin_mm: position of the first voxel's centre.
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
        """Say in words where two grids differ; nothing if they are the same grid."""
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
        turned = np.subtract(self.direction, other.direction).reshape(3, 3) @ extent_mm
        if np.linalg.norm(turned) > tolerance_mm:
            found.append(f"direction by {np.linalg.norm(turned):.4g} mm at the far corner")
        return found


def check_same_grid(
    found: Geometry,
    path: Path | str,
    expected: Geometry,
    reference: Path | str,
    advice: str = "resample it onto that grid",
) -> None:
    """Check that two files lie on the same voxel grid.

    Raises:
        DataError: they do not; the message names `path` and `reference`, says where the grids
            differ, and ends with `advice`.
    """
    if differences := expected.differences(found):
        raise DataError(
            f"{path}: not on the grid of {reference}: {', '.join(differences)}; {advice}"
        )


def geometry_of(picture: sitk.Image | sitk.ImageFileReader, path: Path | str) -> Geometry:
    """The grid of a SimpleITK image, or of a reader that has read its header.

    Raises:
        DataError: it is not three-dimensional, sheared, or has a spacing that cannot be; `path`
            begins the message.
    """
    dimensions = picture.GetDimension()
    direction = np.reshape(picture.GetDirection(), (dimensions, dimensions))
    if dimensions not in (3, 4):
        raise DataError(f"{path}: has {dimensions} dimensions; a scan has 3 (or 4 with channels)")
    upright = direction[:3, :3]
    sizes, spacing = picture.GetSize()[:3], picture.GetSpacing()[:3]
    if not (SPACING_MM[0] <= min(spacing) and max(spacing) <= SPACING_MM[1]):
        raise DataError(
            f"{path}: its spacing is {by_axis(spacing, '.4g')} mm, which no scan "
            "has; mend its header"
        )
    if not np.abs(upright @ upright.T - np.eye(3)).max() <= DIRECTION_TOLERANCE:  # NaN, too
        raise sheared(path)
    return Geometry(
        size=(int(sizes[0]), int(sizes[1]), int(sizes[2])),
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        origin_mm=tuple(picture.GetOrigin()[:3]),
        direction=tuple(float(value) for value in upright.ravel()),
    )


def sheared(path: Path | str) -> DataError:
    """The error that axes are not perpendicular to each other."""
    return DataError(
        f"{path}: its direction matrix is sheared (not orthonormal), which ITK "
        "refuses; write a rigid sform/qform, or resample it onto an orthonormal grid"
    )
