"""Where and with what one fold is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from autoseg.training.distributed import ALONE, Group


@dataclass(frozen=True)
class Run:
    """Where and with what one fold is trained; only `pretrained` changes its result.

    Attributes:
        folder: `models/TASK/PLAN/fold_K`.
        workers: augmentation processes.
        started: `time.monotonic()` when the command began, for the time budget.
        patches_after: patches that will be predicted after training, for the time budget.
        group: the processes that train together; the first alone writes, validates and talks.
        pretrained: a trained model whose weights a new run begins with.
        tensorboard: whether to write event files, too.
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
