"""What the logs of training say for the report: how long it took, and how the Dice rose."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.common.figures import DARK_COLOURS, LINES, tidy
from autoseg.overfitting import Overfitting, find_overfitting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG = "log.jsonl"
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
