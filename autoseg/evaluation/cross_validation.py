"""The folds of a cross-validation, and their tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.evaluation.scores import Statistic, Summary, combine
from autoseg.evaluation.tables import Row, Table, number, rows_of_metrics, spread
from autoseg.models.folder import SUMMARY, fold_folder, folds_in


@dataclass(frozen=True)
class CrossValidation:
    """The scores of the models of all folds on their validation cases.

    Attributes:
        folds: number -> summary of the validation cases, in order.
        missing: folds that are not trained and validated yet.
    """

    folds: dict[int, Summary]
    missing: tuple[int, ...]

    @property
    def combined(self) -> Summary:
        """All validation cases in one summary."""
        return combine(list(self.folds.values()))

    @property
    def note(self) -> str:
        """A sentence on the missing folds; empty if none is missing."""
        return f"Missing folds: {', '.join(map(str, self.missing))}." if self.missing else ""


def gather(folder: Path, fold_count: int = 0) -> CrossValidation:
    """Read `fold_K/validation/summary.json` of all folds.

    Args:
        folder: `models/TASK/PLAN`.
        fold_count: the number of folds, if known. A fold without a summary is missing if it is one
            of them, or if it or a later one was started.

    Raises:
        DataError: no fold has a summary.
        AutosegError: a summary is malformed.
    """
    started = sorted(int(fold) for fold in folds_in(folder) if fold.isdecimal())
    files = {k: fold_folder(folder, k) / SUMMARY for k in started}
    folds = {k: Summary.load(file) for k, file in files.items() if file.is_file()}
    if not folds:
        raise DataError(f"{folder}: no {SUMMARY} yet; run: autoseg_train {folder.parent.name} 0")
    missing = set(range(max(fold_count, max(started) + 1))) - folds.keys()
    return CrossValidation(folds, tuple(sorted(missing)))


def fold_rows(validation: CrossValidation) -> list[Row]:
    """Median Dice of folds x classes: a header, a row for each fold, then the summary rows.

    These are the mean of the medians of the folds (as reported by Müller et al.), the mean ± std
    over all cases, and the number of cases.
    """
    combined = validation.combined
    labels, cases = combined.labels, str(len(combined.cases))
    rows: list[Row] = [("fold", "cases", *labels)]
    for fold, summary in validation.folds.items():
        medians = (number(summary.statistic(label).median) for label in labels)
        rows.append((f"{fold} (median)", str(len(summary.cases)), *medians))
    rows += [(f"{fold}", "0", *["missing"] * len(labels)) for fold in validation.missing]
    means = (Statistic.of(fold_medians(validation.folds, label, "Dice")).mean for label in labels)
    of_cases = [combined.statistic(label) for label in labels]
    return [
        *rows,
        ("mean of the medians", cases, *map(number, means)),
        ("mean ± std of all cases", cases, *map(spread, of_cases)),
        ("n", cases, *(str(of.n) for of in of_cases)),
    ]


def fold_medians(folds: Mapping[int, Summary], label: str, metric: str) -> list[float]:
    """The medians of the folds for which this metric of this class is defined."""
    medians = (summary.statistic(label, metric).median for summary in folds.values())
    return [median for median in medians if median is not None]


def tables(validation: CrossValidation) -> dict[str, Table]:
    """The tables of a cross-validation by file name."""
    combined, note = validation.combined, validation.note
    means = rows_of_metrics("metric", combined.labels, combined.statistic, spread)
    return {
        "dice_of_folds": Table("Median Dice of every fold", fold_rows(validation), note=note),
        "medians": Table(
            "Mean of the folds' medians (number of folds)", median_rows(validation), note=note
        ),
        "means": Table("Mean ± std over all cases (n)", means, note=note),
    }


def median_rows(validation: CrossValidation) -> list[Row]:
    """The mean of the medians of the folds: metrics x classes, with the number of folds."""

    def statistic(label: str, metric: str) -> Statistic:
        return Statistic.of(fold_medians(validation.folds, label, metric))

    labels = validation.combined.labels
    return rows_of_metrics("metric", labels, statistic, lambda s: number(s.mean))
