"""What a run knows between two steps besides the learner's tensors, and how it is saved."""

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
from autoseg.models import checkpoint
from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.folder import BEST, FINAL, LATEST, LOG
from autoseg.models.log import Epoch, count_epochs
from autoseg.plan.plan import Plan, recipe_id
from autoseg.plan.sections import Cosine, Plateau, Polynomial, Schedule, Training
from autoseg.training.distributed import ALONE, Group
from autoseg.training.learner import Learner
from autoseg.training.transfer import start_from

EPOCH = "epoch"  # prefix of the tensors of an unfinished epoch


@dataclass(frozen=True)
class Run:
    """Where and with which means a fold is trained; only `pretrained` changes its result.

    Attributes:
        folder: `models/TASK/PLAN/fold_K`.
        workers: augmentation processes.
        started: `time.monotonic()` when the command began, for the time budget.
        patches_after: patches that will be predicted after training, for the time budget.
        group: the processes that train together; only the first one writes, validates and prints.
        pretrained: a trained model whose weights initialise a new run.
        tensorboard: whether to write TensorBoard event files as well.
        save_seconds: time between two checkpoints.
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
    save_seconds: float = 300.0


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
        cools = self.cooldown > 0
        state = replace(self, cooldown=self.cooldown - 1, waited=0) if cools else self
        if loss < state.best - spec.min_delta:
            return replace(state, best=loss, waited=0)
        if state.cooldown > 0:
            return state
        state = replace(state, waited=state.waited + 1)
        if state.waited < spec.patience_epochs or state.learning_rate <= spec.floor:
            return state
        lower = max(state.learning_rate * spec.factor, spec.floor)
        return replace(state, learning_rate=lower, waited=0, cooldown=spec.cooldown_epochs)


@dataclass(frozen=True)
class State:
    """Saved with every checkpoint; a resumed run continues from it.

    Attributes:
        epochs: the total number; a time budget may change it.
        progress: the share of the learning rate schedule that is done.
        seconds: used by earlier starts of this run.
        pretrained: the model whose weights initialised the run.
        threads: the numbers of computing threads of its starts; equal ones in a row count once.
    """

    plan_id: str
    epochs: int
    plateau: PlateauState
    progress: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = -1
    seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    recipe_id: str = ""
    pretrained: dict[str, Any] | None = None
    threads: list[int] = field(default_factory=list)

    @property
    def done(self) -> int:
        """The number of finished epochs, which is the index of the next one."""
        return len(self.history)

    @property
    def next_progress(self) -> float:
        """The progress after the next epoch: the remaining epochs share the rest equally."""
        return self.progress + (1 - self.progress) / (self.epochs - self.done)

    def is_finished(self, training: Training) -> bool:
        """Whether all epochs are done, or the training loss has not fallen for the patience."""
        if self.done >= self.epochs:
            return True
        wait = training.early_stopping_epochs
        return wait is not None and self.done > 0 and self.done - 1 - self.best_epoch >= wait

    def learning_rate(self, training: Training, step: int) -> float:
        """The learning rate at a step of the next epoch."""
        if isinstance(training.schedule, Plateau):
            return self.plateau.learning_rate
        share = step / training.steps_per_epoch
        progress = self.progress + (self.next_progress - self.progress) * share
        return training.optimizer.learning_rate * learning_rate_factor(training.schedule, progress)

    def after_epoch(self, epoch: Epoch, training: Training) -> State:
        """The state after one more epoch."""
        state = replace(self, history=[*self.history, epoch], progress=self.next_progress)
        if isinstance(training.schedule, Plateau):
            plateau = state.plateau.after_epoch(epoch.training_loss, training.schedule)
            state = replace(state, plateau=plateau)
        if epoch.training_loss < state.best_loss:
            state = replace(state, best_loss=epoch.training_loss, best_epoch=epoch.epoch)
        return state

    def seconds_used(self, run: Run) -> float:
        """Seconds since the start of the run, those of earlier starts included."""
        return self.seconds + time.monotonic() - run.started

    def to_json(self) -> dict[str, Any]:
        """JSON values; infinity, which JSON lacks, becomes null."""
        values = asdict(self)
        for part, key in ((values, "best_loss"), (values["plateau"], "best")):
            part[key] = None if math.isinf(part[key]) else part[key]
        return values

    @staticmethod
    def from_json(values: dict[str, Any]) -> State:
        """The reverse of `to_json`."""
        values = values | {"plateau": dict(values["plateau"])}
        for part, key in ((values, "best_loss"), (values["plateau"], "best")):
            part[key] = math.inf if part[key] is None else part[key]
        history = [Epoch(**epoch) for epoch in values["history"]]
        return State(**values | {"plateau": PlateauState(**values["plateau"]), "history": history})


@dataclass
class EpochSoFar:
    """The results of the steps of an unfinished epoch; they stay on the device until its end.

    Attributes:
        losses: one scalar per step.
        dice: soft Dice per class, (classes,), one tensor per step.
        seconds_before: spent on this epoch by earlier starts of the run.
        started: `time.monotonic()` at its beginning, or that of this start of the run.
    """

    losses: list[Tensor] = field(default_factory=list)
    dice: list[Tensor] = field(default_factory=list)
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Spent on this epoch so far."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def steps(self) -> int:
        """The number of finished steps."""
        return len(self.losses)

    def add(self, loss: Tensor, dice: Tensor) -> None:
        """Add the results of a step."""
        self.losses.append(loss.float())
        self.dice.append(dice.float())

    def means(self, group: Group) -> tuple[float, list[float]]:
        """Mean loss and mean soft Dice per class over all steps and processes."""
        loss = float(group.mean(torch.stack(self.losses).mean()))
        return loss, group.mean(torch.stack(self.dice).mean(0)).tolist()

    def tensors(self) -> checkpoint.Tensors:
        """Losses (steps,), Dice (steps, classes) and seconds; empty before the first step."""
        if not self.losses:
            return {}
        seconds = torch.tensor(self.seconds, dtype=torch.float64)
        lists = {"losses": torch.stack(self.losses), "dice": torch.stack(self.dice)}
        return lists | {"seconds": seconds}

    @staticmethod
    def from_tensors(tensors: checkpoint.Tensors, device: torch.device) -> EpochSoFar:
        """The reverse of `tensors`."""
        if not tensors:
            return EpochSoFar()
        losses, dice = (list(tensors[key].to(device)) for key in ("losses", "dice"))
        return EpochSoFar(losses, dice, float(tensors["seconds"]))


def begin(plan: Plan, learner: Learner, run: Run) -> tuple[State, EpochSoFar]:
    """A new state, or the saved one of a run to resume, whose tensors the learner gets."""
    if not run.resume or not (run.folder / LATEST).exists():
        check_vacant(run.folder)
        plateau = PlateauState(plan.training.optimizer.learning_rate)
        source = start_from(run.pretrained, learner, run.folder) if run.pretrained else None
        state = State(plan.id, plan.training.epochs, plateau, recipe_id=recipe_id(plan))
        state = replace(state, pretrained=source, threads=[torch.get_num_threads()])
        if run.group.leads and (lost := count_epochs(run.folder)):
            say(f"{run.folder} has no checkpoint yet: {counted(lost, 'epoch')} of {LOG} are lost")
        return state, EpochSoFar()
    state, so_far = load_run(run.folder, plan, learner)
    if run.group.leads:
        epochs = counted(state.epochs, "epoch")
        if state.is_finished(plan.training):
            say(f"training is finished already: {state.done} of {epochs} done")
        else:
            reached = f"after epoch {state.done}{and_steps(so_far.steps)} of {epochs}"
            again = count_epochs(run.folder) - state.done  # trained after the checkpoint
            more = f"; {counted(again, 'later epoch')} of {LOG} to be repeated" if again > 0 else ""
            say(f"resuming {reached}, saved {saved_at(run.folder / LATEST)}{more}")
        if run.pretrained:
            say(f"--pretrained {run.pretrained} is ignored: a resumed run keeps its own weights")
    return (state if state.is_finished(plan.training) else _with_threads(state, run)), so_far


def _with_threads(state: State, run: Run) -> State:
    """Record the number of threads of this start; say if it changes the result."""
    threads = torch.get_num_threads()
    before = state.threads[-1] if state.threads else threads
    if threads != before and run.device.type == "cpu" and run.group.leads:
        say(
            f"warning: this run computed with {counted(before, 'thread')} and continues with "
            f"{threads}; the result differs in the last digits from that of an uninterrupted run "
            f"(set OMP_NUM_THREADS={before} to avoid it)"
        )
    is_known = threads in state.threads[-1:]
    return state if is_known else replace(state, threads=[*state.threads, threads])


def and_steps(steps: int) -> str:
    """Text that follows a number of epochs: ` and 3 steps`, or nothing for no steps."""
    return f" and {counted(steps, 'step')}" if steps else ""


def save_final(run: Run, learner: Learner, plan: Plan, state: State) -> None:
    """Write `final.safetensors`, the weights that prediction uses: the last or the best ones."""
    weights, epoch = learner.weights(), state.done - 1
    if plan.training.keep == "best_training_loss":
        weights, best = checkpoint.load_checkpoint(run.folder / BEST)
        epoch = best["epoch"]
    about = {"plan_id": plan.id, "fold": run.fold, "epoch": epoch, "threads": state.threads}
    if learner.not_compiled:
        about["not_compiled"] = learner.not_compiled
    if state.pretrained is not None:
        about["pretrained"] = state.pretrained
    save_checkpoint(run.folder / FINAL, weights, about)


def load_run(folder: Path, plan: Plan, learner: Learner) -> tuple[State, EpochSoFar]:
    """Load the saved tensors into the learner; return the rest.

    A plan that differs from that of the run only in how long training takes extends the run, see
    `extended`.

    Raises:
        AutosegError: the run belongs to another plan, another version wrote it, or it is damaged.
    """
    path = folder / LATEST
    tensors, values = checkpoint.load_checkpoint(path)
    begun_by = values.get("plan_id", plan.id)
    if begun_by != plan.id and values.get("recipe_id") != recipe_id(plan):
        raise AutosegError(
            f"{path} was made by plan {begun_by}, but plan.json is {plan.id}; "
            "restore that plan, or give the new one another --name"
        )
    try:
        state = State.from_json(values)
        learner.load_tensors(tensors)
        so_far = EpochSoFar.from_tensors(checkpoint.without_prefix(EPOCH, tensors), learner.device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise AutosegError(
            f"{path} was written by another version of autoseg; move {folder} away and train again"
        ) from error
    if begun_by == plan.id:
        return state, so_far
    longer = extended(state, plan, folder)
    if learner.group.leads:
        say(f"extended from {state.epochs} to {counted(longer.epochs, 'epoch')} by plan {plan.id}")
    return longer, so_far


def extended(state: State, plan: Plan, folder: Path) -> State:
    """The state under a plan with another number of epochs, time budget or patience.

    A schedule continues from the share of the new number that is done: after 30 of 30 epochs, with
    60 planned, the learning rate rises to its value half-way and falls to zero again. With a time
    budget the number is at least what fits it at the pace so far.

    Raises:
        AutosegError: more epochs are done than the plan has.
    """
    training = plan.training
    epochs = training.epochs
    if training.seconds is not None and state.seconds > 0:
        epochs = max(epochs, math.floor(state.done * training.seconds / state.seconds))
    if state.done > epochs:
        raise AutosegError(
            f"{folder} has done {counted(state.done, 'epoch')}, but plan.json has only {epochs} "
            f"(training.epochs); plan at least {state.done}, or give the plan another --name"
        )
    recipe, progress = recipe_id(plan), state.done / epochs
    return replace(state, plan_id=plan.id, recipe_id=recipe, epochs=epochs, progress=progress)


def check_vacant(folder: Path) -> None:
    """Make sure that a new run does not overwrite another one.

    Raises:
        AutosegError: there is one; the message says how far it is.
    """
    latest, final = folder / LATEST, folder / FINAL
    if latest.exists():
        raise AutosegError(f"{folder} has a run: {describe(latest)}; use --resume, or move it away")
    if final.exists():
        raise AutosegError(
            f"{folder} has {final.name}, but no {latest.name} to resume; move it to train again"
        )


def describe(path: Path) -> str:
    """A saved run in short: epochs done and in total, when it was saved, and its plan."""
    tensors, values = checkpoint.load_checkpoint(path)
    done, steps = len(values.get("history", ())), len(tensors.get(f"{EPOCH}.losses", ()))
    reached = f"epoch {done} of {values.get('epochs')}{and_steps(steps)}"
    return f"{reached}, saved {saved_at(path)}, plan {values.get('plan_id')}"


def saved_at(path: Path) -> str:
    """When a file was written, in local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
