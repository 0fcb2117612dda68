"""The log of a run: one JSON object an epoch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.common.figures import DARK_COLOURS, LINES, smooth, tidy
from autoseg.common.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Does a network learn its training cases by heart? What the log of a run says about it.

WINDOW = 3  # epochs whose mean Dice is looked at: single epochs are noise
WAIT_EPOCHS = 5  # that the Dice must have stayed below its best
FALLEN_BY = 0.2  # of its best


@dataclass(frozen=True)
class Overfitting:
    """Validation got worse while training got better.

    Attributes:
        best_epoch: from 1; the last of the epochs with the best Dice.
        best_dice: of validation patches, mean of those epochs.
        last_dice: mean of the last epochs.
        epochs: since the best.
    """

    best_epoch: int
    best_dice: float
    last_dice: float
    epochs: int

    def __str__(self) -> str:
        return (
            f"the Dice of validation patches fell from {self.best_dice:.2f} (epoch "
            f"{self.best_epoch}) to {self.last_dice:.2f} in {self.epochs} epochs while the "
            "training loss fell, too: the network learns its training cases by heart"
        )


ADVICE = (
    "more training cases help most; else plan again with another --name and fewer epochs, another "
    "patch or stronger augmentation, and compare the scores"
)


def find_overfitting(losses: Sequence[float], dice: Sequence[float | None]) -> Overfitting | None:
    """Judge a run by its epochs; None if all is well or there are too few to tell.

    Args:
        losses: of training, one an epoch.
        dice: of validation patches, mean over the classes; None where there was none.
    """
    known = [
        (n, loss, d) for n, (loss, d) in enumerate(zip(losses, dice, strict=True)) if d is not None
    ]
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


LOG = "log.jsonl"
MOST_CLASSES_IN_A_NOTE = 6


@dataclass(frozen=True)
class Epoch:
    """What one epoch brought; losses are means over its batches."""

    epoch: int
    epochs: int  # in all, as far as is known
    learning_rate: float
    training_loss: float
    training_dice: dict[str, float]
    seconds: float
    validation_loss: float | None = None
    validation_dice: dict[str, float | None] = field(default_factory=dict)

    @property
    def foreground_dice(self) -> Mapping[str, float | None]:
        """Dice of each class but the background: of validation patches, else of training ones."""
        known: Mapping[str, float | None] = self.validation_dice or self.training_dice
        return dict(list(known.items())[1:])

    @property
    def mean_dice(self) -> float | None:
        """The mean of `foreground_dice` over the classes that are there."""
        known = [value for value in self.foreground_dice.values() if value is not None]
        return sum(known) / len(known) if known else None

    def note(self) -> str:
        """The epoch in short, for the user to watch: every class while there are few."""
        parts = [f"loss {self.training_loss:.3f}"]
        if self.validation_loss is not None:
            parts.append(f"validation {self.validation_loss:.3f}")
        if self.mean_dice is not None:
            each = self.foreground_dice
            listed = len(each) <= MOST_CLASSES_IN_A_NOTE
            alone = f" {next(iter(each))}" if len(each) == 1 else ""
            parts.append(f"Dice{alone} {self.mean_dice:.3f}")
            if listed and len(each) > 1:
                parts[-1] += f" ({', '.join(f'{n} {_short(v)}' for n, v in each.items())})"
        parts.append(f"rate {self.learning_rate:.1e}")
        return "  ".join(parts)


def overfitting_of(epochs: Sequence[Epoch]) -> Overfitting | None:
    """Whether validation got worse while training got better; None without validation."""
    dice = [epoch.mean_dice if epoch.validation_dice else None for epoch in epochs]
    return find_overfitting([epoch.training_loss for epoch in epochs], dice)


def write_log(path: Path, epochs: list[Epoch]) -> None:
    """All epochs as JSON lines, atomically, so that a resumed run leaves no line twice."""
    lines = [json.dumps(asdict(epoch), allow_nan=False) for epoch in epochs]
    write_text(path, "\n".join(lines) + "\n")


def to_json(epochs: list[Epoch]) -> list[dict[str, Any]]:
    """The epochs as JSON values, for a checkpoint."""
    return [asdict(epoch) for epoch in epochs]


def from_json(values: list[dict[str, Any]]) -> list[Epoch]:
    """The reverse of `to_json`."""
    return [Epoch(**value) for value in values]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# What the logs of training say for the report: how long it took, and how the Dice rose.

Taken = TypeVar("Taken")


@dataclass(frozen=True)
class Training:
    """How the training of one fold went.

    Attributes:
        epochs: how many were done.
        seconds: of all epochs together; None if the log does not say.
        dice: epoch, from 1 -> mean Dice of its patches over the foreground classes: of validation
            patches where the plan has some, else of training patches.
        overfitting: where validation got worse while training got better.
    """

    epochs: int
    seconds: float | None
    dice: Mapping[int, float]
    overfitting: Overfitting | None = None


def read_log(fold: Path, take: Callable[[list[dict[str, Any]]], Taken]) -> Taken | None:
    """What `take` takes from the lines of the log in a fold's folder; None if there is no log.

    Raises:
        DataError: the log is damaged.
    """
    path = fold / LOG
    if not path.is_file():
        return None
    try:
        texts = path.read_text("utf-8").splitlines()
        return take([json.loads(text) for text in texts if text.strip()])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no log of a training ({error}); train the fold anew") from error


def read_training(fold: Path) -> Training | None:
    """What the log in a fold's folder says; None if there is no log.

    Raises:
        DataError: the log is damaged.
    """
    return read_log(fold, _training)


def _training(lines: Sequence[Mapping[str, Any]]) -> Training:
    seconds = [float(each["seconds"]) for each in lines if "seconds" in each]
    dice = {int(each["epoch"]) + 1: _mean_dice(each) for each in lines}
    known = {epoch: value for epoch, value in dice.items() if value is not None}
    losses = [float(each["training_loss"]) for each in lines]
    validated = [_mean_dice(each) if each.get("validation_dice") else None for each in lines]
    overfitting = find_overfitting(losses, validated)
    return Training(len(lines), sum(seconds) if seconds else None, known, overfitting)


def draw_dice(folds: Mapping[int, Training]) -> Figure:
    """A line for each fold: the Dice of its patches, epoch by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (fold, training) in enumerate(folds.items()):
        axes.plot(
            list(training.dice),
            list(training.dice.values()),
            marker="o" if len(training.dice) == 1 else "",
            color=DARK_COLOURS[index % len(DARK_COLOURS)],
            linestyle=LINES[(index // len(DARK_COLOURS) + index) % len(LINES)],
            linewidth=1.5,
            label=f"fold {fold}",
        )
    axes.set(xlabel="epoch", ylabel="Dice of patches", ylim=(-0.02, 1.02))
    axes.locator_params(axis="x", integer=True)
    tidy(axes)
    figure.legend(loc="outside lower center", ncols=5, frameon=False, handlelength=3)
    return figure


def _mean_dice(epoch: Mapping[str, Any]) -> float | None:
    """Of the foreground: the first class is the background."""
    dice: Mapping[str, float | None] = epoch.get("validation_dice") or epoch.get(
        "training_dice", {}
    )
    values: Sequence[float | None] = list(dice.values())[1:]
    return mean_of_known(values)


# Loss curves over the folds of a plan, smoothed as in Müller et al. 2021, Fig. 5.

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
