"""What a run knows between two steps, besides the learner's tensors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from autoseg.models.checkpoint import Tensors
from autoseg.models.log import Epoch, from_json, to_json
from autoseg.training.schedule import PlateauState


@dataclass(frozen=True)
class State:
    """Saved with every checkpoint; a resumed run continues from it."""

    plan_id: str
    epochs: int  # in all
    plateau: PlateauState
    progress: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = -1
    seconds: float = 0.0  # used by earlier starts of this run
    history: list[Epoch] = field(default_factory=list)
    recipe_id: str = ""
    pretrained: dict[str, Any] | None = None  # whose weights the run began with

    @property
    def done(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

    @property
    def next_progress(self) -> float:
        """The progress after the next epoch: the epochs that are left share what is left."""
        return self.progress + (1 - self.progress) / (self.epochs - self.done)

    def to_json(self) -> dict[str, Any]:
        """JSON values; infinity, which JSON lacks, becomes null."""
        values = asdict(self) | {"history": to_json(self.history)}
        values["best_loss"] = None if math.isinf(self.best_loss) else self.best_loss
        values["plateau"]["best"] = None if math.isinf(self.plateau.best) else self.plateau.best
        return values

    @staticmethod
    def from_json(values: dict[str, Any]) -> State:
        """The reverse of `to_json`."""
        plateau = dict(values["plateau"])
        plateau["best"] = math.inf if plateau["best"] is None else plateau["best"]
        best = math.inf if values["best_loss"] is None else values["best_loss"]
        history = from_json(values["history"])
        changed = {"plateau": PlateauState(**plateau), "best_loss": best, "history": history}
        return State(**(values | changed))


def steps_in_words(steps: int) -> str:
    """What to say after a number of epochs: ` and 3 steps`, or nothing for none."""
    return f" and {steps} step{'s' if steps > 1 else ''}" if steps else ""


@dataclass
class EpochSoFar:
    """What the steps of the running epoch brought; it stays on the device until the epoch's end.

    Attributes:
        losses: one number a step.
        dice: soft Dice per class, one row a step.
        seconds: that earlier starts of the run spent on this epoch.
    """

    losses: list[Tensor] = field(default_factory=list)
    dice: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """How many steps of the epoch are done."""
        return len(self.losses)

    def add(self, loss: Tensor, dice: Tensor) -> None:
        """A step is done."""
        self.losses.append(loss.float())
        self.dice.append(dice.float())

    def tensors(self) -> Tensors:
        """Losses (steps,), Dice (steps, classes) and seconds; nothing before the first step."""
        if not self.losses:
            return {}
        return {
            "losses": torch.stack(self.losses),
            "dice": torch.stack(self.dice),
            "seconds": torch.tensor(self.seconds, dtype=torch.float64),
        }

    @staticmethod
    def from_tensors(tensors: Tensors, device: torch.device) -> EpochSoFar:
        """The reverse of `tensors`."""
        if not tensors:
            return EpochSoFar()
        losses, dice = (list(tensors[key].to(device)) for key in ("losses", "dice"))
        return EpochSoFar(losses, dice, float(tensors["seconds"]))
