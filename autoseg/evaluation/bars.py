"""Scores of several plans side by side, as bars: such as those of k = 2 to 5."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from autoseg.common.figures import Colours, colours_of, hatch, jitter, take_literally, tidy
from autoseg.evaluation.boxes import (
    NO_COLOURS,
    Groups,
    add_legend,
    classes_in,
    known,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
