"""`log.jsonl`, one JSON object per epoch: writing, reading, overfitting, and learning curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.common.figures import DARK_COLOURS, LINES, Line, new_grid, smooth, tidy
from autoseg.common.files import write_text
from autoseg.common.progress import counted
from autoseg.models.archive import TEXT
from autoseg.models.folder import LOG

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_CLASSES_IN_A_NOTE = 6
WINDOW = 3  # epochs whose Dice is averaged, as single epochs are noisy
WAIT_EPOCHS = 5  # for which the Dice must have stayed below its best
FALLEN_BY = 0.2  # of its best
ADVICE = TEXT("overfitting")
ENOUGH_EPOCHS = 0.7  # of those that were planned
LEAST_FALL, LEAST_DICE = 0.1, 0.1  # of the loss, as a share, and of the training patches
CURVES = ("training", "validation")
MOST_COLUMNS = 2  # four plans make 2 x 2 panels


@dataclass(frozen=True)
class Epoch:
    """The results of an epoch; losses are means over its batches.

    Attributes:
        epoch: its index, from 0.
        epochs: the total number, as far as known.
        training_dice: class -> soft Dice of the training patches, background first.
        validation_dice: class -> Dice of the validation patches; empty without validation.
    """

    epoch: int
    epochs: int
    learning_rate: float
    training_loss: float
    training_dice: dict[str, float]
    seconds: float
    validation_loss: float | None = None
    validation_dice: dict[str, float | None] = field(default_factory=dict)

    @property
    def foreground_dice(self) -> Mapping[str, float | None]:
        """Dice of each class except the background, of validation patches or else training ones."""
        dice: Mapping[str, float | None] = self.validation_dice or self.training_dice
        return dict(list(dice.items())[1:])

    @property
    def mean_dice(self) -> float | None:
        """The mean of `foreground_dice` over the classes that occur."""
        return mean_of_known(self.foreground_dice.values())

    def note(self) -> str:
        """The epoch in one line; it names every class if there are few."""
        parts = [f"loss {self.training_loss:.3f}"]
        if self.validation_loss is not None:
            parts.append(f"validation {self.validation_loss:.3f}")
        if self.mean_dice is not None:
            dice = self.foreground_dice
            only = f" {next(iter(dice))}" if len(dice) == 1 else ""
            parts.append(f"Dice{only} {self.mean_dice:.3f}")
            if 1 < len(dice) <= MOST_CLASSES_IN_A_NOTE:
                each = (f"{n} {'-' if v is None else f'{v:.2f}'}" for n, v in dice.items())
                parts[-1] += f" ({', '.join(each)})"
        parts.append(f"rate {self.learning_rate:.1e}")
        return "  ".join(parts)


def write_log(fold: Path, epochs: Sequence[Epoch]) -> None:
    """Write all epochs to the log of a fold, atomically: a resumed run repeats no line."""
    lines = [json.dumps(asdict(epoch), allow_nan=False) + "\n" for epoch in epochs]
    write_text(fold / LOG, "".join(lines))


def read_log(fold: Path) -> list[Epoch] | None:
    """The epochs in the log of a fold; None if there is no log.

    Raises:
        DataError: the log is damaged.
    """
    path, adapter = fold / LOG, TypeAdapter(Epoch)
    if not path.is_file():
        return None
    epochs = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            epochs.append(adapter.validate_json(line))
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise DataError(f"{path}, line {number}: {reason}; train the fold again") from error
    return epochs


def count_epochs(fold: Path) -> int:
    """The number of epochs in the log of a fold, 0 without a log; their content is not checked."""
    path = fold / LOG
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


class Training(NamedTuple):
    """How the training of a fold went.

    Attributes:
        epochs: their number.
        seconds: their total time.
        dice: epoch, from 1 -> mean Dice of its patches over the foreground classes: of validation
            patches if the plan has any, else of training patches.
        overfitting: where validation got worse while training got better.
    """

    epochs: int
    seconds: float
    dice: Mapping[int, float]
    overfitting: Overfitting | None = None


def read_training(fold: Path) -> Training | None:
    """The summary of the log of a fold; None if there is no log.

    Raises:
        DataError: the log is damaged.
    """
    if (epochs := read_log(fold)) is None:
        return None
    dice = {each.epoch + 1: each.mean_dice for each in epochs}
    known = {epoch: value for epoch, value in dice.items() if value is not None}
    seconds = sum(each.seconds for each in epochs)
    return Training(len(epochs), seconds, known, overfitting_of(epochs))


def failures_of(epochs: Sequence[Epoch], planned: int) -> list[str]:
    """What went wrong in a run: far fewer epochs than planned, or nothing was learned.

    Args:
        epochs: of the run.
        planned: their number by the plan, without early stopping.
    """
    found = []
    if len(epochs) < ENOUGH_EPOCHS * planned:
        found.append(TEXT("time budget", planned=counted(planned, "epoch"), done=len(epochs)))
    first, last = epochs[0].training_loss, epochs[-1].training_loss
    dice = mean_of_known(list(epochs[-1].training_dice.values())[1:]) or 0.0
    if last > first - LEAST_FALL * abs(first) and dice < LEAST_DICE:
        found.append(TEXT("not learned", first=first, last=last, dice=dice))
    return found


class Overfitting(NamedTuple):
    """Validation got worse while training got better.

    Attributes:
        best_epoch: the last of the `WINDOW` epochs with the best Dice, from 1.
        best_dice: the mean Dice of validation patches in these epochs.
        last_dice: that of the last `WINDOW` epochs.
        epochs: the number of epochs since the best one.
    """

    best_epoch: int
    best_dice: float
    last_dice: float
    epochs: int

    def __str__(self) -> str:
        return TEXT("fallen", of=self)


def overfitting_of(epochs: Sequence[Epoch]) -> Overfitting | None:
    """Whether the network is overfitting; None if not, without validation, or after few epochs."""
    dice = [epoch.mean_dice if epoch.validation_dice else None for epoch in epochs]
    return find_overfitting([epoch.training_loss for epoch in epochs], dice)


def find_overfitting(losses: Sequence[float], dice: Sequence[float | None]) -> Overfitting | None:
    """The same, from numbers per epoch.

    Args:
        losses: training losses.
        dice: mean Dice of validation patches over the classes; None without validation.
    """
    all_epochs = zip(range(len(losses)), losses, dice, strict=True)
    known = [(number, loss, d) for number, loss, d in all_epochs if d is not None]
    if len(known) < WINDOW + WAIT_EPOCHS:
        return None
    windows = [known[end - WINDOW : end] for end in range(WINDOW, len(known) + 1)]
    means = [sum(d for _, _, d in window) / WINDOW for window in windows]
    best = max(range(len(means)), key=means.__getitem__)
    best_epoch, best_loss, _ = windows[best][-1]
    last_epoch, last_loss, _ = known[-1]
    waited = last_epoch - best_epoch
    fallen = means[-1] < (1 - FALLEN_BY) * means[best]
    if waited < WAIT_EPOCHS or not fallen or last_loss >= best_loss:
        return None
    return Overfitting(best_epoch + 1, means[best], means[-1], waited)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; worker processes import this module and draw nothing."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_dice(folds: Mapping[int, Training]) -> Figure:
    """One line per fold: the Dice of its patches over the epochs."""
    figure = new_figure(5.0, 3.6)
    axes = figure.subplots()
    for index, (fold, training) in enumerate(folds.items()):
        x, y = list(training.dice), list(training.dice.values())
        colour = DARK_COLOURS[index % len(DARK_COLOURS)]
        style = LINES[(index // len(DARK_COLOURS) + index) % len(LINES)]
        (line,) = axes.plot(x, y, color=colour, linestyle=style, label=f"fold {fold}")
        line.set_marker("o" if len(x) == 1 else "")
    axes.set(xlabel="epoch", ylabel="Dice of patches", ylim=(-0.02, 1.02))
    axes.locator_params(axis="x", integer=True)
    tidy(axes)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, handlelength=3)
    return figure


def draw_losses(panels: Mapping[str, Sequence[Sequence[Epoch]]], from_zero: bool = False) -> Figure:
    """One panel per plan: all epochs of all folds as faint points, and a smoothed curve.

    The curve comes from a Gaussian process regression over all folds, with its 95 % confidence
    band, as in Müller et al. 2021, Fig. 5.

    Args:
        panels: title -> the epochs of each fold of a plan; a plan without folds is "missing".
        from_zero: the y axis starts at 0.
    """
    figure, grid = new_grid(len(panels), MOST_COLUMNS, (3.8, 2.4), 0.6, 0.6)
    for axes, (title, folds) in zip(grid, panels.items(), strict=True):
        draw_curves(axes, [epoch for fold in folds for epoch in fold])
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        tidy(axes)
        number = counted(len(folds), "fold") if folds else "missing"
        axes.set_title(f"{title} ({number})", fontsize=10, parse_math=False)
        axes.set_title("loss", loc="left", fontsize=8.5)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8, handlelength=3)
    limits = [axes.get_ylim() for axes in grid if axes.lines]
    for axes in grid if limits else ():
        low = 0 if from_zero else min(low for low, _ in limits)
        axes.set_ylim(low, max(high for _, high in limits))
    return figure


def draw_curves(axes: Axes, epochs: Sequence[Epoch]) -> None:
    """Draw the losses of epochs, with their confidence bands."""
    x = [epoch.epoch + 1 for epoch in epochs]
    for index, name in enumerate(CURVES):
        y = [getattr(epoch, f"{name}_loss") for epoch in epochs]
        if any(value is not None for value in y):
            draw_curve(axes, x, y, name, DARK_COLOURS[index], LINES[index], banded=True)
    known = sorted(v for e in epochs for v in (e.training_loss, e.validation_loss) if v is not None)
    if known and known[-1] - known[0] > 2 * (usual := known[9 * len(known) // 10] - known[0]) > 0:
        axes.set_ylim(known[0] - usual / 10, known[0] + 2 * usual)  # a few are far above


def draw_curve(
    axes: Axes,
    x: Sequence[int],
    y: Sequence[float | None],
    name: str,
    colour: str,
    style: Line,
    banded: bool = False,
) -> None:
    """Faint points and the smoothed curve; without enough epochs, lines through the points."""
    points = [np.nan if value is None else value for value in y]  # NaN leaves a gap
    if (curve := smooth(x, y)) is None:
        folds = np.flatnonzero(np.diff(x) <= 0) + 1  # a line of its own for each
        line = [np.insert(np.asarray(of, float), folds, np.nan) for of in (x, points)]
        axes.plot(*line, color=colour, linestyle=style, marker="o", markersize=3, label=name)
        return
    size = 4 if len(x) > 100 else 7
    axes.plot(x, points, ".", color=colour, markersize=size, alpha=0.35, markeredgewidth=0)
    axes.plot(curve.x, curve.mean, color=colour, linestyle=style, label=name)
    if banded:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.25, linewidth=0)
