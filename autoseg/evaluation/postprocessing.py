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

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.common.files import read_json, write_json
from autoseg.common.progress import listed
from autoseg.evaluation.cleaned import Dice, Pair, mean_dice
from autoseg.evaluation.cross_validation import CrossValidation
from autoseg.evaluation.rows import Row, number
from autoseg.plan.plan import Plan
from autoseg.plan.reading import load_plan
from autoseg.prediction.postprocessing import (
    FILE_NAME,
    FORMAT_VERSION,
    KeepLargest,
    Postprocessing,
    step_from_json,
)

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
        digest.update((folder / f"fold_{fold}" / "validation" / "summary.json").read_bytes())
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
        record = folder / f"fold_{fold}" / "validation" / "predictions.json"
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
        where = folder / f"fold_{fold}" / "validation"
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
