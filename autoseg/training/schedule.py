"""Learning rates over a run, and how many epochs a time budget allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autoseg.plan.sections import Cosine, Plateau, Polynomial, Schedule

AIM = 0.96  # of the budget: what is left absorbs the noise of the last epochs
TOLERANCE = 0.1


def learning_rate_factor(schedule: Schedule, progress: float) -> float:
    """The factor on the plan's learning rate at a progress from 0 to 1.

    A plateau schedule does not depend on progress; see `PlateauState`.
    """
    match schedule:
        case Polynomial():
            return float((1 - progress) ** schedule.exponent)
        case Cosine():
            if progress < schedule.warmup:
                return max(progress / schedule.warmup, 0.01)
            rest = (progress - schedule.warmup) / (1 - schedule.warmup)
            return 0.5 * (1 + math.cos(math.pi * rest))
        case Plateau():
            return 1.0


@dataclass(frozen=True)
class PlateauState:
    """Reduce on plateau, as Keras defines it (cooldown and min_delta included)."""

    learning_rate: float
    best: float = math.inf
    waited: int = 0
    cooldown: int = 0

    def after_epoch(self, loss: float, spec: Plateau) -> PlateauState:
        """The state after an epoch with this training loss."""
        state = self
        if state.cooldown > 0:
            state = replace(state, cooldown=state.cooldown - 1, waited=0)
        if loss < state.best - spec.min_delta:
            return replace(state, best=loss, waited=0)
        if state.cooldown > 0:
            return state
        state = replace(state, waited=state.waited + 1)
        if state.waited < spec.patience_epochs or state.learning_rate <= spec.floor:
            return state
        lower = max(state.learning_rate * spec.factor, spec.floor)
        return replace(state, learning_rate=lower, waited=0, cooldown=spec.cooldown_epochs)


class Pace:
    """How long an epoch takes by the clock, checkpoints and all, judged by the latest half."""

    def __init__(self, started: float) -> None:
        self._times = [started]

    @property
    def ticks(self) -> int:
        """How many epochs have ended."""
        return len(self._times) - 1

    def tick(self, now: float) -> None:
        """An epoch has ended."""
        self._times.append(now)

    @property
    def epoch_seconds(self) -> float:
        """Mean over the latest half, at least five; without the first, slow one where possible."""
        first = max(min(1, self.ticks - 1), self.ticks - max(5, self.ticks // 2))
        return (self._times[-1] - self._times[first]) / (self.ticks - first)


def epochs_within(
    budget: float, used: float, epoch_seconds: float, reserve: float, done: int, planned: int
) -> int:
    """How many epochs a run should have in all, so that it ends inside its budget.

    The planned number stays as long as it ends the run between 90 % and 100 % of the budget, so
    that a run is repeatable wherever its plan was measured well.

    Args:
        budget: seconds for the run from start to finish.
        used: seconds since the start.
        epoch_seconds: what one more epoch will take.
        reserve: seconds for what comes after the last epoch.
        done: finished epochs.
        planned: epochs in all, so far.
    """
    end = used + epoch_seconds * (planned - done) + reserve
    if (1 - TOLERANCE) * budget <= end <= budget:
        return planned
    left = (AIM * budget - reserve - used) / epoch_seconds
    return max(done, done + math.floor(left))
