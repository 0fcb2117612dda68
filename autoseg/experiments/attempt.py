"""One attempt at a run, in a process of its own: train, validate, score the held-out test sets.

    python -m autoseg.experiments.attempt < ORDER

This is `autoseg_train --resume` of one fold plus what a study needs: a record of the attempt and
the held-out test sets. The order is one line of JSON on standard input. When standard input is
closed, by the study or by the end of its process, the run saves its state and stops.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from autoseg.common.errors import AutosegError, InUse, Stopped, stopped_by_signals
from autoseg.common.files import write_json
from autoseg.common.locks import locked
from autoseg.common.parallel import energy_kwh, memory_of_this_process
from autoseg.common.progress import tolerate_output
from autoseg.evaluation.evaluate import label_maps
from autoseg.evaluation.scores import Summary
from autoseg.experiments import status
from autoseg.experiments.runs import StudyRun, held_out_classes, joined, runs_of
from autoseg.experiments.study import TEXT, HeldOut, Study
from autoseg.models.folder import fold_name
from autoseg.networks.devices import describe, pick_device
from autoseg.prediction.inputs import find_inputs
from autoseg.prediction.predictor import Predictor
from autoseg.training.distributed import joined as together
from autoseg.training.transfer import RECORD
from autoseg.workflow.fold import FoldJob, predict_and_score, run_fold
from autoseg.workflow.workspace import Workspace

FAILED, BAD_INPUT = 1, 2
IN_USE = 75  # exit status if another process works on the run; EX_TEMPFAIL of sysexits.h


class RunOrder(BaseModel):
    """A run and the resources for it.

    Attributes:
        workspace: its root folder.
        run: what to train and test.
        log: file to append the output to.
        device: None for the best one; `cuda` for the GPU of the slot.
        slot: index among the runs that are carried out at the same time.
        processes: worker processes.
        slurm_job: id of the Slurm job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    workspace: Path
    run: StudyRun
    log: Path
    device: str | None = None
    slot: int = 0
    processes: int = 1
    slurm_job: str | None = None


def make_orders(
    studies: Sequence[Study], workspace: Workspace, processes: int, device: str | None = None
) -> dict[StudyRun, RunOrder]:
    """The orders for all runs of the studies, in sequence.

    The log of a run that belongs to several studies is in the folder of the first one.
    """
    every = [(study.name, run) for study in studies for run in runs_of(study, workspace)]
    owners = {run: name for name, run in reversed(every)}
    about: dict[str, Any] = {"workspace": workspace.root, "device": device, "processes": processes}
    orders = {}
    for run in joined([run for _, run in every]):
        log = workspace.study(owners[run]) / "logs" / f"{run.plan}.{fold_name(run.fold)}.log"
        orders[run] = RunOrder(run=run, log=log, **about)
    return orders


def main() -> int:
    """Read an order from standard input and carry it out; returns the exit status."""
    order = RunOrder.model_validate_json(sys.stdin.readline())
    multiprocessing.set_start_method("spawn", force=True)
    tolerate_output()
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):  # the parent handles Ctrl-C and Slurm's signals
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    print(f"---- {order.run}, {datetime.now():%Y-%m-%d %H:%M:%S}", file=sys.stderr, flush=True)
    try:
        with stopped_by_signals("finished work is kept"):
            attempt(order)
    except InUse as error:
        print(f"waiting: {error}", file=sys.stderr)
        return IN_USE
    except Stopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return error.status
    except AutosegError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except Exception:
        traceback.print_exc()
        return FAILED
    return 0


def _stop_at_end_of_input() -> None:
    # Not sys.stdin.read: a thread that waits there keeps the interpreter from exiting.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def attempt(order: RunOrder) -> None:
    """Do what is missing of a run, and record how the attempt ended.

    Raises:
        InUse: another process works on the run.
        Stopped: a signal came; training has saved its state, and the next attempt continues there.
        AutosegError, RunError: the run failed.
    """
    run, workspace = order.run, Workspace(order.workspace)
    folder = run.folder(workspace)
    if torch.distributed.is_torchelastic_launched() and os.environ["RANK"] != "0":
        if not status.is_trained(run, workspace):
            _train(order, workspace)
        return
    with locked(folder / status.LOCK, str(run)):  # the other processes wait for this one
        if status.is_finished(run, workspace):
            return
        earlier, before = status.read_record(folder), energy_kwh()
        with status.recorded(folder, str(order.log), order.slurm_job) as update:
            device = pick_device(_device_name(order))
            update(device=describe(device), threads=torch.get_num_threads())
            _check_pretrained(run, folder)
            if not status.is_trained(run, workspace):
                _train(order, workspace)
            for test_set in run.held_out:
                if not status.is_scored(run, test_set, workspace):
                    score_held_out(run, test_set, workspace, str(device), order.processes)
            is_gpu = device.type == "cuda"
            memory = torch.cuda.max_memory_allocated(device) if is_gpu else memory_of_this_process()
            used = None
            if before is not None and (after := energy_kwh()) is not None and after >= before:
                used = after - before + ((earlier and earlier.energy_kwh) or 0.0)
            update(memory_gb=memory / 1e9, energy_kwh=used)


def _device_name(order: RunOrder) -> str | None:
    """The device of the order; with several GPUs, the one of the slot, or each process its own."""
    is_shared = torch.distributed.is_torchelastic_launched()
    if order.device in (None, "cuda") and torch.cuda.is_available() and not is_shared:
        return f"cuda:{order.slot % torch.cuda.device_count()}"
    return order.device


def _check_pretrained(run: StudyRun, folder: Path) -> None:
    """Raise an AutosegError if training started with other initial weights than the study's."""
    was_pretrained = (folder / RECORD).is_file()
    differs = was_pretrained != (run.pretrained is not None)
    if differs and any(folder.glob("*.safetensors")):
        how = "from" if was_pretrained else "without"
        raise AutosegError(TEXT("pretrained differs", folder=folder, how=how))


def _train(order: RunOrder, workspace: Workspace) -> None:
    run = order.run
    task, fold = workspace.find_task_folder(run.task), str(run.fold)
    how: dict[str, Any] = {"resume": True, "started": time.monotonic()}
    how["pretrained"] = run.pretrained and workspace.root / run.pretrained
    with together(_device_name(order)) as (how["group"], device):
        run_fold(FoldJob(workspace, task, run.plan, fold, device, order.processes, **how))


def score_held_out(
    run: StudyRun, test_set: HeldOut, workspace: Workspace, device: str, processes: int
) -> Summary:
    """Predict the scans of a test set with one model and score them; existing label maps are kept.

    Label maps are scored without postprocessing. The network runs in torch, so that the scores do
    not depend on whether OpenVINO is installed.

    Raises:
        DataError: a scan or a label map is missing or broken.
    """
    images, labels = (workspace.root / each for each in (test_set.images, test_set.labels))
    for path in (images, labels):
        if not path.is_dir():
            raise AutosegError(f"{path}, a folder of a held-out test set, does not exist")
    folder, model = status.test_folder(run, test_set, workspace), run.folder(workspace).parent
    predictor = Predictor(model, [str(run.fold)], device, postprocess=False, backend="torch")
    found = find_inputs(images, predictor.plan.channels, name_by="folder")
    references = label_maps(labels)
    if missing := [name for name in found.cases if name not in references]:
        about = {"count": len(missing), "first": missing[0]}
        raise AutosegError(TEXT("no label map", labels=labels, images=images, **about))
    if not status.is_described(run, test_set, workspace):  # of another plan, or of other scans
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / status.TEST_SET, status.described(run, test_set, workspace))
    classes, refused = held_out_classes(test_set, predictor.plan), found.refused
    given = predictor, found.cases, references, classes, folder, processes
    return predict_and_score(*given, overwrite=False, refused=refused)


if __name__ == "__main__":
    raise SystemExit(main())
