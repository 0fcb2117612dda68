"""Voxel grids, whether two of them are the same, and turning them from one axis order to another.

A code such as `RAS` names for each of the axes x, y, z the side of the patient towards which its
index grows: right or left, anterior or posterior, superior or inferior (the convention of NIfTI
tools). Turning flips and exchanges axes; nothing is interpolated. The axes of an oblique grid count
as the anatomical axes nearest to them.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from autoseg.common.arrays import Array, Doubles, Triple
from autoseg.common.errors import DataError, raise_if
from autoseg.common.progress import by_axis, note
from autoseg.image.formats import TEXT

if TYPE_CHECKING:
    import SimpleITK as sitk


File = Path | str
GEOMETRY_TOLERANCE_MM = 1e-2
PLAUSIBLE_SPACING_MM = (1e-6, 1e4)
DIRECTION_TOLERANCE = 1e-3  # for products of direction vectors
SAME_VOXEL = 0.05  # voxels by which equal grids may differ
RESAMPLE_IT = "resample it onto that grid"


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

    @staticmethod
    def of(size: Sequence[int], spacing_mm: Any, origin_mm: Any, axes: Any) -> "Geometry":
        """A grid from sequences or arrays; `axes` has 3 x 3 direction cosines."""
        x, y, z = map(int, size)
        (dx, dy, dz), (left, back, up) = map(float, spacing_mm), map(float, origin_mm)
        direction = tuple(np.asarray(axes, float).ravel().tolist())
        return Geometry((x, y, z), (dx, dy, dz), (left, back, up), direction)

    def differences(self, other: Self, tolerance_mm: float = GEOMETRY_TOLERANCE_MM) -> list[str]:
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

    def nearly(self, other: "Geometry") -> bool:
        """Whether no voxel is farther from its counterpart than 5 % of a voxel along any axis."""
        if self.size != other.size:
            return False
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.size) - 1)
        apart = self._place(corners) - other._place(corners)
        along = apart @ np.reshape(self.direction, (3, 3)) / self.spacing_mm
        return bool(np.abs(along).max() < SAME_VOXEL)

    def _place(self, indices: Array) -> Doubles:
        """The positions of voxels (n, 3) in mm."""
        axes = np.reshape(self.direction, (3, 3)) * self.spacing_mm
        return np.asarray(indices @ axes.T + self.origin_mm)


def check_same_grid(
    found: Geometry, path: File, expected: Geometry, reference: File, advice: str = RESAMPLE_IT
) -> None:
    """Check that two files lie on the same voxel grid; a difference below 5 % of a voxel is noted.

    Raises:
        DataError: they do not; the message names `path` and `reference`, says where the grids
            differ, and ends with `advice`.
    """
    if not (differences := expected.differences(found)):
        return
    where = ", ".join(differences)
    if not expected.nearly(found):
        raise DataError(f"{path}: not on the grid of {reference}: {where}; {advice}")
    note(TEXT("nearly the same grid", path=path, reference=reference, where=where))


def geometry_of(image: "sitk.Image | sitk.ImageFileReader", path: File) -> Geometry:
    """The grid of a SimpleITK image, or of a reader that has read its header.

    Raises:
        DataError: it is not three-dimensional, is sheared, or has an implausible spacing; the
            message begins with `path`.
    """
    dimensions = image.GetDimension()
    direction = np.reshape(image.GetDirection(), (dimensions, dimensions))
    if dimensions not in (3, 4):
        raise DataError(f"{path}: has {dimensions} dimensions; a scan has 3 (or 4 with channels)")
    sizes, spacing, origin = image.GetSize(), image.GetSpacing(), image.GetOrigin()
    geometry = Geometry.of(sizes[:3], spacing[:3], origin[:3], direction[:3, :3])
    check_geometry(geometry, path)
    return geometry


def check_geometry(geometry: Geometry, path: File) -> None:
    """Check that a spacing is plausible, and that the axes are perpendicular.

    Raises:
        DataError: they are not; the message begins with `path`.
    """
    axes, spacing = np.reshape(geometry.direction, (3, 3)), geometry.spacing_mm
    if not (PLAUSIBLE_SPACING_MM[0] <= min(spacing) and max(spacing) <= PLAUSIBLE_SPACING_MM[1]):
        raise DataError(f"{path}: implausible spacing {by_axis(spacing, '.4g')} mm; fix the header")
    if not np.abs(axes @ axes.T - np.eye(3)).max() <= DIRECTION_TOLERANCE:  # also true for NaN
        raise sheared(path)


def sheared(path: File) -> DataError:
    """The error for axes that are not perpendicular to each other."""
    return DataError(TEXT("sheared", path=path))


# Of world axes as in DICOM and ITK, which grow to the left, to the back and upwards.
LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
ORDERS = itertools.permutations(LETTERS)
CODES = tuple("".join(letters) for order in ORDERS for letters in itertools.product(*order))


def check_code(code: str) -> str:
    """Return a code in capitals.

    Raises:
        DataError: it is not one of the 48 orientation codes.
    """
    raise_if(code.upper() not in CODES, DataError(TEXT("no code", code=code)))
    return code.upper()


def orientation_of(grid: Geometry) -> str:
    """The code of a grid, for example `LPS` for an ordinary axial DICOM series.

    As in ITK, the axes of an oblique grid are named in the order of their largest cosines.
    """
    direction = np.reshape(grid.direction, (3, 3))  # column: where an index axis points
    strength, letters = np.abs(direction), ["", "", ""]
    for _ in range(3):
        world, axis = np.unravel_index(np.argmax(strength), (3, 3))
        letters[axis] = LETTERS[world][int(direction[world, axis] > 0)]
        strength[world, :] = strength[:, axis] = -1.0
    return "".join(letters)


def most_common(codes: Iterable[str]) -> str:
    """The code that occurs most often; of equally frequent ones the first in `CODES`."""
    return next(iter(_by_frequency(codes)))


def counted_codes(codes: Iterable[str]) -> str:
    """How often each code occurs, such as `3 RAS, 1 LPS`, the most frequent first."""
    return ", ".join(f"{count} {code}" for code, count in _by_frequency(codes).items())


def _by_frequency(codes: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(codes).items(), key=lambda pair: (-pair[1], CODES.index(pair[0]))))


def direction_of(code: str) -> tuple[float, ...]:
    """The direction matrix of an axis-aligned grid, row by row, as in `Geometry`."""
    direction = np.zeros((3, 3))
    for axis, letter in enumerate(code):
        world = next(world for world, pair in enumerate(LETTERS) if letter in pair)
        direction[world, axis] = 1.0 if letter == LETTERS[world][1] else -1.0
    return tuple(float(value) for value in direction.ravel())


@dataclass(frozen=True)
class Turn:
    """Brings the axes of a grid into another order.

    Attributes:
        axes: for each axis of the result, the axis of the source.
        flips: for each axis of the result, whether it runs the other way.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def between(cls, source: str, target: str) -> "Turn":
        """The turn from one orientation code to another."""
        pairs = [next(pair for pair in LETTERS if letter in pair) for letter in source]
        axes = [next(i for i, pair in enumerate(pairs) if letter in pair) for letter in target]
        flips = [source[axis] != letter for axis, letter in zip(axes, target, strict=True)]
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    @classmethod
    def of(cls, grid: Geometry, target: str | None) -> "Turn":
        """The turn that brings a grid to an orientation; None leaves it as it is."""
        return cls() if target is None else cls.between(orientation_of(grid), target)

    def then(self, other: "Turn") -> "Turn":
        """This turn followed by another one."""
        pairs = zip(other.triple(self.flips), other.flips, strict=True)
        x, y, z = (own != flip for own, flip in pairs)
        return Turn(other.triple(self.axes), (x, y, z))

    def inverse(self) -> "Turn":
        """The way back."""
        axes = [self.axes.index(axis) for axis in range(3)]
        flips = [self.flips[axis] for axis in axes]
        return Turn((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def array(self, values: Array) -> Array:
        """Turn the last three axes of an array; the result is a view of it."""
        first = values.ndim - 3
        order = (*range(first), *(first + axis for axis in self.axes))
        steps: Any = (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))
        return np.asarray(values.transpose(order)[steps])

    def triple(self, values: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Exchange three values along the axes, such as sizes or spacings."""
        return values[self.axes[0]], values[self.axes[1]], values[self.axes[2]]

    def box(self, box: Sequence[tuple[int, int]], size: Sequence[int]) -> tuple[Any, ...]:
        """Turn a box, (start, stop) along each axis, of a grid of this size."""
        axes = zip(self.flips, self.triple(box), self.triple(size), strict=True)
        return tuple(
            (n - end, n - start) if flip else (start, end) for flip, (start, end), n in axes
        )

    def geometry(self, grid: Geometry) -> Geometry:
        """The turned grid: its voxels lie in the same places of the patient."""
        if self == Turn():
            return grid
        direction = np.reshape(grid.direction, (3, 3))
        origin = np.array(grid.origin_mm, float)
        for axis, flip in zip(self.axes, self.flips, strict=True):
            if flip:  # the first voxel is the last one of the source
                origin += direction[:, axis] * grid.spacing_mm[axis] * (grid.size[axis] - 1)
        turned = direction[:, list(self.axes)] * np.where(self.flips, -1.0, 1.0)
        return Geometry.of(self.triple(grid.size), self.triple(grid.spacing_mm), origin, turned)


# These exchange x with one of the axes x, y, z.
SWAPS = (Turn(), Turn((1, 0, 2)), Turn((2, 1, 0)))
