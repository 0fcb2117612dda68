"""One case as people look at it: upright, cut into slices, the interesting ones chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import members
from autoseg.common.figures import Colours, colours_of
from autoseg.image.geometry import Geometry, check_same_grid
from autoseg.image.image import read_image, read_label

Array = NDArray[Any]
Classes = Mapping[str, tuple[int, ...]]
Masks = dict[str, NDArray[np.bool_]]  # class -> where it is in a slice, (rows, columns)

WINDOW_PERCENT = (1, 99)
WINDOW_VOXELS = 1_000_000  # enough to find the window from
NEAR = 0.05  # of the extent of the classes: slices this close show the same


@dataclass(frozen=True)
class Exhibit:
    """The files of a case to draw.

    Attributes:
        case: its name.
        image: the scan's first channel.
        truth: the label map that is right.
        prediction: the label map to compare.
        labels: class -> the integers that make it.
        title: written above.
        in_prediction: the same integers in the prediction, where they are others than in the truth.
        colours: class -> colour, for those that the plan gives one.
    """

    case: str
    image: Path
    truth: Path
    prediction: Path
    labels: Classes
    title: str = ""
    in_prediction: Classes = field(default_factory=dict)
    colours: Colours = field(default_factory=dict)


@dataclass(frozen=True)
class Upright:
    """How to turn a voxel grid so that x runs to the patient's left, y to the back, z to the head.

    Attributes:
        order: the voxel axis that runs along each patient axis.
        flipped: the patient axes along which it runs backwards.
        spacing_mm: along the patient axes.
    """

    order: tuple[int, ...]
    flipped: tuple[int, ...]
    spacing_mm: tuple[float, ...]

    @staticmethod
    def of(geometry: Geometry) -> Upright:
        """The turn by multiples of 90 degrees that fits the grid's directions best."""
        cosines = np.reshape(geometry.direction, (3, 3))  # patient axes x voxel axes
        order = max(permutations(range(3)), key=lambda p: np.abs(cosines[range(3), p]).sum())
        flipped = tuple(int(i) for i in np.flatnonzero(cosines[range(3), order] < 0))
        return Upright(order, flipped, tuple(geometry.spacing_mm[i] for i in order))

    def turn(self, array: Array) -> Array:
        """A view of `array`, turned."""
        return np.flip(array.transpose(self.order), self.flipped)


@dataclass(frozen=True)
class View:
    """A case, read and turned upright: x runs to the patient's left, y to the back, z to the head.

    Slices are arrays (rows, columns) as they are seen: from the feet or from the front, as
    radiologists do, so that the patient's right is on the left.

    Attributes:
        exhibit: the files.
        image: (x, y, z), the first channel.
        truth: (x, y, z), the true label map.
        prediction: (x, y, z), the label map to compare.
        spacing_mm: along x, y, z.
        axis: the one across the slices.
        window: the values that are drawn black and white.
    """

    exhibit: Exhibit
    image: Array
    truth: Array
    prediction: Array
    spacing_mm: tuple[float, ...]
    axis: int
    window: tuple[float, float]

    @property
    def across(self) -> int:
        """The axis from left to right."""
        return 1 if self.axis == 0 else 0

    @property
    def down(self) -> int:
        """The axis from top to bottom, or from bottom to top if it is z."""
        return 1 if self.axis == 2 else 2

    @property
    def aspect(self) -> float:
        """The height of a pixel of a slice by its width."""
        return self.spacing_mm[self.down] / self.spacing_mm[self.across]

    @property
    def slices(self) -> int:
        """How many there are."""
        return int(self.image.shape[self.axis])

    @property
    def colours(self) -> dict[str, str]:
        """The colour of every class."""
        return colours_of(self.exhibit.labels, self.exhibit.colours)

    def cut(self, array: Array, k: int) -> Array:
        """Slice k of one of the three arrays."""
        # np.take would copy the whole array first.
        rows: Array = array[tuple(k if axis == self.axis else slice(None) for axis in range(3))].T
        return rows if self.down == 1 else rows[::-1]  # the head, but not the back, is above

    def masks(self, k: int) -> tuple[Masks, Masks]:
        """Where the classes are in slice k of the truth, and of the prediction."""
        sides = (self.truth, self.exhibit.labels), (self.prediction, self._painted())
        truth, prediction = (
            {name: members(self.cut(label_map, k), values) for name, values in classes.items()}
            for label_map, classes in sides
        )
        return truth, prediction

    def amounts(self) -> dict[str, NDArray[np.int64]]:
        """Class -> its voxels in every slice of the truth, or else of the prediction."""
        others = tuple({0, 1, 2} - {self.axis})
        found = {}
        for name, values in self.exhibit.labels.items():
            found[name] = members(self.truth, values).sum(others)
            if not found[name].any():
                painted = self._painted()[name]
                found[name] = members(self.prediction, painted).sum(others)
        return found

    def _painted(self) -> Classes:
        return {**self.exhibit.labels, **self.exhibit.in_prediction}


def read_view(exhibit: Exhibit) -> View:
    """Read a case.

    Raises:
        DataError: a file cannot be read, or they lie on different grids.
    """
    scan = read_image([exhibit.image], own_type=True)
    maps = []
    for path in (exhibit.truth, exhibit.prediction):
        found, geometry = read_label(path)
        check_same_grid(geometry, path, scan.geometry, exhibit.image)
        maps.append(found)
    upright = Upright.of(scan.geometry)
    image, truth, prediction = (upright.turn(array) for array in (scan.array[0], *maps))
    axis = slicing_axis(upright.spacing_mm)
    return View(exhibit, image, truth, prediction, upright.spacing_mm, axis, window_of(image))


def slicing_axis(spacing_mm: Sequence[float]) -> int:
    """The axis across the slices: z, unless another has voxels more than twice as far apart."""
    widest = int(np.argmax(spacing_mm))
    return widest if spacing_mm[widest] > 2 * spacing_mm[2] else 2


def window_of(image: Array) -> tuple[float, float]:
    """The values to draw black and white: percentiles of the image, of a sample if it is large."""
    values = image.ravel(order="K")
    low, high = np.percentile(values[:: max(1, values.size // WINDOW_VOXELS)], WINDOW_PERCENT)
    return float(low), float(max(high, low + 1e-6))


def fullest_slices(view: View, most: int) -> dict[int, tuple[str, ...]]:
    """Slice -> the classes of which it has most, rising; the middle one if no class is there.

    The rarest classes choose first; a class whose slice lies close to a chosen one shares that.
    """
    amounts = {name: of for name, of in view.amounts().items() if of.any()}
    if not amounts:
        return {view.slices // 2: ()}
    near = NEAR * np.ptp(np.flatnonzero(sum(amounts.values())))
    chosen: dict[int, list[str]] = {}
    for name in sorted(amounts, key=lambda name: int(amounts[name].sum())):
        k = int(amounts[name].argmax())
        closest = min(chosen, key=lambda other: abs(other - k), default=None)
        if closest is not None and abs(closest - k) <= near:
            chosen[closest].append(name)
        elif len(chosen) < most:
            chosen[k] = [name]
    order = list(view.exhibit.labels)
    return {k: tuple(sorted(chosen[k], key=order.index)) for k in sorted(chosen)}


def scroll_slices(view: View, most: int) -> list[int]:
    """At most so many slices, evenly through the extent of the classes and a little beyond."""
    there = np.flatnonzero(sum(view.amounts().values(), np.zeros(view.slices, int)))
    first, last = (int(there[0]), int(there[-1])) if len(there) else (0, view.slices - 1)
    beyond = 1 + (last - first) // 10
    first, last = max(0, first - beyond), min(view.slices - 1, last + beyond)
    places = np.rint(np.linspace(first, last, min(most, last - first + 1)))
    return [int(place) for place in places]
