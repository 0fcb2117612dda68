"""What a run knows between two steps, besides the learner's tensors."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.common.errors import AutosegError
from autoseg.common.progress import counted, say
from autoseg.models.checkpoint import (
    Tensors,
    load_checkpoint,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from autoseg.models.folder import FINAL
from autoseg.models.log import Epoch, from_json, to_json
from autoseg.plan.plan import Plan
from autoseg.plan.reading import recipe_id
from autoseg.plan.sections import Cosine, Plateau, Polynomial, Schedule
from autoseg.training.distributed import ALONE, Group
from autoseg.training.learner import Learner

# Learning rates over a run, and how many epochs a time budget allows.

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


# A run on disk: its state after an epoch or a step, and going on from there.

LATEST, BEST = "latest.safetensors", "best.safetensors"
EPOCH = "epoch"


def save_run(folder: Path, learner: Learner, state: State, so_far: EpochSoFar) -> None:
    """Write all that a resumed run needs to go on as if it had never stopped."""
    tensors = learner.tensors() | with_prefix(EPOCH, so_far.tensors())
    save_checkpoint(folder / LATEST, tensors, state.to_json())


def load_run(folder: Path, plan: Plan, learner: Learner) -> tuple[State, EpochSoFar]:
    """Put the saved tensors into the learner; returns the rest.

    A plan that differs from the run's own only in how long training takes goes on with it, see
    `extended`.

    Raises:
        AutosegError: the run belongs to another plan, is damaged, or another version's.
    """
    path = folder / LATEST
    tensors, values = load_checkpoint(path)
    begun_by = values.get("plan_id", plan.id)
    if begun_by != plan.id and values.get("recipe_id") != recipe_id(plan):
        raise AutosegError(
            f"{path} was made by plan {begun_by}, but plan.json is {plan.id}; "
            "restore that plan, or give the new one another --name"
        )
    try:
        state = State.from_json(values)
        learner.load_tensors(tensors)
        so_far = EpochSoFar.from_tensors(without_prefix(EPOCH, tensors), learner.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise AutosegError(
            f"{path} cannot be resumed; another version of autoseg wrote it: move {folder} "
            "away and train anew"
        ) from error
    if begun_by == plan.id:
        return state, so_far
    longer = extended(state, plan, folder)
    if learner.group.leads:
        say(f"extended from {state.epochs} to {counted(longer.epochs, 'epoch')} by plan {plan.id}")
    return longer, so_far


def extended(state: State, plan: Plan, folder: Path) -> State:
    """The state under a plan with another number of epochs, budget or patience.

    A schedule goes on from the share of the new number that is done: after 30 of 30 epochs, 60
    planned, the learning rate rises to where it would stand half-way, and falls to zero again.

    Raises:
        AutosegError: more epochs are done than the plan has.
    """
    epochs = _planned_epochs(state, plan)
    if state.done > epochs:
        raise AutosegError(
            f"{folder} has done {counted(state.done, 'epoch')}, but plan.json has only {epochs} "
            f"(training.epochs); plan at least {state.done}, or give the plan another --name"
        )
    return replace(
        state,
        plan_id=plan.id,
        recipe_id=recipe_id(plan),
        epochs=epochs,
        progress=state.done / epochs,
    )


def _planned_epochs(state: State, plan: Plan) -> int:
    """The plan's number; under a time budget at least what fits it at the pace so far."""
    training = plan.training
    if training.seconds is None or state.seconds <= 0:
        return training.epochs
    return max(training.epochs, math.floor(state.done * training.seconds / state.seconds))


def check_vacant(folder: Path) -> None:
    """Make sure that a new run would overwrite no other.

    Raises:
        AutosegError: there is one; the message says how far it is.
    """
    latest, final = folder / LATEST, folder / FINAL
    if latest.exists():
        raise AutosegError(
            f"{folder} holds a run already: {describe(latest)}; continue it with --resume, or "
            "move it away"
        )
    if final.exists():
        raise AutosegError(
            f"{folder} holds a trained model ({final.name}), but not {latest.name}, from which "
            "training could go on; move it away to train anew"
        )


def describe(path: Path) -> str:
    """What a saved run is: epochs done of how many, when it was saved, and by which plan."""
    tensors, values = load_checkpoint(path)
    done, steps = len(values.get("history", ())), len(tensors.get(f"{EPOCH}.losses", ()))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    reached = f"epoch {done} of {values.get('epochs')}{steps_in_words(steps)}"
    return f"{reached}, saved {when}, plan {values.get('plan_id')}"


# Where and with what one fold is trained.


@dataclass(frozen=True)
class Run:
    """Where and with what one fold is trained; only `pretrained` changes its result.

    Attributes:
        folder: `models/TASK/PLAN/fold_K`.
        workers: augmentation processes.
        started: `time.monotonic()` when the command began, for the time budget.
        patches_after: patches that will be predicted after training, for the time budget.
        group: the processes that train together; the first alone writes, validates and talks.
        pretrained: a trained model whose weights a new run begins with.
        tensorboard: whether to write event files, too.
    """

    folder: Path
    fold: int
    device: torch.device
    workers: int
    resume: bool
    started: float
    patches_after: int = 0
    group: Group = ALONE
    pretrained: Path | None = None
    tensorboard: bool = False
