"""One fold from raw cases to its validation scores: preprocess, train, predict, evaluate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from autoseg.common.errors import AutosegError
from autoseg.common.files import remove_leftovers
from autoseg.common.locks import locked
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import in_words, listed, say
from autoseg.dataset.layouts import Case
from autoseg.dataset.splits import FILE_NAME, Split, count_folds, load_or_make_splits, read_splits
from autoseg.dataset.task import Task, read_task
from autoseg.evaluation.evaluate import evaluate_case, tolerances
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.fingerprint import Fingerprint
from autoseg.models.folder import (
    BEST,
    EVERY_FOLD,
    FINAL,
    LATEST,
    VALIDATION,
    fold_folder,
    fold_name,
)
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan
from autoseg.plan.reading import differing_keys, is_extension, load_plan
from autoseg.prediction.batch import output_path, predict_cases
from autoseg.prediction.model import check_previous, load_model, save_previous
from autoseg.prediction.predictor import Predictor
from autoseg.prediction.sliding_window import count_tiles
from autoseg.preprocessing.preprocess import add_previous, preprocess
from autoseg.preprocessing.store import CaseStore
from autoseg.training.distributed import ALONE, Group
from autoseg.training.monitor import check_tensorboard
from autoseg.training.state import Run
from autoseg.training.train import train
from autoseg.training.transfer import read_pretrained, transfer
from autoseg.workflow.workspace import Workspace

# What a cascade refines: its previous stage's segmentation of every case.
#
# A case is segmented by the model of the fold in whose validation it was, which has not learnt
# from it: so a cascade trains on segmentations as they will be on new scans.

SHARED = ("channels", "labels", "ignore_label", "regions_class_order", "skipped_cases")


def claim_segmentations(
    workspace: Workspace, plan: Plan, task: Task, cases: Sequence[str]
) -> dict[str, Path] | None:
    """Case -> the label map to refine; from now on a cascade's models belong to those of its stage.

    Returns:
        None if the plan is no cascade.

    Raises:
        AutosegError: as `find_segmentations`, or earlier folds refine another plan.
    """
    if plan.previous_stage is None:
        return None
    previous = previous_plan(workspace, plan)
    found = find_segmentations(workspace, plan, task, cases)
    models = workspace.models(plan.task, plan.name)
    if any(models.glob(f"{EVERY_FOLD}/*.safetensors")):
        check_previous(models, previous)
    else:
        save_previous(models, previous)
    return found


def previous_plan(workspace: Workspace, plan: Plan) -> Plan:
    """The plan that the models of a cascade's previous stage belong to.

    Raises:
        AutosegError: it is not planned or not trained yet, or it is a plan for other channels,
            labels or cases.
    """
    folder = workspace.models(plan.task, plan.previous_stage)
    splits = workspace.preprocessed(plan.task, plan.previous_stage) / FILE_NAME
    if not splits.is_file():
        raise AutosegError(
            f"{plan.name} refines {plan.previous_stage}, which is not planned yet; plan it with "
            "--config 3d_lowres and the same options, and train all its folds"
        )
    if not (folder / "plan.json").is_file():
        folds = " ".join(map(str, range(count_folds(splits))))
        raise AutosegError(
            f"{plan.name} refines {plan.previous_stage}, of which no fold is trained; run: "
            f"{_train_stage(plan, f'fold {folds}')}"
        )
    previous = load_plan(folder / "plan.json")
    if wrong := [key for key in SHARED if getattr(plan, key) != getattr(previous, key)]:
        raise AutosegError(
            f"{plan.name} refines {previous.name}, which has another {' and '.join(wrong)}; plan "
            "both with the same options"
        )
    return previous


def find_segmentations(
    workspace: Workspace, plan: Plan, task: Task, cases: Sequence[str]
) -> dict[str, Path]:
    """Case -> the label map that the previous stage made of it in its validation.

    Args:
        workspace: holds plans and models.
        plan: the cascade's.
        task: the task.
        cases: names of the cases that are needed.

    Raises:
        AutosegError: the splits differ, or folds are missing; the message names them.
    """
    known = [case.name for case in task.cases]
    names = (plan.name, str(plan.previous_stage))
    files = [workspace.preprocessed(plan.task, name) / FILE_NAME for name in names]
    ours, theirs = (read_splits(file, known) for file in files)
    if ours != theirs:
        raise AutosegError(
            f"{files[0]} and {files[1]} differ: a cascade needs the splits of the plan that it "
            "refines; plan both with the same splits"
        )
    fold_of = {name: number for number, split in enumerate(theirs) for name in split.validation}
    if never := [name for name in cases if name not in fold_of]:
        raise AutosegError(
            f"{files[1]}: no fold validates {never[0]} ({len(never)} such cases), so the previous "
            "stage has no segmentation of it; take splits in which each case validates once"
        )
    folder = workspace.models(plan.task, plan.previous_stage)
    found = {
        name: output_path(fold_folder(folder, fold_of[name]) / VALIDATION, name) for name in cases
    }
    missing = {
        fold_of[name]
        for name, path in found.items()
        if not (path.exists() and (path.parents[1] / FINAL).exists())
    }
    if missing:
        folds = " ".join(map(str, sorted(missing)))
        raise AutosegError(
            f"{plan.name} refines {plan.previous_stage}, which lacks "
            f"{listed('fold', sorted(missing))}: each case is refined from the segmentation of "
            f"the fold that validated it; run: {_train_stage(plan, f'fold {folds}')}"
        )
    return found


def _train_stage(plan: Plan, folds: str) -> str:
    return f"autoseg_train {plan.task} {folds} --plan {plan.previous_stage}"


# Which plan the models in a folder belong to.

MOST_KEYS = 4


def claim(plan: Plan, folder: Path, fold: str, resume: bool) -> None:
    """Put the plan beside the models in `models/TASK/PLAN`, which belong to it from now on.

    A plan that differs from theirs only in how long training takes may take over: with `resume`,
    which extends the fold's run. Other folds keep their length until they are resumed, too.

    Raises:
        AutosegError: there are models of a plan that differs, or of a shorter one and no `resume`.
    """
    path = folder / "plan.json"
    begun = sorted({file.parent.name for file in folder.glob(f"{EVERY_FOLD}/*.safetensors")})
    if begun:
        _check_owner(load_plan(path), plan, folder, begun, resume)
        others = [name for name in begun if name != fold_name(fold)]
        if others and load_plan(path).id != plan.id:
            say(
                f"extend {', '.join(others)} with --resume, too: predicting needs folds of one plan"
            )
    plan.save(path)


def _check_owner(owner: Plan, plan: Plan, folder: Path, begun: list[str], resume: bool) -> None:
    if owner.id == plan.id or (resume and is_extension(owner, plan)):
        return
    found = differing_keys(owner, plan)
    keys = ", ".join(found[:MOST_KEYS]) + (", ..." if len(found) > MOST_KEYS else "")
    folds = ", ".join(begun)
    if is_extension(owner, plan):
        raise AutosegError(
            f"{folder} holds models of a plan that differs only in {keys} ({folds}); extend them "
            "with --resume, or plan with another --name"
        )
    raise AutosegError(
        f"{folder} holds models of another plan ({folds}), which differs in {keys}; plan with "
        "another --name, or move that folder away"
    )


ALL = "all"
NUMBER_OF_ALL = 999_999  # seeds the fold `all`, which no number of folds reaches


@dataclass(frozen=True)
class FoldJob:
    """What to train, and with which means; of these only `pretrained` changes the result.

    Attributes:
        task: the raw task's folder.
        plan: the plan's name.
        fold: its number, or `all` to train on every case.
        started: `time.monotonic()` when the command began: a time budget counts from here.
        group: the processes that train the fold together; the first does all else.
        pretrained: a trained model whose weights a new run begins with.
        tensorboard: whether to write event files for TensorBoard, too.
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

    @property
    def folder(self) -> Path:
        """Where this fold's model and results go."""
        return fold_folder(self.workspace.models(self.task.name, self.plan), self.fold)

    @property
    def plan_folder(self) -> Path:
        """Where the plan and its preprocessed cases lie."""
        return self.workspace.preprocessed(self.task.name, self.plan)


def run_fold(job: FoldJob) -> Summary | None:
    """Train a fold and score its validation cases.

    Returns:
        the scores; None for the fold `all`, which has none, and where another process leads.

    Raises:
        AutosegError: the fold does not exist, is begun already, or belongs to another plan.
        RunError: training failed, or another process works on this fold.
    """
    plan, task = _read(job)
    job.group.places(plan.sampling.batch_size)
    if not job.group.leads:
        _help(plan, task, job)
        return None
    _check_means(plan, job)
    split = find_split(plan, task, job.plan_folder, job.fold)
    cases = {case.name: case for case in task.cases}
    with locked(job.folder / ".lock", f"fold {job.fold} of {task.name}"):
        remove_leftovers(job.folder, (LATEST, BEST, FINAL))
        claim(plan, job.folder.parent, job.fold, job.resume)
        store = CaseStore(job.plan_folder / "cases", plan.preprocessing_id)
        names = (*split.train, *split.validation)
        previous = claim_segmentations(job.workspace, plan, task, names)
        used = [cases[name] for name in names]
        preprocess(plan, used, store, job.processes, plans=job.plan_folder.parent)
        if previous is not None:
            add_previous(plan, store, used, previous, job.processes)
        validation = [cases[name] for name in split.validation]
        job.group.wait()
        _train(plan, store, split, job)
        summary = _validate(job, validation, previous) if validation else None
        say(f"fold {job.fold} took {in_words(time.monotonic() - job.started)}: {job.folder}")
        return summary


def check_fold(job: FoldJob) -> None:
    """Raise an AutosegError now if the fold does not exist, rather than after training others."""
    plan, task = _read(job)
    _check_means(plan, job)
    find_split(plan, task, job.plan_folder, job.fold)


def _check_means(plan: Plan, job: FoldJob) -> None:
    """Raise an AutosegError now, rather than after preprocessing."""
    if job.tensorboard:
        check_tensorboard()
    if job.pretrained is not None and not (job.resume and (job.folder / LATEST).exists()):
        transfer(read_pretrained(job.pretrained), plan, build_network(plan))


def _read(job: FoldJob) -> tuple[Plan, Task]:
    plan = load_plan(job.plan_folder / "plan.json")
    return plan, read_task(job.task, plan.labels, plan.skipped_cases)


def _help(plan: Plan, task: Task, job: FoldJob) -> None:
    """Train with the leading process, once it has prepared the cases."""
    job.group.wait()
    split = find_split(plan, task, job.plan_folder, job.fold)
    _train(plan, CaseStore(job.plan_folder / "cases", plan.preprocessing_id), split, job)


def _train(plan: Plan, store: CaseStore, split: Split, job: FoldJob) -> None:
    run = Run(
        folder=job.folder,
        fold=NUMBER_OF_ALL if job.fold == ALL else int(job.fold),
        device=job.device,
        workers=max(1, job.processes // job.group.size - 1),
        resume=job.resume,
        started=job.started,
        patches_after=count_patches(plan, store, split.validation),
        group=job.group,
        pretrained=job.pretrained,
        tensorboard=job.tensorboard,
    )
    train(plan, store, split, run)


def find_split(plan: Plan, task: Task, folder: Path, fold: str) -> Split:
    """The cases of a fold.

    Raises:
        AutosegError: there is no such fold.
    """
    names = [case.name for case in task.cases]
    if fold == ALL:
        return Split(tuple(names), ())
    classes = Fingerprint.load(folder / "fingerprint.json").presence
    splits = load_or_make_splits(
        folder, task.folder, names, plan.splits.folds, plan.splits.seed, task.groups, classes
    )
    if not fold.isdecimal() or int(fold) >= len(splits):
        raise AutosegError(
            f"fold {fold!r} does not exist; there are 0 to {len(splits) - 1}, and {ALL}"
        )
    return splits[int(fold)]


def count_patches(plan: Plan, store: CaseStore, names: tuple[str, ...]) -> int:
    """How many patches the prediction of stored cases takes."""
    shapes = [store.open(name).label.shape for name in names]
    patch, overlap = plan.sampling.patch_size, plan.inference.overlap
    return sum(count_tiles(shape, patch, overlap) for shape in shapes)


def _validate(job: FoldJob, cases: list[Case], previous: dict[str, Path] | None) -> Summary:
    """Predict the validation cases whole, as a user would, and score them."""
    folder = job.folder / VALIDATION
    model = load_model(job.folder.parent, [job.fold], job.device)
    # As the network gives them: postprocessing is learned from these.
    # Torch, which trained it: its scores do not depend on whether OpenVINO is installed.
    predictor = Predictor(model, device=str(job.device), postprocess=False, backend="torch")
    inputs = {case.name: case.images for case in cases}
    outcome = predict_cases(predictor, inputs, folder, overwrite=True, previous=previous)
    outcome.raise_failures()
    labels = Labels.of_plan(model.plan)
    score = partial(_score, folder=folder, labels=labels)
    scores = in_parallel(score, cases, job.processes, "evaluating")
    summary = Summary(tuple(scores), (), tolerances(labels))
    summary.save(folder / "summary.json")
    return summary


def _score(case: Case, folder: Path, labels: Labels) -> CaseScores:
    scores = evaluate_case(case.label, output_path(folder, case.name), labels)
    return replace(scores, case=case.name)
