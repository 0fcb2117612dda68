"""Pictures of a case: three planes of a scan with the contours of label maps, and their errors."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke

from autoseg.common.arrays import Triple
from autoseg.common.figures import take_literally
from autoseg.image.view import ERRORS, PREDICTION, REFERENCE, Plane, View

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # name -> the axis across the plane
STYLES = {REFERENCE: "solid", PREDICTION: (0, (3, 1.5))}
# Their lightness differs, too: they can be told apart in grey.
ERROR_COLOURS = dict(zip(ERRORS, ("#FF3B30", "#34E0F0", "#7A28D6"), strict=True))

THIN = 0.12  # planes flatter than this share of their length are left out
INCHES = 9.0  # width of a figure
MOST_INCHES = 3.6  # height of a row
HEAD = 0.26  # inches above a row
EDGE, GAP = 0.1, 0.06  # inches at the edges and between panels
TITLE_CHARACTERS, LINE_CHARACTERS = 100, 140  # that fit the width
LEGEND_COLUMNS = 4
LEGEND: dict[str, Any] = {"loc": "upper left", "ncols": LEGEND_COLUMNS, "frameon": False}
LEGEND |= {"fontsize": 8.5, "borderaxespad": 0, "borderpad": 0, "labelspacing": 0.35}
MOST_COLOURED = 7  # more classes are told apart by numbers, too
HALO = [Stroke(linewidth=2, foreground="black"), Normal()]  # around text in a picture


class Panel(NamedTuple):
    """One plane in a figure.

    Attributes:
        plane: what is shown.
        kind: `image`, `contours` or `errors`.
        caption: text above it.
    """

    plane: Plane
    kind: str
    caption: str = ""


Rows = Sequence[Sequence[Panel]]
Numbers = Mapping[str, int]  # of the classes that are shown


def kinds_of(view: View) -> tuple[str, ...]:
    """What can be drawn of a case."""
    return ("image", "contours", "errors")[: 1 + len(view.maps)]


def draw_view(
    view: View, title: str = "", kinds: Sequence[str] = (), at: Triple | None = None
) -> Figure:
    """Three planes of a case: a row each for the image, the contours and the errors.

    Args:
        view: the case; without a reference there are no errors.
        title: above the figure.
        kinds: the rows; empty: `kinds_of`.
        at: the voxel (x, y, z) through which the planes go; None: `View.fullest`.
    """
    where, sizes = at or view.fullest(), view.image.shape
    heads = {a: f"{name}, slice {where[a] + 1} of {sizes[a]}" for name, a in PLANES.items()}
    planes = {axis: Plane(view, axis, where[axis]) for axis in shown_axes(view)}
    rows = [
        [Panel(plane, kind, "" if row else heads[axis]) for axis, plane in planes.items()]
        for row, kind in enumerate(kinds or kinds_of(view))
    ]
    return draw_rows(rows, [_row_title(view, row[0].kind) for row in rows], title)


def shown_axes(view: View) -> list[int]:
    """The axes of the planes that are worth drawing: not the edges of a thin stack of slices."""
    sizes = {axis: Plane(view, axis, 0).size_mm for axis in PLANES.values()}
    shown = [axis for axis, size in sizes.items() if min(size) >= THIN * max(size)]
    return shown or [max(sizes, key=lambda axis: min(sizes[axis]))]


def _row_title(view: View, kind: str) -> str:
    if kind == "errors":
        return "Errors of the prediction"
    if kind == "contours":
        lines = {REFERENCE: "reference (solid)", PREDICTION: "prediction (dashed)"}
        names = [lines[which] if len(view.maps) > 1 else which for which in view.maps]
        return "Contours: " + ", ".join(names)
    low, high = view.window
    tissue = f", {view.tissue}" if view.tissue else ""
    return f"Image, window {low:.4g} to {high:.4g}{tissue}"


def draw_rows(rows: Rows, heads: Sequence[str], title: str = "") -> Figure:
    """Rows of panels, each with a heading; the panels of a row have the same scale."""
    scales = [_scale(row) for row in rows]
    tallest = [max(panel.plane.size_mm[1] for panel in row) for row in rows]
    heights = [scale * mm for scale, mm in zip(scales, tallest, strict=True)]
    shown = _shown_classes(rows)
    above = textwrap.wrap(title, TITLE_CHARACTERS)
    marks, below = _legend(rows, shown)
    legend = 0.19 * (-(-len(marks) // LEGEND_COLUMNS) + len(below)) + 0.1
    total = 0.24 * len(above) + sum(heights) + legend + 0.1
    total += HEAD * sum(1 + any(panel.caption for panel in row) for row in rows)
    figure = Figure(figsize=(INCHES + 2 * EDGE, total))
    y = total - 0.03
    for line in above:
        y -= 0.24
        _write(figure, y + 0.06, line, fontsize=11, weight="bold")
    for row, head, scale, height in zip(rows, heads, scales, heights, strict=True):
        y -= HEAD
        _write(figure, y + 0.06, head, fontsize=9.5)
        y -= height + HEAD * any(panel.caption for panel in row)
        _draw_row(figure, row, (y, height, scale), shown)
    handles, names = [mark for _, mark in marks], [name for name, _ in marks]
    if marks:
        anchor = (EDGE / figure.get_figwidth(), (y - 0.04) / total)
        drawn = figure.legend(handles, names, bbox_to_anchor=anchor, **LEGEND)
        take_literally(drawn.get_texts())
    for i, line in enumerate(below[::-1]):
        _write(figure, 0.08 + 0.19 * i, line, fontsize=8, color="0.3")
    return figure


def _scale(row: Sequence[Panel]) -> float:
    """Inches per mm, such that the panels fit side by side and are not too tall."""
    widths, heights = zip(*(panel.plane.size_mm for panel in row), strict=True)
    return float(min((INCHES - GAP * (len(row) - 1)) / sum(widths), MOST_INCHES / max(heights)))


def _write(figure: Figure, y: float, text: str, **style: Any) -> None:
    """A line of text at the left edge, `y` inches above the lower edge."""
    width, height = figure.get_size_inches()
    figure.text(EDGE / width, y / height, text, parse_math=False, **style)


def _shown_classes(rows: Rows) -> dict[str, int]:
    """The classes that are in a plane, and their numbers, from 1."""
    names: dict[str, None] = {}
    shown: set[str] = set()
    for panel in (panel for row in rows for panel in row):
        names |= dict.fromkeys(panel.plane.view.exhibit.labels)
        for which in panel.plane.view.maps if panel.kind == "contours" else ():
            shown |= {name for name, mask in panel.plane.masks(which).items() if mask.any()}
    return {name: 1 + i for i, name in enumerate(names) if name in shown}


def _legend(rows: Rows, shown: Numbers) -> tuple[list[tuple[str, Any]], list[str]]:
    """Names and marks of classes and errors, and lines on classes that are not shown."""
    panels = [panel for row in rows for panel in row]
    colours = {name: of for panel in panels for name, of in panel.plane.view.colours.items()}
    numbered = len(shown) > MOST_COLOURED
    marks: list[tuple[str, Any]] = [
        (f"{i}  {name}" if numbered else name, Line2D([], [], color=colours[name], linewidth=3))
        for name, i in shown.items()
    ]
    found = [panel.plane.errors() for panel in panels if panel.kind == "errors"]
    marks += [
        (name, Patch(facecolor=of, edgecolor="0.3"))
        for name, of in ERROR_COLOURS.items()
        if any(masks[name].any() for masks in found)
    ]
    hidden = [name for name in colours if name not in shown]
    note = f"Not in these planes: {', '.join(hidden)}" if hidden and shown else ""
    return marks, textwrap.wrap(note, LINE_CHARACTERS)


def _draw_row(
    figure: Figure, row: Sequence[Panel], place: tuple[float, float, float], shown: Numbers
) -> None:
    """Draw panels side by side, at (y, height) in inches, at a scale in inches per mm."""
    y, height, scale = place
    x, (width, total) = EDGE, figure.get_size_inches()
    for panel in row:
        wide, high = (scale * mm for mm in panel.plane.size_mm)
        bottom = y + height - high
        axes = figure.add_axes((x / width, bottom / total, wide / width, high / total))
        _draw_panel(axes, panel, shown)
        if panel.caption:
            above = (y + height + 0.05) / total
            figure.text(x / width, above, panel.caption, fontsize=8, parse_math=False)
        x += wide + GAP


def _draw_panel(axes: Axes, panel: Panel, shown: Numbers) -> None:
    plane, view = panel.plane, panel.plane.view
    image = plane.cut(view.image)
    rows, columns = image.shape
    low, high = view.window
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect="auto", interpolation="bilinear")
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[])
    if panel.kind == "errors":
        for name, mask in plane.errors().items():
            if mask.any():
                fill = np.zeros((rows, columns, 4))
                fill[mask] = to_rgba(ERROR_COLOURS[name], 0.85)
                axes.imshow(fill, aspect="auto", interpolation="nearest")
    elif panel.kind == "contours":
        _draw_contours(axes, plane, shown)
    left, right, top, bottom = plane.sides
    inside: dict[str, Any] = {"transform": axes.transAxes}
    _letter(axes, (0.015, 0.5), left, ("left", "center"), **inside)
    _letter(axes, (0.985, 0.5), right, ("right", "center"), **inside)
    _letter(axes, (0.5, 0.985), top, ("center", "top"), **inside)
    _letter(axes, (0.5, 0.015), bottom, ("center", "bottom"), **inside)


def _draw_contours(axes: Axes, plane: Plane, shown: Numbers) -> None:
    """The classes of each map as lines, and their numbers if there are many."""
    first = next(iter(plane.view.maps), "")
    rows, columns = plane.cut(plane.view.image).shape
    places = np.arange(-1, columns + 1), np.arange(-1, rows + 1)
    for which in plane.view.maps:
        for name, mask in plane.masks(which).items():
            if not mask.any():
                continue
            padded = np.pad(mask, 1).astype(np.uint8)  # closes the lines at the edges
            style: dict[str, Any] = {"levels": [0.5], "linestyles": [STYLES[which]]}
            if which == first:  # a dark rim, for bright surroundings
                axes.contour(*places, padded, colors="black", linewidths=2.2, alpha=0.6, **style)
            colour = plane.view.colours[name]
            axes.contour(*places, padded, colors=[colour], linewidths=1.3, **style)
            if which == first and len(shown) > MOST_COLOURED:
                inside = np.argwhere(mask)
                y, x = inside[((inside - inside.mean(0)) ** 2).sum(1).argmin()]
                _letter(axes, (x, y), str(shown[name]), ("center", "center"), fontsize=7)


def _letter(
    axes: Axes, place: tuple[float, float], text: str, align: tuple[str, str], **style: Any
) -> None:
    """White text with a dark rim."""
    style = {"fontsize": 8, "ha": align[0], "va": align[1], **style}
    axes.text(*place, text, color="white", **style).set_path_effects(HALO)
