"""A task from Python: its plan, and the training of its folds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoseg.evaluation.scores import Summary
from autoseg.networks.devices import pick_device
from autoseg.plan.plan import Plan
from autoseg.planner.compose import Wishes
from autoseg.workflow.fold import FoldJob, run_fold
from autoseg.workflow.task_plan import survey_task, write_plan
from autoseg.workflow.workspace import Workspace


def plan_task(
    task: str | Path,
    workspace: str | Path | None = None,
    *,
    name: str = "default",
    settings: Mapping[str, Any] | None = None,
    overrides: str | Path | None = None,
    seconds: float | None = None,
    configuration: str | None = None,
    planner: str = "default",
    memory_gb: float | None = None,
    reference: str | None = None,
    use_reference: bool = True,
    skip_bad_cases: bool = False,
    device: str | None = None,
    processes: int = 1,
) -> Plan:
    """Check a raw task, measure it, and write a plan for it, as `autoseg_plan` does.

    With `seconds` or more than one process, worker processes are started: in a script, call this
    below `if __name__ == "__main__":`.

    >>> import autoseg
    >>> plan = autoseg.plan_task(
    ...     "Task004_Hippocampus",
    ...     settings={  # tiny, for this example
    ...         "network.features": [4, 8, 8, 8],
    ...         "sampling.batch_size": 2,
    ...         "training.epochs": 1,
    ...         "training.steps_per_epoch": 2,
    ...         "training.validation_steps": 1,
    ...     },
    ... )
    >>> plan.labels, plan.training.epochs
    ({'background': (0,), 'Anterior': (1,), 'Posterior': (2,)}, 1)

    Args:
        task: name of a folder in `raw/`, a unique beginning of it, or a path.
        workspace: folder that holds `raw/`, `preprocessed/` and `models/`; if None,
            `$AUTOSEG_WORKSPACE`, else the current folder.
        name: of the plan, a folder name.
        settings: plan values to replace, by their dotted key.
        overrides: JSON5 file with plan values to replace.
        seconds: time budget for training one fold; it is measured on the device.
        configuration: `2d`, `3d_lowres`, `3d_fullres` or `3d_cascade_fullres`; the recommended one
            if None.
        planner: `default`, `resenc_m`, `resenc_l` or `resenc_xl`.
        memory_gb: graphics memory to plan for; the planner's if None.
        reference: name of a reference plan; that of the task's name, if there is one, if None.
        use_reference: False plans by the rules alone.
        skip_bad_cases: go on without the cases that have errors.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; the best one there if None.
        processes: worker processes; the plan does not depend on it, unless it has `seconds`.

    Returns:
        the plan, which lies in `preprocessed/TASK/NAME/plan.json`, too.

    Raises:
        AutosegError: the data have errors, or a wish cannot be fulfilled.
    """
    where = _workspace(workspace)
    surveyed = survey_task(where, where.find_task_folder(str(task)), processes, skip_bad_cases)
    wishes = Wishes(
        name=name,
        configuration=configuration,
        planner=planner,
        memory_gb=memory_gb,
        use_reference=use_reference,
        reference=reference,
        overrides=None if overrides is None else Path(overrides),
        settings=tuple(f"{key}={json.dumps(value)}" for key, value in (settings or {}).items()),
        seconds=seconds,
    )
    return write_plan(where, surveyed, wishes, processes, device)


def train_fold(
    task: str | Path,
    fold: int | str,
    workspace: str | Path | None = None,
    *,
    plan: str | None = None,
    resume: bool = False,
    pretrained: str | Path | None = None,
    device: str | None = None,
    processes: int = 1,
) -> Summary | None:
    """Train a fold of a planned task and score its validation cases, as `autoseg_train` does.

    Worker processes are started: in a script, call this below `if __name__ == "__main__":`.

    >>> import autoseg
    >>> scores = autoseg.train_fold("Task004_Hippocampus", 0, device="cpu")
    >>> scores.labels, 0 <= scores.foreground_mean("Dice") <= 1
    (('Anterior', 'Posterior'), True)

    Args:
        task: name of a folder in `raw/`, a unique beginning of it, or a path.
        fold: its number, or `all` to train on every case.
        workspace: as for `plan_task`.
        plan: name of the plan; the only one that the task has if None.
        resume: continue a run that was interrupted, or whose plan has got more epochs.
        pretrained: a trained model whose weights a new run begins with: a folder
            `models/TASK/PLAN` or one of its folds, or a zip of `autoseg_pack`.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; the best one there if None.
        processes: worker processes; the result does not depend on it.

    Returns:
        the scores of the validation cases; None for the fold `all`, which has none. The model lies
        in `models/TASK/PLAN/fold_K`.

    Raises:
        AutosegError: the task, plan or fold does not exist, or the fold is begun already.
        RunError: training failed, or another process works on this fold.
    """
    started = time.monotonic()
    where = _workspace(workspace)
    folder = where.find_task_folder(str(task))
    return run_fold(
        FoldJob(
            workspace=where,
            task=folder,
            plan=where.find_plan_name(folder.name, plan),
            fold=str(fold),
            device=pick_device(device),
            processes=processes,
            resume=resume,
            started=started,
            pretrained=None if pretrained is None else Path(pretrained),
        )
    )


def _workspace(folder: str | Path | None) -> Workspace:
    return Workspace.find(None if folder is None else Path(folder))
