"""Figures of scores: box plots of the cases, bars of their means, and differences of two plans."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from autoseg.common.figures import Colours, colours_of, hatch, jitter, take_literally, tidy
from autoseg.evaluation.tables import MINUS, metric_name

if TYPE_CHECKING:
    from autoseg.evaluation.comparison import Comparison

Values = Sequence[float | None]
Groups = Mapping[str, Mapping[str, Values]]  # group, such as a fold -> class -> values
NO_COLOURS: Colours = {}
MOST_PANEL_COLUMNS = 2
MOST_LEGEND_COLUMNS = 5
MARKERS = "osD^vP*"


def draw_box_plot(cases: Mapping[str, Values], colours: Colours = NO_COLOURS) -> Figure:
    """Dice of each class as a box, with a dot for each case."""
    labels = list(cases)
    figure = Figure(figsize=(max(4.0, 1.5 + 1.1 * len(labels)), 4.0), layout="constrained")
    axes = figure.subplots()
    dice = [_known(values) for values in cases.values()]
    faces = colours_of(labels, colours).values()
    for i, (values, face) in enumerate(zip(dice, faces, strict=True)):
        if values:
            _draw_box(axes, i + 1, 0.5, values, face, hatch(i))
    ticks = [f"{label}\n(n = {len(values)})" for label, values in zip(labels, dice, strict=True)]
    axes.set_xticks(range(1, len(labels) + 1), ticks)
    take_literally(axes.get_xticklabels())
    axes.set(ylabel="Dice", ylim=(-0.02, 1.02))
    tidy(axes)
    return figure


def draw_grouped_boxes(
    panels: Mapping[str, Groups], colours: Colours = NO_COLOURS, bars: bool = False
) -> Figure:
    """Dice of the cases: a panel for each plan or set, a group for each fold or plan.

    Args:
        panels: title -> group -> class -> Dice of the cases; the dots.
        colours: class -> colour, for the classes to which the plan assigns one.
        bars: draw a bar behind each box, the mean of its cases.
    """
    groups = (group for of_panel in panels.values() for group in of_panel.values())
    faces = colours_of(dict.fromkeys(name for group in groups for name in group), colours)
    most = max(len(groups) for groups in panels.values())
    columns = min(MOST_PANEL_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width = max(4.0, 1.2 + 0.32 * (len(faces) + 1) * most)
    figure = Figure(figsize=(columns * width, rows * 3.2 + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (title, groups_of_panel) in zip(grid, panels.items(), strict=False):
        _draw_groups(axes, groups_of_panel, faces, bars)
        axes.set_ylim(0 if bars else -0.02, 1.02)
        axes.set_title(title, fontsize=10, parse_math=False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("Dice")
    _add_legend(figure, faces)
    return figure


def draw_differences(
    comparison: Comparison, metric: str = "Dice", colours: Colours = NO_COLOURS
) -> Figure:
    """A row for each class: a marker for each case, and the mean with its confidence interval."""
    found = comparison.of(metric)
    faces = colours_of([of.label for of in found], colours)
    figure = Figure(figsize=(6.4, 1.6 + 0.75 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, of in enumerate(found):
        axes.plot(
            of.values,
            row + jitter(of.n, 0.35),
            MARKERS[row % len(MARKERS)],
            color=faces[of.label],
            markeredgecolor="0.3",
            markersize=4,
            alpha=0.7,
        )
        if of.mean is not None and of.interval is not None:
            axes.plot(of.interval, (row, row), color="black", linewidth=2, solid_capstyle="butt")
            axes.plot(of.mean, row, "|", color="black", markersize=16, markeredgewidth=2.5)
    axes.axvline(0, color="0.4", linestyle="dashed", linewidth=1)
    axes.set_yticks(range(len(found)), [f"{of.label}\n(n = {of.n})" for of in found])
    axes.set(ylim=(len(found) - 0.5, -0.5))
    name = metric_name(metric)
    title = f"{comparison.a} against {comparison.b}"
    label = f"{name} of {comparison.a} {MINUS} {name} of {comparison.b}"
    take_literally(
        [*axes.get_yticklabels(), axes.set_title(title, fontsize=10), axes.set_xlabel(label)]
    )
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _known(values: Values) -> list[float]:
    return [value for value in values if value is not None]


def _draw_groups(axes: Axes, groups: Groups, faces: Colours, bars: bool) -> None:
    """Draw the values of the classes of a panel side by side, group by group."""
    names = [name for name in faces if any(name in group for group in groups.values())]
    step = 0.8 / max(1, len(names))
    hatches = {name: hatch(i) for i, name in enumerate(faces)}
    for place, group in enumerate(groups.values()):
        for i, name in enumerate(names):
            if values := _known(group.get(name, ())):
                x = place + (i - (len(names) - 1) / 2) * step
                if bars:
                    mean, face = statistics.fmean(values), faces[name]
                    axes.bar(x, mean, 0.9 * step, color=face, alpha=0.35, edgecolor="black")
                share = 0.45 if bars else 0.75
                _draw_box(axes, x, share * step, values, faces[name], hatches[name])
    ticks = [f"{name}\n{_cases_text(group)}" for name, group in groups.items()]
    axes.set_xticks(range(len(groups)), ticks, fontsize=9)
    take_literally(axes.get_xticklabels())
    axes.set_xlim(-0.6, len(groups) - 0.4)
    tidy(axes)


def _cases_text(group: Mapping[str, Values]) -> str:
    cases = max((len(values) for values in group.values()), default=0)
    return f"(n = {cases})" if cases else "missing"


def _draw_box(
    axes: Axes, x: float, width: float, values: Sequence[float], face: str, pattern: str
) -> None:
    axes.boxplot(
        [values],
        positions=[x],
        widths=width,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": face, "hatch": pattern, "linewidth": 0.8, "alpha": 0.75},
        medianprops={"color": "black", "linewidth": 1.8},
        manage_ticks=False,
    )
    _draw_dots(axes, x, width, values, markersize=3, alpha=0.8)


def _draw_dots(axes: Axes, x: float, width: float, values: Sequence[float], **style: Any) -> None:
    places = x + jitter(len(values), 0.6 * width)
    axes.plot(places, values, "o", color="white", markeredgecolor="black", **style)


def _add_legend(figure: Figure, faces: Colours) -> None:
    """Name the classes below the figure, in as many columns as fit its width."""
    inches = 0.7 + 0.085 * max(map(len, faces), default=0)
    columns = max(1, min(MOST_LEGEND_COLUMNS, int(figure.get_figwidth() / inches)))
    marks = [
        Patch(facecolor=face, edgecolor="black", hatch=hatch(i), linewidth=0.8)
        for i, face in enumerate(faces.values())
    ]
    legend = figure.legend(
        marks, list(faces), loc="outside lower center", ncols=columns, frameon=False
    )
    take_literally(legend.get_texts())
