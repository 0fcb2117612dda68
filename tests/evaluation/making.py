"""Cross-validations on disk, as training leaves them, from label maps that were moved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from autoseg.evaluation.evaluate import evaluate_case
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.scores import Summary
from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label
from autoseg.models import log
from autoseg.models.log import Epoch
from tests.evaluation.scores import HIPPOCAMPUS
from tests.making import tiny_plan

LABELS = ScoredClasses({"Anterior": (1,), "Posterior": (2,)})


def write_fold(models: Path, fold: int, shifts: dict[str, int], epochs: int = 0) -> Summary:
    """Write one fold: each prediction is the truth, moved by so many voxels along x."""
    folder = models / f"fold_{fold}" / "validation"
    cases = []
    for name, shift in shifts.items():
        truth = HIPPOCAMPUS / "labelsTr" / f"{name}.nii.gz"
        label, geometry = read_label(truth)
        write_label(folder / truth.name, np.roll(label, shift, axis=0), geometry)
        cases.append(evaluate_case(truth, folder / truth.name, LABELS))
    summary = Summary(tuple(cases), (), {"Anterior": 1.0, "Posterior": 1.0})
    summary.save(folder / "summary.json")
    if epochs:
        write_log(models / f"fold_{fold}", fold, epochs)
    return summary


def write_plan(models: Path) -> None:
    """Write the plan of the models, which knows the classes."""
    labels = {"background": (0,), "Anterior": (1,), "Posterior": (2,)}
    tiny_plan(labels=labels).save(models / "plan.json")


def write_log(fold: Path, seed: int, epochs: int) -> None:
    """Write a log whose losses fall as 1 / epoch, with noise."""
    noise = np.random.default_rng(seed).normal(0, 0.05, (epochs, 2))
    lines = [
        Epoch(
            epoch=i,
            epochs=epochs,
            learning_rate=1e-3,
            training_loss=float(1 / (i + 1) + 0.4 + noise[i, 0]),
            training_dice={},
            seconds=2.0,
            validation_loss=float(1 / (i + 1) + 0.5 + noise[i, 1]) if i % 2 else None,
        )
        for i in range(epochs)
    ]
    log.write_log(fold, lines)


def write_record(validation: Path, seconds: dict[str, float]) -> None:
    """Write what prediction records of its cases."""
    run = {"started": "2026-01-02T03:04:05+0000", "device": "cpu", "autoseg": "1.2.3"}
    stages = {name: {"reading": 0.5, "network": s - 0.5} for name, s in seconds.items()}
    cases = {name: {"seconds": of, "run": "a"} for name, of in stages.items()}
    record = {"task": "Task004", "plan": "p", "runs": {"a": run}, "cases": cases}
    (validation / "predictions.json").write_text(json.dumps(record))
