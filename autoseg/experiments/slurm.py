"""The runs of studies on a Slurm cluster: a job array with a task per run, and a gathering job.

Slurm announces by a signal that a job is preempted or that its time is over. The run then saves
its state, the job is queued again under its id, and the run continues there. submitit exchanges
the calls as pickle files in the study's own folder, which only its jobs read.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoseg.common.errors import AutosegError, RunError, Stopped, install_hint
from autoseg.common.files import read_json, write_json
from autoseg.common.progress import say
from autoseg.experiments.attempt import RunOrder, make_orders
from autoseg.experiments.local import SECONDS_BETWEEN_LOOKS, Outcome, RunProcess
from autoseg.experiments.report import report_study
from autoseg.experiments.results import JOBS, gather, read_jobs
from autoseg.experiments.runs import prepare_plans, runs_of
from autoseg.experiments.status import held_by, is_finished, read_record
from autoseg.experiments.study import TEXT, SlurmSettings, Study, check_study
from autoseg.models.folder import PLAN
from autoseg.plan.plan import load_plan
from autoseg.planner.budget import parse_seconds
from autoseg.training.distributed import Group
from autoseg.workflow.workspace import Workspace

# Parameter of submitit -> ours.
PARAMETERS = read_json(Path(__file__).with_name("slurm.json"))
MOST_TIMEOUTS = 1000  # jobs that a run may use up
SECONDS_BETWEEN_TRIES = 20.0
SQUEUE_SECONDS = 120.0


def submit_studies(
    studies: Sequence[Study], workspace: Workspace, processes: int, device: str | None = None
) -> list[str]:
    """Submit all missing runs that have no job yet, and for each study a job that gathers.

    Returns:
        ids of the new jobs.

    Raises:
        AutosegError: the studies contradict each other, a plan, or the data; the processes of a run
            cannot share its batches; or Slurm is missing.
        RunError: Slurm refuses.
    """
    alive = living_jobs()
    prepare_plans(studies, workspace, processes, device)
    for study in studies:
        group = Group(size=study.slurm.nodes * study.slurm.tasks)
        for run in runs_of(study, workspace):
            plan = load_plan(workspace.preprocessed(run.task, run.plan) / PLAN)
            group.places(plan.sampling.batch_size)
    orders = make_orders(studies, workspace, processes)
    known = [item for study in studies for item in read_jobs(study, workspace).items()]
    jobs = {run: job for run, job in dict(known).items() if job in alive}
    submitted: list[str] = []
    for study in studies:
        runs, cpus = list(dict.fromkeys(runs_of(study, workspace))), study.slurm.cpus
        new = [run for run in runs if str(run) not in jobs]
        new = [of for of in new if not (is_finished(of, workspace) or held_by(of, workspace))]
        if new:
            executor = _executor(study.slurm, workspace, study.name, study.name)
            started = [orders[run].model_copy(update={"processes": cpus}) for run in new]
            with _refusals():
                job_of_each = RunJob(cpus // study.slurm.tasks or 1)
                array = executor.map_array(job_of_each, [o.model_dump_json() for o in started])
            submitted += [str(job.job_id) for job in array]
            jobs |= {str(run): str(job.job_id) for run, job in zip(new, array, strict=True)}
        own = {str(run): jobs[str(run)] for run in runs if str(run) in jobs}
        write_json(workspace.study(study.name) / JOBS, own)
        gather(study, workspace)
    arrays = sorted({number.partition("_")[0] for number in jobs.values()})
    for study in studies if submitted else ():
        settings = study.slurm.model_copy(update={"nodes": 1, "gpus": 0, "cpus": 1})
        executor = _executor(settings, workspace, study.name, f"{study.name}-gather")
        executor.update_parameters(slurm_dependency=f"afterany:{':'.join(arrays)}")
        with _refusals():
            job = executor.submit(gather_study, study.model_dump(mode="json"), str(workspace.root))
        submitted.append(str(job.job_id))
    return submitted


class RunJob:
    """The function of an array job: one run, in a process of its own.

    With several GPUs or machines, each task of the job is one of the processes that share the run.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.process: RunProcess | None = None

    def __call__(self, line: str) -> str:
        """Carry out the run of an order, given as JSON; returns its final state.

        Raises:
            Stopped: a signal came; the run has saved its state.
            RunError: the run failed, or another process works on it.
        """
        order = RunOrder.model_validate_json(line).model_copy(update={"slurm_job": job_id()})
        if int(os.environ.get("SLURM_NTASKS", 1)) > 1:  # as torchrun tells its processes
            _submitit().helpers.TorchDistributedEnvironment().export(False, overwrite=True)
            os.environ["TORCHELASTIC_RUN_ID"] = str(order.slurm_job)
        outcome = self._run(order)
        if int(os.environ.get("SLURM_PROCID", 0)):
            return outcome.state  # the first process of the run reports and queues it again
        folder = order.run.folder(Workspace(order.workspace))
        while outcome.state == "elsewhere":
            if (record := read_record(folder)) is None or record.slurm_job != order.slurm_job:
                break
            say(f"{order.run}: {outcome.reason}; trying again in {SECONDS_BETWEEN_TRIES:.0f} s")
            time.sleep(SECONDS_BETWEEN_TRIES)
            outcome = self._run(order)
        if outcome.state == "stopped":
            raise Stopped(outcome.reason, signal.SIGTERM)
        if outcome.state == "failed":
            raise RunError(f"{order.run}: {outcome.reason}; log: {order.log}")
        return outcome.state

    def _run(self, order: RunOrder) -> Outcome:
        self.process = RunProcess(order, self.threads)
        try:
            while not self.process.has_ended():  # a blocking wait would block `checkpoint` as well
                time.sleep(SECONDS_BETWEEN_LOOKS)
            return self.process.outcome
        finally:
            self._end()

    def checkpoint(self, line: str) -> Any:
        """Let the run save its state; submitit calls this before it queues the job again."""
        self._end()
        return _submitit().helpers.DelayedSubmission(RunJob(self.threads), line)

    def _end(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.process.wait()


def gather_study(values: dict[str, Any], root: str) -> str:
    """The function of the last job: gather a study's results and draw them; returns `root`.

    Raises:
        RunError: some runs are not finished.
    """
    study, workspace = check_study(values, "the study"), Workspace(Path(root))
    statuses = gather(study, workspace)
    report_study(workspace.study(study.name))
    if unfinished := [str(each.run) for each in statuses if each.state != "done"]:
        raise RunError(f"not finished: {', '.join(unfinished)}")
    return root


def job_id() -> str | None:
    """The id of the job that this process belongs to, as Slurm writes it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def living_jobs() -> set[str]:
    """The ids of the user's pending and running jobs.

    Raises:
        AutosegError: Slurm is not installed.
        RunError: Slurm does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"squeue does not answer: {error}; try again later") from error
    except FileNotFoundError:
        raise AutosegError(TEXT("no squeue")) from None
    if done.returncode:
        raise RunError(f"squeue failed: {done.stderr.strip()}")
    return set(done.stdout.split())


def _executor(settings: SlurmSettings, workspace: Workspace, study: str, name: str) -> Any:
    submitit, folder = _submitit(), workspace.study(study) / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=MOST_TIMEOUTS)
    values = settings.model_dump(mode="json") | {"tasks": settings.tasks}
    executor.update_parameters(
        name=name,
        timeout_min=max(1, round(parse_seconds(settings.time) / 60)),
        cpus_per_task=settings.cpus // settings.tasks or 1,
        slurm_additional_parameters={"requeue": True, **settings.options},
        **{key: values[name] for key, name in PARAMETERS.items() if values[name]},
    )
    return executor


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise AutosegError(f"--slurm needs submitit: {install_hint('slurm')}") from None
    return submitit


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn submitit's error in the block into a RunError."""
    try:
        yield
    except _submitit().core.utils.FailedJobError as error:
        raise RunError(f"Slurm refused the jobs: {error}") from error
