"""Image | truth | prediction as a figure for a paper: of one case, or of several."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoseg.common.errors import DataError
from autoseg.common.figures import line, save_figure, take_literally
from autoseg.evaluation.figures.views import Exhibit, Masks, View, fullest_slices, read_view
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.evaluation.tables import dice_text
from autoseg.image.formats import ending_of, stem_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SIDES = (("R", "L"), ("A", "P"), ("I", "S"))  # where patient axes x, y, z begin and end
PANEL_INCHES = 3.0
MOST_ROWS = 4
LETTERS_AN_INCH = 14  # of what stands beside a row
TITLE_LETTERS_AN_INCH = 11
NAMED_CLASSES = 3  # of more, the row says how many there are
Row = tuple[View, int, str]  # a case, one of its slices, and what stands beside it


def overlay(exhibit: Exhibit, out: Path) -> None:
    """Draw image | truth | prediction of one case, a row for each of a few slices.

    The slices are those with most of a class; they are axial unless the voxels are far apart along
    another axis. Patients are seen from their feet or their front, as radiologists do: their right
    is on the left.

    Args:
        exhibit: the case.
        out: a `.png` or `.svg` file.

    Raises:
        DataError: a file cannot be read, or they lie on different grids.
        AutosegError: the ending of `out` is neither of the two.
    """
    save_figure(draw_overlay(read_view(exhibit)), out)


def draw_overlay(view: View) -> Figure:
    """The figure of `overlay`."""
    chosen = fullest_slices(view, MOST_ROWS)
    rows = [(view, k, f"slice {k + 1} of {view.slices}{_most(of)}") for k, of in chosen.items()]
    return _draw(rows, view.exhibit.title)


def draw_cases(exhibits: Sequence[Exhibit], title: str = "") -> Figure:
    """One row for each case: the slice with most of the class that is rarest in it."""
    rows = []
    for exhibit in exhibits:
        view = read_view(exhibit)
        k = next(iter(fullest_slices(view, 1)))
        name = _between_classes(exhibit.title, int(LETTERS_AN_INCH * _height(view)))
        rows.append((_only(view, k), 0, f"{name}\nslice {k + 1} of {view.slices}"))
    return _draw(rows, title)


def _between_classes(title: str, letters: int) -> str:
    """A title on several lines, broken after a colon or a comma, so that no number stands alone."""
    held_together = re.sub(r"(?<![:,]) ", "\N{NO-BREAK SPACE}", title)
    return textwrap.fill(held_together, letters).replace("\N{NO-BREAK SPACE}", " ")


def _only(view: View, k: int) -> View:
    """The view of a single slice: whole scans of several cases need not be held at once."""
    place = tuple(slice(k, k + 1) if axis == view.axis else slice(None) for axis in range(3))
    image, truth, prediction = (
        array[place].copy() for array in (view.image, view.truth, view.prediction)
    )
    return View(view.exhibit, image, truth, prediction, view.spacing_mm, view.axis, view.window)


def _most(classes: tuple[str, ...]) -> str:
    if not classes:
        return ""
    named = ", ".join(classes) if len(classes) <= NAMED_CLASSES else f"{len(classes)} classes"
    return f"\nmost {named}"


def _draw(rows: Sequence[Row], title: str) -> Figure:
    from matplotlib.figure import Figure

    heights = [_height(view) for view, _, _ in rows]
    size = (3 * PANEL_INCHES + 0.5, sum(heights) + 0.1 * len(rows) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    for axes, (view, k, words) in zip(grid, rows, strict=True):
        _draw_row(list(axes), view, k)
        axes[0].set_ylabel(words, fontsize=9, parse_math=False)
    for axes, name in zip(grid[0], ("image", "truth", "prediction"), strict=True):
        axes.set_title(name)
    _explain(figure, [view for view, _, _ in rows])
    # Not by wrap=True, which reads formulas in names whatever is said of them.
    figure.suptitle(textwrap.fill(title, int(TITLE_LETTERS_AN_INCH * size[0])), parse_math=False)
    return figure


def _height(view: View) -> float:
    """Of a row in inches."""
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
    _name_sides(row[0], view)


def _draw_classes(axes: Axes, masks: Masks, colours: dict[str, str]) -> None:
    """Fill every class of a slice and draw its border."""
    from matplotlib.colors import to_rgba

    for i, (name, inside) in enumerate(masks.items()):
        if not inside.any():
            continue
        fill = np.zeros((*inside.shape, 4))
        fill[inside] = to_rgba(colours[name], 0.35)
        axes.imshow(fill, aspect=axes.get_aspect())
        if not inside.all() and min(inside.shape) > 1:
            axes.contour(inside, [0.5], colors=[colours[name]], linestyles=line(i), linewidths=1.3)


def _explain(figure: Figure, views: Sequence[View]) -> None:
    """The legend of all classes."""
    from matplotlib.patches import Patch

    colours = {name: of for view in views for name, of in view.colours.items()}
    marks = [
        Patch(facecolor=f"{of}59", edgecolor=of, linestyle=line(i), linewidth=1.3)
        for i, of in enumerate(colours.values())
    ]
    legend = figure.legend(
        marks, list(colours), loc="outside lower center", ncols=5, frameon=False, handlelength=3
    )
    take_literally(legend.get_texts())


def _name_sides(axes: Axes, view: View) -> None:
    top, bottom = SIDES[view.down] if view.down == 1 else SIDES[view.down][::-1]
    left, right = SIDES[view.across]
    places = ((0.04, 0.5, left), (0.96, 0.5, right), (0.5, 0.96, top), (0.5, 0.04, bottom))
    for x, y, letter in places:
        axes.text(
            x,
            y,
            letter,
            color="white",
            fontsize=8,
            ha="center",
            va="center",
            transform=axes.transAxes,
            bbox={"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 1.5},
        )


# The cases to look at: the worst, the median and the best, drawn on their scans.


def draw_examples(summary: Summary, images: Path, labels: Labels, out: Path) -> list[Path]:
    """Draw the worst, the median and the best case as `overlay_CASE.png` into `out`.

    Args:
        summary: the scores, which also name the label maps.
        images: folder of the scans.
        labels: the classes.
        out: folder of the pictures.

    Returns:
        The pictures, worst case first.

    Raises:
        DataError: a scan is not in `images`, or is on another grid than its label map.
    """
    pictures = []
    for case in worst_median_best(summary):
        picture = out / f"overlay_{case.case}.png"
        overlay(exhibit(case, find_image(images, case.case), labels), picture)
        pictures.append(picture)
    return pictures


def exhibit(case: CaseScores, image: Path, labels: Labels) -> Exhibit:
    """A scored case and its scan, to draw."""
    return Exhibit(
        case=case.case,
        image=image,
        truth=Path(case.reference_file),
        prediction=Path(case.prediction_file),
        labels=labels.values,
        title=dice_text(case),
        in_prediction={name: labels.predicted(name) for name in labels.values},
        colours=labels.colours,
    )


def worst_median_best(summary: Summary) -> list[CaseScores]:
    """Up to three cases by their mean Dice, worst first; cases without a Dice don't count."""
    scored = [(dice, case) for case in summary.cases if (dice := case.mean()) is not None]
    if not scored:
        return []
    scored.sort(key=lambda pair: pair[0])
    places = {0, (len(scored) - 1) // 2, len(scored) - 1}
    return [scored[place][1] for place in sorted(places)]


def find_image(images: Path, case: str) -> Path:
    """The scan of a case, named with or without the channel number `_0000`.

    Raises:
        DataError: there is none.
    """
    for stem in (case, f"{case}_0000"):
        for path in sorted(images.glob("*")):
            if ending_of(path) and stem_of(path) == stem:
                return path
    raise DataError(f"{images}: holds no scan of {case} ({case}.nii.gz or {case}_0000.nii.gz)")
