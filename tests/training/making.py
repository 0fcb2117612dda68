"""A tiny run of training, made by the tests that use it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from autoseg.dataset.splits import Split
from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.folder import BEST, FINAL, LATEST
from autoseg.models.log import Epoch
from autoseg.plan.plan import Plan
from autoseg.preprocessing.store import CaseStore
from autoseg.training import monitor
from autoseg.training.state import Run, State
from autoseg.training.train import train
from tests.making import tiny_plan, tiny_store

SPLIT = Split(("case_0", "case_1", "case_2"), ("case_3",))

FIRST_EPOCH = Epoch(
    epoch=0,
    epochs=3,
    learning_rate=1e-3,
    training_loss=1.2344,
    training_dice={"background": 0.9, "organ": 0.5, "tumour": 0.25},
    seconds=2.5,
    validation_loss=1.5,
    validation_dice={"background": 0.9, "organ": 0.75, "tumour": None},
)


def training_plan(norm: str = "batch", **training: Any) -> Plan:
    """Four epochs of two steps, with a little augmentation."""
    few = {"epochs": 4, "steps_per_epoch": 2, "validation_steps": 1}
    return tiny_plan(
        network={"norm": norm},
        augmentation=[{"transform": "gaussian_noise", "probability": 0.5}, {"transform": "mirror"}],
        training=few | training,
    )


def store_of(folder: Path, plan: Plan) -> CaseStore:
    """The four cases of `SPLIT`."""
    return tiny_store(folder / "cases", plan)


def start(
    plan: Plan, store: CaseStore, folder: Path, split: Split = SPLIT, **changes: Any
) -> State:
    """Train in this process."""
    values = {"fold": 0, "workers": 0, "resume": False, "started": time.monotonic()} | changes
    return train(plan, store, split, Run(folder=folder, device=torch.device("cpu"), **values))


def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave pictures empty: drawing one takes longer than the training."""
    monkeypatch.setattr(monitor, "draw_progress", lambda path, _: path.touch())


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, optimiser and log of two runs are the same to the bit, but for the seconds."""
    assert log_of(found) == log_of(expected)
    for name in (LATEST, FINAL, BEST):
        assert (found / name).exists() == (expected / name).exists()
        if (expected / name).exists():
            tensors, state = load_checkpoint(found / name)
            other, other_state = load_checkpoint(expected / name)
            assert tensors.keys() == other.keys()
            assert all(torch.equal(tensors[key], other[key]) for key in other)
            if name != LATEST:  # its history has the seconds
                assert state == other_state
