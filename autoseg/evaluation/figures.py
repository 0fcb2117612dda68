"""Pictures of predictions and scores, as PNG or SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import AutosegError, DataError
from autoseg.evaluation.metrics import members
from autoseg.evaluation.summary import Summary
from autoseg.files import replacing
from autoseg.image import Geometry, read_image, read_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Line = Literal["solid", "dashed", "dotted"]

# Okabe and Ito's palette, which colour-blind people can tell apart too, without black.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
LINES: tuple[Line, ...] = (
    "solid",
    "dashed",
    "dotted",
)  # the second and third time that a colour is used
SIDES = (("R", "L"), ("A", "P"), ("I", "S"))  # where patient axes x, y, z begin and end
PANEL_INCHES = 3.4
DOTS_PER_INCH = 150
WINDOW_PERCENT = (1, 99)

Array = NDArray[Any]


def overlay(
    image_paths: Path | Sequence[Path],
    truth_path: Path,
    prediction_path: Path,
    out: Path,
    labels: dict[str, tuple[int, ...]],
    title: str,
) -> None:
    """Draw image | truth | prediction, a row for each of a few slices.

    The slices lie at 25, 50 and 75 % of the extent of the classes, and where there is most of them;
    they are axial unless the voxels are far apart along another axis. Patients are seen from their
    feet or their front, as radiologists do: their right is on the left.

    Args:
        image_paths: the scan, or its channels, of which the first is drawn.
        truth_path: the label map that is right.
        prediction_path: the label map to compare.
        out: a `.png` or `.svg` file.
        labels: name -> the integers that make the class.
        title: drawn above.

    Raises:
        DataError: a file cannot be read, or they lie on different grids.
        AutosegError: the ending of `out` is neither of the two.
    """
    paths = [image_paths] if isinstance(image_paths, Path) else list(image_paths)
    scan = read_image(paths)
    maps = []
    for path in (truth_path, prediction_path):
        found, geometry = read_label(path)
        if wrong := geometry.differences(scan.geometry):
            raise DataError(f"{path}: not on the grid of {paths[0]}: {', '.join(wrong)}")
        maps.append(found)
    upright = _Upright.of(scan.geometry)
    image, truth, prediction = (upright.turn(array) for array in (scan.array[0], *maps))
    wanted = tuple(value for values in labels.values() for value in values)
    foreground = members(truth, wanted) | members(prediction, wanted)
    axis = _slicing_axis(upright.spacing_mm)
    slices = _choose_slices(foreground, axis)
    _draw_overlay(image, truth, prediction, slices, axis, upright.spacing_mm, labels, title, out)


def box_plot(summary: Summary, out: Path) -> None:
    """Draw the Dice of every class as a box, with a dot for each case, as PNG or SVG."""
    save_figure(draw_box_plot(summary), out)


def draw_box_plot(summary: Summary) -> Figure:
    """The figure of `box_plot`."""
    from matplotlib.figure import Figure

    labels = summary.labels
    figure = Figure(figsize=(max(4.0, 1.5 + 1.1 * len(labels)), 4.0), layout="constrained")
    axes = figure.subplots()
    known = [[v for v in summary.values(label) if v is not None] for label in labels]
    axes.boxplot(known, widths=0.5, showfliers=False, medianprops={"color": "black"})
    for i, values in enumerate(known):
        # The dots of one class lie side by side in a fixed pattern, so that few hide others.
        aside = (np.arange(len(values)) * 0.618 % 1 - 0.5) * 0.3
        axes.plot(i + 1 + aside, values, "o", color=colour(i), markersize=4, alpha=0.8)
    ticks = [f"{label}\n(n = {len(of)})" for label, of in zip(labels, known, strict=True)]
    axes.set_xticks(range(1, len(labels) + 1), ticks)
    _take_literally(axes.get_xticklabels())
    axes.set(ylabel="Dice", ylim=(-0.02, 1.02))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def colour(index: int) -> str:
    """The colour of the class with this place in the list."""
    return COLOURS[index % len(COLOURS)]


def save_figure(figure: Figure, out: Path) -> None:
    """Write a figure as PNG or SVG, whole or not at all; the same figure gives the same bytes."""
    from matplotlib import rc_context

    form = out.suffix.lower().removeprefix(".")
    if form not in ("png", "svg"):
        raise AutosegError(f"{out}: pictures are written as .png or .svg, not as {out.suffix!r}")
    metadata: dict[str, Any] = {"Date": None} if form == "svg" else {"Software": None}
    with replacing(out) as temporary, rc_context({"svg.hashsalt": "autoseg"}):
        figure.savefig(temporary, format=form, dpi=DOTS_PER_INCH, metadata=metadata)


@dataclass(frozen=True)
class _Upright:
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
    def of(geometry: Geometry) -> _Upright:
        cosines = np.reshape(geometry.direction, (3, 3))  # patient axes x voxel axes
        order = max(permutations(range(3)), key=lambda p: np.abs(cosines[range(3), p]).sum())
        flipped = tuple(int(i) for i in np.flatnonzero(cosines[range(3), order] < 0))
        return _Upright(order, flipped, tuple(geometry.spacing_mm[i] for i in order))

    def turn(self, array: Array) -> Array:
        return np.flip(array.transpose(self.order), self.flipped)


def _slicing_axis(spacing_mm: Sequence[float]) -> int:
    """The axis across the slices: z, unless another has voxels more than twice as far apart."""
    widest = int(np.argmax(spacing_mm))
    return widest if spacing_mm[widest] > 2 * spacing_mm[2] else 2


def _choose_slices(foreground: NDArray[np.bool_], axis: int) -> list[int]:
    """At 25, 50 and 75 % of the extent of the foreground and where it is densest."""
    voxels = foreground.sum(axis=tuple({0, 1, 2} - {axis}))
    there = np.flatnonzero(voxels)
    if not len(there):
        return [foreground.shape[axis] // 2]
    spread = np.rint(there[0] + np.array([0.25, 0.5, 0.75]) * (there[-1] - there[0]))
    return sorted({*(int(i) for i in spread), int(voxels.argmax())})


def _draw_overlay(
    image: Array,
    truth: Array,
    prediction: Array,
    slices: list[int],
    axis: int,
    spacing_mm: Sequence[float],
    labels: dict[str, tuple[int, ...]],
    title: str,
    out: Path,
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    across, down = (i for i in range(3) if i != axis)
    aspect = spacing_mm[down] / spacing_mm[across]
    height = PANEL_INCHES * aspect * image.shape[down] / image.shape[across]
    height = float(np.clip(height, PANEL_INCHES / 3, PANEL_INCHES * 2))
    size = (3 * PANEL_INCHES, len(slices) * (height + 0.1) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(slices), 3, squeeze=False)
    low, high = np.percentile(image, WINDOW_PERCENT)
    for row, k in zip(grid, slices, strict=True):
        for axes, label_map in zip(row, (None, truth, prediction), strict=True):
            axes.imshow(
                np.take(image, k, axis).T,
                cmap="gray",
                vmin=low,
                vmax=max(high, low + 1e-6),
                aspect=aspect,
                origin="upper" if down == 1 else "lower",  # back, but not feet, is below
            )
            if label_map is not None:
                _draw_classes(axes, np.take(label_map, k, axis).T, labels, down)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"slice {k + 1} of {image.shape[axis]}")
        _name_sides(row[0], across, down)
    for axes, name in zip(grid[0], ("image", "truth", "prediction"), strict=True):
        axes.set_title(name)
    marks = [
        Patch(facecolor=colour(i) + "59", edgecolor=colour(i), linestyle=_line(i))
        for i in range(len(labels))
    ]
    legend = figure.legend(marks, list(labels), loc="outside lower center", ncols=5, frameon=False)
    _take_literally([figure.suptitle(title, wrap=True), *legend.get_texts()])
    save_figure(figure, out)


def _draw_classes(axes: Axes, cut: Array, labels: dict[str, tuple[int, ...]], down: int) -> None:
    """Fill every class of a slice (rows, columns) and draw its border."""
    from matplotlib.colors import to_rgba

    for i, values in enumerate(labels.values()):
        inside = members(cut, values)
        if not inside.any():
            continue
        fill = np.zeros((*cut.shape, 4))
        fill[inside] = to_rgba(colour(i), 0.35)
        axes.imshow(fill, aspect=axes.get_aspect(), origin="upper" if down == 1 else "lower")
        if not inside.all() and min(cut.shape) > 1:
            axes.contour(inside, [0.5], colors=[colour(i)], linewidths=1.3, linestyles=_line(i))


def _name_sides(axes: Axes, across: int, down: int) -> None:
    top, bottom = SIDES[down] if down == 1 else SIDES[down][::-1]
    left, right = SIDES[across]
    places = ((0.04, 0.5, left), (0.96, 0.5, right), (0.5, 0.96, top), (0.5, 0.04, bottom))
    for x, y, letter in places:
        axes.text(
            x,
            y,
            letter,
            color="white",
            ha="center",
            va="center",
            transform=axes.transAxes,
            bbox={"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 1.5},
        )


def _line(index: int) -> Line:
    return LINES[index // len(COLOURS) % len(LINES)]


def _take_literally(texts: Sequence[Text]) -> None:
    """Names are no formulas: a dollar sign in them means nothing."""
    for text in texts:
        text.set_parse_math(False)
