"""The training loop: trains one fold as its plan says.

On the loop hang the network with its optimiser and validation (`learner`), the checkpoints and the
schedule (`state`), progress bar, log and pictures (`monitor`), parallel processes and signals
(`distributed`), and the time budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from autoseg.augmentation.loader import Batch, PatchSampler, Position, batches
from autoseg.common.errors import RunError
from autoseg.common.progress import counted, in_words, say
from autoseg.dataset.splits import Split
from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.folder import BEST
from autoseg.models.log import Epoch
from autoseg.networks.devices import fast_convolutions
from autoseg.plan.plan import Plan
from autoseg.preprocessing.store import CaseStore
from autoseg.training.distributed import StopRequested, StopSignals
from autoseg.training.learner import Learner, Validation
from autoseg.training.monitor import Monitor
from autoseg.training.state import EpochSoFar, Run, State, and_steps, begin, save_final, save_run

SETTLED_EPOCHS = 3  # the pace of fewer epochs is distorted by the start-up
TARGET_SHARE = 0.96  # of the budget; the rest absorbs the variation of the last epochs
TOLERANCE = 0.1


def train(plan: Plan, store: CaseStore, split: Split, run: Run) -> State:
    """Train one fold and write `final.safetensors`, `log.jsonl` and `progress.png` to its folder.

    Raises:
        AutosegError: there is a run already and `resume` is false, or it belongs to another plan.
        RunError: the loss became NaN or infinite, or an augmentation worker died.
        Stopped: Ctrl-C or SIGTERM was received; the state after the last step is saved.
    """
    training, group = plan.training, run.group
    steps, classes = training.steps_per_epoch, list(plan.labels)
    learner = Learner(plan, run.device, group)  # network, loss, optimiser, weight average
    state, so_far = begin(plan, learner, run)  # a new run, or the step at which a run stopped
    sampler = PatchSampler(store, split.train, plan.sampling, steps)
    validation = Validation(plan, store, split, run.fold, group)
    first = Position(training.seed, run.fold, state.done, so_far.steps, 0)
    samples = group.places(plan.sampling.batch_size)  # B of them, this process's share of a batch
    workers = 0 if state.is_finished(training) else run.workers  # a finished run needs no batch
    with fast_convolutions(run.device), StopSignals(group) as stop:
        with (
            batches(sampler, plan, first, workers, samples) as stream,
            Monitor(plan, split, run, learner, state) as monitor,
        ):
            budget = TimeBudget(plan, run)
            while not state.is_finished(training):
                started = time.monotonic()
                try:
                    for step in range(so_far.steps, steps):
                        batch = draw(stream, stop)  # image (B, C, X, Y, Z) and label (B, X, Y, Z)
                        rate = state.learning_rate(training, step)
                        loss, dice = learner.step(batch, rate)  # () and (classes,), on the device
                        so_far.add(loss, dice)
                        monitor.after_step(state, so_far.steps)
                    check_finite(so_far, state, sampler, samples, plan, run)
                    training_loss, training_dice = so_far.means(group)
                    validation_loss, validation_dice = validation.after(learner, state.done, stop)
                except StopRequested:
                    so_far.seconds += time.monotonic() - started
                    save_run(run, learner, state, so_far)
                    group.wait()  # torchrun ends all processes when the first one has ended
                    done = f"after epoch {state.done}{and_steps(so_far.steps)}"
                    raise stop.stopped(done) from None
                epoch = Epoch(
                    epoch=state.done,
                    epochs=state.epochs,
                    learning_rate=state.learning_rate(training, steps - 1),
                    training_loss=training_loss,
                    training_dice=dict(zip(classes, training_dice, strict=True)),
                    validation_loss=validation_loss,
                    validation_dice=dict(zip(classes, validation_dice, strict=False)),
                    seconds=so_far.seconds + time.monotonic() - started,
                )
                state, so_far = state.after_epoch(epoch, training), EpochSoFar()
                if group.leads:
                    if training.keep == "best_training_loss" and state.best_epoch == epoch.epoch:
                        about = {"epoch": epoch.epoch}
                        save_checkpoint(run.folder / BEST, learner.weights(), about)
                    state = budget.recount(state)
                    save_run(run, learner, state, so_far)
                    monitor.after_epoch(state)
                state = group.shared(state)
        if group.leads:
            monitor.finish(state)
            save_final(run, learner, plan, state)
        try:
            stop.check()
        except StopRequested:
            raise stop.stopped("after training") from None
    return state


def draw(stream: Iterator[Batch], stop: StopSignals) -> Batch:
    """The next batch.

    Raises:
        StopRequested: a signal was received.
        RunError: an augmentation worker died.
    """
    stop.check_alone()  # not only after the batch, which may take a while to be made
    try:
        batch = next(stream)
    except RunError:
        stop.wait_a_moment()  # the signal that ended the worker may be sent to this process as well
        stop.check()
        raise
    stop.check()
    return batch


def check_finite(
    so_far: EpochSoFar, state: State, sampler: PatchSampler, samples: range, plan: Plan, run: Run
) -> None:
    """Raise a RunError that names the cases of the first batch whose loss is not finite."""
    bad = torch.nonzero(~torch.isfinite(torch.stack(so_far.losses).cpu()))
    if not len(bad):
        return
    batch = int(bad[0])
    at = [Position(plan.training.seed, run.fold, state.done, batch, place) for place in samples]
    names = ", ".join(dict.fromkeys(map(sampler.name_at, at)))
    raise RunError(
        f"the loss became NaN or infinite in epoch {state.done + 1}, batch {batch + 1} ({names}); "
        "lower training.optimizer.learning_rate, or look for implausible intensities in these cases"
    )


class TimeBudget:
    """Adjusts the number of epochs of a run to the time budget of its plan, if it has one."""

    def __init__(self, plan: Plan, run: Run) -> None:
        self.plan, self.run = plan, run
        self._times = [time.monotonic()]  # at the start and after each epoch

    def recount(self, state: State) -> State:
        """Call it after each epoch: the state with as many epochs as fit the budget."""
        self._times.append(time.monotonic())
        training = self.plan.training
        # After the last epoch the learning rate is at its end: more epochs would learn nothing.
        if training.seconds is None or state.done == state.epochs:
            return state
        used = state.seconds_used(self.run)
        if len(self._times) <= SETTLED_EPOCHS and used <= training.seconds / 4:
            return state
        seconds = self._epoch_seconds()
        # A forward pass takes about a third of a training step.
        patches = training.steps_per_epoch * self.plan.sampling.batch_size
        reserve = 3 + 0.4 * self.run.patches_after * seconds / patches
        epochs = epochs_within(training.seconds, used, seconds, reserve, state.done, state.epochs)
        if epochs != state.epochs:
            say(
                f"an epoch takes {in_words(seconds)}: {counted(epochs, 'epoch')} instead of "
                f"{state.epochs} fit the budget of {in_words(training.seconds)}"
            )
        return replace(state, epochs=epochs)

    def _epoch_seconds(self) -> float:
        """Mean over the latest half, at least five; without the slow first one if possible."""
        done = len(self._times) - 1
        first = max(min(1, done - 1), done - max(5, done // 2))
        return (self._times[-1] - self._times[first]) / (done - first)


def epochs_within(
    budget: float, used: float, epoch_seconds: float, reserve: float, done: int, planned: int
) -> int:
    """How many epochs a run should have in total to end within its budget.

    The planned number stays if it ends the run between 90 % and 100 % of the budget. So a run is
    reproducible wherever its plan was measured well.

    Args:
        budget: seconds for the run from start to finish.
        used: seconds since the start.
        epoch_seconds: the expected time of another epoch.
        reserve: seconds for what follows the last epoch.
        done: finished epochs.
        planned: the present total.
    """
    end = used + epoch_seconds * (planned - done) + reserve
    if (1 - TOLERANCE) * budget <= end <= budget:
        return planned
    left = (TARGET_SHARE * budget - reserve - used) / epoch_seconds
    return max(done, done + math.floor(left))
