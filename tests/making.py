"""Tiny plans and grids and whatever else more than one test needs, made by them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from autoseg.image.geometry import Geometry
from autoseg.plan.plan import Plan, make_plan
from autoseg.planner.overrides import merge
from autoseg.preprocessing.steps import Prepared
from autoseg.preprocessing.store import CaseStore

TINY: dict[str, Any] = {
    "task": "Task001_Tiny",
    "channels": ["CT"],
    "labels": {"background": [0], "organ": [1], "tumour": [2]},
    "target_spacing_mm": [1.0, 1.0, 1.0],
    "preprocessing": [],
    "sampling": {"patch_size": [8, 8, 8], "batch_size": 2},
    "augmentation": [{"transform": "mirror"}],
    "network": {
        "features": [2, 4],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "kernels": [[3, 3, 3], [3, 3, 3]],
        "blocks_encoder": [1, 1],
        "blocks_decoder": [1],
    },
    "training": {"epochs": 1, "steps_per_epoch": 1, "precision": "float32"},
    "inference": {"overlap": [4, 4, 4]},
}


REGIONS: dict[str, Any] = {
    "labels": {"background": [0], "whole": [1, 2, 4], "core": [2, 4], "enhancing": [4]},
    "regions_class_order": [1, 2, 4],
}
CASCADE: dict[str, Any] = {
    "name": "tiny-3d_cascade_fullres",
    "configuration": "3d_cascade_fullres",
    "previous_stage": "tiny-3d_lowres",
}


def tiny_plan(**changes: Any) -> Plan:
    """A plan for 8 x 8 x 8 patches of one channel; objects are merged, lists replaced."""
    return make_plan(merge(TINY, changes), "the tiny plan")


def grid(size: Sequence[int], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Geometry:
    """An upright grid at the origin."""
    x, y, z = size
    dx, dy, dz = spacing_mm
    return Geometry((x, y, z), (dx, dy, dz), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def store_case(store: CaseStore, name: str, image: NDArray[Any], label: NDArray[Any]) -> None:
    """Write a prepared case: image (channel, x, y, z) and class indices (x, y, z)."""
    where = grid(label.shape)
    box = tuple((0, size) for size in label.shape)
    prepared = Prepared(
        image.astype(np.float32), label.astype(np.int16), where, box, where.spacing_mm
    )
    store.write(name, prepared, [])


def tiny_store(folder: Path, plan: Plan, cases: int = 4, size: int = 12) -> CaseStore:
    """A store of cases `case_0`, `case_1`, ...: bright boxes of each class in noise."""
    store = CaseStore(folder, plan.preprocessing_id)
    for number in range(cases):
        rng = np.random.default_rng(number)
        label = np.zeros((size, size, size), np.int16)
        for index in range(1, len(plan.labels)):
            x, y, z = rng.integers(0, size - 4, size=3)
            label[x : x + 4, y : y + 4, z : z + 4] = index
        image = label + rng.normal(0, 0.3, (len(plan.channels), *label.shape))
        store_case(store, f"case_{number}", image, label)
    return store


def count_parameters(network: nn.Module) -> int:
    """How many numbers training adjusts."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def dead_process() -> int:
    """The number of a process that has just ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid
