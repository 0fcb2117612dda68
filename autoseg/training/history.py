"""The log of a run: one JSON object an epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autoseg.common.files import write_text
from autoseg.overfitting import Overfitting, find_overfitting

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
