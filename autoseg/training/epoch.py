"""One epoch: its steps, and the validation after them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from autoseg.augmentation.loader import Batch
from autoseg.augmentation.sampler import PatchSampler, Position
from autoseg.common.errors import RunError
from autoseg.models.log import Epoch
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Plateau
from autoseg.training.learner import Learner
from autoseg.training.pulse import Pulse
from autoseg.training.run import Run
from autoseg.training.schedule import Pace, learning_rate_factor
from autoseg.training.state import EpochSoFar, State
from autoseg.training.stopping import StopAsked, StopSignals
from autoseg.training.validation import Validation
from autoseg.training.views import Views


@dataclass(frozen=True)
class Loop:
    """What the epochs of a run work with."""

    plan: Plan
    run: Run
    learner: Learner
    sampler: PatchSampler
    stream: Iterator[Batch]
    validation: Validation | None  # in the leading process
    stop: StopSignals
    pace: Pace
    views: Views
    pulse: Pulse


def train_epoch(loop: Loop, state: State, so_far: EpochSoFar) -> Epoch:
    """Take the steps that are left of the state's next epoch, and validate.

    Args:
        loop: what to work with.
        state: after the epoch before.
        so_far: the steps that are done; more are added to it.

    Raises:
        StopAsked: a signal came; `so_far` has all steps that the learner has taken.
        RunError: a loss is not finite, or a worker died.
    """
    started = time.monotonic()
    try:
        loss, dice = _take_steps(loop, state, so_far)
        validation_loss, counts = _validate(loop, state)
    except StopAsked:
        so_far.seconds += time.monotonic() - started
        raise
    names = list(loop.plan.labels)
    return Epoch(
        epoch=state.done,
        epochs=state.epochs,
        learning_rate=learning_rate(loop.plan, state, loop.plan.training.steps_per_epoch - 1),
        training_loss=loss,
        training_dice=dict(zip(names, dice, strict=True)),
        validation_loss=validation_loss,
        validation_dice=dict(zip(names, counts, strict=True)) if counts else {},
        seconds=so_far.seconds + time.monotonic() - started,
    )


def learning_rate(plan: Plan, state: State, step: int) -> float:
    """At a step of the state's next epoch."""
    training = plan.training
    if isinstance(training.schedule, Plateau):
        return state.plateau.learning_rate
    share = step / training.steps_per_epoch
    progress = state.progress + (state.next_progress - state.progress) * share
    return training.optimizer.learning_rate * learning_rate_factor(training.schedule, progress)


def _take_steps(loop: Loop, state: State, so_far: EpochSoFar) -> tuple[float, list[float]]:
    """To the end of the epoch; returns mean loss and mean soft Dice per class.

    Losses stay on the device until the end, so that no step waits for the host.
    """
    group = loop.run.group
    for step in range(so_far.steps, loop.plan.training.steps_per_epoch):
        batch = _next(loop)
        so_far.add(*loop.learner.step(batch, learning_rate(loop.plan, state, step)))
        loop.pulse.beat(state, so_far.steps)
    brought = so_far.tensors()
    _check_finite(loop, state, brought["losses"].cpu())
    loss = float(group.mean(brought["losses"].mean()))
    return loss, group.mean(brought["dice"].mean(0)).tolist()


def _next(loop: Loop) -> Batch:
    """The next batch, unless it is time to stop."""
    try:
        batch = next(loop.stream)
    except RunError:
        loop.stop.wait_a_moment()  # the signal that ended a worker may be meant for us, too
        loop.stop.check()
        raise
    loop.stop.check()
    return batch


def _check_finite(loop: Loop, state: State, losses: torch.Tensor) -> None:
    if torch.isfinite(losses).all():
        return
    plan, run = loop.plan, loop.run
    batch = int(torch.nonzero(~torch.isfinite(losses))[0])
    places = run.group.places(plan.sampling.batch_size)
    at = [Position(plan.training.seed, run.fold, state.done, batch, place) for place in places]
    names = ", ".join(dict.fromkeys(loop.sampler.name_at(position) for position in at))
    raise RunError(
        f"the loss became NaN or infinite in epoch {state.done + 1}, batch {batch + 1} ({names}); "
        "lower training.optimizer.learning_rate, or look for odd intensities in these cases"
    )


def _validate(loop: Loop, state: State) -> tuple[float | None, list[float | None]]:
    if loop.validation is None:
        return None, []
    # The others of a group wait for the end of the epoch, where all agree on stopping.
    check = _go_on if loop.run.group.is_shared else loop.stop.check
    return loop.validation.after(loop.learner, state.done, check)


def _go_on() -> None:
    pass
