"""One epoch: its steps, and the validation after them."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from autoseg.augmentation.loader import Batch, batches
from autoseg.augmentation.sampler import PatchSampler, Position
from autoseg.common.errors import RunError
from autoseg.common.progress import Progress, in_fine_words, in_words
from autoseg.dataset.splits import Split
from autoseg.models.log import Epoch
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Plateau
from autoseg.preprocessing.store import CaseStore
from autoseg.training.distributed import ALONE, Group
from autoseg.training.learner import Learner, dice_of
from autoseg.training.monitor import Views
from autoseg.training.state import EpochSoFar, Pace, Run, State, learning_rate_factor

# Ctrl-C and SIGTERM as a wish to stop, which training grants between two steps.

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STANDARD_ERROR = 2
SOON = "\nstopping after this step, to save it; Ctrl-C again stops at once\n"


class StopAsked(Exception):  # noqa: N818
    """Raised by `StopSignals.check`, for the loop to save its state and end."""


class StopSignals:
    """Catches the signals for a `with` block.

    A second Ctrl-C does what it did before the block; a second SIGTERM nothing, as a cluster and
    torchrun may both send one. Signals reach the main thread only: in another one nothing is
    caught. A signal that is ignored (as a shell does for what it starts in the background) stays
    ignored.
    """

    def __init__(self, group: Group = ALONE) -> None:
        self.group = group
        self.number = 0  # of the signal that came
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(*SIGNALS)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.group.leads and not self.number:
            # Not by print: the signal may have come amid one, whose buffer is then in use.
            os.write(STANDARD_ERROR, SOON.encode())
        self.number = number
        self._restore(signal.SIGINT)

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))

    @property
    def name(self) -> str:
        """`Ctrl-C`, or the signal's name, such as `SIGTERM`."""
        name = signal.Signals(self.number).name
        return "Ctrl-C" if name == "SIGINT" else name

    def check(self) -> None:
        """To be called by all processes of the group at the same point of their work.

        Raises:
            StopAsked: a signal came, to this process or to another of the group.
        """
        self.number = self.group.largest(self.number)
        if self.number:
            raise StopAsked

    def wait_a_moment(self) -> None:
        """Give a signal that was sent to many processes at once the time to come here, too."""
        end = time.monotonic() + 1.0
        while not self.number and time.monotonic() < end:
            time.sleep(0.02)


# Signs of life between the ends of epochs, which may be hours apart.


class Pulse:
    """Tells how far an epoch is, and how long the whole run takes at this pace.

    Steps of a graphics card are counted when they are handed over, a few before they are done.
    """

    def __init__(self, bar: Progress | None, steps: int) -> None:
        """Tell `bar`, or nobody, of epochs with so many steps."""
        self.bar, self.steps = bar, steps
        self._since = time.monotonic()
        self._steps_since = 0
        self._is_first = True

    def beat(self, state: State, done: int) -> None:
        """A step is taken; `done` are, of the epoch that the state comes to next."""
        now = time.monotonic()
        self._steps_since += 1
        step = (now - self._since) / self._steps_since
        if self.bar is not None and done < self.steps:
            left = (self.steps * (state.epochs - state.done) - done) * step
            self.bar.tell(
                f"epoch {state.done + 1} of {state.epochs}, step {done} of {self.steps}, "
                f"{in_fine_words(step)} a step, about {in_words(left)} left"
            )
        if self._is_first:  # it pays for starting up: the pace is that of the others
            self._since, self._steps_since, self._is_first = now, 0, False


# The monitored loss on patches of the validation cases.

VALIDATION_STREAM = 1_000_000  # keeps these patches' random numbers apart from the training's


class Validation:
    """The same patches of the validation cases after every epoch, or none."""

    def __init__(self, plan: Plan, store: CaseStore, split: Split, fold: int) -> None:
        self.plan, self.fold = plan, fold
        self.steps = plan.training.validation_steps if split.validation else 0
        self.sampler = (
            PatchSampler(store, split.validation, plan.sampling, self.steps) if self.steps else None
        )

    def after(
        self, learner: Learner, epoch: int, check: Callable[[], None]
    ) -> tuple[float | None, list[float | None]]:
        """Mean loss, and Dice per class over all patches; `check` is called before each batch."""
        if self.sampler is None:
            return None, []
        training = self.plan.training
        transforms = self.plan.augmentation if training.augment_validation else ()
        drawn = epoch if training.augment_validation else 0
        first = Position(training.seed, VALIDATION_STREAM + self.fold, drawn, 0, 0)
        losses, counts = [], []
        on_device = training.augment_on == "device"
        with batches(self.sampler, transforms, first, workers=0, on_device=on_device) as stream:
            for _ in range(self.steps):
                check()
                loss, count = learner.validate(next(stream))
                losses.append(loss)
                counts.append(count)
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise RunError(
                f"the validation loss became NaN or infinite in epoch {epoch + 1}; look for odd "
                "intensities in the validation cases"
            )
        return mean, dice_of(torch.stack(counts).sum(0).cpu())


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
