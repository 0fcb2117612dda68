"""`autoseg_train TASK fold 0`: preprocess missing cases, train and validate folds."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cli import common
from autoseg.common.errors import AutosegError, RunError, Stopped
from autoseg.common.progress import listed

if TYPE_CHECKING:
    from autoseg.evaluation.scores import Summary
    from autoseg.workflow.fold import FoldJob

CONTINUE = "finished work is kept; continue with --resume"


def _train(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    given = common.take_task(arguments, more=None)
    folds = _folds([*arguments.words, *(arguments.folds or ())])
    common.spawn_workers()

    from autoseg.evaluation.tables import print_dice
    from autoseg.training.distributed import joined
    from autoseg.workflow.fold import FoldJob, check_fold, run_fold

    done: dict[Path, Summary | None] = {}

    def run(job: FoldJob) -> None:
        done[job.folder] = run_fold(job)

    workspace = common.find_workspace(arguments)
    task = workspace.find_task_folder(given)
    plan = workspace.find_plan_name(task.name, arguments.plan)
    with joined(arguments.device) as (group, device):
        order = common.named_in(FoldJob, arguments)
        order |= {"workspace": workspace, "task": task, "plan": plan, "started": started}
        order |= {"device": device, "group": group, "save_seconds": 60.0 * arguments.save_every}
        jobs = [FoldJob(**order, fold=fold) for fold in folds]
        try:
            if len(jobs) == 1 or group.is_shared:  # processes that share a fold fail together
                for job in jobs:
                    run(job)
            else:
                for job in jobs:
                    check_fold(job)
                _run_each(jobs, run)
        finally:  # one table of all folds, also if one has failed
            if scored := [summary for summary in done.values() if summary is not None]:
                print_dice(*scored)
            for folder in done if group.leads else ():
                print(folder)
    return common.DONE


def _run_each(jobs: Sequence["FoldJob"], run: Callable[["FoldJob"], None]) -> None:
    """Train one fold after the other; a fold that fails does not stop the others."""
    failed = []
    for job in jobs:
        try:
            run(job if job is jobs[0] else replace(job, started=time.monotonic()))
        except Stopped:
            raise
        except (AutosegError, RunError) as error:
            common.print_error(f"fold {job.fold}: {error}")
            failed.append(job.fold)
    if failed:
        raise RunError(f"{listed('fold', failed)} failed; see the errors above")


def _folds(words: Sequence[str]) -> list[str]:
    """The folds of `fold 0 1`, `0 1` or `fold all`."""
    folds = list(words[1:]) if words[:1] in (["fold"], ["folds"]) else list(words)
    bad = [fold for fold in folds if not common.is_fold(fold)]
    if bad or not folds:
        named = any(word.startswith(("2d", "3d_")) for word in bad)
        more = "; choose a configuration by --plan NAME" if named else ""
        raise AutosegError(common.TEXT("folds", given=" ".join(words), more=more))
    return list(dict.fromkeys(str(int(fold)) if fold != "all" else fold for fold in folds))


main = common.command("autoseg_train", _train, CONTINUE)

if __name__ == "__main__":
    raise SystemExit(main())
