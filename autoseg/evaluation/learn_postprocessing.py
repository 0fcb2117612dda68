"""Learns from a cross-validation whether to keep only the largest component, as nnU-Net does.

The step is tried first for all foreground together, then for each class on top of that. It is
chosen if it raises the mean Dice over the validation cases of all folds and lowers no class.
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, computed_field

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.common.files import read_json, write_json
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import counted, listed, say
from autoseg.evaluation.evaluate import CrossValidation, LabelMapPair
from autoseg.evaluation.scores import TEXT
from autoseg.evaluation.tables import Row, number
from autoseg.image.geometry import check_same_grid
from autoseg.image.image import read_label
from autoseg.models.folder import PLAN, SUMMARY, VALIDATION, fold_folder, write_calibration
from autoseg.plan.plan import Plan, load_plan
from autoseg.prediction import postprocessing
from autoseg.prediction.postprocessing import FORMAT_VERSION, KeepLargest, Postprocessing

ALL_FOREGROUND = "all foreground"
Steps = tuple[KeepLargest, ...]
DiceByClass = dict[str, float | None]
ConfusionMatrix = NDArray[np.int64]


class Attempt(BaseModel, frozen=True):
    """A step tried on top of those chosen before it.

    Attributes:
        name: of the step.
        keep_largest: its label values.
        dice_before: mean Dice of each class over the cases without the step.
        dice_after: the same with it.
    """

    name: str
    keep_largest: tuple[int, ...]
    dice_before: DiceByClass
    dice_after: DiceByClass

    @property
    def scores(self) -> tuple[float | None, float | None]:
        """The Dice that the step is meant to raise, before and after."""
        names = tuple(self.dice_before) if self.name == ALL_FOREGROUND else (self.name,)
        before, after = self.dice_before, self.dice_after
        return mean_of_known(before[n] for n in names), mean_of_known(after[n] for n in names)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def chosen(self) -> bool:
        """Whether the step raises its Dice and lowers that of no class."""
        before, after = self.dice_before, self.dice_after
        return _is_below(*self.scores) and not any(_is_below(after[n], before[n]) for n in before)


def _is_below(one: float | None, other: float | None) -> bool:
    """None (correctly found nowhere) is the best possible value."""
    return one is not None and (other is None or one < other)


class Source(BaseModel, frozen=True):
    """The cross-validation; `source` identifies its scores."""

    folds: tuple[int, ...]
    cases: int
    source: str


class Learned(BaseModel, frozen=True):
    """The content of `postprocessing.json`.

    Attributes:
        format_version: of the file.
        plan_id: the plan of the models.
        steps: the chosen steps.
        learned_on: the cross-validation.
        dice_before: mean Dice of each class over the cases as predicted.
        dice_after: the same after all chosen steps.
        tried: all steps that were tried.
    """

    format_version: int = FORMAT_VERSION
    plan_id: str
    steps: Steps
    learned_on: Source
    dice_before: DiceByClass
    dice_after: DiceByClass
    tried: tuple[Attempt, ...]

    def rows(self) -> list[Row]:
        """A header and one row for each step that was tried."""
        head = ("keep the largest component of", "mean Dice before", "after", "chosen")
        words = {True: "yes", False: "no"}
        return [head, *((of.name, *map(number, of.scores), words[of.chosen]) for of in self.tried)]


def update(folder: Path, validation: CrossValidation, fold_count: int, processes: int) -> Learned:
    """Learn and write `postprocessing.json`, or read it if it was learned from the same scores.

    Args:
        folder: `models/TASK/PLAN`.
        validation: the scores of the folds.
        fold_count: the number of folds; 0 if unknown.
        processes: as for `learn`.

    Raises:
        DataError: as `learn`; the number of folds is unknown; a fold is missing, or was predicted
            with another plan.
    """
    if not fold_count:
        raise DataError(f"{folder}: unknown number of folds: splits.json of the plan is missing")
    plan, path = load_plan(folder / PLAN), folder / postprocessing.FILE_NAME
    _check_folds(folder, validation, plan)
    expected = FORMAT_VERSION, plan.id, source_of(folder, validation.folds)
    with suppress(ValueError):  # missing, or written by another version
        found = Learned.model_validate(read_json(path))
        if (found.format_version, found.plan_id, found.learned_on.source) == expected:
            return found
    learned = learn(folder, validation, plan, processes)
    write_json(path, learned.model_dump(mode="json"))
    return learned


def learn(folder: Path, validation: CrossValidation, plan: Plan, processes: int) -> Learned:
    """Try each step on the validation cases of all folds.

    Args:
        folder: `models/TASK/PLAN`, with `fold_K/validation/CASE.nii.gz`.
        validation: the scores of the folds, which name the reference label maps.
        plan: the plan of the folds.
        processes: worker processes; the result does not depend on it.

    Raises:
        DataError: a label map is missing.
        RunError: a worker process was killed.
    """
    pairs = list(label_pairs(folder, validation).values())
    score = partial(mean_dice, pairs=pairs, plan=plan, processes=processes)
    (foreground,), *rounds = _rounds(plan)
    original, *scores = score([(), (foreground,)])
    current, chosen, tried = original, list[KeepLargest](), list[Attempt]()
    for steps in ([foreground], *rounds):
        before, scores = current, scores or score([(*chosen, step) for step in steps])
        for step, after in zip(steps, scores, strict=True):
            tried.append(Attempt(**asdict(step), dice_before=before, dice_after=after))
            if tried[-1].chosen:
                chosen.append(step)
                # Steps of the same round change only the Dice of their own class.
                current = after if len(steps) == 1 else current | {step.name: after[step.name]}
        scores = []
    folds = tuple(validation.folds)
    return Learned(
        plan_id=plan.id,
        steps=tuple(chosen),
        learned_on=Source(folds=folds, cases=len(pairs), source=source_of(folder, folds)),
        dice_before=original,
        dice_after=current,
        tried=tuple(tried),
    )


def source_of(folder: Path, folds: Iterable[int]) -> str:
    """Twelve hexadecimal digits that identify the scores of the folds."""
    digest = hashlib.sha256()
    for fold in folds:
        digest.update((fold_folder(folder, fold) / SUMMARY).read_bytes())
    return digest.hexdigest()[:12]


def _rounds(plan: Plan) -> list[list[KeepLargest]]:
    """The steps to try, in rounds; steps of the same round are independent of each other."""
    steps = [KeepLargest(name, values) for name, values in list(plan.labels.items())[1:]]
    everything = tuple(sorted({value for step in steps for value in step.keep_largest}))
    single = [step for step in steps if tuple(sorted(step.keep_largest)) != everything]
    rounds = [[step] for step in single] if plan.classes.are_regions else [single] * bool(single)
    return [[KeepLargest(ALL_FOREGROUND, everything)], *rounds]


def _check_folds(folder: Path, validation: CrossValidation, plan: Plan) -> None:
    if validation.missing:
        raise DataError(f"{folder} lacks {listed('fold', validation.missing)}; train all folds")
    for fold in validation.folds:
        record = fold_folder(folder, fold) / VALIDATION / "predictions.json"
        if (found := read_json(record).get("plan_id")) != plan.id:
            raise DataError(TEXT("other plan", record=record, found=found, plan=plan, fold=fold))


def label_pairs(folder: Path, validation: CrossValidation) -> dict[str, LabelMapPair]:
    """Case -> its reference and its prediction, sorted by case name.

    Partly annotated cases are left out: their references lack classes that the scans may have.

    Raises:
        DataError: a file is missing, or all cases are partly annotated.
    """
    found, combined = {}, validation.combined
    for fold, summary in validation.folds.items():
        for case in summary.cases:
            # The summary has absolute paths; the models may have been moved since.
            prediction = fold_folder(folder, fold) / VALIDATION / Path(case.prediction_file).name
            if set(case.classes) == set(combined.classes):
                found[case.case] = Path(case.reference_file), prediction
    if left_out := len(combined.cases) - len(found):
        count = counted(left_out, "partly annotated case")
        if not found:
            raise DataError(f"{count}, and no case with labels of all classes")
        say(f"{count} left out of label review and postprocessing")
    for path in (path for pair in found.values() for path in pair):
        if not path.is_file():
            raise DataError(f"{path} is missing; the scores of the folds refer to it: restore it")
    return dict(sorted(found.items()))


def mean_dice(
    candidates: Sequence[Steps], pairs: Sequence[LabelMapPair], plan: Plan, processes: int
) -> list[DiceByClass]:
    """Mean Dice of each class over the cases for several sequences of steps.

    Each case is read once.

    Args:
        candidates: the sequences; an empty one leaves the predictions unchanged.
        pairs: reference and predicted label maps on the same grid.
        plan: provides the classes and the label value to ignore.
        processes: worker processes.
    """
    measure = partial(_measure, candidates=tuple(candidates), plan=plan)
    cases = in_parallel(measure, pairs, processes, "postprocessing")
    means = [map(mean_of_known, zip(*of, strict=True)) for of in zip(*cases, strict=True)]
    return [dict(zip(list(plan.labels)[1:], of, strict=True)) for of in means]


def _measure(
    pair: LabelMapPair, candidates: Sequence[Steps], plan: Plan
) -> list[list[float | None]]:
    """Dice of each class in one case for each candidate."""
    reference, geometry = read_label(pair[0])
    prediction, found = read_label(pair[1])
    check_same_grid(found, pair[1], geometry, pair[0])
    classes = list(plan.labels.values())[1:]
    values = sorted({value for covered in classes for value in covered})
    ignored = [] if plan.ignore_label is None else [plan.ignore_label]
    index = np.zeros(2**16, np.int64)
    index[[*values, *ignored]] = np.arange(1, len(values) + len(ignored) + 1)
    size = len(values) + 2
    inside = np.array([np.isin(np.arange(size), index[list(of)]) for of in classes], float)
    # Plane by plane: counting takes eight bytes per voxel.
    raw = np.zeros((size, size), np.int64)
    for planes in zip(reference.T, prediction.T, strict=True):
        raw += _confusion_matrix(index, size, *planes)
    scores = []
    for steps in candidates:
        processed = prediction.copy()
        Postprocessing(plan.id, steps).apply(processed)
        changed = processed != prediction
        removed = _confusion_matrix(index, size, reference[changed], prediction[changed])
        matrix = raw - removed
        matrix[:, 0] += removed.sum(axis=1)
        scores.append(_dice(matrix[:-1], inside))  # without the row of ignored voxels, or no voxels
    return scores


def _confusion_matrix(
    index: NDArray[np.int64], size: int, reference: NDArray[Any], prediction: NDArray[Any]
) -> ConfusionMatrix:
    """Voxels by the `index` of their reference value and of their predicted value."""
    pairs = index[reference] * size + index[prediction]
    return np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)


def _dice(matrix: ConfusionMatrix, inside: NDArray[np.float64]) -> list[float | None]:
    """Dice of classes, whose values are marked in rows; None if one occurs on neither side."""
    part = inside[:, :-1] @ matrix
    both, sizes = (part * inside).sum(axis=1), part.sum(axis=1) + inside @ matrix.sum(axis=0)
    return [2 * b / n if n else None for b, n in zip(both.tolist(), sizes.tolist(), strict=True)]


def learn_temperature(folder: Path, validation: CrossValidation) -> list[Row]:
    """Learn a temperature of saved probabilities, and write it to `calibration.json`.

    It is 1 unless another one lowers the mean expected calibration error of the classes on each
    fold in turn, if it is chosen on the other folds.

    Returns:
        a header and the errors of each class.

    Raises:
        DataError: a fold has no record of its probabilities, or there is only one fold.
    """
    plan, folds = load_plan(folder / PLAN), list(validation.folds)
    temperatures, key = postprocessing.TEMPERATURES, postprocessing.TEMPERATURE
    paths = [fold_folder(folder, k) / VALIDATION / postprocessing.RELIABILITY for k in folds]
    records = [read_json(path) for path in paths if path.is_file()]
    names = list(plan.labels)[1:]  # a softmax has an output for the background, too
    are_all = [plan.id] * len(folds) == [record["plan_id"] for record in records]
    each = [np.array(record["sums"])[:, -len(names) :] for record in records if are_all]
    # A fold of partly annotated cases has recorded no voxels.
    known = {fold: of for fold, of in zip(folds, each, strict=False) if of.any()}
    sums = np.array(list(known.values()))
    if len(sums) < 2:
        write_calibration(folder, key, None)
        lacking = "of fully annotated cases" if are_all else "by all folds"
        raise DataError(f"not recorded {lacking} with this plan; two such folds are needed")
    total = sums.sum(axis=0)
    before = _calibration_errors(total[temperatures.index(1.0)])
    after = _calibration_errors(np.sum([of[_best(total - of)] for of in sums], axis=0))
    value = temperatures[_best(total)] if after.mean() < before.mean() else 1.0
    errors = dict(zip(names, zip(before.tolist(), after.tolist(), strict=True), strict=True))
    found = {"plan_id": plan.id, "value": value, "folds": list(known), "ece_before_after": errors}
    write_calibration(folder, key, found)
    head = ("class", "temperature 1", f"learned on the other folds ({value:.3g} on all)")
    return [head, *((name, *map(number, both)) for name, both in errors.items())]


def _best(sums: NDArray[np.float64]) -> int:
    """The index of the temperature with the lowest mean error."""
    return int(np.argmin([_calibration_errors(each).mean() for each in sums]))


def _calibration_errors(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The expected calibration error of each class (class, bin, ...)."""
    voxels, probability, hits = np.moveaxis(sums, -1, 0)
    return np.asarray(np.abs(probability - hits).sum(axis=1) / voxels.sum(axis=1))
