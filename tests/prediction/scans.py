"""Scans whose prediction is known, and how to predict them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from autoseg.plan.plan import Plan
from autoseg.prediction.batch import Options, Outcome, predict_cases
from autoseg.prediction.inputs import FoundInputs
from autoseg.prediction.predictor import Predictor
from tests.dataset.making import write_scan
from tests.making import tiny_plan
from tests.prediction.making import Pointwise, model_of

LABELS = {"background": [0], "lungs": [1, 2], "infection": [3]}
PLAN = tiny_plan(labels=LABELS, shares=[{"label": 3, "container": [1, 2]}])


def predictor_of(plan: Plan = PLAN, slope: float = 1.0) -> Predictor:
    """Predicts the class of a voxel from its value, which is the class's number."""
    return Predictor(model_of(plan, Pointwise(slope=slope)), device="cpu")


def write_scans(folder: Path, *names: str) -> Path:
    """Scans of the values 0, 1 and 2."""
    for seed, name in enumerate(names):
        values = np.random.default_rng(seed).integers(0, 3, (6, 5, 4)).astype(np.float32)
        write_scan(folder / f"{name}_0000.nii.gz", values, (1.0, 2.0, 2.5))
    return folder


def inputs_of(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Case -> its one file."""
    found = sorted(folder.glob("*.nii.gz"))
    return {path.name.removesuffix(".nii.gz").removesuffix("_0000"): (path,) for path in found}


def predict(
    folder: Path, out: Path, overwrite: bool = False, plan: Plan = PLAN, **options: Any
) -> Outcome:
    """Predict all scans of a folder."""
    known = {name: options.pop(name, {}) for name in ("refused", "uids")}
    found, previous = FoundInputs(cases=inputs_of(folder), **known), options.pop("previous", None)
    wanted = Options(overwrite=overwrite, **options)
    return predict_cases(predictor_of(plan), found, out, wanted, previous)


def files_in(folder: Path) -> set[str]:
    """Names of all files of a folder, including hidden ones."""
    return {path.name for path in folder.iterdir()}
