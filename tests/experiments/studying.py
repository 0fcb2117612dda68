"""Tiny studies of a tiny task: seconds a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.experiments.study import Study, check_study
from autoseg.workflow.workspace import Workspace
from tests.cli.making import write_ct
from tests.dataset.making import write_scan

TASK = "Task001_Würfel"
OVERRIDES: dict[str, Any] = {
    "target_spacing_mm": [1, 1, 1],
    "sampling": {"patch_size": [8, 8, 8], "batch_size": 2},
    "network": {
        "features": [2, 4],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "kernels": [[3, 3, 3], [3, 3, 3]],
        "blocks_encoder": [1, 1],
        "blocks_decoder": [1],
        "deep_supervision": False,
    },
    "training": {"epochs": 2, "steps_per_epoch": 2, "validation_steps": 1, "precision": "float32"},
    "inference": {"overlap": [4, 4, 4], "mirror_axes": []},
}
# All training cases have the tumour as 1; here it is 5, and 1 is something else.
TEST_SET: dict[str, Any] = {
    "name": "elsewhere",
    "images": "test_sets/elsewhere/imagesTs",
    "labels": "test_sets/elsewhere/labelsTs",
    "classes": {"tumour": [5]},
}


def write_task(root: Path, cases: int = 4) -> Workspace:
    """A workspace with the task and the test set."""
    write_ct(root / "raw" / TASK, cases=cases, size=12)
    rng = np.random.default_rng(3)
    for name in ("x", "y"):
        image = rng.normal(0, 100, (12, 10, 11)).astype(np.float32)
        label = np.ones(image.shape, np.uint8)
        label[3:8, 4:9, 2:8] = 5
        folder = root / "test_sets" / "elsewhere"
        write_scan(folder / "imagesTs" / f"{name}_0000.nii.gz", image)
        write_scan(folder / "labelsTs" / f"{name}.nii.gz", label)
    return Workspace(root)


def study(name: str = "tiny", **changes: Any) -> Study:
    """A study of the task: by default one plan with two folds."""
    values = {"task": TASK, "k": [2], "overrides": OVERRIDES, "name": name} | changes
    return check_study(values, "the tiny study")


def longer(epochs: int) -> dict[str, Any]:
    """The overrides of runs that take a while, in steps rather than in what an epoch ends with."""
    length = {"epochs": epochs, "steps_per_epoch": 60}
    return OVERRIDES | {"training": OVERRIDES["training"] | length}


def write_study(root: Path, name: str = "tiny", **changes: Any) -> Path:
    """The same as a file, with a comment."""
    values = {"task": TASK, "k": [2], "overrides": OVERRIDES} | changes
    path = root / f"{name}.json5"
    path.write_text(f"// a study\n{json.dumps(values)}", encoding="utf-8")
    return path
