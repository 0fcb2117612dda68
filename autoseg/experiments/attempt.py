"""One attempt at a run, in this process: train what is missing, then score the held-out sets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from autoseg.common.errors import AutosegError, InUse, Stopped
from autoseg.common.locks import locked
from autoseg.experiments.finished import is_finished, is_scored, is_trained
from autoseg.experiments.record import Recorder
from autoseg.experiments.runs import StudyRun
from autoseg.experiments.study import HeldOut
from autoseg.workflow.workspace import Workspace

if TYPE_CHECKING:
    import torch

LOCK = ".run.lock"


class Order(BaseModel):
    """A run to do and the means for it: what one process tells another.

    Attributes:
        device: None for the best one; `cuda` for the graphics card of this slot.
        slot: which of the runs that are done side by side this is.
        processes: worker processes.
        log: file for the output, which is appended to.
        slurm_job: the cluster's number of the job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workspace: str
    task: str
    plan: str
    fold: int
    held_out: tuple[HeldOut, ...] = ()
    pretrained: str | None = None
    device: str | None = None
    slot: int = 0
    processes: int = 1
    log: str
    slurm_job: str | None = None

    @property
    def run(self) -> StudyRun:
        """What to do."""
        return StudyRun(self.task, self.plan, self.fold, self.held_out, self.pretrained)


def attempt(order: Order) -> None:
    """Do what is missing of a run, and write how it ended into its record.

    Raises:
        InUse: another process works on it.
        Stopped: by a signal; training has saved its state, and the next attempt goes on from there.
        AutosegError, RunError: it failed.
    """
    from autoseg.networks.devices import describe

    run, workspace = order.run, Workspace(Path(order.workspace))
    folder = run.folder(workspace)
    with locked(folder / LOCK, str(run)):
        if is_finished(run, workspace):
            return
        device = _device(order)
        recorder = Recorder(folder, order.log, describe(device), order.slurm_job)
        try:
            _do(order, run, workspace, str(device))
        # In use: somebody trains this fold by autoseg_train.
        except (Stopped, KeyboardInterrupt, InUse) as error:
            recorder.end("stopped", str(error))
            raise
        except BaseException as error:
            recorder.end("failed", f"{type(error).__name__}: {error}")
            raise
        recorder.end("done")


def _do(order: Order, run: StudyRun, workspace: Workspace, device: str) -> None:
    import torch

    from autoseg.experiments.held_out import score_held_out
    from autoseg.workflow.fold import FoldJob, run_fold

    _check_beginning(run, workspace)
    if not is_trained(run, workspace):
        pretrained = None if run.pretrained is None else workspace.root / run.pretrained
        job = FoldJob(
            workspace=workspace,
            task=workspace.find_task_folder(run.task),
            plan=run.plan,
            fold=str(run.fold),
            device=torch.device(device),
            processes=order.processes,
            resume=True,
            started=time.monotonic(),
            pretrained=pretrained,
        )
        run_fold(job)
    for each in run.held_out:
        if not is_scored(run, each, workspace):
            score_held_out(run, each, workspace, device, order.processes)


def _check_beginning(run: StudyRun, workspace: Workspace) -> None:
    """Raise an AutosegError if the run is there and began otherwise than this one is to begin."""
    from autoseg.training.transfer import RECORD

    folder = run.folder(workspace)
    if not any(folder.glob("*.safetensors")):
        return
    began_so = (folder / RECORD).is_file()
    if began_so != (run.pretrained is not None):
        raise AutosegError(
            f"{folder} was trained {'from' if began_so else 'without'} a pretrained model, unlike "
            "the study says; give the study's plan another name, or move that folder away"
        )


def _device(order: Order) -> torch.device:
    """The device that was asked for; of several graphics cards that of the slot."""
    import torch

    from autoseg.networks.devices import pick_device

    if order.device in (None, "cuda") and torch.cuda.is_available():
        return pick_device(f"cuda:{order.slot % torch.cuda.device_count()}")
    return pick_device(order.device)
