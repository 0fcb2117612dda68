"""Models whose cross-validation fills every section of the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from autoseg.dataset.task import read_task
from autoseg.fingerprint import survey
from autoseg.models import log
from tests.evaluation.making import write_fold, write_log, write_plan, write_record
from tests.evaluation.scores import HIPPOCAMPUS

FINGERPRINT = "fingerprint.json"
FOLDS = ({"hippocampus_003": 1, "hippocampus_008": 3}, {"hippocampus_017": 0})


def write_models(folder: Path) -> Path:
    """Write two folds with logs and records, the plan, and a fingerprint of two cases."""
    for number, shifts in enumerate(FOLDS):
        write_fold(folder, number, shifts)
        write_log(folder / f"fold_{number}", number, epochs=8)
        _add_dice(folder / f"fold_{number}")
        write_record(folder / f"fold_{number}" / "validation", dict.fromkeys(shifts, 1.5))
    write_plan(folder)
    task = read_task(HIPPOCAMPUS)
    survey(replace(task, cases=task.cases[:2]), 1)[0].save(folder / FINGERPRINT)
    return folder


def _add_dice(fold: Path) -> None:
    epochs = log.read_log(fold) or []
    dice = [{"background": 1.0, "Anterior": 1 - 1 / (i + 2)} for i in range(len(epochs))]
    log.write_log(
        fold, [replace(epoch, training_dice=of) for epoch, of in zip(epochs, dice, strict=True)]
    )
