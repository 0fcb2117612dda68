"""Ranks the training labels of a task by suspicion, with out-of-fold predictions of all cases.

A case is judged by the other cases: how far its Dice is below the usual one, and how much more than
usual it gains if an error is undone (see `label_errors`). A suspicion must explain at least half of
what is lacking; without one the difference is unexplained, and may be the model's.
"""

import csv
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autoseg.common.errors import DataError
from autoseg.common.files import read_text, write_text
from autoseg.common.parallel import in_parallel
from autoseg.evaluation import label_errors as errors
from autoseg.evaluation.evaluate import LabelMapPair
from autoseg.evaluation.label_errors import Measured, Repair, Scores
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.scores import TEXT
from autoseg.evaluation.tables import Row, number, rows_as_csv

EMPTY, MISSING, EXTRA = "label map empty", "class missing", "class predicted nowhere"
ANOTHER = "labels of another scan"
DUPLICATE = f"{ANOTHER}: duplicate of its map"
UNEXPLAINED, NONE = "unexplained difference", "none"

SUSPICIOUS = 4.0  # score from which a suspicion is named
LEAST_DICE, LEAST_GAIN = 0.015, 0.02  # spread of the cases, at least; of a sum over classes
EXPLAINED = 0.5  # share of what is lacking that a suspicion must explain
CANDIDATES, CLEARLY = 8, 0.05  # other scans that are tried for suspicious labels; higher Dice
USUAL = 0.5  # share of the cases with a class from which it is missing in another
RARE = 0.1  # share of the cases up to which islands or slices left out are suspicious
AS_MUCH = 0.2  # of the usual volume: a class is predicted
LEAST_FOLD = 10  # cases of a fold that are compared with each other alone
NO_FOLDS: Mapping[str, object] = {}
KEPT, FILE_NAME = "kept", "label_review.csv"
FINDINGS = ("case", "suspicion", "class", "score", "Dice", "Dice without the error", "evidence")


class Finding(NamedTuple):
    """How suspicious the labels of a case are.

    Attributes:
        case: its name.
        suspicion: what is probably wrong; `NONE` if nothing is unusual.
        classes: where.
        score: how unusual that is, in standard deviations of the cases.
        evidence: in numbers.
        dice: mean of the classes.
        repaired: the same with the error undone, if it can be.
    """

    case: str
    suspicion: str
    classes: tuple[str, ...]
    score: float
    evidence: str
    dice: float | None
    repaired: float | None = None


def review(
    pairs: Mapping[str, LabelMapPair],
    classes: ScoredClasses,
    sides: Sequence[set[str | None]],
    processes: int,
    folds: Mapping[str, object] = NO_FOLDS,
) -> list[Finding]:
    """Rank all cases, the most suspicious first.

    Args:
        pairs: case -> its label map and its out-of-fold prediction.
        classes: what their values mean.
        sides: pairs of classes that are left and right of each other.
        processes: worker processes; the result does not depend on it.
        folds: case -> its fold: models differ, so that a case is compared with those of its own.

    Raises:
        DataError: a file cannot be read, or the grids of a case differ.
        RunError: a worker process was killed.
    """
    work, names = partial(errors.measure, classes=classes, sides=sides), list(pairs)
    measured = in_parallel(work, list(pairs.values()), processes, "reviewing labels")
    cohort = _Cohort(names, measured, tuple(classes.values), [folds.get(name) for name in names])
    tries = [(i, other) for i in range(len(names)) for other in cohort.alike(i)]
    mixed = [(pairs[names[i]][0], pairs[names[other]][1]) for i, other in tries]
    fits = in_parallel(partial(errors.fit, classes=classes), mixed, processes, "comparing scans")
    for (i, other), dice in zip(tries, fits, strict=True):
        own = max(np.nanmean(of.dice) for of in measured[i].repairs if of.name == errors.SHIFTED)
        if np.nanmean(dice) >= own + CLEARLY:  # both may be moved
            detail = f"they fit the scan of {names[other]}"
            measured[i].repairs.append(Repair(ANOTHER, dice, range(len(dice)), detail))
    found = map(cohort.judge, range(len(names)))
    return sorted(found, key=lambda of: (-of.score, of.case))


class _Cohort:
    """All cases, and what is usual among them: median and spread of each class's Dice, ..."""

    def __init__(
        self, names: list[str], cases: Sequence[Measured], classes: Sequence[str], folds: list[Any]
    ) -> None:
        self.names, self.cases, self.classes = names, cases, classes
        self.folds = [[i for i, of in enumerate(folds) if of == fold] for fold in set(folds)]
        self.before = np.array([of.dice for of in cases])
        self.dice, spread = self.usual(self.before, LEAST_DICE)
        self.lacks = np.nan_to_num((self.dice - self.before) / spread, nan=-np.inf)
        self.sizes = np.array([of.sizes for of in cases])
        labels = self.sizes[:, 0, :-3]
        self.is_usual = (labels > 0).mean(axis=0) >= USUAL
        self.median_size = _usual(np.where(labels > 0, labels, np.nan), 0)[0]
        self.contents = np.array([of.content for of in cases])
        kinds = {repair.name for of in cases for repair in of.repairs}
        gains = {kind: np.array([_gain(of, kind) for of in cases]) for kind in kinds}
        self.gains = {kind: self.usual(values, LEAST_GAIN) for kind, values in gains.items()}
        shares = {kind: np.mean(values > 0) for kind, values in gains.items()}
        rare = (errors.LEFT_OUT, errors.ISLANDS)
        self.rare = [kind for kind in rare if shares.get(kind, 1) <= RARE]

    def usual(self, values: Scores, least: float) -> tuple[Scores, Scores]:
        """For each case, median and robust spread of the cases of its fold, or of all if few."""
        found = np.array([np.broadcast_to(of, values.shape) for of in _usual(values, least)])
        for fold in self.folds:
            if len(fold) >= LEAST_FOLD:
                found[:, fold] = np.array(_usual(values[fold], least))[:, None]
        return found[0], found[1]

    def alike(self, i: int) -> list[int]:
        """For a case that lacks Dice, the others whose predictions have most similar sizes."""
        if not self.cases[i].repairs or self.lacks[i].max() < SUSPICIOUS:
            return []
        unlike = np.abs(np.log1p(self.sizes[i, 0]) - np.log1p(self.sizes[:, 1])).sum(axis=1)
        # The model of a fold that is much better would explain a difference, too.
        is_fair = np.nanmean(self.dice, axis=1) <= np.nanmean(self.dice[i]) + CLEARLY
        order = [int(j) for j in np.argsort(unlike) if j != i and is_fair[j]]
        return [j for j in order if self.cases[j].repairs][:CANDIDATES]

    def judge(self, i: int) -> Finding:
        """The suspicion that explains most."""
        name, before, worst = self.names[i], self.before[i], int(np.argmax(self.lacks[i]))
        lack, total, label = float(self.lacks[i, worst]), np.nansum(before), self.classes[worst]
        if np.isnan(before).all():
            return Finding(name, NONE, (), 0.0, "neither labelled nor predicted", None)
        mean, lacking = float(np.nanmean(before)), self.lacks[i] >= SUSPICIOUS
        usual = f"Dice of {label} {before[worst]:.2f}, usually {self.dice[i, worst]:.2f}"
        best, score = None, lack
        for repair in (*self.cases[i].repairs, *self.explanations(i)):
            usual_gain, spread = 0.0, LEAST_GAIN
            if repair.name in self.gains:
                usual_gain, spread = (of[i] for of in self.gains[repair.name])
            gain = np.nansum(repair.dice) - total - usual_gain
            surprise = gain / spread + SUSPICIOUS * (gain > 0 and repair.name in self.rare)
            explains = gain >= EXPLAINED * (self.dice[i] - before)[lacking].sum()
            is_best = best is None or np.nansum(repair.dice) > np.nansum(best.dice)
            if surprise >= SUSPICIOUS and explains and is_best:
                best, score = repair, float(max(lack, surprise))
        if best is not None:
            after = float(np.nanmean(best.dice))
            evidence = f"{best.detail}; {usual}; mean {mean:.2f}, {after:.2f} without the error"
            classes = tuple(self.classes[c] for c in best.classes)
            return Finding(name, best.name, classes, score, evidence, mean, after)
        if not lacking.any():
            return Finding(name, NONE, (), lack, usual, mean)
        kind = UNEXPLAINED if self.sizes[i, 1, worst] else EXTRA
        return Finding(name, kind, (label,), lack, usual, mean)

    def explanations(self, i: int) -> Iterator[Repair]:
        """Errors that only the other cases show."""
        before, (here, predicted) = self.before[i], self.sizes[i, :, :-3]
        missing = (here == 0) & self.is_usual & (predicted > AS_MUCH * self.median_size)
        if missing.any():
            gone = np.flatnonzero(missing).tolist()
            parts = (f"{self.classes[c]}: {predicted[c]} voxels predicted" for c in gone)
            detail = f"no label; {', '.join(parts)}"
            kind = MISSING if here.any() else EMPTY
            yield Repair(kind, np.where(missing, self.dice[i], before), gone, detail)
        twins = [int(j) for j in np.flatnonzero(self.contents == self.contents[i]) if j != i]
        if self.contents[i] and any(np.nansum(self.before[j]) > np.nansum(before) for j in twins):
            detail = f"equal to the map of {', '.join(self.names[j] for j in twins)}"
            scores = np.where(np.isnan(before), np.nan, self.dice[i])
            yield Repair(DUPLICATE, scores, range(len(scores)), detail)


def _usual(values: Scores, least: float) -> tuple[Any, Any]:
    """Median and robust standard deviation over the cases."""
    with warnings.catch_warnings():  # of classes that no case has
        warnings.simplefilter("ignore", RuntimeWarning)
        median = np.nanmedian(values, axis=0)
        return median, np.maximum(least, 1.4826 * np.nanmedian(abs(values - median), axis=0))


def _gain(of: Measured, kind: str) -> float:
    """What the best repair of a kind gains, summed over the classes; 0 if there is none."""
    gains = (np.nansum(it.dice) - np.nansum(of.dice) for it in of.repairs if it.name == kind)
    return max(0.0, *gains, 0.0)


# The file, in which the user marks cases to keep.


def read_kept(path: Path) -> dict[str, str]:
    """Case -> what the user wrote into the column `kept` of an earlier review; empty without one.

    Raises:
        DataError: the file lost its columns.
    """
    if not path.is_file():
        return {}
    text = read_text(path).removeprefix("\ufeff")
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)  # spreadsheets may have written another one
    rows = csv.DictReader(StringIO(text), delimiter=separator)
    if not {"case", KEPT} <= set(rows.fieldnames or ()):
        raise DataError(TEXT("no columns", path=path))
    return {row["case"]: mark for row in rows if (mark := (row[KEPT] or "").strip())}


def findings_rows(found: Iterable[Finding]) -> list[Row]:
    """A header and a row for each case."""
    rows: list[Row] = [FINDINGS]
    for of in found:
        figures = f"{of.score:.1f}", number(of.dice, 3), number(of.repaired, 3)
        rows.append((of.case, of.suspicion, "; ".join(of.classes), *figures, of.evidence))
    return rows


def write_review(path: Path, found: Sequence[Finding], kept: Mapping[str, str]) -> None:
    """Write all cases, those that are kept last and without a rank."""
    ordered = sorted(found, key=lambda of: of.case in kept)
    header, *rows = findings_rows(ordered)
    marked = [
        ("" if row[0] in kept else str(rank), *row, kept.get(row[0], ""))
        for rank, row in enumerate(rows, 1)
    ]
    write_text(path, rows_as_csv([("rank", *header, KEPT), *marked]))
