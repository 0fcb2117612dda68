"""The training loop: trains one fold as its plan says.

On the loop hang the network with its optimiser and validation (`learner`), the checkpoints and the
schedule (`state`), progress bar, log and pictures (`monitor`), parallel processes and signals
(`distributed`), and the time budget.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from autoseg.augmentation.loader import Batch, PatchSampler, Position, batches
from autoseg.common.errors import RunError
from autoseg.common.progress import counted, in_words, say
from autoseg.dataset.splits import Split
from autoseg.models.checkpoint import Tensors, save_checkpoint, with_prefix
from autoseg.models.folder import BEST, LATEST
from autoseg.models.log import Epoch
from autoseg.networks.devices import fast_convolutions, received_ahead
from autoseg.plan.plan import Plan
from autoseg.preprocessing.store import CaseStore
from autoseg.training.distributed import StopRequested, StopSignals
from autoseg.training.learner import Learner, dice_of
from autoseg.training.monitor import Monitor
from autoseg.training.state import EPOCH, EpochSoFar, Run, State, and_steps, begin, save_final

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
    checks = training.validation_steps if split.validation and group.leads else 0
    unmixed = plan.sampling.model_copy(update={"mix_probability": 0.0})
    validation = PatchSampler(store, split.validation, unmixed, checks)
    first = Position(training.seed, run.fold, state.done, so_far.steps, 0)
    samples = group.places(plan.sampling.batch_size)  # B of them, this process's share of a batch
    workers = 0 if state.is_finished(training) else run.workers  # a finished run needs no batch
    with fast_convolutions(run.device), StopSignals(group) as stop:
        with (
            batches(sampler, plan, first, workers, samples, validation) as made,
            received_ahead(made, run.device) as stream,
            closing(Checkpoints(run, learner)) as checkpoints,
            Monitor(plan, split, run, learner, state) as monitor,
        ):
            budget = TimeBudget(plan, run)
            while not state.is_finished(training):
                try:
                    for step in range(so_far.steps, steps):
                        batch = draw(stream, stop)  # image (B, C, X, Y, Z) and label (B, X, Y, Z)
                        rate = state.learning_rate(training, step)
                        loss, dice = learner.step(batch, rate)  # () and (classes,), on the device
                        so_far.add(loss, dice)
                        monitor.after_step(state, so_far.steps)
                        if checkpoints.are_due():
                            check_finite(so_far, state, sampler, samples, plan, run)
                            checkpoints.save(state, so_far)
                    check_finite(so_far, state, sampler, samples, plan, run)
                    training_loss, training_dice = so_far.means(group)
                    validation_loss, validated = validate(learner, stream, checks, state, stop)
                except StopRequested:
                    checkpoints.save(state, so_far)
                    checkpoints.close()
                    group.wait()  # torchrun ends all processes when the first one has ended
                    done = f"after epoch {state.done}{and_steps(so_far.steps)}"
                    raise stop.stopped(done) from None
                except RunError:  # a worker died, or a loss is not finite
                    is_sound = all(map(torch.isfinite, so_far.losses)) and not group.is_shared
                    if is_sound and (state.done or so_far.steps):
                        checkpoints.save(state, so_far)
                    raise
                epoch = Epoch(
                    epoch=state.done,
                    epochs=state.epochs,
                    learning_rate=state.learning_rate(training, steps - 1),
                    training_loss=training_loss,
                    training_dice=dict(zip(classes, training_dice, strict=True)),
                    validation_loss=validation_loss,
                    validation_dice=dict(zip(classes, validated, strict=False)),
                    seconds=so_far.seconds,
                )
                state, so_far = state.after_epoch(epoch, training), EpochSoFar()
                if group.leads:
                    if training.keep == "best_training_loss" and state.best_epoch == epoch.epoch:
                        checkpoints.keep_best(epoch.epoch)
                    state = budget.recount(state)
                    monitor.after_epoch(state)
                state = group.shared(state)
                if checkpoints.are_due() or state.is_finished(training):
                    checkpoints.save(state, so_far)
        if group.leads:
            monitor.finish(state)
            save_final(run, learner, plan, state)
        try:
            stop.check()
        except StopRequested:
            raise stop.stopped("after training") from None
    return state


def draw(stream: Iterator[Batch], stop: StopSignals, alone: bool = False) -> Batch:
    """The next batch, of all processes or of this one alone.

    Raises:
        StopRequested: a signal was received.
        RunError: an augmentation worker died.
    """
    check = stop.check_alone if alone else stop.check
    stop.check_alone()  # not only after the batch, which may take a while to be made
    try:
        batch = next(stream)
    except RunError:
        stop.wait_a_moment()  # the signal that ended the worker may be sent to this process as well
        check()
        raise
    check()
    return batch


def validate(
    learner: Learner, stream: Iterator[Batch], steps: int, state: State, stop: StopSignals
) -> tuple[float | None, list[float | None]]:
    """Mean loss, and Dice per class, over the validation batches that follow in the stream.

    The first process of a group validates. Without batches there is no result.

    Raises:
        StopRequested: a signal was received.
        RunError: the loss is not finite, or an augmentation worker died.
    """
    if not steps:
        return None, []
    found = [learner.validate(draw(stream, stop, alone=True)) for _ in range(steps)]
    losses, counts = zip(*found, strict=True)
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise RunError(
            f"the validation loss became NaN or infinite in epoch {state.done + 1}; look for "
            "implausible intensities in the validation cases"
        )
    return mean, dice_of(torch.stack(counts).sum(0).cpu())


def check_finite(
    so_far: EpochSoFar, state: State, sampler: PatchSampler, samples: range, plan: Plan, run: Run
) -> None:
    """Raise a RunError that names the cases of the first batch whose loss is not finite."""
    bad = torch.nonzero(~torch.isfinite(torch.stack(so_far.losses).cpu()))
    if not len(bad):
        return
    batch = int(bad[0])
    at = [Position(plan.training.seed, run.fold, state.done, batch, place) for place in samples]
    names = ", ".join(dict.fromkeys(name for one in at for name in sampler.names_at(one)))
    raise RunError(
        f"the loss became NaN or infinite in epoch {state.done + 1}, batch {batch + 1} ({names}); "
        "lower training.optimizer.learning_rate, or look for implausible intensities in these cases"
    )


class Checkpoints:
    """Saves a run every few minutes and when it stops, in a thread, while training goes on.

    A run resumes from `latest.safetensors` as if it had never stopped. An error of the thread is
    raised when the next state is saved, or at the end.
    """

    def __init__(self, run: Run, learner: Learner) -> None:
        self.run, self.learner = run, learner
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[Any] = self._thread.submit(int)  # nothing yet
        self._files: dict[str, tuple[Tensors, dict[str, Any]]] = {}  # by name, to be written
        self._due = time.monotonic() + run.save_seconds

    def close(self) -> None:
        """Wait until the last state is written."""
        self._thread.shutdown()
        self._written.result()

    def are_due(self) -> bool:
        """Whether to save now; all processes of a group call it at the same point."""
        return bool(self.run.group.largest(int(time.monotonic() >= self._due)))

    def keep_best(self, epoch: int) -> None:
        """Keep the present weights for `best.safetensors`, which is written with the next state."""
        self._files[BEST] = on_host(self.learner.weights()), {"epoch": epoch}

    def save(self, state: State, so_far: EpochSoFar) -> None:
        """Copy the state after a step to the host, and let the thread write it.

        All processes of a group call it, as an unfinished epoch holds the means of their results;
        the first one writes.
        """
        epoch = {name: self.run.group.mean(each) for name, each in so_far.tensors().items()}
        self._due = time.monotonic() + self.run.save_seconds
        if self.run.group.leads:
            self._written.result()
            tensors = self.learner.tensors() | with_prefix(EPOCH, epoch)
            state = replace(state, seconds=state.seconds_used(self.run))
            files, self._files = self._files, {}
            files[LATEST] = on_host(tensors), state.to_json()  # last: it refers to the best weights
            self._written = self._thread.submit(self._write, files)

    def _write(self, files: dict[str, tuple[Tensors, dict[str, Any]]]) -> None:
        for name, content in files.items():
            save_checkpoint(self.run.folder / name, *content)


def on_host(tensors: Tensors) -> Tensors:
    """Copies on the host, which later steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


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
        # Mean over the latest half, at least five; without the slow first one if possible.
        done = len(self._times) - 1
        first = max(min(1, done - 1), done - max(5, done // 2))
        seconds = (self._times[-1] - self._times[first]) / (done - first)
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
