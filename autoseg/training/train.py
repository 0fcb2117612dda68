"""The training loop: executes a plan on one fold."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from autoseg.augmentation.pipeline import Batch, batches
from autoseg.augmentation.sampler import PatchSampler, Position
from autoseg.checkpoint import load_checkpoint, save_checkpoint
from autoseg.dataset.splits import Split
from autoseg.errors import AutosegError, RunError
from autoseg.planning.plan import Plan
from autoseg.planning.training import Plateau
from autoseg.preprocessing.store import CaseStore
from autoseg.progress import in_words, progress, say
from autoseg.training.history import Epoch, draw_progress, write_log
from autoseg.training.learner import Learner
from autoseg.training.schedule import Pace, PlateauState, epochs_within, learning_rate_factor
from autoseg.training.state import State
from autoseg.training.validation import Validation

LATEST, BEST, FINAL = "latest.safetensors", "best.safetensors", "final.safetensors"
SECONDS_BETWEEN_PICTURES = 30
SETTLED_EPOCHS = 3  # the first ones pay for starting up and would mislead


@dataclass(frozen=True)
class Run:
    """Where and with what one fold is trained; nothing here changes its result.

    Attributes:
        folder: `models/TASK/PLAN/fold_K`.
        workers: augmentation processes.
        started: `time.monotonic()` when the command began, for the time budget.
        patches_after: patches that will be predicted after training, for the time budget.
    """

    folder: Path
    fold: int
    device: torch.device
    workers: int
    resume: bool
    started: float
    patches_after: int = 0


def train(plan: Plan, store: CaseStore, split: Split, run: Run) -> State:
    """Train one fold and leave `final.safetensors`, `log.jsonl` and `progress.png` in its folder.

    Raises:
        AutosegError: there is a run already and `resume` is false, or it belongs to another plan.
        RunError: the loss became NaN, or a worker died.
    """
    torch.backends.cudnn.benchmark = True
    training = plan.training
    learner = Learner(plan, run.device)
    state = _begin(plan, learner, run)
    sampler = PatchSampler(store, split.train, plan.sampling, training.steps_per_epoch)
    names = list(plan.labels)

    if _is_finished(state, plan):
        _finish(plan, learner, run, state)
        return state
    with ExitStack() as stack:
        first = Position(training.seed, run.fold, state.done, 0, 0)
        stream = stack.enter_context(batches(sampler, plan.augmentation, first, run.workers))
        validation = Validation(plan, store, split, run.fold)
        name = f"training {run.folder.name.replace('_', ' ')}"
        bar = stack.enter_context(progress(name, state.epochs, state.done, every_seconds=0))
        pace = Pace(time.monotonic())

        while not _is_finished(state, plan):
            epoch_started = time.monotonic()
            target = state.progress + (1 - state.progress) / (state.epochs - state.done)
            loss, dice, rate = _epoch(learner, stream, state, target)
            validation_loss, counts = validation.after(learner, state.done)
            epoch = Epoch(
                epoch=state.done,
                epochs=state.epochs,
                learning_rate=rate,
                training_loss=loss,
                training_dice=dict(zip(names, dice, strict=True)),
                validation_loss=validation_loss,
                validation_dice=dict(zip(names, counts, strict=True)) if counts else {},
                seconds=time.monotonic() - epoch_started,
            )
            pace.tick(time.monotonic())
            state = _after_epoch(plan, learner, run, state, epoch, target, pace)
            bar.advance(epoch.note(), state.epochs)
    _finish(plan, learner, run, state)
    return state


def _begin(plan: Plan, learner: Learner, run: Run) -> State:
    """A new state, or the saved one with its tensors in the learner."""
    path = run.folder / LATEST
    if not path.exists():
        rate = PlateauState(plan.training.optimizer.learning_rate)
        return State(plan.id, plan.training.epochs, rate)
    if not run.resume:
        raise AutosegError(
            f"{run.folder} holds a run already; continue it with --resume, or move it away"
        )
    tensors, values = load_checkpoint(path)
    if values.get("plan_id", plan.id) != plan.id:
        raise AutosegError(
            f"{path} was made by plan {values['plan_id']}, but plan.json is {plan.id}; "
            "restore that plan, or give the new one another --name"
        )
    try:
        state = State.from_json(values)
        learner.load_tensors(tensors)
    except (KeyError, TypeError, RuntimeError) as error:
        raise AutosegError(
            f"{path} cannot be resumed; another version of autoseg wrote it: move {run.folder} "
            "away and train anew"
        ) from error
    say(f"resuming after epoch {state.done} of {state.epochs}")
    return state


def _epoch(
    learner: Learner, stream: Iterator[Batch], state: State, target: float
) -> tuple[float, list[float], float]:
    """Train one epoch; returns mean loss, mean soft Dice per class, and the last learning rate.

    Losses stay on the device until the end, so that no step waits for the host.
    """
    training = learner.plan.training
    losses: list[Tensor] = []
    dice: list[Tensor] = []
    rate = 0.0
    for step in range(training.steps_per_epoch):
        progress = state.progress + (target - state.progress) * step / training.steps_per_epoch
        if isinstance(training.schedule, Plateau):
            rate = state.plateau.learning_rate
        else:
            factor = learning_rate_factor(training.schedule, progress)
            rate = training.optimizer.learning_rate * factor
        loss, per_class = learner.step(next(stream), rate)
        losses.append(loss)
        dice.append(per_class)
    values = torch.stack(losses).float().cpu()
    if not torch.isfinite(values).all():
        bad = int(torch.nonzero(~torch.isfinite(values))[0])
        raise RunError(
            f"the loss became NaN or infinite in epoch {state.done + 1}, batch {bad + 1}; lower "
            "training.optimizer.learning_rate, or look for odd intensities in the data"
        )
    return float(values.mean()), torch.stack(dice).float().mean(0).cpu().tolist(), rate


def _after_epoch(
    plan: Plan,
    learner: Learner,
    run: Run,
    state: State,
    epoch: Epoch,
    progress: float,
    pace: Pace,
) -> State:
    """Update the state and save it."""
    training = plan.training
    state = replace(state, history=[*state.history, epoch], progress=progress)
    if isinstance(training.schedule, Plateau):
        plateau = state.plateau.after_epoch(epoch.training_loss, training.schedule)
        state = replace(state, plateau=plateau)
    if epoch.training_loss < state.best_loss:
        state = replace(state, best_loss=epoch.training_loss, best_epoch=epoch.epoch)
        if training.keep == "best_training_loss":
            save_checkpoint(run.folder / BEST, learner.weights(), {"epoch": epoch.epoch})
    used = state.seconds + time.monotonic() - run.started
    settled = pace.ticks >= SETTLED_EPOCHS or (training.seconds and used > training.seconds / 4)
    # After the last epoch the learning rate is at its end: more epochs would learn nothing.
    if training.seconds is not None and settled and state.done < state.epochs:
        state = _keep_budget(training.seconds, plan, run, state, used, pace.epoch_seconds)
    saved = replace(state, seconds=used)
    save_checkpoint(run.folder / LATEST, learner.tensors(), saved.to_json())
    write_log(run.folder / "log.jsonl", state.history)
    _draw_now_and_then(run.folder / "progress.png", state)
    return state


def _draw_now_and_then(path: Path, state: State) -> None:
    """Drawing takes half a second: short epochs share a picture."""
    age = time.time() - path.stat().st_mtime if path.exists() else math.inf
    if age > SECONDS_BETWEEN_PICTURES:
        draw_progress(path, state.history)


def _keep_budget(
    budget: float, plan: Plan, run: Run, state: State, used: float, epoch_seconds: float
) -> State:
    """Re-count the epochs where the planned number would miss the budget."""
    step = epoch_seconds / plan.training.steps_per_epoch
    # A forward pass takes about a third of a training step.
    reserve = 3 + 0.4 * run.patches_after * step / plan.sampling.batch_size
    epochs = epochs_within(budget, used, epoch_seconds, reserve, state.done, state.epochs)
    if epochs != state.epochs:
        say(
            f"an epoch takes {in_words(epoch_seconds)}: {epochs} epochs instead of "
            f"{state.epochs} fit the budget of {in_words(budget)}"
        )
    return replace(state, epochs=epochs)


def _is_finished(state: State, plan: Plan) -> bool:
    """Are all epochs done, or has the training loss not fallen for as long as the plan waits?"""
    if state.done >= state.epochs:
        return True
    wait = plan.training.early_stopping_epochs
    return wait is not None and state.done > 0 and state.done - 1 - state.best_epoch >= wait


def _finish(plan: Plan, learner: Learner, run: Run, state: State) -> None:
    weights, epoch = learner.weights(), state.done - 1
    if plan.training.keep == "best_training_loss":
        weights, found = load_checkpoint(run.folder / BEST)
        epoch = found["epoch"]
    # Again: an interrupted run may have saved its last epoch and no more.
    write_log(run.folder / "log.jsonl", state.history)
    draw_progress(run.folder / "progress.png", state.history)
    save_checkpoint(
        run.folder / FINAL, weights, {"plan_id": plan.id, "fold": run.fold, "epoch": epoch}
    )
