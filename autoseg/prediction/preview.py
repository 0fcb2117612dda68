"""A picture of one prediction: three planes through the largest class, with all classes outlined.

Planes follow the radiological convention: seen from the feet or from the front, with the patient's
right on the left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from autoseg.common.arrays import LabelMap, count_values, members
from autoseg.common.figures import colours_of, enlarged, outline, window_of
from autoseg.common.files import replacing
from autoseg.image.geometry import Geometry
from autoseg.image.orientation import LETTERS, Turn, orientation_of
from autoseg.plan.labels import values_of
from autoseg.plan.plan import Plan

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
