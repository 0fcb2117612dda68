"""How long a plan's training steps take on this device, measured with its own data and workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from autoseg.augmentation.loader import batches
from autoseg.augmentation.sampler import PatchSampler, Position
from autoseg.dataset.layouts import Case
from autoseg.networks.devices import describe
from autoseg.plan.plan import Plan
from autoseg.planner.budget import Timing
from autoseg.preprocessing.preprocess import preprocess_case
from autoseg.preprocessing.store import CaseStore
from autoseg.training.learner import Learner

WARM_UP_STEPS, MOST_STEPS = 2, 7
ENOUGH_SECONDS = 8.0


class Stopwatch:
    """Measures plans that share their preprocessing and patches on a few real cases.

    Use as a context manager: the cases lie in a temporary folder.
    """

    def __init__(self, cases: Sequence[Case], device: torch.device, workers: int) -> None:
        self.cases, self.device, self.workers = cases, device, workers
        self.case_seconds = 0.0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Stopwatch:
        self._folder = tempfile.TemporaryDirectory(prefix="autoseg-")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._folder is not None
        self._folder.cleanup()

    def measure(self, plan: Plan) -> Timing:
        """Run a few training steps and predictions of a plan."""
        store = self._prepared(plan)
        learner = Learner(plan, self.device)
        names = [case.name for case in self.cases]
        sampler = PatchSampler(store, names, plan.sampling, plan.training.steps_per_epoch)
        start = Position(plan.training.seed, 0, 0, 0, 0)
        on_device = plan.training.augment_on == "device"
        with batches(
            sampler, plan.augmentation, start, self.workers, on_device=on_device
        ) as stream:
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
        assert self._folder is not None
        elsewhere = "let TMPDIR name another folder"
        store = CaseStore(Path(self._folder.name), plan.preprocessing_id, elsewhere)
        if not self.case_seconds:
            started = time.perf_counter()
            for case in self.cases:
                preprocess_case(plan, store, case)
            self.case_seconds = (time.perf_counter() - started) / len(self.cases)
        return store
