"""The runs of a study on a Slurm cluster: a job array, one task a run, and a job that gathers.

A job that is preempted or whose time is over is told so by a signal: training saves its state, the
job is queued again under its number, and goes on from there. submitit carries the calls to the
cluster as files in the study's own folder, which its jobs alone read.
"""

from __future__ import annotations

import os
import queue
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoseg.common.errors import AutosegError, RunError, Stopped
from autoseg.common.files import write_json
from autoseg.experiments.attempt import Order, _logs, order_for
from autoseg.experiments.local import Answer, Event, Hand
from autoseg.experiments.report import report_study
from autoseg.experiments.results import gather, read_jobs, study_folder
from autoseg.experiments.runs import StudyRun, prepare_plans, runs_of
from autoseg.experiments.status import is_finished, is_held, read_record
from autoseg.experiments.study import SlurmSettings, Study, check_study
from autoseg.planner.budget import parse_seconds
from autoseg.workflow.workspace import Workspace

MOST_TIMEOUTS = 1000  # a run may need as many jobs
SIGTERM = 15
SECONDS_BETWEEN_TRIES = 20.0


class RunJob:
    """What a job of the array does: one run, in a process of its own."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.hand: Hand | None = None

    def __call__(self, order: str) -> str:
        """Do the run of an order; returns how it ended.

        Raises:
            RunError: it failed, or was stopped.
        """
        found = Order.model_validate_json(order).model_copy(update={"slurm_job": job_number()})
        answer = self._do(found)
        while answer.state == "elsewhere" and _is_own(found):  # left by a machine that failed
            time.sleep(SECONDS_BETWEEN_TRIES)
            answer = self._do(found)
        if answer.state == "stopped":
            raise Stopped(answer.text, SIGTERM)
        if answer.state == "failed":
            raise RunError(f"{found.run}: {answer.text}; log: {found.log}")
        return answer.state

    def _do(self, order: Order) -> Answer:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.hand = Hand(0, self.threads, events)
        try:
            self.hand.give(order)
            return events.get().answer
        finally:
            self.end()

    def checkpoint(self, order: str) -> Any:
        """Called by submitit before the job is queued again: the run saves, and goes on then."""
        from submitit.helpers import DelayedSubmission

        self.end()
        return DelayedSubmission(RunJob(self.threads), order)

    def end(self) -> None:
        """Let the process save and end."""
        if self.hand is not None:
            self.hand.stop()
            self.hand.wait()

    def __getstate__(self) -> dict[str, Any]:
        return {"threads": self.threads, "hand": None}


def _is_own(order: Order) -> bool:
    """Was the run begun by an earlier start of this job?"""
    record = read_record(order.run.folder(Workspace(Path(order.workspace))))
    return record is not None and record.slurm_job == order.slurm_job


def gather_study(values: dict[str, Any], root: str) -> str:
    """What the last job does: gather a study's results, draw them, and return where they are."""
    study, workspace = check_study(values, "the study"), Workspace(Path(root))
    statuses = gather(study, workspace)
    report_study(study_folder(study, workspace))
    if unfinished := [str(each.run) for each in statuses if each.state != "done"]:
        raise RunError(f"not finished: {', '.join(unfinished)}")
    return str(root)


def job_number() -> str | None:
    """The number of the job that this process is in, as Slurm writes it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def submit(orders: Sequence[Order], settings: SlurmSettings, folder: Path, name: str) -> list[str]:
    """Hand runs to the cluster as one job array.

    Args:
        orders: the runs.
        settings: what each asks for.
        folder: for the cluster's own files, seen by all its machines.
        name: of the jobs.

    Returns:
        the number of the job of each run.

    Raises:
        AutosegError: submitit is not installed, or there is no Slurm here.
        RunError: Slurm refuses.
    """
    executor = _executor(settings, folder, name)
    return _submitted(
        lambda: executor.map_array(
            RunJob(settings.cpus), [order.model_dump_json() for order in orders]
        )
    )


def submit_gathering(
    studies: Sequence[Study], workspace: Workspace, after: Sequence[str]
) -> list[str]:
    """Hand a job to the cluster for each study that gathers its results after these jobs."""
    numbers = []
    for study in studies:
        settings = study.slurm.model_copy(update={"gpus": 0, "cpus": 1})
        folder = study_folder(study, workspace) / "slurm"
        executor = _executor(settings, folder, f"{study.name}-gather")
        arrays = sorted({number.partition("_")[0] for number in after})
        dependency = f"afterany:{':'.join(arrays)}"
        executor.update_parameters(slurm_dependency=dependency)
        values = study.model_dump(mode="json")
        numbers += _submitted(
            lambda run=executor, values=values: [
                run.submit(gather_study, values, str(workspace.root))
            ]
        )
    return numbers


def living_jobs() -> set[str]:
    """The numbers of the user's jobs that wait or run.

    Raises:
        AutosegError: there is no Slurm here.
        RunError: Slurm does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise AutosegError(
            "--slurm: there is no squeue on this machine; start the study where Slurm's commands "
            "are, or leave --slurm out"
        ) from None
    if done.returncode:
        raise RunError(f"squeue failed: {done.stderr.strip()}")
    return set(done.stdout.split())


def _executor(settings: SlurmSettings, folder: Path, name: str) -> Any:
    try:
        import submitit
    except ImportError:
        raise AutosegError("--slurm needs submitit: pip install 'autoseg[slurm]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=MOST_TIMEOUTS)
    given: dict[str, Any] = {
        "name": name,
        "timeout_min": max(1, round(parse_seconds(settings.time) / 60)),
        "cpus_per_task": settings.cpus,
        "slurm_array_parallelism": settings.parallel,
        "slurm_signal_delay_s": settings.save_seconds,
        "slurm_additional_parameters": {"requeue": True, **settings.options},
    }
    if settings.gpus:
        given["gpus_per_node"] = settings.gpus
    if settings.memory_gb is not None:
        given["mem_gb"] = settings.memory_gb
    if settings.partition is not None:
        given["slurm_partition"] = settings.partition
    if settings.setup:
        given["slurm_setup"] = list(settings.setup)
    executor.update_parameters(**given)
    return executor


def _submitted(submit: Any) -> list[str]:
    from submitit.core.utils import FailedJobError

    try:
        return [job.job_id for job in submit()]
    except FailedJobError as error:
        raise RunError(f"Slurm refused the jobs: {error}") from error


# Studies carried out: planned, run on this machine or handed to a cluster, and gathered.


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
    living = living_jobs()
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
            given = submit(orders, study.slurm, folder, study.name)
            numbers += given
            taken |= dict(zip(map(str, new), given, strict=True))
        theirs = {str(run): taken[str(run)] for run in runs if str(run) in taken}
        write_json(study_folder(study, workspace) / "jobs.json", theirs)
        gather(study, workspace)
    after = sorted(set(taken.values()))
    if after and numbers:
        numbers += submit_gathering(studies, workspace, after)
    return numbers


def _is_free(run: StudyRun, workspace: Workspace) -> bool:
    """Is there something left to do, which nobody does?"""
    return not is_finished(run, workspace) and not is_held(run, workspace)
