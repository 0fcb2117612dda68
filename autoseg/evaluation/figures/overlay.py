"""Figures for a paper with image | reference | prediction of one or several cases."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from autoseg.common.errors import DataError
from autoseg.common.figures import line, save_figure, take_literally
from autoseg.evaluation.figures.views import Exhibit, SliceMasks, View, fullest_slices, read_view
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.evaluation.tables import dice_text
from autoseg.image.formats import ending_of, stem_of

SIDES = (("R", "L"), ("A", "P"), ("I", "S"))  # where the patient axes x, y, z start and end
PANEL_INCHES = 3.0
MOST_ROWS = 4
CHARACTERS_PER_INCH = 14  # of the caption of a row
TITLE_CHARACTERS_PER_INCH = 11
MOST_NAMED_CLASSES = 3  # of more classes, only the number is given
CaptionedSlice = tuple[View, int, str]  # a case, one of its slices, and the caption of its row


def overlay(exhibit: Exhibit, out: Path) -> None:
    """Draw image | reference | prediction of one case, with a row for each of a few slices.

    The slices are those with most voxels of a class; they are axial unless another axis has a much
    larger spacing. They follow the radiological convention: seen from the feet or from the front,
    with the patient's right on the left.

    Args:
        exhibit: the case.
        out: a `.png` or `.svg` file.

    Raises:
        DataError: a file cannot be read, or the grids differ.
        AutosegError: `out` has another ending.
    """
    save_figure(draw_overlay(read_view(exhibit)), out)


def draw_overlay(view: View) -> Figure:
    """The figure of `overlay`."""
    chosen = fullest_slices(view, MOST_ROWS)
    rows = [(view, k, f"slice {k + 1} of {view.slices}{_most(of)}") for k, of in chosen.items()]
    return _draw(rows, view.exhibit.title)


def draw_cases(exhibits: Sequence[Exhibit], title: str = "") -> Figure:
    """One row for each case: the slice with most voxels of its smallest class."""
    rows = []
    for exhibit in exhibits:
        view = read_view(exhibit)
        k = next(iter(fullest_slices(view, 1)))
        name = _wrap_classes(exhibit.title, int(CHARACTERS_PER_INCH * _height(view)))
        rows.append((_single_slice(view, k), 0, f"{name}\nslice {k + 1} of {view.slices}"))
    return _draw(rows, title)


def _wrap_classes(title: str, width: int) -> str:
    """Wrap a title after colons and commas only, so that no number is separated from its class."""
    unbreakable = re.sub(r"(?<![:,]) ", "\N{NO-BREAK SPACE}", title)
    return textwrap.fill(unbreakable, width).replace("\N{NO-BREAK SPACE}", " ")


def _single_slice(view: View, k: int) -> View:
    """A view of a single slice, so that only one full scan is in memory at a time."""
    box = tuple(slice(k, k + 1) if axis == view.axis else slice(None) for axis in range(3))
    return view.crop(box, copy=True)


def _most(classes: tuple[str, ...]) -> str:
    if not classes:
        return ""
    few = len(classes) <= MOST_NAMED_CLASSES
    return f"\nmost {', '.join(classes) if few else f'{len(classes)} classes'}"


def _draw(rows: Sequence[CaptionedSlice], title: str) -> Figure:
    heights = [_height(view) for view, _, _ in rows]
    size = (3 * PANEL_INCHES + 0.5, sum(heights) + 0.1 * len(rows) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    for axes, (view, k, caption) in zip(grid, rows, strict=True):
        _draw_row(list(axes), view, k)
        axes[0].set_ylabel(caption, fontsize=9, parse_math=False)
    for axes, name in zip(grid[0], ("image", "reference", "prediction"), strict=True):
        axes.set_title(name)
    _add_legend(figure, [view for view, _, _ in rows])
    # wrap=True would ignore parse_math.
    width = int(TITLE_CHARACTERS_PER_INCH * size[0])
    figure.suptitle(textwrap.fill(title, width), parse_math=False)
    return figure


def _height(view: View) -> float:
    """The height of a row in inches."""
    shape = view.image.shape
    height = PANEL_INCHES * view.aspect * shape[view.down] / shape[view.across]
    return float(np.clip(height, PANEL_INCHES / 3, PANEL_INCHES * 2))


def _draw_row(row: Sequence[Axes], view: View, k: int) -> None:
    low, high = view.window
    for axes, masks in zip(row, (None, *view.masks(k)), strict=True):
        cut = view.cut(view.image, k)
        axes.imshow(cut, cmap="gray", vmin=low, vmax=high, aspect=view.aspect)
        if masks is not None:
            _draw_classes(axes, masks, view.colours)
        axes.set(xticks=[], yticks=[])
    _label_sides(row[0], view)


def _draw_classes(axes: Axes, masks: SliceMasks, colours: dict[str, str]) -> None:
    """Fill each class of a slice and draw its outline."""
    for i, (name, inside) in enumerate(masks.items()):
        if not inside.any():
            continue
        fill = np.zeros((*inside.shape, 4))
        fill[inside] = to_rgba(colours[name], 0.35)
        axes.imshow(fill, aspect=axes.get_aspect())
        if not inside.all() and min(inside.shape) > 1:
            axes.contour(inside, [0.5], colors=[colours[name]], linestyles=line(i), linewidths=1.3)


def _add_legend(figure: Figure, views: Sequence[View]) -> None:
    colours = {name: of for view in views for name, of in view.colours.items()}
    marks = [
        Patch(facecolor=f"{of}59", edgecolor=of, linestyle=line(i), linewidth=1.3)
        for i, of in enumerate(colours.values())
    ]
    legend = figure.legend(
        marks, list(colours), loc="outside lower center", ncols=5, frameon=False, handlelength=3
    )
    take_literally(legend.get_texts())


def _label_sides(axes: Axes, view: View) -> None:
    """Mark the sides of the patient with letters."""
    top, bottom = SIDES[view.down] if view.down == 1 else SIDES[view.down][::-1]
    left, right = SIDES[view.across]
    places = ((0.04, 0.5, left), (0.96, 0.5, right), (0.5, 0.96, top), (0.5, 0.04, bottom))
    box = {"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 1.5}
    style: dict[str, Any] = {"color": "white", "fontsize": 8, "ha": "center", "va": "center"}
    for x, y, letter in places:
        axes.text(x, y, letter, transform=axes.transAxes, bbox=box, **style)


def draw_examples(summary: Summary, images: Path, labels: ScoredClasses, out: Path) -> list[Path]:
    """Draw the worst, the median and the best case as `overlay_CASE.png` into `out`.

    Args:
        summary: the scores, which name the label maps.
        images: folder of the scans.
        labels: the classes.
        out: output folder.

    Returns:
        The paths of the figures, worst case first.

    Raises:
        DataError: a scan is not in `images`, or not on the grid of its label map.
    """
    paths = []
    for case in worst_to_best(summary):
        paths.append(out / f"overlay_{case.case}.png")
        overlay(exhibit(case, find_image(images, case.case), labels), paths[-1])
    return paths


def exhibit(case: CaseScores, image: Path, labels: ScoredClasses) -> Exhibit:
    """The files of a scored case and its scan."""
    return Exhibit(
        case=case.case,
        image=image,
        reference=Path(case.reference_file),
        prediction=Path(case.prediction_file),
        labels=labels.values,
        title=dice_text(case),
        in_prediction={name: labels.predicted(name) for name in labels.values},
        colours=labels.colours,
    )


def worst_to_best(summary: Summary, count: int = 3) -> list[CaseScores]:
    """Cases evenly spaced in the order of their mean Dice: the worst, the median and the best.

    Cases whose Dice is undefined are left out.

    Args:
        summary: the scores.
        count: at least two; fewer if there are fewer cases.
    """
    scored = [(dice, case) for case in summary.cases if (dice := case.mean()) is not None]
    if not scored:
        return []
    scored.sort(key=lambda pair: pair[0])
    indices = {i * (len(scored) - 1) // (count - 1) for i in range(count)}
    return [scored[index][1] for index in sorted(indices)]


def find_image(images: Path, case: str) -> Path:
    """The scan of a case, named with or without the channel number `_0000`.

    Raises:
        DataError: there is no such file.
    """
    for stem in (case, f"{case}_0000"):
        for path in sorted(images.glob("*")):
            if ending_of(path) and stem_of(path) == stem:
                return path
    raise DataError(f"{images}: contains no scan of {case} ({case}.nii.gz or {case}_0000.nii.gz)")
