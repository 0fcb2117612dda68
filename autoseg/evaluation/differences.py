"""The figure of a comparison: how much better A is than B, case by case."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoseg.common.figures import Colours, colours_of, jitter, take_literally
from autoseg.evaluation.boxes import NO_COLOURS
from autoseg.evaluation.comparison import Comparison
from autoseg.evaluation.tables import MINUS, metric_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
