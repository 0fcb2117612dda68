"""The folds of a cross-validation, put together."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from autoseg.errors import DataError
from autoseg.evaluation.summary import Summary, combine
from autoseg.evaluation.tables import Row, number, spread


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
    begun = {
        int(found[1]): path
        for path in folder.glob("fold_*")
        if (found := re.fullmatch(r"fold_(\d+)", path.name))
    }
    files = {k: path / "validation" / "summary.json" for k, path in sorted(begun.items())}
    folds = {k: Summary.load(file) for k, file in files.items() if file.is_file()}
    if not folds:
        raise DataError(
            f"{folder}: no fold has validation/summary.json; train one: "
            f"autoseg_train {folder.parent.name} 0"
        )
    missing = set(range(max(fold_count, max(begun) + 1))) - folds.keys()
    return CrossValidation(folds, tuple(sorted(missing)))


def fold_rows(validation: CrossValidation) -> list[Row]:
    """Median Dice of folds x classes: a header, the folds, then how they go together.

    The last two rows are the mean of the folds' medians (as Müller et al. report their folds) and
    the mean ± std over all cases.
    """
    combined = validation.combined
    labels = combined.labels
    rows: list[Row] = [("fold", "cases", *labels)]
    medians: dict[str, list[float]] = {label: [] for label in labels}
    for fold, summary in validation.folds.items():
        of = {label: summary.statistic(label).median for label in labels}
        rows.append((f"{fold} (median)", str(len(summary.cases)), *map(number, of.values())))
        for label, median in of.items():
            medians[label] += [] if median is None else [median]
    rows += [(f"{fold}", "0", *["missing"] * len(labels)) for fold in validation.missing]
    means = [statistics.fmean(found) if found else None for found in medians.values()]
    rows.append(("mean of the medians", str(len(combined.cases)), *map(number, means)))
    spreads = [spread(combined.statistic(label)) for label in labels]
    rows.append(("mean ± std of all cases", str(len(combined.cases)), *spreads))
    return rows
