"""Anatomical axes of a voxel grid, and turning scans from one axis order to another.

A code such as `RAS` names for each of the axes x, y, z the side of the patient towards which its
index grows: right or left, anterior or posterior, superior or inferior (the convention of NIfTI
tools). Turning flips and exchanges axes; nothing is interpolated. The axes of an oblique grid count
as the anatomical axes nearest to them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.image.geometry import Geometry

# Of world axes as in DICOM and ITK, which grow to the left, to the back and upwards.
LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))
CODES = tuple(
    "".join(letters)
    for order in itertools.permutations(LETTERS)
    for letters in itertools.product(*order)
)


def check_code(code: str) -> str:
    """Return a code in capitals.

    Raises:
        DataError: it is not one of the 48 orientation codes.
    """
    if code.upper() not in CODES:
        raise DataError(
            f"orientation {code!r}: not an orientation; give one letter of R/L, A/P and S/I for "
            "each of the axes x, y, z, for example RAS or LPS"
        )
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
    counts = Counter(codes)
    return min(counts, key=lambda code: (-counts[code], CODES.index(code)))


def counted_codes(codes: Iterable[str]) -> str:
    """How often each code occurs, such as `3 RAS, 1 LPS`, the most frequent first."""
    counts = Counter(codes)
    order = sorted(counts, key=lambda code: (-counts[code], CODES.index(code)))
    return ", ".join(f"{counts[code]} {code}" for code in order)


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
    def between(cls, source: str, target: str) -> Turn:
        """The turn from one orientation code to another."""
        pairs = [next(pair for pair in LETTERS if letter in pair) for letter in source]
        axes = [next(i for i, pair in enumerate(pairs) if letter in pair) for letter in target]
        flips = [source[axis] != letter for axis, letter in zip(axes, target, strict=True)]
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    @classmethod
    def of(cls, grid: Geometry, target: str | None) -> Turn:
        """The turn that brings a grid to an orientation; None leaves it as it is."""
        return cls() if target is None else cls.between(orientation_of(grid), target)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is turned."""
        return self == Turn()

    def then(self, other: Turn) -> Turn:
        """This turn followed by another one."""
        x, y, z = (
            own != flip for own, flip in zip(other.triple(self.flips), other.flips, strict=True)
        )
        return Turn(other.triple(self.axes), (x, y, z))

    def inverse(self) -> Turn:
        """The way back."""
        axes = [self.axes.index(axis) for axis in range(3)]
        flips = [self.flips[axis] for axis in axes]
        return Turn((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def array(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn the last three axes of an array; the result is a view of it."""
        first = values.ndim - 3
        order = (*range(first), *(first + axis for axis in self.axes))
        steps: Any = (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))
        turned: NDArray[Any] = values.transpose(order)[steps]
        return turned

    def triple(self, values: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Exchange three values along the axes, such as sizes or spacings."""
        return values[self.axes[0]], values[self.axes[1]], values[self.axes[2]]

    def box(self, box: Sequence[tuple[int, int]], size: Sequence[int]) -> tuple[Any, ...]:
        """Turn a box, (start, stop) along each axis, of a grid of this size."""
        return tuple(
            (count - stop, count - start) if flip else (start, stop)
            for flip, (start, stop), count in zip(
                self.flips, self.triple(box), self.triple(size), strict=True
            )
        )

    def geometry(self, grid: Geometry) -> Geometry:
        """The turned grid: its voxels lie in the same places of the patient."""
        if self.is_identity:
            return grid
        direction = np.reshape(grid.direction, (3, 3))
        origin = np.array(grid.origin_mm, float)
        for axis, flip in zip(self.axes, self.flips, strict=True):
            if flip:  # the first voxel is the last one of the source
                origin += direction[:, axis] * grid.spacing_mm[axis] * (grid.size[axis] - 1)
        turned = direction[:, list(self.axes)] * np.where(self.flips, -1.0, 1.0)
        return Geometry(
            size=self.triple(grid.size),
            spacing_mm=self.triple(grid.spacing_mm),
            origin_mm=(float(origin[0]), float(origin[1]), float(origin[2])),
            direction=tuple(float(value) for value in turned.ravel()),
        )


# These exchange x with one of the axes x, y, z.
SWAPS = (Turn(), Turn((1, 0, 2)), Turn((2, 1, 0)))
