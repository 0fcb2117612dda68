"""The log of a run: one JSON object an epoch, and the picture that is drawn from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autoseg.files import replacing, write_text


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

    def note(self) -> str:
        """The epoch in short, for the user to watch."""
        parts = [f"loss {self.training_loss:.3f}"]
        if self.validation_loss is not None:
            parts.append(f"validation {self.validation_loss:.3f}")
        shown: Mapping[str, float | None] = self.validation_dice or self.training_dice
        known = [value for value in list(shown.values())[1:] if value is not None]
        if known:
            each = f" ({' '.join(f'{value:.2f}' for value in known)})"
            parts.append(f"Dice {sum(known) / len(known):.3f}{each if 1 < len(known) <= 8 else ''}")
        parts.append(f"rate {self.learning_rate:.1e}")
        return "  ".join(parts)


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


def draw_progress(path: Path, epochs: list[Epoch]) -> None:
    """Losses, Dice and learning rate over the epochs, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    losses, dice, rate = figure.subplots(3, 1, sharex=True)
    x = [epoch.epoch + 1 for epoch in epochs]
    losses.plot(x, [epoch.training_loss for epoch in epochs], label="training")
    if any(epoch.validation_loss is not None for epoch in epochs):
        losses.plot(x, [epoch.validation_loss for epoch in epochs], "--", label="validation")
    losses.set_ylabel("loss")
    losses.legend()
    shown = [epoch.validation_dice or epoch.training_dice for epoch in epochs]
    for name in list(shown[-1])[1:]:
        dice.plot(x, [values.get(name) for values in shown], label=name)
    where = "validation patches" if epochs[-1].validation_dice else "training patches"
    dice.set_ylabel(f"Dice on {where}")
    dice.set_ylim(0, 1)
    if len(shown[-1]) <= 9:
        dice.legend()
    rate.plot(x, [epoch.learning_rate for epoch in epochs])
    rate.set_ylabel("learning rate")
    rate.set_yscale("log" if min(epoch.learning_rate for epoch in epochs) > 0 else "linear")
    rate.set_xlabel("epoch")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
