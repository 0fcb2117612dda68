"""Loss curves over the folds of a plan, smoothed as in Müller et al. 2021, Fig. 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.common.figures import DARK_COLOURS, LINES, smooth, tidy
from autoseg.evaluation.training_log import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = ("training", "validation")
MOST_COLUMNS = 2  # four plans make 2 x 2 panels


@dataclass(frozen=True)
class Losses:
    """The losses of one fold, a number an epoch; None where there was none.

    Attributes:
        epochs: their numbers, from 1.
        training: mean over the epoch's training batches.
        validation: mean over its validation batches.
    """

    epochs: tuple[int, ...]
    training: tuple[float | None, ...]
    validation: tuple[float | None, ...]


def read_losses(fold: Path) -> Losses | None:
    """The losses in the log of a fold's folder; None if there is no log.

    Raises:
        DataError: the log is damaged.
    """
    return read_log(
        fold,
        lambda lines: Losses(
            tuple(int(each["epoch"]) + 1 for each in lines),
            tuple(each["training_loss"] for each in lines),
            tuple(each.get("validation_loss") for each in lines),
        ),
    )


def draw_losses(panels: Mapping[str, Sequence[Losses]]) -> Figure:
    """A panel for each plan: the epochs of all folds as faint points, and the curve beneath them.

    The curve is found by Gaussian-process regression, once for all folds; its band holds it with
    95 % confidence.

    Args:
        panels: title -> the folds of a plan; one without folds is said to be missing.
    """
    from matplotlib.figure import Figure

    columns = min(MOST_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (max(5.0, 4.2 * columns), 2.9 * rows + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (title, folds) in zip(grid, panels.items(), strict=False):
        _draw_panel(axes, folds)
        number = f"{len(folds)} folds" if len(folds) != 1 else "1 fold"
        axes.set_title(f"{title} ({number if folds else 'missing'})", fontsize=10, parse_math=False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("loss")
    drawn = [axes.get_legend_handles_labels() for axes in grid]
    marks, names = max(drawn, key=lambda found: len(found[0]))
    figure.legend(marks, names, loc="outside lower center", ncols=2, frameon=False, handlelength=3)
    return figure


def _draw_panel(axes: Axes, folds: Sequence[Losses]) -> None:
    for index, name in enumerate(CURVES):
        x = [epoch for fold in folds for epoch in fold.epochs]
        y = [value for fold in folds for value in getattr(fold, name)]
        _draw_curve(axes, x, y, name, index)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True)
    tidy(axes)


def _draw_curve(
    axes: Axes, x: Sequence[int], y: Sequence[float | None], name: str, index: int
) -> None:
    """Points, curve and band; points alone while there are too few for a curve."""
    points = [(place, value) for place, value in zip(x, y, strict=True) if value is not None]
    if not points:
        return
    colour, style = DARK_COLOURS[index], LINES[index]
    curve = smooth(x, y)
    axes.plot(
        [place for place, _ in points],
        [value for _, value in points],
        "os"[index],
        color=colour,
        alpha=0.25 if curve else 0.8,
        markersize=4,
        markeredgewidth=0,
        label=None if curve else name,
    )
    if curve is not None:
        axes.plot(curve.x, curve.mean, color=colour, linestyle=style, linewidth=1.8, label=name)
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
