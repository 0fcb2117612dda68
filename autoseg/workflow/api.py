"""Planning and training from Python."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autoseg.common.parallel import check_guard
from autoseg.evaluation.scores import Summary
from autoseg.networks.devices import autocast_type, describe, pick_device
from autoseg.plan.plan import Plan
from autoseg.planner.compose import PlanOptions
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
    """Check a raw task, measure it and write a plan for it, like `autoseg_plan`.

    With `seconds` or more than one process, worker processes are started: call this function under
    `if __name__ == "__main__":` in a script.

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
        task: name of a folder in `raw/`, a unique prefix of it, or a path.
        workspace: folder with `raw/`, `preprocessed/` and `models/`; if None,
            `$AUTOSEG_WORKSPACE`, or the current folder.
        name: name of the plan, which is also a folder name.
        settings: plan values to replace, by dotted key.
        overrides: JSON5 file with plan values to replace.
        seconds: training time of one fold; the speed of the device is measured.
        configuration: `2d`, `3d_lowres`, `3d_fullres` or `3d_cascade_fullres`; the recommended one
            if None.
        planner: `default`, `resenc_m`, `resenc_l` or `resenc_xl`.
        memory_gb: GPU memory to plan for; depends on the planner if None.
        reference: name of a reference plan; the one with the task's name, if any, if None.
        use_reference: use a reference plan; if False, only the rules decide.
        skip_bad_cases: leave out cases with errors.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; the best available if None.
        processes: number of worker processes; without `seconds` it does not change the plan.

    Returns:
        the plan, which is also written to `preprocessed/TASK/NAME/plan.json`.

    Raises:
        AutosegError: the data have errors, or an option is invalid for this task.
    """
    check_guard()
    where = Workspace.find(workspace)
    surveyed = survey_task(where, where.find_task_folder(str(task)), processes, skip_bad_cases)
    options = PlanOptions(
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
    return write_plan(where, surveyed, options, processes, device)


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
    """Train a fold of a planned task and score its validation cases, like `autoseg_train`.

    Worker processes are started: call this function under `if __name__ == "__main__":` in a script.

    >>> import autoseg
    >>> scores = autoseg.train_fold("Task004_Hippocampus", 0, device="cpu")
    >>> scores.labels, 0 <= scores.foreground_mean("Dice") <= 1
    (('Anterior', 'Posterior'), True)

    Args:
        task: name of a folder in `raw/`, a unique prefix of it, or a path.
        fold: number of the fold, or `all` to train on every case.
        workspace: see `plan_task`.
        plan: name of the plan; the only plan of the task if None.
        resume: continue an interrupted run, or a run whose plan now has more epochs.
        pretrained: trained model with the initial weights of a new run: a folder
            `models/TASK/PLAN`, one of its folds, or a zip file of `autoseg_pack`.
        device: `cpu`, `cuda`, `cuda:1` or `mps`; the best available if None.
        processes: number of worker processes; it does not change the result.

    Returns:
        the scores of the validation cases; None for the fold `all`, which has none. The model is
        in `models/TASK/PLAN/fold_K`.

    Raises:
        AutosegError: the task, plan or fold does not exist, or the fold was begun already.
        RunError: training failed, or another process works on this fold.
    """
    check_guard()
    started = time.monotonic()
    where = Workspace.find(workspace)
    folder = where.find_task_folder(str(task))
    name = where.find_plan_name(folder.name, plan)
    given = (where, folder, name, str(fold), pick_device(device), processes, resume, started)
    return run_fold(FoldJob(*given, pretrained=None if pretrained is None else Path(pretrained)))


def describe_device(name: str | None) -> str:
    """A device by name, or the best one: what it is, and how it computes.

    Raises:
        AutosegError: there is no such device.
    """
    device = pick_device(name)
    precision = str(autocast_type(device, "auto")).removeprefix("torch.")
    threads = torch.get_num_threads()
    return f"{device} ({describe(device)}), precision {precision}, threads {threads}"
