"""`autoseg_train TASK fold 0`: preprocess what is missing, train, validate."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from autoseg.cli import common


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = common.parser(
        "autoseg_train",
        "Train folds of a planned task into models/TASK/PLAN/fold_K, and score each fold's "
        "validation cases.",
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
    parser.add_argument("--resume", action="store_true", help="continue a run that was interrupted")
    common.add_device(parser)
    common.add_processes(parser)
    common.add_workspace(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command `autoseg_train`."""
    return common.run(make_parser, _train, argv)


def _train(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    folds = _folds(arguments.folds)

    common.spawn_workers()

    from autoseg.devices import pick_device
    from autoseg.evaluation.tables import print_table
    from autoseg.experiments.fold import FoldJob, run_fold
    from autoseg.workspace import Workspace

    workspace = Workspace.find(arguments.workspace)
    task = workspace.find_task_folder(arguments.task)
    plan = workspace.find_plan_name(task.name, arguments.plan)
    device = pick_device(arguments.device)
    for fold in folds:
        job = FoldJob(
            workspace, task, plan, fold, device, arguments.processes, arguments.resume, started
        )
        summary = run_fold(job)
        if summary is not None:
            print_table(summary)
        print(job.folder)
        started = time.monotonic()
    return common.DONE


def _folds(words: Sequence[str]) -> list[str]:
    """The folds of `fold 0 1`, `0 1` or `fold all`."""
    from autoseg.errors import AutosegError

    folds = list(words[1:]) if words[0] == "fold" else list(words)
    bad = [fold for fold in folds if fold != "all" and not fold.isdecimal()]
    if bad or not folds:
        found = " ".join(words)
        raise AutosegError(f"folds {found!r}: write `fold 0`, `fold 0 1 2` or `fold all`")
    return list(dict.fromkeys(str(int(fold)) if fold != "all" else fold for fold in folds))


if __name__ == "__main__":
    raise SystemExit(main())
