"""A run on disk: its state after an epoch or a step, and going on from there."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

from autoseg.common.errors import AutosegError
from autoseg.common.progress import counted, say
from autoseg.models.checkpoint import load_checkpoint, save_checkpoint, with_prefix, without_prefix
from autoseg.models.folder import FINAL
from autoseg.plan.plan import Plan
from autoseg.plan.reading import recipe_id
from autoseg.training.learner import Learner
from autoseg.training.state import EpochSoFar, State, steps_in_words

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
