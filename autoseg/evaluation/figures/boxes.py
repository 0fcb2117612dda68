"""Dice as box plots: a box for each class, and a dot for each case."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.common.figures import (
    Colours,
    colours_of,
    hatch,
    jitter,
    save_figure,
    take_literally,
    tidy,
)
from autoseg.evaluation.comparison import Comparison
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import MINUS, metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch


Values = Sequence[float | None]
Groups = Mapping[str, Mapping[str, Values]]  # group, such as a fold -> class -> a number a case
NO_COLOURS: Colours = {}
MOST_COLUMNS = 2  # of panels
MOST_LEGEND_COLUMNS = 5


def box_plot(summary: Summary, out: Path, colours: Colours = NO_COLOURS) -> None:
    """Draw the Dice of every class as a box, with a dot for each case, as PNG or SVG."""
    save_figure(draw_box_plot(summary, colours), out)


def draw_box_plot(summary: Summary, colours: Colours = NO_COLOURS) -> Figure:
    """The figure of `box_plot`."""
    from matplotlib.figure import Figure

    labels = summary.labels
    figure = Figure(figsize=(max(4.0, 1.5 + 1.1 * len(labels)), 4.0), layout="constrained")
    axes = figure.subplots()
    of = [known(summary.values(label)) for label in labels]
    for i, (values, face) in enumerate(zip(of, colours_of(labels, colours).values(), strict=True)):
        _draw_box(axes, i + 1, 0.5, values, face, i)
    ticks = [f"{label}\n(n = {len(v)})" for label, v in zip(labels, of, strict=True)]
    axes.set_xticks(range(1, len(labels) + 1), ticks)
    take_literally(axes.get_xticklabels())
    axes.set(ylabel="Dice", ylim=(-0.02, 1.02))
    tidy(axes)
    return figure


def draw_grouped_boxes(panels: Mapping[str, Groups], colours: Colours = NO_COLOURS) -> Figure:
    """Dice of folds x classes: a panel for each plan, a group of boxes for each fold.

    Args:
        panels: title -> groups; all groups name the same classes.
        colours: class -> colour, for those that the plan gives one.
    """
    from matplotlib.figure import Figure

    classes = classes_in(panels)
    most = max(len(groups) for groups in panels.values())
    columns = min(MOST_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width = max(4.0, 1.2 + 0.32 * (len(classes) + 1) * most)
    figure = Figure(figsize=(columns * width, rows * 3.2 + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    faces = colours_of(classes, colours)
    for axes, (title, groups) in zip(grid, panels.items(), strict=False):
        _draw_groups(axes, groups, classes, faces)
        axes.set_title(title, fontsize=10, parse_math=False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("Dice")
    add_legend(figure, classes, faces)
    return figure


def classes_in(panels: Mapping[str, Groups]) -> list[str]:
    """The classes that any group of any panel has, in their order."""
    found = (of for groups in panels.values() for of in groups.values())
    return list(dict.fromkeys(name for of in found for name in of))


def add_legend(figure: Figure, classes: Sequence[str], faces: Colours) -> None:
    """Name the classes below a figure."""
    legend = figure.legend(
        _legend_marks(faces),
        classes,
        loc="outside lower center",
        ncols=_legend_columns(figure, classes),
        frameon=False,
    )
    take_literally(legend.get_texts())


def _legend_columns(figure: Figure, names: Sequence[str]) -> int:
    """How many names of a legend stand beside each other within the figure's width."""
    inches = 0.7 + 0.085 * max(map(len, names), default=0)
    return max(1, min(MOST_LEGEND_COLUMNS, int(figure.get_figwidth() / inches)))


def _legend_marks(faces: Colours) -> list[Patch]:
    """What stands beside the names of classes in a legend."""
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=face, edgecolor="black", hatch=hatch(i), linewidth=0.8)
        for i, face in enumerate(faces.values())
    ]


def known(values: Values) -> list[float]:
    """The values that are there."""
    return [value for value in values if value is not None]


def _draw_groups(axes: Axes, groups: Groups, classes: Sequence[str], faces: Colours) -> None:
    step = 0.8 / max(1, len(classes))
    for place, of in enumerate(groups.values()):
        for i, name in enumerate(classes):
            x = place + (i - (len(classes) - 1) / 2) * step
            _draw_box(axes, x, 0.75 * step, known(of.get(name, ())), faces[name], i)
    ticks = [f"{name}\n{_cases_in(of)}" for name, of in groups.items()]
    axes.set_xticks(range(len(groups)), ticks, fontsize=9)
    take_literally(axes.get_xticklabels())
    axes.set(ylim=(-0.02, 1.02), xlim=(-0.6, len(groups) - 0.4))
    tidy(axes)


def _cases_in(of: Mapping[str, Values]) -> str:
    cases = max((len(values) for values in of.values()), default=0)
    return f"(n = {cases})" if cases else "missing"


def _draw_box(
    axes: Axes, x: float, width: float, values: Sequence[float], face: str, index: int
) -> None:
    """A hatched box, and its dots side by side in a fixed pattern, so that few are hidden."""
    if not values:
        return
    axes.boxplot(
        [values],
        positions=[x],
        widths=width,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": face, "hatch": hatch(index), "linewidth": 0.8, "alpha": 0.75},
        medianprops={"color": "black", "linewidth": 1.8},
        manage_ticks=False,
    )
    aside = jitter(len(values), 0.6 * width)
    axes.plot(
        x + aside, values, "o", color="white", markeredgecolor="black", markersize=3, alpha=0.8
    )


# Scores of several plans side by side, as bars: such as those of k = 2 to 5.


def draw_bars(panels: Mapping[str, Groups], colours: Colours = NO_COLOURS) -> Figure:
    """A panel for each set of cases, a group of bars for each plan, a bar for each class.

    A bar is the mean of the folds' medians; its whisker their standard deviation; the dots are the
    folds.

    Args:
        panels: set -> plan -> class -> the median of each fold.
        colours: class -> colour, for those that the plan gives one.
    """
    from matplotlib.figure import Figure

    classes = classes_in(panels)
    faces = colours_of(classes, colours)
    widths = [1.2 + _bars_in(groups) * 0.55 for groups in panels.values()]
    figure = Figure(figsize=(max(5.0, sum(widths) + 0.6), 4.2), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=widths)[0]
    for axes, (title, groups) in zip(grid, panels.items(), strict=True):
        _draw_panel(axes, groups, faces)
        axes.set_title(title, fontsize=10, parse_math=False)
    grid[0].set(ylabel="Dice: mean of the folds' medians", ylim=(0, 1.02))
    add_legend(figure, classes, faces)
    return figure


def _bars_in(groups: Groups) -> int:
    return sum(1 + len(of) for of in groups.values())


def _draw_panel(axes: Axes, groups: Groups, faces: Colours) -> None:
    of_panel = [name for name in faces if any(name in of for of in groups.values())]
    step = 0.8 / max(1, len(of_panel))
    for place, of in enumerate(groups.values()):
        for i, name in enumerate(of_panel):
            x = place + (i - (len(of_panel) - 1) / 2) * step
            medians = known(of.get(name, ()))
            _draw_bar(axes, x, 0.9 * step, medians, faces[name], list(faces).index(name))
    ticks = [_tick(name, of) for name, of in groups.items()]
    axes.set_xticks(range(len(groups)), ticks, fontsize=9)
    take_literally(axes.get_xticklabels())
    axes.set_xlim(-0.6, len(groups) - 0.4)
    tidy(axes)


def _tick(name: str, of: Mapping[str, Sequence[float | None]]) -> str:
    folds = max((len(known(values)) for values in of.values()), default=0)
    return f"{name}\n({folds} folds)" if folds else f"{name}\nmissing"


def _draw_bar(
    axes: Axes, x: float, width: float, medians: Sequence[float], face: str, index: int
) -> None:
    if not medians:
        return
    mean = statistics.fmean(medians)
    axes.bar(x, mean, width, color=face, edgecolor="black", hatch=hatch(index), linewidth=0.8)
    if len(medians) > 1:
        axes.errorbar(x, mean, statistics.stdev(medians), color="black", capsize=3, linewidth=1.2)
    axes.plot(
        x + jitter(len(medians), 0.6 * width),
        medians,
        "o",
        color="white",
        markeredgecolor="black",
        markersize=3.5,
    )


# The figure of a comparison: how much better A is than B, case by case.

MARKS = "osD^vP*"


def draw_differences(
    comparison: Comparison, metric: str = "Dice", colours: Colours = NO_COLOURS
) -> Figure:
    """A row for each class: a mark for each case, and the mean with its confidence interval."""
    from matplotlib.figure import Figure

    found = comparison.of(metric)
    faces = colours_of([of.label for of in found], colours)
    figure = Figure(figsize=(6.4, 1.6 + 0.75 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, of in enumerate(found):
        axes.plot(
            of.values,
            row + jitter(of.n, 0.35),
            MARKS[row % len(MARKS)],
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
