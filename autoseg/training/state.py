"""What a run knows between two epochs, besides tensors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from autoseg.training.history import Epoch, from_json, to_json
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

    @property
    def done(self) -> int:
        """How many epochs are finished."""
        return len(self.history)

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
