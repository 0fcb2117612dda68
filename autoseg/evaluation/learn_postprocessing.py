"""Learn from a cross-validation whether keeping only the largest component makes label maps better.

As nnU-Net does it: first for all foreground together, then for each class on top of that. A step is
chosen if it raises the mean Dice over the validation cases of all folds, which the models have not
learnt from, and lowers no class's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.common.files import read_json, write_json
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import listed
from autoseg.evaluation.cross_validation import CrossValidation
from autoseg.evaluation.tables import Row, number
from autoseg.image.geometry import check_same_grid
from autoseg.image.image import read_label
from autoseg.models.folder import SUMMARY, VALIDATION, fold_folder
from autoseg.plan.plan import Plan
from autoseg.plan.reading import load_plan
from autoseg.prediction.postprocessing import (
    FILE_NAME,
    FORMAT_VERSION,
    KeepLargest,
    Postprocessing,
    step_from_json,
)

# How good the label maps of a cross-validation are after some postprocessing.

Pair = tuple[Path, Path]
Steps = tuple[KeepLargest, ...]
Dice = dict[str, float | None]
Table = NDArray[np.int64]


def mean_dice(
    candidates: Sequence[Steps], pairs: Sequence[Pair], plan: Plan, processes: int
) -> list[Dice]:
    """Mean Dice of each class over the cases after each of some sequences of steps.

    Each case is read once.

    Args:
        candidates: the sequences; an empty one leaves the predictions as they are.
        pairs: true and predicted label maps on the same grid.
        plan: its labels, and the label whose voxels don't count.
        processes: worker processes.
    """
    measure = partial(_measure, candidates=tuple(candidates), plan=plan)
    of_cases = in_parallel(measure, pairs, processes, "postprocessing")
    names = list(plan.labels)[1:]
    found = []
    for of_candidate in zip(*of_cases, strict=True):
        columns = zip(*of_candidate, strict=True)
        found.append(
            {name: mean_of_known(column) for name, column in zip(names, columns, strict=True)}
        )
    return found


def _measure(pair: Pair, candidates: Sequence[Steps], plan: Plan) -> list[list[float | None]]:
    """Dice of each class in one case, for each candidate."""
    truth, geometry = read_label(pair[0])
    prediction, theirs = read_label(pair[1])
    check_same_grid(theirs, pair[1], geometry, pair[0])
    values = sorted({v for covered in list(plan.labels.values())[1:] for v in covered})
    ignored = [] if plan.ignore_label is None else [plan.ignore_label]
    known = np.zeros(2**16, np.int64)
    known[[*values, *ignored]] = np.arange(1, len(values) + len(ignored) + 1)
    raw = _count(known, len(values) + 2, truth, prediction)
    found = []
    for steps in candidates:
        cleaned = prediction.copy()
        Postprocessing(plan.id, steps).apply(cleaned)
        changed = cleaned != prediction
        table = raw.copy()
        moved = _count_some(known, len(values) + 2, truth[changed], prediction[changed])
        table -= moved
        table[:, 0] += moved.sum(axis=1)
        scored = np.delete(table, len(values) + 1, axis=0)  # the row of ignored voxels, or an empty
        found.append([_dice(scored, known[list(v)]) for v in list(plan.labels.values())[1:]])
    return found


def _count(known: Table, size: int, truth: NDArray[Any], prediction: NDArray[Any]) -> Table:
    """Voxels by their true and their predicted value, numbered by `known`: shape (size, size)."""
    table = np.zeros((size, size), np.int64)
    for true, predicted in zip(truth.T, prediction.T, strict=True):  # eight bytes a voxel: by plane
        table += _count_some(known, size, true, predicted)
    return table


def _count_some(known: Table, size: int, truth: NDArray[Any], prediction: NDArray[Any]) -> Table:
    pairs = known[truth] * size + known[prediction]
    return np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)


def _dice(table: Table, members: NDArray[np.int64]) -> float | None:
    """Dice of the class that some values make up; None where neither side has it."""
    both = int(table[np.ix_(members, members)].sum())
    sizes = int(table[members].sum() + table[:, members].sum())
    return 2 * both / sizes if sizes else None


ALL_FOREGROUND = "all foreground"


@dataclass(frozen=True)
class Attempt:
    """A step that was tried on top of those chosen before it; Dice are means over the cases."""

    step: KeepLargest
    before: Dice
    after: Dice

    @property
    def helps(self) -> bool:
        """Whether it raises what it is for, and lowers no class."""
        names = tuple(self.before) if self.step.name == ALL_FOREGROUND else (self.step.name,)
        raised = _is_below(_mean(self.before, names), _mean(self.after, names))
        return raised and not any(_is_below(self.after[n], self.before[n]) for n in self.before)


@dataclass(frozen=True)
class Learned:
    """What was tried on a cross-validation, and what to do from now on.

    Attributes:
        source: stands for the scores of the cross-validation: others give another one.
        before: mean Dice of each class over the cases as they were predicted.
        after: the same after all steps that were chosen.
    """

    postprocessing: Postprocessing
    folds: tuple[int, ...]
    cases: int
    source: str
    before: Dice
    after: Dice
    attempts: tuple[Attempt, ...]

    def rows(self) -> list[Row]:
        """A table for people: a header, then what was tried."""
        header = ("keep the largest component of", "mean Dice before", "after", "chosen")
        rows: list[Row] = [header]
        for attempt in self.attempts:
            all_classes = attempt.step.name == ALL_FOREGROUND
            names = tuple(attempt.before) if all_classes else (attempt.step.name,)
            dice = [number(_mean(of, names)) for of in (attempt.before, attempt.after)]
            rows.append((attempt.step.name, *dice, "yes" if attempt.helps else "no"))
        return rows

    def save(self, folder: Path) -> Path:
        """Write `postprocessing.json` into a folder of models."""
        path = folder / FILE_NAME
        write_json(path, self.to_json())
        return path

    def to_json(self) -> dict[str, Any]:
        """What `Postprocessing.from_json` reads, and beside it how that was found."""
        return {
            "format_version": FORMAT_VERSION,
            "plan_id": self.postprocessing.plan_id,
            "steps": [_step_to_json(step) for step in self.postprocessing.steps],
            "learned_on": {"folds": list(self.folds), "cases": self.cases, "source": self.source},
            "dice_before": self.before,
            "dice_after": self.after,
            "tried": [
                {
                    **_step_to_json(attempt.step),
                    "dice_before": attempt.before,
                    "dice_after": attempt.after,
                    "chosen": attempt.helps,
                }
                for attempt in self.attempts
            ],
        }

    @staticmethod
    def from_json(found: dict[str, Any]) -> Learned:
        """The reverse of `to_json`."""
        about = found["learned_on"]
        attempts = tuple(
            Attempt(step_from_json(tried), tried["dice_before"], tried["dice_after"])
            for tried in found["tried"]
        )
        return Learned(
            postprocessing=Postprocessing.from_json(found, FILE_NAME),
            folds=tuple(about["folds"]),
            cases=about["cases"],
            source=about["source"],
            before=found["dice_before"],
            after=found["dice_after"],
            attempts=attempts,
        )


def _step_to_json(step: KeepLargest) -> dict[str, Any]:
    return {"name": step.name, "keep_largest": list(step.values)}


def update(folder: Path, validation: CrossValidation, fold_count: int, processes: int) -> Learned:
    """Learn and write `postprocessing.json`, or read it where it was learned from these scores.

    Args:
        folder: `models/TASK/PLAN`.
        validation: the folds' scores.
        fold_count: how many folds the splits have; 0 if that is not known.
        processes: as for `learn`.

    Raises:
        DataError: as `learn`, or the number of folds is not known.
    """
    if not fold_count:
        raise DataError(f"{folder}: the plan's splits.json is not here to tell if all folds are")
    plan = load_plan(folder / "plan.json")
    _check_folds(folder, validation, plan)
    learned = _known(folder, validation, plan)
    if learned is None:
        learned = learn(folder, validation, plan, processes)
        learned.save(folder)
    return learned


def learn(folder: Path, validation: CrossValidation, plan: Plan, processes: int) -> Learned:
    """Try every step on the validation cases of all folds.

    Args:
        folder: `models/TASK/PLAN`, with `fold_K/validation/CASE.nii.gz`.
        validation: the folds' scores, which name the true label maps.
        plan: the plan of the folds.
        processes: worker processes; the result does not depend on it.

    Raises:
        DataError: a fold is missing or was predicted by another plan, or a label map is missing.
        RunError: a worker process was killed.
    """
    _check_folds(folder, validation, plan)
    pairs = _pairs(folder, validation)
    score = partial(mean_dice, pairs=pairs, plan=plan, processes=processes)
    foreground, *rounds = _rounds(plan)
    raw, joined = score([(), tuple(foreground)])
    attempts = [Attempt(foreground[0], raw, joined)]
    chosen, now = (tuple(foreground), joined) if attempts[0].helps else ((), raw)
    for candidates in rounds:
        found = score([(*chosen, step) for step in candidates])
        tried = [Attempt(step, now, of) for step, of in zip(candidates, found, strict=True)]
        for attempt in tried:
            if attempt.helps:
                chosen = (*chosen, attempt.step)
                now = _taken_over(now, attempt, alone=len(candidates) == 1)
        attempts += tried
    return Learned(
        postprocessing=Postprocessing(plan.id, chosen),
        folds=tuple(validation.folds),
        cases=len(pairs),
        source=source_of(folder, validation.folds),
        before=raw,
        after=now,
        attempts=tuple(attempts),
    )


def source_of(folder: Path, folds: Iterable[int]) -> str:
    """Twelve hexadecimal digits that change with the scores of the folds."""
    digest = hashlib.sha256()
    for fold in folds:
        digest.update((fold_folder(folder, fold) / SUMMARY).read_bytes())
    return digest.hexdigest()[:12]


def _known(folder: Path, validation: CrossValidation, plan: Plan) -> Learned | None:
    """What `postprocessing.json` holds, if it was learned from just these scores."""
    path = folder / FILE_NAME
    try:
        found = Learned.from_json(read_json(path)) if path.is_file() else None
    except (KeyError, TypeError, ValueError, AttributeError):  # another version's: learn anew
        return None
    if found is None or found.postprocessing.plan_id != plan.id:
        return None
    return found if found.source == source_of(folder, validation.folds) else None


def _rounds(plan: Plan) -> list[list[KeepLargest]]:
    """What to try, one after the other; a list holds what cannot influence each other."""
    steps = [KeepLargest(name, values) for name, values in list(plan.labels.items())[1:]]
    everything = tuple(sorted({value for step in steps for value in step.values}))
    single = [step for step in steps if tuple(sorted(step.values)) != everything]
    apart = [[step] for step in single] if plan.classes.are_regions else [single] * bool(single)
    return [[KeepLargest(ALL_FOREGROUND, everything)], *apart]


def _taken_over(now: Dice, attempt: Attempt, alone: bool) -> Dice:
    """The Dice after one more step; of several in a round each changes its own class only."""
    name = attempt.step.name
    return attempt.after if alone else now | {name: attempt.after[name]}


def _check_folds(folder: Path, validation: CrossValidation, plan: Plan) -> None:
    if validation.missing:
        raise DataError(
            f"{folder} lacks {listed('fold', validation.missing)}; train all folds, then evaluate "
            "again"
        )
    for fold in validation.folds:
        record = fold_folder(folder, fold) / VALIDATION / "predictions.json"
        found = read_json(record).get("plan_id")
        if found != plan.id:
            raise DataError(
                f"{record} is of plan {found}, but the models' plan.json is {plan.id}; train "
                f"fold {fold} by that plan, too (--resume extends it)"
            )


def _pairs(folder: Path, validation: CrossValidation) -> list[Pair]:
    """True and predicted label map of every case, in order of the cases' names."""
    found = {}
    for fold, summary in validation.folds.items():
        where = fold_folder(folder, fold) / VALIDATION
        for case in summary.cases:
            # The summary has whole paths; the models may have been moved since.
            found[case.case] = Path(case.reference_file), where / Path(case.prediction_file).name
    for path in (path for pair in found.values() for path in pair):
        if not path.is_file():
            raise DataError(f"{path} is missing, which the folds were scored with; put it back")
    return [found[name] for name in sorted(found)]


def _mean(of: Dice, names: Sequence[str]) -> float | None:
    return mean_of_known(of[name] for name in names)


def _is_below(one: float | None, other: float | None) -> bool:
    """None is above all: a class that is found nowhere, and rightly so, is as good as can be."""
    return one is not None and (other is None or one < other)
