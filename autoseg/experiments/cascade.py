"""What a cascade refines: its previous stage's segmentation of every case.

A case is segmented by the model of the fold in whose validation it was, which has not learnt from
it: so a cascade trains on segmentations as they will be on new scans.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autoseg.common.errors import AutosegError
from autoseg.common.progress import listed
from autoseg.dataset.splits import FILE_NAME, count_folds, read_splits
from autoseg.dataset.task import Task
from autoseg.models.folder import FINAL
from autoseg.plan.plan import Plan
from autoseg.plan.reading import load_plan
from autoseg.prediction.batch import output_path
from autoseg.prediction.model import check_previous, save_previous
from autoseg.workspace import Workspace

SHARED = ("channels", "labels", "ignore_label", "regions_class_order", "skipped_cases")


def claim_segmentations(
    workspace: Workspace, plan: Plan, task: Task, cases: Sequence[str]
) -> dict[str, Path] | None:
    """Case -> the label map to refine; from now on a cascade's models belong to those of its stage.

    Returns:
        None if the plan is no cascade.

    Raises:
        AutosegError: as `find_segmentations`, or earlier folds refine another plan.
    """
    if plan.previous_stage is None:
        return None
    previous = previous_plan(workspace, plan)
    found = find_segmentations(workspace, plan, task, cases)
    models = workspace.models(plan.task, plan.name)
    if any(models.glob("fold_*/*.safetensors")):
        check_previous(models, previous)
    else:
        save_previous(models, previous)
    return found


def previous_plan(workspace: Workspace, plan: Plan) -> Plan:
    """The plan that the models of a cascade's previous stage belong to.

    Raises:
        AutosegError: it is not planned or not trained yet, or it is a plan for other channels,
            labels or cases.
    """
    folder = workspace.models(plan.task, plan.previous_stage)
    splits = workspace.preprocessed(plan.task, plan.previous_stage) / FILE_NAME
    if not splits.is_file():
        raise AutosegError(
            f"{plan.name} refines {plan.previous_stage}, which is not planned yet; plan it with "
            "--config 3d_lowres and the same options, and train all its folds"
        )
    if not (folder / "plan.json").is_file():
        folds = " ".join(map(str, range(count_folds(splits))))
        raise AutosegError(
            f"{plan.name} refines {plan.previous_stage}, of which no fold is trained; run: "
            f"{_train(plan, f'fold {folds}')}"
        )
    previous = load_plan(folder / "plan.json")
    if wrong := [key for key in SHARED if getattr(plan, key) != getattr(previous, key)]:
        raise AutosegError(
            f"{plan.name} refines {previous.name}, which has another {' and '.join(wrong)}; plan "
            "both with the same options"
        )
    return previous


def find_segmentations(
    workspace: Workspace, plan: Plan, task: Task, cases: Sequence[str]
) -> dict[str, Path]:
    """Case -> the label map that the previous stage made of it in its validation.

    Args:
        workspace: holds plans and models.
        plan: the cascade's.
        task: the task.
        cases: names of the cases that are needed.

    Raises:
        AutosegError: the splits differ, or folds are missing; the message names them.
    """
    known = [case.name for case in task.cases]
    names = (plan.name, str(plan.previous_stage))
    files = [workspace.preprocessed(plan.task, name) / FILE_NAME for name in names]
    ours, theirs = (read_splits(file, known) for file in files)
    if ours != theirs:
        raise AutosegError(
            f"{files[0]} and {files[1]} differ: a cascade needs the splits of the plan that it "
            "refines; plan both with the same splits"
        )
    fold_of = {name: number for number, split in enumerate(theirs) for name in split.validation}
    if never := [name for name in cases if name not in fold_of]:
        raise AutosegError(
            f"{files[1]}: no fold validates {never[0]} ({len(never)} such cases), so the previous "
            "stage has no segmentation of it; take splits in which each case validates once"
        )
    folder = workspace.models(plan.task, plan.previous_stage)
    found = {
        name: output_path(folder / f"fold_{fold_of[name]}" / "validation", name) for name in cases
    }
    missing = {
        fold_of[name]
        for name, path in found.items()
        if not (path.exists() and (path.parents[1] / FINAL).exists())
    }
    if missing:
        folds = " ".join(map(str, sorted(missing)))
        raise AutosegError(
            f"{plan.name} refines {plan.previous_stage}, which lacks "
            f"{listed('fold', sorted(missing))}: each case is refined from the segmentation of "
            f"the fold that validated it; run: {_train(plan, f'fold {folds}')}"
        )
    return found


def _train(plan: Plan, folds: str) -> str:
    return f"autoseg_train {plan.task} {folds} --plan {plan.previous_stage}"
