"""`autoseg_train TASK fold 0`: preprocess what is missing, train, validate."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cli import common
from autoseg.common.progress import listed

if TYPE_CHECKING:
    from autoseg.workflow.fold import FoldJob


GO_ON = "what was finished is kept; continue with --resume"
CONFIGURATIONS = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = common.parser(
        "autoseg_train",
        "Train folds of a planned task into models/TASK/PLAN/fold_K, and score each fold's "
        "validation cases.",
        common.TRAIN,
    )
    parser.add_argument(
        "task", metavar="TASK", help="name in raw/, a unique beginning of it, or a folder"
    )
    parser.add_argument(
        "folds",
        nargs="+",
        metavar="fold K",
        help="which folds, as in `fold 0`, `0`, `fold 0 1 2` or `fold all` (every case, no scores)",
    )
    parser.add_argument("--plan", metavar="NAME", help="which plan, if the task has several")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue a run that was interrupted, or whose plan has got more epochs",
    )
    parser.add_argument(
        "--pretrained",
        type=Path,
        metavar="MODEL",
        help="begin with the weights of this trained model: models/TASK/PLAN or a zip of "
        "autoseg_pack, a fold_K in one of them, or a .safetensors file with its plan.json beside",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write event files into fold_K/tensorboard",
    )
    common.add_device(parser)
    common.add_processes(parser)
    common.add_workspace(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command `autoseg_train`."""
    return common.run(make_parser, _train, argv, GO_ON)


def _train(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    folds = _folds(arguments.folds)

    common.spawn_workers()

    from autoseg.training.distributed import joined
    from autoseg.workflow.fold import FoldJob
    from autoseg.workflow.workspace import Workspace

    workspace = Workspace.find(arguments.workspace)
    task = workspace.find_task_folder(arguments.task)
    plan = workspace.find_plan_name(task.name, arguments.plan)
    with joined(arguments.device) as (group, device):
        jobs = [
            FoldJob(
                workspace=workspace,
                task=task,
                plan=plan,
                fold=fold,
                device=device,
                processes=arguments.processes,
                resume=arguments.resume,
                started=started,
                group=group,
                pretrained=arguments.pretrained,
                tensorboard=arguments.tensorboard,
            )
            for fold in folds
        ]
        _run_all(jobs)
    return common.DONE


def _run_all(jobs: Sequence[FoldJob]) -> None:
    """One fold after the other; one that fails does not keep the others from their training."""
    from autoseg.common.errors import AutosegError, RunError, Stopped
    from autoseg.workflow.fold import check_fold

    if len(jobs) == 1 or jobs[0].group.is_shared:  # processes that share a fold fail together
        for job in jobs:
            _run(job)
        return
    for job in jobs:
        check_fold(job)
    failed = []
    for job in jobs:
        try:
            _run(replace(job, started=time.monotonic()) if job is not jobs[0] else job)
        except Stopped:
            raise
        except (AutosegError, RunError) as error:
            common.print_error(f"fold {job.fold}: {error}")
            failed.append(job.fold)
    if failed:
        raise RunError(f"{listed('fold', failed)} failed; what is wrong stands above")


def _run(job: FoldJob) -> None:
    from autoseg.evaluation.tables import print_table
    from autoseg.workflow.fold import run_fold

    summary = run_fold(job)
    if summary is not None:
        print_table(summary)
    if job.group.leads:
        print(job.folder)


def _folds(words: Sequence[str]) -> list[str]:
    """The folds of `fold 0 1`, `0 1` or `fold all`."""
    from autoseg.common.errors import AutosegError

    folds = list(words[1:]) if words[0] == "fold" else list(words)
    bad = [fold for fold in folds if fold != "all" and not fold.isdecimal()]
    if bad or not folds:
        found = " ".join(words)
        more = (
            "; the configuration is the plan's: --plan NAME" if {*bad} & {*CONFIGURATIONS} else ""
        )
        raise AutosegError(f"folds {found!r}: write `fold 0`, `fold 0 1 2` or `fold all`{more}")
    return list(dict.fromkeys(str(int(fold)) if fold != "all" else fold for fold in folds))


if __name__ == "__main__":
    raise SystemExit(main())
