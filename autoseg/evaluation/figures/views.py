"""One case prepared for display: in standard orientation, with the slices to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Box, members
from autoseg.common.figures import Colours, colours_of, window_of
from autoseg.evaluation.labels import ClassValues
from autoseg.image.geometry import Turn, check_same_grid, orientation_of
from autoseg.image.image import read_image, read_label

Array = NDArray[Any]
SliceMasks = dict[str, NDArray[np.bool_]]  # class -> its mask in a slice, (rows, columns)

NEAR = 0.05  # of the extent of the classes: closer slices look the same


@dataclass(frozen=True)
class Exhibit:
    """The files of a case to draw.

    Attributes:
        case: its name.
        image: the first channel of the scan.
        reference: the reference label map.
        prediction: the predicted label map.
        labels: class -> its label values.
        title: the title of the figure.
        in_prediction: class -> its label values in the prediction, if they differ.
        colours: class -> colour, for the classes to which the plan assigns one.
    """

    case: str
    image: Path
    reference: Path
    prediction: Path
    labels: ClassValues
    title: str = ""
    in_prediction: ClassValues = field(default_factory=dict)
    colours: Colours = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """A case in standard orientation: x, y, z point to the patient's left, back and head.

    Slices are arrays (rows, columns) in the radiological convention: seen from the feet or from the
    front, with the patient's right on the left.

    Attributes:
        exhibit: the files.
        image: (x, y, z), the first channel.
        reference: (x, y, z), the reference label map.
        prediction: (x, y, z), the predicted label map.
        spacing_mm: spacing along x, y, z.
        axis: the axis perpendicular to the slices.
        window: the values shown as black and white.
    """

    exhibit: Exhibit
    image: Array
    reference: Array
    prediction: Array
    spacing_mm: tuple[float, ...]
    axis: int
    window: tuple[float, float]

    @property
    def across(self) -> int:
        """The horizontal axis of a slice."""
        return 1 if self.axis == 0 else 0

    @property
    def down(self) -> int:
        """The vertical axis of a slice; z runs from bottom to top."""
        return 1 if self.axis == 2 else 2

    @property
    def aspect(self) -> float:
        """The height of a pixel of a slice divided by its width."""
        return self.spacing_mm[self.down] / self.spacing_mm[self.across]

    @property
    def slices(self) -> int:
        """The number of slices."""
        return int(self.image.shape[self.axis])

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each class."""
        return colours_of(self.exhibit.labels, self.exhibit.colours)

    def crop(self, box: Box, copy: bool = False) -> View:
        """The part of the case in a box, with the same window; a copy releases the full arrays."""
        parts = {name: getattr(self, name)[box] for name in ("image", "reference", "prediction")}
        return replace(
            self, **{name: part.copy() if copy else part for name, part in parts.items()}
        )

    def cut(self, array: Array, k: int) -> Array:
        """Slice k of one of the three arrays."""
        # np.take would copy the full array first.
        rows: Array = array[tuple(k if axis == self.axis else slice(None) for axis in range(3))].T
        return rows if self.down == 1 else rows[::-1]  # z points up, y points down

    def masks(self, k: int) -> tuple[SliceMasks, SliceMasks]:
        """The masks of the classes in slice k of the reference, and of the prediction."""
        sides = (self.reference, self.exhibit.labels), (self.prediction, self._predicted())
        reference, prediction = (
            {name: members(self.cut(label_map, k), values) for name, values in classes.items()}
            for label_map, classes in sides
        )
        return reference, prediction

    def amounts(self) -> dict[str, NDArray[np.int64]]:
        """Class -> its voxels in each slice of the reference, or if absent, of the prediction."""
        others = tuple({0, 1, 2} - {self.axis})
        found = {}
        for name, values in self.exhibit.labels.items():
            found[name] = members(self.reference, values).sum(others)
            if not found[name].any():
                found[name] = members(self.prediction, self._predicted()[name]).sum(others)
        return found

    def _predicted(self) -> ClassValues:
        return {**self.exhibit.labels, **self.exhibit.in_prediction}


def read_view(exhibit: Exhibit) -> View:
    """Read a case.

    Raises:
        DataError: a file cannot be read, or the grids differ.
    """
    scan = read_image([exhibit.image], own_type=True)
    maps = []
    for path in (exhibit.reference, exhibit.prediction):
        found, geometry = read_label(path)
        check_same_grid(geometry, path, scan.geometry, exhibit.image)
        maps.append(found)
    upright = Turn.between(orientation_of(scan.geometry), "LPS")
    image, reference, prediction = (upright.array(array) for array in (scan.array[0], *maps))
    spacing_mm = upright.triple(scan.geometry.spacing_mm)
    axis = slicing_axis(spacing_mm)
    return View(exhibit, image, reference, prediction, spacing_mm, axis, window_of(image))


def slicing_axis(spacing_mm: Sequence[float]) -> int:
    """The axis perpendicular to the slices: z, unless another has more than twice its spacing."""
    widest = int(np.argmax(spacing_mm))
    return widest if spacing_mm[widest] > 2 * spacing_mm[2] else 2


def fullest_slices(view: View, most: int) -> dict[int, tuple[str, ...]]:
    """Slice -> the classes with most voxels in it, sorted; the middle slice if there is no class.

    The smallest classes choose first; a class whose slice is close to a chosen one shares it.
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
    """At most `most` slices, evenly spaced over the extent of the classes with a small margin."""
    found = np.flatnonzero(sum(view.amounts().values(), np.zeros(view.slices, int)))
    first, last = (int(found[0]), int(found[-1])) if len(found) else (0, view.slices - 1)
    margin = 1 + (last - first) // 10
    first, last = max(0, first - margin), min(view.slices - 1, last + margin)
    slices = np.rint(np.linspace(first, last, min(most, last - first + 1)))
    return [int(k) for k in slices]
