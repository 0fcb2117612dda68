"""One fold from raw cases to its validation scores: preprocess, train, predict, evaluate."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, remove_leftovers, write_json
from autoseg.common.locks import locked
from autoseg.common.parallel import GB, free_memory, in_parallel
from autoseg.common.progress import in_words, listed, say
from autoseg.dataset.splits import SPLITS_FILE, Split, count_folds, read_splits
from autoseg.dataset.task import Case, Task, read_task
from autoseg.evaluation.evaluate import evaluate_case, tolerances
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.models import folder as layout
from autoseg.models.log import failures_of
from autoseg.networks.devices import autocast_type
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan, is_extension, load_plan
from autoseg.planner.patch_rule import training_memory
from autoseg.prediction.batch import Options, predict_cases
from autoseg.prediction.inputs import FoundInputs, Inputs
from autoseg.prediction.model import check_previous, load_model, save_previous
from autoseg.prediction.output import output_path
from autoseg.prediction.postprocessing import Reliability
from autoseg.prediction.predictor import Predictor
from autoseg.prediction.sliding_window import count_tiles
from autoseg.preprocessing.preprocess import add_previous, preprocess
from autoseg.preprocessing.store import CaseStore
from autoseg.training.distributed import ALONE, Group
from autoseg.training.monitor import check_tensorboard
from autoseg.training.state import Run, State
from autoseg.training.train import train
from autoseg.training.transfer import read_pretrained, transfer
from autoseg.workflow.task_plan import ALL, differences, find_split
from autoseg.workflow.workspace import FOLD_LOCK, TEXT, Workspace

NUMBER_OF_ALL = 999_999  # seeds the fold `all`; above every real fold number
SHARED_KEYS = ("channels", "labels", "ignore_label", "regions_class_order", "skipped_cases")


@dataclass(frozen=True)
class FoldJob:
    """A fold to train and the resources for it; only `pretrained` changes the result.

    Attributes:
        task: folder of the raw task.
        plan: name of the plan.
        fold: its number, or `all` to train on every case.
        processes: worker processes.
        resume: continue an interrupted run.
        started: `time.monotonic()` at the start of the command; a time budget counts from here.
        group: the processes that train the fold together; the first one does everything else.
        pretrained: trained model with the initial weights of a new run.
        tensorboard: whether to write event files for TensorBoard.
        verify: read all bytes of the preprocessed cases, to find damage.
        save_seconds: time between two checkpoints.
    """

    workspace: Workspace
    task: Path
    plan: str
    fold: str
    device: torch.device
    processes: int
    resume: bool
    started: float
    group: Group = ALONE
    pretrained: Path | None = None
    tensorboard: bool = False
    verify: bool = False
    save_seconds: float = 300.0

    @property
    def folder(self) -> Path:
        """Folder of this fold's model and results."""
        return self.workspace.fold(self.task.name, self.plan, self.fold)

    @property
    def plan_folder(self) -> Path:
        """Folder of the plan and its preprocessed cases."""
        return self.workspace.preprocessed(self.task.name, self.plan)

    def store(self, plan: Plan) -> CaseStore:
        """The preprocessed cases."""
        return CaseStore(self.plan_folder / "cases", plan.preprocessing_id, verify=self.verify)


def run_fold(job: FoldJob) -> Summary | None:
    """Train a fold and score its validation cases.

    Returns:
        the scores; None for the fold `all`, which has none, and in processes that do not lead.

    Raises:
        AutosegError: the fold does not exist, was begun already, or belongs to another plan.
        RunError: training failed, or another process works on this fold.
    """
    plan, task = _read(job)
    job.group.places(plan.sampling.batch_size)
    if not job.group.leads:
        job.group.wait()  # until the leading process has preprocessed the cases
        _train(plan, job.store(plan), find_split(plan, task, job.plan_folder, job.fold), job)
        return None
    _check_resources(plan, job)
    split = find_split(plan, task, job.plan_folder, job.fold)
    cases = {case.name: case for case in task.cases}
    with locked(job.folder / FOLD_LOCK, f"fold {job.fold} of {task.name}"):
        remove_leftovers(job.folder, (layout.LATEST, layout.BEST, layout.FINAL))
        claim(plan, job.folder.parent, job.fold, job.resume)
        measured = job.plan_folder / layout.FINGERPRINT  # prediction holds new scans against it
        if measured.is_file():  # the fold `all` can be trained without
            write_json(job.folder.parent / layout.FINGERPRINT, read_json(measured))
        store = job.store(plan)
        names = (*split.train, *split.validation)
        previous = claim_segmentations(job.workspace, plan, task, names)
        used = [cases[name] for name in names]
        preprocess(plan, used, store, job.processes, plans=job.plan_folder.parent)
        if previous is not None:
            add_previous(plan, store, used, previous, job.processes)
        validation = [cases[name] for name in split.validation]
        job.group.wait()
        state = _train(plan, store, split, job)
        summary = _validate(job, validation, previous) if validation else None
        # Early stopping leaves epochs to do; a time budget reduces their number.
        planned = plan.training.epochs if state.done == state.epochs else state.done
        failures = failures_of(state.history, planned)
        if summary is not None:
            failures += summary.never_predicted
            summary = replace(summary, failures=tuple(failures))
            summary.save(job.folder / layout.SUMMARY)
        for failure in failures:
            say(f"warning: fold {job.fold}: {failure}")
        say(f"fold {job.fold} took {in_words(time.monotonic() - job.started)}: {job.folder}")
        return summary


def check_fold(job: FoldJob) -> None:
    """Raise an AutosegError if the fold does not exist or its options are wrong; train nothing."""
    plan, task = _read(job)
    _check_resources(plan, job)
    find_split(plan, task, job.plan_folder, job.fold)


def _read(job: FoldJob) -> tuple[Plan, Task]:
    plan = load_plan(job.plan_folder / layout.PLAN)
    return plan, read_task(job.task, plan.labels, plan.skipped_cases)


def _check_resources(plan: Plan, job: FoldJob) -> None:
    """Raise an AutosegError before preprocessing starts; a lack of memory is told."""
    dtype = autocast_type(job.device, plan.training.precision)
    needed = training_memory(plan, value_bytes=dtype.itemsize).peak
    free = free_memory()
    if job.device.type == "cpu" and needed > free:
        say(TEXT("memory", needed=needed / GB, free=free / GB))
    if job.tensorboard:
        check_tensorboard()
    goes_on = job.resume and (job.folder / layout.LATEST).exists()
    if job.pretrained is not None and not goes_on:
        transfer(read_pretrained(job.pretrained), plan, build_network(plan))


def _train(plan: Plan, store: CaseStore, split: Split, job: FoldJob) -> State:
    same = {each.name: getattr(job, each.name) for each in fields(Run) if hasattr(job, each.name)}
    same["fold"] = NUMBER_OF_ALL if job.fold == ALL else int(job.fold)
    workers = max(1, job.processes // job.group.local_size - 1)
    patches = count_patches(plan, store, split.validation)
    return train(plan, store, split, Run(**same, workers=workers, patches_after=patches))


def count_patches(plan: Plan, store: CaseStore, names: tuple[str, ...]) -> int:
    """The number of patches to predict in stored cases."""
    shapes = [store.grid_of(name)[0] for name in names]  # opening a case reads its voxels
    patch, overlap = plan.sampling.patch_size, plan.inference.overlap
    return sum(count_tiles(shape, patch, overlap) for shape in shapes)


def _validate(job: FoldJob, cases: list[Case], previous: dict[str, Path] | None) -> Summary:
    """Predict the validation cases as for a user, without postprocessing, and score them.

    The network runs in torch, so that the scores do not depend on whether OpenVINO is installed.
    """
    model = load_model(job.folder.parent, [job.fold], job.device)
    predictor = Predictor(model, device=str(job.device), postprocess=False, backend="torch")
    predictor.compared = ()  # the calibration of an earlier training does not matter here
    scans = {case.name: case.images for case in cases}
    references = {case.name: case.label for case in cases}
    predictor.reliability = Reliability(references, model.plan)
    classes, folder = ScoredClasses.of_plan(model.plan), job.folder / layout.VALIDATION
    given = predictor, scans, references, classes, folder, job.processes
    summary = predict_and_score(*given, overwrite=True, previous=previous)
    predictor.reliability.save(folder)
    return summary


def predict_and_score(
    predictor: Predictor,
    inputs: Inputs,
    references: Mapping[str, Path],
    labels: ScoredClasses,
    folder: Path,
    processes: int,
    *,
    overwrite: bool,
    previous: Mapping[str, Path] | None = None,
    refused: Mapping[str, str] | None = None,
) -> Summary:
    """Predict cases into a folder, score them, and write the scores to `summary.json` there.

    Args:
        predictor: the model.
        inputs: case -> its scans, one for each channel.
        references: case -> its label map.
        labels: the classes to score.
        folder: for the predicted label maps and the scores.
        processes: worker processes of the evaluation.
        overwrite: predict cases again whose label map exists.
        previous: case -> the segmentation that a cascade refines.
        refused: case -> why it cannot be predicted.

    Raises:
        AutosegError, RunError: a case cannot be predicted or scored.
    """
    found = FoundInputs(cases=inputs, refused={**(refused or {})})
    options = Options(overwrite=overwrite, shapes=True)
    outcome = predict_cases(predictor, found, folder, options, previous)
    outcome.raise_failures()
    score = partial(_score, references=references, folder=folder, labels=labels)
    scores = tuple(in_parallel(score, list(inputs), processes, "evaluating"))
    summary = Summary(scores, (), tolerances(labels))
    summary.save(folder / "summary.json")
    return summary


def _score(
    case: str, references: Mapping[str, Path], folder: Path, labels: ScoredClasses
) -> CaseScores:
    scores = evaluate_case(references[case], output_path(folder, case), labels.of_case(case))
    return replace(scores, case=case)


def claim(plan: Plan, folder: Path, fold: str, resume: bool) -> None:
    """Write the plan into `models/TASK/PLAN`; the models in that folder belong to it from now on.

    With `resume`, a plan that differs only in the length of training may replace that of existing
    models. The other folds keep their length until they are resumed as well.

    Raises:
        AutosegError: there are models of another plan, or of a shorter one without `resume`.
    """
    if begun := sorted({file.parent.name for file in _weights_in(folder)}):
        owner = load_plan(folder / layout.PLAN)
        extends, others = is_extension(owner, plan), sorted({*begun} - {layout.fold_name(fold)})
        if owner.id != plan.id and not (resume and extends):
            about = {"keys": differences(owner, plan), "folds": ", ".join(begun)}
            kind = "shorter plan" if extends else "another plan"
            raise AutosegError(TEXT(kind, folder=folder, **about))
        if others and owner.id != plan.id:
            say(f"also extend {', '.join(others)} (--resume): prediction needs folds of one plan")
    plan.save(folder / layout.PLAN)


def _weights_in(models: Path) -> list[Path]:
    return list(models.glob(f"{layout.EVERY_FOLD}/*.safetensors"))


def claim_segmentations(
    workspace: Workspace, plan: Plan, task: Task, cases: Sequence[str]
) -> dict[str, Path] | None:
    """Case -> the label map of the previous stage that a cascade refines.

    Each case was segmented by the fold that it validated, whose model has not seen it in training:
    a cascade trains on segmentations like those of new scans. From now on the cascade's models
    belong to those of its previous stage.

    Returns:
        None if the plan is not a cascade.

    Raises:
        AutosegError: as `find_segmentations`, or earlier folds refine another plan.
    """
    if plan.previous_stage is None:
        return None
    previous = previous_plan(workspace, plan)
    found = find_segmentations(workspace, plan, task, cases)
    models = workspace.models(plan.task, plan.name)
    keep = check_previous if _weights_in(models) else save_previous
    keep(models, previous)
    return found


def previous_plan(workspace: Workspace, plan: Plan) -> Plan:
    """The plan of the models of a cascade's previous stage.

    Raises:
        AutosegError: it is not planned or trained yet, or has other channels, labels or cases.
    """
    folder = workspace.models(plan.task, plan.previous_stage)
    splits = workspace.preprocessed(plan.task, plan.previous_stage) / SPLITS_FILE
    if not splits.is_file():
        raise AutosegError(TEXT("stage not planned", plan=plan))
    if not (folder / layout.PLAN).is_file():
        command = _train_stage(plan, range(count_folds(splits)))
        raise AutosegError(TEXT("stage not trained", plan=plan, command=command))
    previous = load_plan(folder / layout.PLAN)
    if wrong := [key for key in SHARED_KEYS if getattr(plan, key) != getattr(previous, key)]:
        keys = " and ".join(wrong)
        raise AutosegError(TEXT("stage differs", plan=plan, previous=previous, keys=keys))
    return previous


def find_segmentations(
    workspace: Workspace, plan: Plan, task: Task, cases: Sequence[str]
) -> dict[str, Path]:
    """Case -> the label map that the previous stage predicted for it in validation.

    Args:
        workspace: holds plans and models.
        plan: the plan of the cascade.
        task: the task.
        cases: names of the cases that are needed.

    Raises:
        AutosegError: the splits differ, or folds are missing; the message names them.
    """
    known = [case.name for case in task.cases]
    names = (plan.name, str(plan.previous_stage))
    files = [workspace.preprocessed(plan.task, name) / SPLITS_FILE for name in names]
    splits, previous_splits = (read_splits(file, known) for file in files)
    if splits != previous_splits:
        raise AutosegError(TEXT("splits differ", files=files))
    fold_of = {name: fold for fold, split in enumerate(splits) for name in split.validation}
    if never := [name for name in cases if name not in fold_of]:
        raise AutosegError(TEXT("never validated", file=files[1], case=never[0], count=len(never)))
    models = workspace.models(plan.task, plan.previous_stage)
    folders = {k: layout.fold_folder(models, k) for k in {fold_of[name] for name in cases}}
    predicted = {name: folders[fold_of[name]] / layout.VALIDATION for name in cases}
    found = {name: output_path(folder, name) for name, folder in predicted.items()}
    missing = {fold for fold, folder in folders.items() if not (folder / layout.FINAL).exists()}
    missing |= {fold_of[name] for name, path in found.items() if not path.exists()}
    if folds := sorted(missing):
        lacking, command = listed("fold", folds), _train_stage(plan, folds)
        raise AutosegError(TEXT("stage lacks", plan=plan, folds=lacking, command=command))
    return found


def _train_stage(plan: Plan, folds: Sequence[int]) -> str:
    """The command that trains folds of the previous stage."""
    numbers = " ".join(map(str, folds))
    return f"autoseg_train {plan.task} fold {numbers} --plan {plan.previous_stage}"
