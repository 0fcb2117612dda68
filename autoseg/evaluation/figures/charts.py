"""Figures of scores: cases as points above a box, in rows; agreement of volumes; differences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from autoseg.common.arrays import mean_of_known
from autoseg.common.figures import Colours, colours_of, jitter, new_grid, take_literally, tidy
from autoseg.evaluation.comparison import Comparison
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import MINUS, metric_name

Values = Sequence[float | None]
Groups = Mapping[str, Mapping[str, Values]]  # group, such as a fold -> class -> values
Limits = tuple[float, float, str]  # of an axis, and its name
Marked = Sequence[tuple[float | None, bool]]  # values, and whether they are penalties
NO_COLOURS: Colours = {}
SURFACE = ("NSD", "HD95_mm", "ASSD_mm")
MOST_ROWS = 40  # of a column of classes
MOST_PANELS = 24  # of classes with a panel of their own
MOST_COLUMNS = 3
PANEL_INCHES, ROW_INCHES = 3.4, 0.36
STEPS = 20  # an axis of a ratio starts at a multiple of 1 / STEPS
WIDE = 3.0  # an axis of distances ends at this many times their 90th percentile
CHARACTER_INCHES = 0.077  # of a name
FLUSH_RIGHT: dict[str, Any] = {"ha": "right", "va": "center"}
LIMITS = 1.96  # standard deviations around the mean that hold 95 % of the differences


def draw_scores(
    summary: Summary, metrics: Sequence[str] = ("Dice",), colours: Colours = NO_COLOURS
) -> Figure:
    """Classes x metrics: a row for each class with a point for each case, and a box below.

    Distances of classes that are in only one of reference and prediction are penalties; they are
    drawn as crosses at the edge, and counted.
    """
    labels = list(summary.labels)
    faces = colours_of(labels, colours)
    blocks = [labels[i : i + MOST_ROWS] for i in range(0, len(labels), MOST_ROWS)] or [[]]
    pairs = [(block, metric) for block in blocks for metric in metrics]
    columns = len(metrics) if len(metrics) > 1 else len(blocks)
    left = _room_for(labels) if labels else 1.0
    gap = 0.3 if len(metrics) > 1 else left
    tall = ROW_INCHES * max(map(len, blocks)) + 0.1
    figure, grid = new_grid(len(pairs), columns, (PANEL_INCHES, tall), left, gap)
    for i, (axes, (block, metric)) in enumerate(zip(grid, pairs, strict=True)):
        found: dict[str, Marked] = {
            label: [(c.value(label, metric), c.penalised(label, metric)) for c in summary.cases]
            for label in block
        }
        is_first = len(metrics) == 1 or i % columns == 0
        known = [v for of in found.values() for v, extra in of if v is not None and not extra]
        _draw_rows(axes, found, faces, _limits(metric, known), is_first)
    return figure


def _room_for(names: Iterable[str]) -> float:
    """Inches for the longest of these names and its n."""
    return 0.75 + CHARACTER_INCHES * max(map(len, names), default=0)


def draw_groups(panels: Mapping[str, Groups], colours: Colours = NO_COLOURS) -> Figure:
    """Dice of the cases: a panel for each class and a row for each group, such as a fold.

    Args:
        panels: title of a plan or set -> group -> class -> Dice of the cases. Several titles
            precede the names of the groups. Of very many classes the mean is drawn.
        colours: class -> colour, for the classes to which the plan assigns one.
    """
    rows = {
        group if len(panels) == 1 else f"{title}: {group}": classes
        for title, groups in panels.items()
        for group, classes in groups.items()
    }
    names = list(dict.fromkeys(name for classes in rows.values() for name in classes)) or [""]
    if len(names) > MOST_PANELS:
        names = [f"mean of {len(names)} classes"]
        cases = {row: zip(*of.values(), strict=True) for row, of in rows.items()}
        rows = {row: {names[0]: [mean_of_known(v) for v in of]} for row, of in cases.items()}
    faces = colours_of(names, colours)
    every = [v for classes in rows.values() for of in classes.values() for v in of]
    limits = _limits("Dice", [value for value in every if value is not None])
    size = (PANEL_INCHES, ROW_INCHES * len(rows) + 0.1)
    figure, grid = new_grid(len(names), MOST_COLUMNS, size, _room_for(rows))
    for i, (axes, name) in enumerate(zip(grid, names, strict=True)):
        found = {row: [(v, False) for v in of.get(name, ())] for row, of in rows.items()}
        is_first = i % MOST_COLUMNS == 0
        _draw_rows(axes, found, dict.fromkeys(rows, faces[name]), limits, is_first)
        axes.set_title(name, fontsize=10, parse_math=False)
    return figure


def _draw_rows(
    axes: Axes, rows: Mapping[str, Marked], faces: Colours, limits: Limits, named: bool = True
) -> None:
    """Rows of points, each with a box below."""
    low, high, label = limits
    names = []
    for row, (name, marked) in enumerate(rows.items()):
        values = [v for v, extra in marked if v is not None and not extra]
        n = len(values) + (penalties := sum(extra for _, extra in marked))
        names.append(f"{name}  n = {n}" if n else f"{name}  missing")
        shown = np.minimum(values, high)
        places = row - 0.12 + jitter(len(values), 0.4)
        rim: dict[str, Any] = {"markeredgecolor": "0.25", "markeredgewidth": 0.5}
        for marker, chosen in (("o", shown == values), (">", shown != values)):
            axes.plot(shown[chosen], places[chosen], marker, color=faces[name], markersize=4, **rim)
        if penalties:
            axes.plot(high, row - 0.33, "X", color="black", markersize=6)
            text = "1 penalty " if penalties == 1 else f"{penalties} penalties "
            axes.text(high - (high - low) / 50, row - 0.33, text, fontsize=7.5, **FLUSH_RIGHT)
        if values:
            _draw_box(axes, row + 0.27, shown)
    axes.set_yticks(range(len(names)), names if named else [""] * len(names), fontsize=9)
    take_literally(axes.get_yticklabels())
    span = high - low
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(low - 0.02 * span, high + 0.02 * span))
    axes.set_xlabel(label, fontsize=9, parse_math=False)
    tidy(axes, "x")


def _draw_box(axes: Axes, y: float, values: NDArray[np.float64]) -> None:
    """Quartiles and median; whiskers reach to the last value within 1.5 times the box."""
    low, median, high = np.percentile(values, (25, 50, 75))
    reach = 1.5 * (high - low)
    inner = values[(values >= low - reach) & (values <= high + reach)]
    axes.hlines(y, inner.min(), inner.max(), color="black", linewidth=0.8)
    axes.barh(y, high - low, 0.18, low, facecolor="white", edgecolor="black", linewidth=0.8)
    axes.vlines(median, y - 0.12, y + 0.12, color="black", linewidth=1.8)


def _limits(metric: str, values: Sequence[float]) -> Limits:
    """Where an axis starts and ends, and its name, with a note if that is unusual."""
    name = metric_name(metric)
    if METRICS[metric].unit == "mm":
        top = max(values, default=1.0)
        robust = WIDE * float(np.percentile(values, 90)) if values else 1.0
        high = min(1.05 * top, robust) or 1.0
        return 0.0, high, name + ", > beyond the axis" * (high < top)
    low = math.floor(STEPS * min(values, default=0.0) - 0.5) / STEPS
    return (low, 1.0, f"{name} (axis starts at {low:g})") if low >= 0.2 else (0.0, 1.0, name)


def draw_volumes(summary: Summary, colours: Colours = NO_COLOURS) -> Figure:
    """Bland-Altman plots: the difference of volumes over their mean, a panel for each class.

    Lines are the mean difference and its 95 % limits of agreement. Of very many classes the panels
    are those with the widest limits, relative to the volume.
    """
    points: dict[str, NDArray[np.float64]] = {}
    for label in summary.labels:
        of = [case.volume_ml[label] for case in summary.cases if label in case.volume_ml]
        pairs = [((v.reference + v.predicted) / 2, v.difference) for v in of if v.reference]
        if pairs:
            points[label] = np.array(pairs).T
    faces = colours_of(summary.labels, colours)
    widths = {label: float(np.std(of[1]) / of[0].mean()) for label, of in points.items()}
    widest = sorted(points, key=lambda label: widths[label], reverse=True)[:MOST_PANELS]
    chosen = [label for label in points if label in widest]
    figure, grid = new_grid(max(1, len(chosen)), MOST_COLUMNS, (2.3, 1.8), 0.75, 1.1, 0.62)
    for axes, label in zip(grid, chosen, strict=False):
        mean, difference = points[label]
        axes.plot(mean, difference, "o", color=faces[label], markeredgecolor="0.25", markersize=4.5)
        middle, spread = difference.mean(), difference.std(ddof=1) if len(mean) > 1 else 0.0
        axes.axhline(0, color="0.6", linewidth=0.8)
        side: dict[str, Any] = {"va": "center", "transform": axes.get_yaxis_transform()}
        for value, style in ((0, "solid"), (LIMITS, "dashed"), (-LIMITS, "dashed")):
            at = middle + value * spread
            axes.axhline(at, color="black", linestyle=style, linewidth=1)
            axes.text(1.02, at, f"{at:.3g}", fontsize=7.5, **side)
        axes.set_title(f"{label}  n = {len(mean)}", fontsize=10, parse_math=False)
        axes.set_xlabel("mean of both volumes (ml)", fontsize=8.5)
        axes.margins(x=0.08, y=0.2)
        if not np.round(difference, 9).any():
            axes.set_ylim(-0.1, 0.1)  # not the rounding errors
        axes.tick_params(labelsize=8)
        tidy(axes)
    name, over = f"prediction {MINUS} reference (ml)", grid[0].transAxes
    grid[0].text(-0.25, 1.22, name, fontsize=8.5, transform=over)
    return figure


def draw_differences(
    comparison: Comparison, metric: str = "Dice", colours: Colours = NO_COLOURS
) -> Figure:
    """A row for each class: a point for each case, and the mean with its confidence interval."""
    found = {of.label: of for of in comparison.of(metric)}
    rows = {label: [(value, False) for value in of.values] for label, of in found.items()}
    every = [0.0, *(value for of in found.values() for value in of.values)]
    a, b, name = comparison.a, comparison.b, metric_name(metric)
    limits = min(every), max(every) + 1e-9, f"{name} of {a} {MINUS} {name} of {b}"
    size = (1.5 * PANEL_INCHES, ROW_INCHES * len(found) + 0.1)
    figure, (axes,) = new_grid(1, 1, size, _room_for(found))
    _draw_rows(axes, rows, colours_of(found, colours), limits)
    for row, of in enumerate(found.values()):
        if of.mean is not None and of.interval is not None:
            axes.hlines(row, *of.interval, color="black", linewidth=2)
            axes.plot(of.mean, row, "D", color="black", markersize=5)
    axes.axvline(0, color="0.4", linestyle="dashed", linewidth=1)
    axes.set_title(f"{a} against {b}: mean and 95 % CI", fontsize=10, parse_math=False)
    return figure
