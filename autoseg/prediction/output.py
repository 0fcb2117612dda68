"""The files that a prediction writes: label map in several formats, probabilities, a picture."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from autoseg.common.arrays import LabelMap, Triple, count_values, members
from autoseg.common.errors import AutosegError, install_hint
from autoseg.common.figures import colours_of, enlarged, outline, window_of
from autoseg.common.files import cannot_write, replacing
from autoseg.image.dicom_series import Source
from autoseg.image.formats import ending_of
from autoseg.image.geometry import LETTERS, SWAPS, Geometry, Turn, orientation_of
from autoseg.plan.labels import class_of, values_of
from autoseg.plan.plan import Plan
from autoseg.prediction.native_grid import PLANES_AT_ONCE

DEFAULT_FORMAT, DICOM_SEG, PICTURE = "nii.gz", "dicom-seg", "picture"
ENDINGS = {DEFAULT_FORMAT: ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", DICOM_SEG: ".dcm"}
FORMATS = tuple(ENDINGS)  # to choose from
ENDINGS |= {PICTURE: ".png"}  # of pictures, without asking
PROBABILITIES = ".probabilities.b2nd"
CAPTURE = ".preview.dcm"


def ending(format: str) -> str:
    """The file name ending of a format.

    Raises:
        AutosegError: the format is unknown.
    """
    if format not in ENDINGS:
        raise AutosegError(f"unknown output format {format!r}; choose {', '.join(FORMATS)}")
    return ENDINGS[format]


def output_path(folder: Path, case: str, format: str = DEFAULT_FORMAT) -> Path:
    """The file of a case's label map."""
    return folder / f"{case}{ending(format)}"


def check_format(format: str, inputs: Mapping[str, tuple[Source, ...]]) -> None:
    """Check that all cases can be written in a format, before the first one is predicted.

    Raises:
        AutosegError: the format is unknown, or it needs DICOM input or a library that is missing.
    """
    ending(format)
    if format != DICOM_SEG:
        return
    if find_spec("highdicom") is None:
        raise AutosegError(f"--format dicom-seg needs highdicom; run: {install_hint('dicom')}")
    firsts = [file for file, *_ in inputs.values() if isinstance(file, Path)]
    others = [file for file in firsts if not file.is_dir() and ending_of(file)]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise AutosegError(
            f"{others[0]}{more}: --format dicom-seg needs a DICOM series; use nii.gz, nrrd or mha"
        )


# Probabilities: one Blosc2 array (class, x, y, z) of float16 on the scan's own grid. The classes
# are in the order of the plan's labels, without the background if they are regions. Slicing reads
# no more than is needed:
#
#     probabilities = blosc2.open("case.probabilities.b2nd", mode="r")
#     tumour = probabilities[2]  # a NumPy array (x, y, z)
#     names = probabilities.vlmeta["classes"]


class ProbabilityFile:
    """An array (class, x, y, z) on disk that is filled by planes across one axis.

    Args:
        path: for messages.
        array: the open Blosc2 array.
        view: from the grid of the file to that of what `write` takes.
    """

    def __init__(self, path: Path, array: Any, view: Turn) -> None:
        self.path, self.array, self.view = path, array, view

    def write(self, index: int, rows: slice, probabilities: NDArray[np.float32]) -> None:
        """Write some planes (x, y, z) of a class.

        Raises:
            AutosegError: the disk is full.
        """
        axis = 1 + self.view.axes[0]
        where: list[Any] = [index, slice(None), slice(None), slice(None)]
        if self.view.flips[0]:
            rows = slice(self.array.shape[axis] - rows.stop, self.array.shape[axis] - rows.start)
        where[axis] = rows
        turned = self.view.inverse().array(probabilities.astype(np.float16))
        with _blosc2_errors_name(self.path):
            self.array[tuple(where)] = np.ascontiguousarray(turned)


@contextmanager
def probability_file(
    path: Path, names: Sequence[str], size: Triple, view: Turn = SWAPS[0]
) -> Iterator[ProbabilityFile]:
    """A file to fill within the block; it appears when the block succeeds.

    Args:
        path: the file.
        names: of the classes.
        size: voxels along x, y, z.
        view: from this grid to that of the planes (x) that are written, `PLANES_AT_ONCE` at a time.

    Raises:
        AutosegError: it cannot be written.
    """
    import blosc2  # slow to import, and rarely needed

    chunk, axis = list(size), view.axes[0]
    chunk[axis] = min(PLANES_AT_ONCE, size[axis])  # so that each chunk is compressed once
    with replacing(path) as temporary:
        with _blosc2_errors_name(path):
            array = blosc2.zeros(
                (len(names), *size),
                dtype=np.float16,
                urlpath=str(temporary),
                mode="w",
                chunks=(1, *chunk),
                cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1},
            )
            array.vlmeta["classes"] = list(names)
        yield ProbabilityFile(path, array, view)


@contextmanager
def _blosc2_errors_name(path: Path) -> Iterator[None]:
    """Turn the RuntimeErrors of Blosc2 into errors that name the file."""
    try:
        yield
    except RuntimeError as error:
        raise cannot_write(path, error) from error


def volumes(label: LabelMap, geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """Volume of each class in ml, and the shares that the plan defines."""
    counts = count_values(label, max(values_of(plan.labels)) + 1)
    voxel_ml = prod(geometry.spacing_mm) / 1000
    classes = dict(itertools.islice(plan.labels.items(), 1, None))
    found: dict[str, Any] = {
        "volume_ml": {
            name: round(float(counts[list(covered)].sum() * voxel_ml), 6)
            for name, covered in classes.items()
        }
    }
    if plan.shares:
        found["share"] = {}
        for share in plan.shares:
            part = _voxels(counts, {share.label}, plan)
            whole = part + _voxels(counts, set(share.container), plan)
            found["share"][class_of(share.label, plan.labels)] = (
                round(part / whole, 6) if whole else None
            )
    return found


def _voxels(counts: NDArray[np.int64], labels: set[int], plan: Plan) -> int:
    """Voxels of the classes of these labels; a label map holds one value for a whole class."""
    if plan.classes.are_regions:  # it holds the values of regions, in which classes overlap
        return int(counts[list(labels)].sum())
    classes = [covered for covered in plan.labels.values() if labels & set(covered)]
    return sum(int(counts[list(covered)].sum()) for covered in classes)


PIXELS = 480  # of the longest side of the scan
GAP, LINE, FONT = 8, 18, 13  # pixels
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis across each


def draw_preview(
    image: NDArray[Any], label: LabelMap, geometry: Geometry, plan: Plan
) -> Image.Image:
    """Draw three planes of a scan, each where the largest class has most voxels.

    Args:
        image: one channel (x, y, z).
        label: label values (x, y, z).
        geometry: the grid of both.
        plan: defines the classes and their colours, which are those of the DICOM SEG.
    """
    turn = Turn.between(orientation_of(geometry), "LPS")
    image, label = turn.array(image), turn.array(label)
    spacing = np.array(turn.triple(geometry.spacing_mm))
    classes = dict(list(plan.labels.items())[1:])
    colours = colours_of(classes, plan.evaluation.colours_of(classes))
    counts = count_values(label, 1 + max(values_of(plan.labels)))
    largest = max(classes.values(), key=lambda values: int(counts[list(values)].sum()))
    inside, window = members(label, largest), window_of(image)
    scale = PIXELS / max(spacing * label.shape)
    panels = []
    for name, axis in PLANES.items():
        amounts = inside.sum(axis=tuple({0, 1, 2} - {axis}))
        k = int(amounts.argmax()) if amounts.any() else label.shape[axis] // 2
        across, down = (axis_ for axis_ in (0, 1, 2) if axis_ != axis)
        rows, columns = (
            max(1, round(label.shape[side] * spacing[side] * scale)) for side in (down, across)
        )
        panel = _grey(_cut(image, axis, k), window, (rows, columns))
        plane = _cut(label, axis, k)
        for class_name, values in classes.items():
            edge = outline(enlarged(members(plane, values), (rows, columns)))
            panel[edge] = tuple(bytes.fromhex(colours[class_name][1:]))
        panels.append((f"{name} {k + 1} of {label.shape[axis]}", panel, across, down))
    return _arranged(panels, colours)


def write_png(picture: Image.Image, path: Path) -> None:
    """Write a picture, atomically."""
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def _cut(array: NDArray[Any], axis: int, k: int) -> NDArray[Any]:
    """A plane (rows, columns); z runs from bottom to top."""
    rows = array[tuple(k if each == axis else slice(None) for each in range(3))].T
    return rows if axis == 2 else rows[::-1]


def _grey(
    plane: NDArray[Any], window: tuple[float, float], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """A plane of the scan as a panel (rows, columns, RGB)."""
    low, high = window
    values = np.clip((plane.astype(np.float32) - low) / (high - low), 0, 1) * 255
    resized = Image.fromarray(values).resize(shape[::-1], Image.Resampling.BILINEAR)
    grey = np.rint(np.asarray(resized)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _arranged(
    panels: list[tuple[str, NDArray[np.uint8], int, int]], colours: dict[str, str]
) -> Image.Image:
    """The panels side by side with captions, the sides of the patient, and a legend."""
    font = _font()
    width = max(120, *(panel.shape[1] for _, panel, _, _ in panels))
    total = len(panels) * (width + GAP) - GAP
    legend = _lines(colours, total, font)
    height = max(panel.shape[0] for _, panel, _, _ in panels)
    picture = Image.new("RGB", (total, LINE + height + GAP + LINE * len(legend)))
    drawing = ImageDraw.Draw(picture)
    for i, (caption, panel, across, down) in enumerate(panels):
        left = i * (width + GAP)
        rows, columns = panel.shape[:2]
        drawing.text((left + 2, 1), caption, fill="white", font=font)
        picture.paste(Image.fromarray(panel), (left, LINE))
        upper, lower = LETTERS[down] if down == 1 else LETTERS[down][::-1]
        places = {
            (left + 2, LINE + rows // 2, "lm"): LETTERS[across][0],
            (left + columns - 2, LINE + rows // 2, "rm"): LETTERS[across][1],
            (left + columns // 2, LINE + 2, "mt"): upper,
            (left + columns // 2, LINE + rows - 2, "mb"): lower,
        }
        for (x, y, anchor), letter in places.items():
            drawing.text((x, y), letter, fill="white", font=font, anchor=anchor)
    for number, entries in enumerate(legend):
        y = LINE + height + GAP + LINE * number
        for x, name in entries:
            drawing.rectangle((x, y + 3, x + 10, y + 13), fill=colours[name])
            drawing.text((x + 15, y), name, fill="white", font=font)
    return picture


def _lines(
    names: dict[str, str], width: int, font: ImageFont.FreeTypeFont
) -> list[list[tuple[int, str]]]:
    """The entries of the legend line by line: their x and name."""
    lines: list[list[tuple[int, str]]] = [[]]
    x = 2
    for name in names:
        needed = 15 + round(font.getlength(name)) + 2 * GAP
        if lines[-1] and x + needed > width:
            lines.append([])
            x = 2
        lines[-1].append((x, name))
        x += needed
    return lines


def _font() -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # slow to import; its font has Greek and Cyrillic letters

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), FONT)
