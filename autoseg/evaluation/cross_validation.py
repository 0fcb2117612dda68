"""The folds of a cross-validation, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import Statistic, Summary, combine
from autoseg.evaluation.tables import Row, Table, metric_name, number, spread
from autoseg.models.folder import SUMMARY, fold_folder, folds_in


@dataclass(frozen=True)
class CrossValidation:
    """What the models of all folds score on their validation cases.

    Attributes:
        folds: number -> summary of the fold's validation cases, in order of the numbers.
        missing: folds that are not trained and validated yet.
    """

    folds: dict[int, Summary]
    missing: tuple[int, ...]

    @property
    def combined(self) -> Summary:
        """All validation cases in one summary."""
        return combine(list(self.folds.values()))


def gather(folder: Path, fold_count: int = 0) -> CrossValidation:
    """Read `fold_K/validation/summary.json` of every fold of one plan's models.

    Args:
        folder: `models/TASK/PLAN`.
        fold_count: how many folds the splits have, as far as known; a fold without a summary is
            missing if it is one of them, or is begun, or if a later one is begun.

    Raises:
        DataError: no fold has a summary.
        AutosegError: a summary is broken.
    """
    begun = sorted(int(fold) for fold in folds_in(folder) if fold.isdecimal())
    files = {k: fold_folder(folder, k) / SUMMARY for k in begun}
    folds = {k: Summary.load(file) for k, file in files.items() if file.is_file()}
    if not folds:
        raise DataError(
            f"{folder}: no fold has {SUMMARY}; train one: autoseg_train {folder.parent.name} 0"
        )
    missing = set(range(max(fold_count, max(begun) + 1))) - folds.keys()
    return CrossValidation(folds, tuple(sorted(missing)))


def fold_rows(validation: CrossValidation) -> list[Row]:
    """Median Dice of folds x classes: a header, the folds, then how they go together.

    The last rows are the mean of the folds' medians (as Müller et al. report their folds), the
    mean ± std over all cases, and of how many cases it is.
    """
    combined = validation.combined
    labels = combined.labels
    rows: list[Row] = [("fold", "cases", *labels)]
    for fold, summary in validation.folds.items():
        medians = (number(summary.statistic(label).median) for label in labels)
        rows.append((f"{fold} (median)", str(len(summary.cases)), *medians))
    rows += [(f"{fold}", "0", *["missing"] * len(labels)) for fold in validation.missing]
    cases = str(len(combined.cases))
    medians_of = (Statistic.of(fold_medians(validation.folds, label, "Dice")) for label in labels)
    rows.append(("mean of the medians", cases, *(number(of.mean) for of in medians_of)))
    of_cases = [combined.statistic(label) for label in labels]
    rows.append(("mean ± std of all cases", cases, *map(spread, of_cases)))
    rows.append(("n", cases, *(str(of.n) for of in of_cases)))
    return rows


def fold_medians(folds: Mapping[int, Summary], label: str, metric: str) -> list[float]:
    """The median of every fold that has a number of this class and metric."""
    medians = (summary.statistic(label, metric).median for summary in folds.values())
    return [median for median in medians if median is not None]


def tables(validation: CrossValidation) -> dict[str, Table]:
    """The tables of a cross-validation, by the names of their files."""
    combined = validation.combined
    missing = ", ".join(map(str, validation.missing))
    note = f"Missing folds: {missing}." if missing else ""
    return {
        "dice_of_folds": Table("Median Dice of every fold", fold_rows(validation), note=note),
        "medians": Table(
            "Mean of the folds' medians (number of folds)", median_rows(validation), note=note
        ),
        "means": Table("Mean ± std over all cases (n)", mean_rows(combined), note=note),
    }


def median_rows(validation: CrossValidation) -> list[Row]:
    """The mean of the folds' medians of metrics x classes, and in brackets of how many folds."""
    labels = validation.combined.labels
    rows: list[Row] = [("metric", *labels)]
    for metric in METRICS:
        of = [Statistic.of(fold_medians(validation.folds, label, metric)) for label in labels]
        rows.append((metric_name(metric), *(f"{number(s.mean)} ({s.n})" for s in of)))
    return rows


def mean_rows(summary: Summary) -> list[Row]:
    """Mean ± std of metrics x classes, and in brackets of how many cases."""
    rows: list[Row] = [("metric", *summary.labels)]
    for metric in METRICS:
        of = [summary.statistic(label, metric) for label in summary.labels]
        rows.append((metric_name(metric), *(f"{spread(s)} ({s.n})" for s in of)))
    return rows
