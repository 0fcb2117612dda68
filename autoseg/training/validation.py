"""The monitored loss on patches of the validation cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from autoseg.augmentation.loader import batches
from autoseg.augmentation.sampler import PatchSampler, Position
from autoseg.common.errors import RunError
from autoseg.dataset.splits import Split
from autoseg.plan.plan import Plan
from autoseg.preprocessing.store import CaseStore
from autoseg.training.learner import Learner, dice_of

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
