"""How long training takes: measured for a plan, and kept within the time budget of a run."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from autoseg.augmentation.loader import PatchSampler, Position, batches
from autoseg.common.progress import counted, in_words, say
from autoseg.dataset.task import Case
from autoseg.networks.devices import describe
from autoseg.plan.plan import Plan
from autoseg.planner.budget import Timing
from autoseg.preprocessing.preprocess import preprocess_case
from autoseg.preprocessing.store import CaseStore
from autoseg.training.learner import Learner
from autoseg.training.state import Run, State

WARM_UP_STEPS, MOST_STEPS = 2, 7
ENOUGH_SECONDS = 8.0
SETTLED_EPOCHS = 3  # the pace of fewer epochs is distorted by the start-up
TARGET_SHARE = 0.96  # of the budget; the rest absorbs the variation of the last epochs
TOLERANCE = 0.1


class Stopwatch:
    """Measures plans with equal preprocessing and patches on a few real cases.

    Use as a context manager: the preprocessed cases are in a temporary folder.
    """

    def __init__(self, cases: Sequence[Case], device: torch.device, workers: int) -> None:
        self.cases, self.device, self.workers = cases, device, workers
        self.case_seconds = 0.0
        self.folder = tempfile.TemporaryDirectory(prefix="autoseg-")

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def measure(self, plan: Plan) -> Timing:
        """Time a few training steps and predictions of a plan, with its own workers."""
        store = self._prepared(plan)
        learner = Learner(plan, self.device)
        names = [case.name for case in self.cases]
        sampler = PatchSampler(store, names, plan.sampling, plan.training.steps_per_epoch)
        start = Position(plan.training.seed, 0, 0, 0, 0)
        with batches(sampler, plan, start, self.workers) as stream:
            times: list[float] = []
            while len(times) < MOST_STEPS and (len(times) < 2 or sum(times) < ENOUGH_SECONDS):
                started = time.perf_counter()
                loss, _ = learner.step(next(stream), 1e-4)
                float(loss)  # waits for the device
                times.append(time.perf_counter() - started)
            batch = next(stream)
        learner.validate(batch)
        started = time.perf_counter()
        float(learner.validate(batch)[0])
        predicted = (time.perf_counter() - started) / plan.sampling.batch_size
        settled = times[min(WARM_UP_STEPS, len(times) - 1) :]
        step = sum(settled) / len(settled)
        return Timing(step, predicted, self.case_seconds, describe(self.device))

    def _prepared(self, plan: Plan) -> CaseStore:
        elsewhere = "set TMPDIR to another folder"
        store = CaseStore(Path(self.folder.name), plan.preprocessing_id, elsewhere)
        if not self.case_seconds:
            started = time.perf_counter()
            for case in self.cases:
                preprocess_case(plan, store, case)
            self.case_seconds = (time.perf_counter() - started) / len(self.cases)
        return store


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
