"""A small workspace with a task that looks trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from autoseg.common.files import write_json
from autoseg.dataset.splits import make_splits, write_splits
from autoseg.dataset.task import read_task
from autoseg.evaluation.evaluate import evaluate_case
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.scores import Summary
from autoseg.fingerprint import survey
from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label
from autoseg.models.log import Epoch, write_log
from autoseg.plan.plan import Plan
from autoseg.workflow.workspace import Workspace
from tests.dataset.making import V2, declare, write_case
from tests.making import tiny_plan
from tests.prediction.making import save_model

TASK = "Task001_Tiny"
LABELS = {"background": 0, "organ": 1, "tumour": 2}


def write_raw(workspace: Workspace, **fields: str) -> Path:
    """Four random scans with two boxes each."""
    raw = declare(workspace.raw(TASK), V2 | {"labels": LABELS} | fields)
    rng = np.random.default_rng(0)
    for number in range(4):
        label = np.zeros((12, 10, 9), np.uint8)
        label[1:6, 1:6, 1:6] = 1
        label[2:4, 2:4, 2 : 4 + number % 2] = 2
        image = (label + rng.normal(0, 0.1, label.shape)).astype(np.float32)
        write_case(raw, f"case_{number}", image, label)
    return raw


def plan_and_train(workspace: Workspace, plan: Plan, *folds: str) -> Path:
    """Make the folders of planning and training, with untrained networks."""
    task = read_task(workspace.raw(TASK), plan.labels, ())
    planned = workspace.preprocessed(TASK, plan.name)
    plan.save(planned / "plan.json")
    survey(task, 1)[0].save(planned / "fingerprint.json")
    splits = make_splits([case.name for case in task.cases], 2, 1)
    write_splits(planned / "splits.json", splits)
    folder = save_model(plan, workspace.models(TASK, plan.name), *folds)
    labels = dict(list(plan.labels.items())[1:])
    for fold in set(folds) - {"all"}:
        where = folder / f"fold_{fold}" / "validation"
        scores = []
        for name in splits[int(fold)].validation:
            reference = workspace.raw(TASK) / "labelsTr" / f"{name}.nii.gz"
            label, geometry = read_label(reference)
            label[10:, 8:, 7:] = 1  # an island
            write_label(where / reference.name, label, geometry)
            scores.append(evaluate_case(reference, where / reference.name, ScoredClasses(labels)))
        Summary(tuple(scores)).save(where / "summary.json")
        write_json(where / "predictions.json", {"plan_id": plan.id})
        write_log(folder / f"fold_{fold}", [Epoch(e, 4, 1e-3, 0.5, {}, 1.25) for e in range(4)])
    return folder


def trained_workspace(root: Path) -> Workspace:
    """A workspace with one task, one plan and two folds."""
    workspace = Workspace(root)
    write_raw(workspace)
    plan_and_train(workspace, tiny_plan(), "0", "1")
    return workspace
