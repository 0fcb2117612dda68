"""Studies carried out: planned, run on this machine or handed to a cluster, and gathered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autoseg.common.files import write_json
from autoseg.experiments import slurm
from autoseg.experiments.attempt import Order
from autoseg.experiments.finished import is_finished
from autoseg.experiments.local import run_here
from autoseg.experiments.results import gather, read_jobs, study_folder
from autoseg.experiments.runs import StudyRun, joined, prepare_plans, runs_of
from autoseg.experiments.status import in_short, is_held, status_of, table
from autoseg.experiments.study import Study
from autoseg.workflow.workspace import Workspace


def log_of(run: StudyRun, study: Study, workspace: Workspace) -> Path:
    """The file that the output of a run goes to."""
    return study_folder(study, workspace) / "logs" / f"{run.plan}.fold_{run.fold}.log"


def conduct_here(
    studies: Sequence[Study],
    workspace: Workspace,
    jobs: int,
    processes: int,
    device: str | None = None,
) -> dict[StudyRun, Path]:
    """Do all that is missing of the studies on this machine, and gather their results.

    Args:
        studies: they share their runs.
        workspace: where.
        jobs: runs at a time; each has a graphics card of its own where there are several, and its
            share of the cores.
        processes: worker processes of all runs together.
        device: `cpu`, `cuda` or one card; None takes the best ones.

    Returns:
        the runs that failed, and their log files.

    Raises:
        AutosegError: the studies contradict each other, a plan, or the data.
    """
    prepare_plans(studies, workspace, processes, device)
    logs = _logs(studies, workspace)
    share = max(1, processes // jobs)

    def order(run: StudyRun, slot: int) -> Order:
        return order_for(run, workspace, logs[run], share).model_copy(
            update={"device": device, "slot": slot}
        )

    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        with _shown(list(logs), workspace) as show:
            failed = run_here(list(logs), workspace, jobs, threads, order, show)
    finally:
        for study in studies:
            gather(study, workspace)
    return {run: logs[run] for run in failed}


def conduct_on_slurm(
    studies: Sequence[Study], workspace: Workspace, processes: int, device: str | None = None
) -> list[str]:
    """Hand all runs that are missing and that no job has yet to Slurm, and a last job that gathers.

    Returns:
        the numbers of the new jobs.

    Raises:
        AutosegError: as `conduct_here`, or Slurm is not there.
        RunError: Slurm refuses.
    """
    living = slurm.living_jobs()
    prepare_plans(studies, workspace, processes, device)
    logs = _logs(studies, workspace)
    known = {name: job for study in studies for name, job in read_jobs(study, workspace).items()}
    taken = {name: job for name, job in known.items() if job in living}
    numbers: list[str] = []
    for study in studies:
        keys = {run.key for run in runs_of(study, workspace)}
        runs = [run for run in logs if run.key in keys]
        new = [run for run in runs if str(run) not in taken and _is_free(run, workspace)]
        if new:
            cpus = study.slurm.cpus
            orders = [order_for(run, workspace, logs[run], cpus) for run in new]
            folder = study_folder(study, workspace) / "slurm"
            given = slurm.submit(orders, study.slurm, folder, study.name)
            numbers += given
            taken |= dict(zip(map(str, new), given, strict=True))
        theirs = {str(run): taken[str(run)] for run in runs if str(run) in taken}
        write_json(study_folder(study, workspace) / "jobs.json", theirs)
        gather(study, workspace)
    after = sorted(set(taken.values()))
    if after and numbers:
        numbers += slurm.submit_gathering(studies, workspace, after)
    return numbers


def _is_free(run: StudyRun, workspace: Workspace) -> bool:
    """Is there something left to do, which nobody does?"""
    return not is_finished(run, workspace) and not is_held(run, workspace)


def order_for(run: StudyRun, workspace: Workspace, log: Path, processes: int) -> Order:
    """The order to do a run."""
    return Order(
        workspace=str(workspace.root),
        task=run.task,
        plan=run.plan,
        fold=run.fold,
        held_out=run.held_out,
        pretrained=run.pretrained,
        processes=processes,
        log=str(log),
    )


def _logs(studies: Sequence[Study], workspace: Workspace) -> dict[StudyRun, Path]:
    """All runs in their order, and where each is logged: by the first study that names it."""
    of_study = [(study, run) for study in studies for run in runs_of(study, workspace)]
    owners = {run.key: study for study, run in reversed(of_study)}
    runs = joined([run for _, run in of_study])
    return {run: log_of(run, owners[run.key], workspace) for run in runs}


@contextmanager
def _shown(runs: Sequence[StudyRun], workspace: Workspace) -> Iterator[Callable[[], None]]:
    """On a terminal, a table of what runs and what failed; its yield brings it up to date."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    with Live(console=console, auto_refresh=False) as live:

        def show() -> None:
            statuses = [status_of(run, workspace) for run in runs]
            shown = [each for each in statuses if each.state in ("running", "failed")]
            live.update(table(shown, in_short(statuses)), refresh=True)

        yield show
