"""One attempt at a run, in this process: train what is missing, then score the held-out sets."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from autoseg.common.errors import AutosegError, InUse, Stopped
from autoseg.common.files import write_json
from autoseg.common.locks import locked
from autoseg.common.parallel import in_parallel
from autoseg.evaluation.evaluate import evaluate_case, label_maps, tolerances
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.experiments.results import study_folder
from autoseg.experiments.runs import StudyRun, joined, runs_of
from autoseg.experiments.status import (
    LOCK,
    SUMMARY,
    TEST_SET,
    Recorder,
    described,
    is_described,
    is_finished,
    is_scored,
    is_trained,
    test_folder,
)
from autoseg.experiments.study import HeldOut, Study
from autoseg.models.folder import fold_name
from autoseg.plan.plan import Plan
from autoseg.prediction.batch import output_path, predict_cases
from autoseg.prediction.inputs import find_inputs
from autoseg.prediction.predictor import Predictor
from autoseg.workflow.workspace import Workspace

if TYPE_CHECKING:
    import torch


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


# A model on a test set: predicted as for a user, scored by the test set's own labels.


def score_held_out(
    run: StudyRun, test_set: HeldOut, workspace: Workspace, device: str, processes: int
) -> Summary:
    """Predict the scans of a test set by one model and score them; scans that are there are kept.

    Label maps are scored as the network gives them, without the postprocessing that folds learn.

    Raises:
        DataError: a scan or a label map is missing or broken.
    """
    scans, truths = _folder(workspace, test_set.images), _folder(workspace, test_set.labels)
    folder = test_folder(run, test_set, workspace)
    model = run.folder(workspace).parent
    # Torch, which trained it: its scores do not depend on whether OpenVINO is installed.
    predictor = Predictor(model, [str(run.fold)], device, postprocess=False, backend="torch")
    found = find_inputs(scans, predictor.plan.channels)
    truth = label_maps(truths)
    if missing := [name for name in found.cases if name not in truth]:
        raise AutosegError(
            f"{truths}: {len(missing)} scans of {scans} have no label map ({missing[0]}, ...); "
            "add them, or take these scans out"
        )
    wanted = described(run, test_set, workspace)
    if not is_described(folder, wanted):  # of another plan, or of other scans
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / TEST_SET, wanted)
    outcome = predict_cases(predictor, found.cases, folder, overwrite=False, refused=found.refused)
    outcome.raise_failures()
    labels = _labels(test_set, predictor.plan)
    score = partial(_score, truth=truth, folder=folder, labels=labels)
    cases = tuple(in_parallel(score, list(found.cases), processes, "evaluating"))
    summary = Summary(cases, (), tolerances(labels))
    summary.save(folder / SUMMARY)
    return summary


def _labels(test_set: HeldOut, plan: Plan) -> Labels:
    """The classes to score: the values of the test set in its labels, the plan's in predictions."""
    painted = {name: plan.labels[name] for name in test_set.classes}
    planned = Labels.planned(painted, plan.evaluation)
    return replace(planned, values=dict(test_set.classes), in_prediction=painted)


def _folder(workspace: Workspace, given: str) -> Path:
    """A folder of the workspace, or anywhere if the study gives a whole path."""
    path = workspace.root / given
    if not path.is_dir():
        raise AutosegError(f"there is no folder {path}, which a test set of the study names")
    return path


def _score(case: str, truth: dict[str, Path], folder: Path, labels: Labels) -> CaseScores:
    scores = evaluate_case(truth[case], output_path(folder, case), labels)
    return replace(scores, case=case)


def log_of(run: StudyRun, study: Study, workspace: Workspace) -> Path:
    """The file that the output of a run goes to."""
    return study_folder(study, workspace) / "logs" / f"{run.plan}.{fold_name(run.fold)}.log"


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
