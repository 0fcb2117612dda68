"""One case prepared for display: in standard orientation, cropped to its classes, with a window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from autoseg.common.arrays import Array, Box, Doubles, LabelMap, Mask, Triple, bounding_box, members
from autoseg.common.figures import Colours, colours_of, window_of
from autoseg.image.geometry import LETTERS, Turn, check_same_grid, orientation_of
from autoseg.image.image import read_image, read_label

ClassValues = Mapping[str, tuple[int, ...]]  # class -> its label values
Window = tuple[float, float]  # the values shown as black and white

REFERENCE, PREDICTION = "reference", "prediction"
ERRORS = ("false positive", "false negative", "other class")
CT_WINDOWS = {"lung": (-1350, 150), "soft tissue": (-160, 240), "bone": (-450, 1050)}  # HU
LUNG_HU, BONE_HU, AIR_HU = -350, 300, -500  # limits of the median of a tissue
OFFSET_HU = 1024  # of CT that is stored without negative values
MARGIN = 0.3  # around the classes, as a share of their extent,
MARGIN_MM = 20.0  # but at least this


@dataclass(frozen=True)
class Exhibit:
    """The files of a case to draw.

    Attributes:
        case: its name.
        image: the first channel of the scan.
        reference: the reference label map, if there is one.
        prediction: the predicted label map, if there is one.
        labels: class -> its label values.
        title: the title of the figure.
        in_prediction: class -> its label values in the prediction, if they differ.
        colours: class -> colour, for the classes to which the plan assigns one.
        ignore: voxels with this value in the reference are no errors.
        channel: what the scan is, such as `CT`; empty if unknown.
    """

    case: str
    image: Path
    reference: Path | None
    prediction: Path | None
    labels: ClassValues
    title: str = ""
    in_prediction: ClassValues = field(default_factory=dict)
    colours: Colours = field(default_factory=dict)
    ignore: int | None = None
    channel: str = ""


@dataclass(frozen=True)
class View:
    """A case in standard orientation: x, y, z point to the patient's left, back and head.

    Planes are arrays (rows, columns) in the radiological convention: seen from the feet, from the
    front or from the left, with the patient's right or front on the left.

    Attributes:
        exhibit: the names of the classes; its files need not exist.
        image: (x, y, z), the first channel.
        maps: `REFERENCE` and `PREDICTION` (x, y, z), as far as they are known.
        spacing_mm: spacing along x, y, z.
        window: the values shown as black and white.
        tissue: what a CT window shows best; empty for other scans.
    """

    exhibit: Exhibit
    image: Array
    maps: Mapping[str, LabelMap]
    spacing_mm: tuple[float, ...]
    window: Window
    tissue: str = ""

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each class."""
        return colours_of(self.exhibit.labels, self.exhibit.colours)

    def classes_of(self, which: str) -> ClassValues:
        """Class -> its label values in a map."""
        changed = self.exhibit.in_prediction if which == PREDICTION else {}
        return {**self.exhibit.labels, **changed}

    @property
    def foreground(self) -> Mask:
        """The voxels of any class in any map."""
        found = np.zeros(self.image.shape, bool, order="F")
        for which, label_map in self.maps.items():
            values = [v for each in self.classes_of(which).values() for v in each]
            found |= members(label_map, values)
        return found

    def crop(self, box: Box) -> "View":
        """The part of the case in a box, with the same window."""
        maps = {which: label_map[box] for which, label_map in self.maps.items()}
        return replace(self, image=self.image[box], maps=maps)

    @cached_property
    def amounts(self) -> tuple[Doubles, ...]:
        """For each axis, (classes, slices): the share of a class's largest slice, in the maps."""
        return tuple(_amounts(self, axis) for axis in range(3))

    def fullest(self) -> Triple:
        """The slice of each axis that shows most of most classes; the middle one without classes.

        Each class counts by the share of its largest slice, so that small classes are seen.
        """
        x, y, z = (int(of.sum(0).argmax()) if of.any() else of.shape[1] // 2 for of in self.amounts)
        return x, y, z


def read_view(exhibit: Exhibit) -> View:
    """Read a case.

    Raises:
        DataError: a file cannot be read, or the grids differ.
    """
    scan = read_image([exhibit.image], own_type=True)
    upright = Turn.between(orientation_of(scan.geometry), "LPS")
    maps = {}
    for which, path in ((REFERENCE, exhibit.reference), (PREDICTION, exhibit.prediction)):
        if path is not None:
            found, geometry = read_label(path)
            check_same_grid(geometry, path, scan.geometry, exhibit.image)
            maps[which] = upright.array(found)
    spacing_mm = upright.triple(scan.geometry.spacing_mm)
    return make_view(exhibit, upright.array(scan.array[0]), maps, spacing_mm)


def make_view(
    exhibit: Exhibit, image: Array, maps: Mapping[str, LabelMap], spacing_mm: Sequence[float]
) -> View:
    """A view of arrays in the orientation LPS, cropped to the classes with a margin."""
    view = View(exhibit, image, maps, tuple(spacing_mm), (0.0, 1.0))
    inside = view.foreground
    values = image[inside] if inside.any() else image.ravel(order="K")
    around = bounding_box(inside)
    box = []
    for side, mm in zip(around, spacing_mm, strict=True) if around else ():
        margin = round(max(MARGIN_MM / mm, MARGIN * (side.stop - side.start)))
        box.append(slice(max(0, side.start - margin), side.stop + margin))
    cropped = view.crop(tuple(box))
    found = _ct_window(image, float(np.median(values)), exhibit.channel)
    window, tissue = found or (window_of(cropped.image), "")
    return replace(cropped, window=window, tissue=tissue)


def _ct_window(image: Array, median: float, channel: str) -> tuple[Window, str] | None:
    """The window of CT for the tissue of the classes; None for other scans."""
    lowest = float(image.min())
    is_named = channel.upper().startswith("CT")
    if not is_named and lowest > AIR_HU:
        return None
    offset = OFFSET_HU if is_named and lowest >= 0 and median > OFFSET_HU / 2 else 0
    middle = median - offset
    tissue = "lung" if middle < LUNG_HU else "bone" if middle > BONE_HU else "soft tissue"
    low, high = CT_WINDOWS[tissue]
    return (float(low + offset), float(high + offset)), tissue


def _amounts(view: View, axis: int) -> Doubles:
    total = np.zeros((len(view.exhibit.labels), view.image.shape[axis]))
    for which, label_map in view.maps.items():
        classes = view.classes_of(which)
        most = 1 + max([int(label_map.max(initial=0)), *(v for of in classes.values() for v in of)])
        planes = np.moveaxis(label_map, axis, 0)
        counts = np.array([np.bincount(plane.ravel(), minlength=most) for plane in planes])
        for row, values in zip(total, classes.values(), strict=True):
            row += counts[:, list(values)].sum(1)
    return np.asarray(total / np.maximum(total.max(1, keepdims=True), 1))


@dataclass(frozen=True)
class Plane:
    """One slice of a view along an axis.

    Attributes:
        view: the case.
        axis: the axis across the plane.
        k: the slice, from 0.
    """

    view: View
    axis: int
    k: int

    @property
    def across(self) -> int:
        """The horizontal axis."""
        return 1 if self.axis == 0 else 0

    @property
    def down(self) -> int:
        """The vertical axis; z runs from bottom to top."""
        return 1 if self.axis == 2 else 2

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height."""
        shape, spacing = self.view.image.shape, self.view.spacing_mm
        return shape[self.across] * spacing[self.across], shape[self.down] * spacing[self.down]

    @property
    def sides(self) -> tuple[str, str, str, str]:
        """The patient's sides at the left, right, top and bottom edge."""
        top, bottom = LETTERS[self.down] if self.down == 1 else LETTERS[self.down][::-1]
        return (*LETTERS[self.across], top, bottom)

    def cut(self, array: Array) -> Array:
        """The plane of an array, (rows, columns)."""
        # np.take would copy the full array first.
        where = tuple(self.k if axis == self.axis else slice(None) for axis in range(3))
        rows: Array = array[where].T
        return rows if self.down == 1 else rows[::-1]  # z points up, y points down

    def masks(self, which: str) -> dict[str, Mask]:
        """Class -> its mask in one of the maps."""
        label_map, classes = self.cut(self.view.maps[which]), self.view.classes_of(which)
        return {name: members(label_map, values) for name, values in classes.items()}

    def errors(self) -> dict[str, Mask]:
        """Kind of error -> its mask: where the prediction differs from the reference."""
        pairs = zip(self.masks(REFERENCE).values(), self.masks(PREDICTION).values(), strict=True)
        missed, added = np.zeros((2, *self.cut(self.view.image).shape), bool)
        for reference, prediction in pairs:
            missed |= reference & ~prediction
            added |= prediction & ~reference
        if self.view.exhibit.ignore is not None:
            valid = self.cut(self.view.maps[REFERENCE]) != self.view.exhibit.ignore
            missed, added = missed & valid, added & valid
        found = added & ~missed, missed & ~added, added & missed
        return dict(zip(ERRORS, found, strict=True))


def main_axis(view: View) -> int:
    """The axis across the slices: z, unless another has more than twice its spacing."""
    widest = int(np.argmax(view.spacing_mm))
    return widest if view.spacing_mm[widest] > 2 * view.spacing_mm[2] else 2
