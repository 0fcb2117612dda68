"""Tiny plans and grids, made by the tests that use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoseg.image import Geometry
from autoseg.planning.check import make_plan
from autoseg.planning.layers import merge
from autoseg.planning.plan import Plan

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


def tiny_plan(**changes: Any) -> Plan:
    """A plan for 8 x 8 x 8 patches of one channel; objects are merged, lists replaced."""
    return make_plan(merge(TINY, changes), "the tiny plan")


def grid(size: Sequence[int], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Geometry:
    """An upright grid at the origin."""
    x, y, z = size
    dx, dy, dz = spacing_mm
    return Geometry((x, y, z), (dx, dy, dz), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
