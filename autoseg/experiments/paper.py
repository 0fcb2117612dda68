"""The tables of a study with several plans, in the layout of Müller et al. 2021 (Tables 1 and 2).

A fold is reported by the median of its cases, and a plan by the mean of these medians. Folds that
have not been scored yet appear as missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from autoseg.evaluation.figures.boxes import Groups
from autoseg.evaluation.scores import Statistic
from autoseg.evaluation.tables import DASH, Row, Table, number, spread
from autoseg.experiments.results import Arm, Column
from autoseg.models.folder import VALIDATION

PAPER_METRICS = {"Dice": "DSC", "IoU": "IoU", "Sensitivity": "Sens", "Specificity": "Spec"}
MISSING = "missing"
DIGITS = 3


def median_table(arms: Sequence[Arm], columns: Sequence[Column], head: str) -> Table:
    """The mean of the folds' medians: plans x (sets and classes) x metrics, as the paper's Table 1.

    Args:
        arms: the rows.
        columns: the groups of columns.
        head: what distinguishes the arms, such as `k`.
    """

    def cell(arm: Arm, column: Column, metric: str) -> str:
        return number(Statistic.of(arm.medians(column, metric).values()).mean, DIGITS)

    return _by_metric("Mean of the folds' medians", arms, columns, head, cell)


def mean_table(arms: Sequence[Arm], columns: Sequence[Column], head: str) -> Table:
    """The same layout with mean ± std over the cases of all folds."""

    def cell(arm: Arm, column: Column, metric: str) -> str:
        return spread(arm.statistic(column, metric), DIGITS)

    return _by_metric("Mean ± std over the cases of all folds", arms, columns, head, cell)


def fold_table(arms: Sequence[Arm], classes: Sequence[str], head: str) -> Table:
    """Median Dice of folds x plans, with `class / class` in each cell, as the paper's Table 2.

    The last rows are the mean of the medians and the number of cases. The cell is empty where a
    plan has no such fold.
    """
    columns = [(VALIDATION, label) for label in classes]
    of = {arm.name: [arm.medians(column, "Dice") for column in columns] for arm in arms}
    rows: list[Row] = [("fold", *(titled(head, name) for name in of))]
    for fold in sorted({fold for arm in arms for fold in arm.folds}):
        cells = [_fold_cell(arm, fold, of[arm.name]) for arm in arms]
        rows.append((str(fold), *cells))
    rows.append(("AVG", *(_average_cell(medians) for medians in of.values())))
    counts = [[arm.statistic(column, "Dice").n for column in columns] for arm in arms]
    rows.append(("n", *(_joined(map(str, each)) for each in counts)))
    title = f"Median {PAPER_METRICS['Dice']} of every fold: {' / '.join(classes)}"
    return Table(title, rows, note=_missing(arms, head))


def fold_boxes(arms: Sequence[Arm], classes: Sequence[str], head: str) -> dict[str, Groups]:
    """Plan -> fold -> class -> Dice of the validation cases, for box plots."""
    return {
        titled(head, arm.name): {
            f"fold {fold}": {
                label: arm.of_fold((VALIDATION, label), fold, "Dice") for label in classes
            }
            for fold in arm.folds
        }
        for arm in arms
    }


def bars(arms: Sequence[Arm], columns: Sequence[Column], head: str) -> dict[str, Groups]:
    """Set of cases -> plan -> class -> medians of the folds, for bar charts."""
    return {
        where: {
            titled(head, arm.name): {
                label: list(arm.medians((where, label), "Dice").values())
                for of, label in columns
                if of == where
            }
            for arm in arms
        }
        for where in dict.fromkeys(where for where, _ in columns)
    }


def titled(head: str, name: str) -> str:
    """The name of an arm outside a table: `k = 5`, or the plan's name."""
    return name if head == "plan" else f"{head} = {name}"


ShowCell = Callable[[Arm, Column, str], str]


def _by_metric(
    title: str, arms: Sequence[Arm], columns: Sequence[Column], head: str, cell: ShowCell
) -> Table:
    header = [head, "folds"]
    groups = [("", 2)]
    for where, label in columns:
        header += [*PAPER_METRICS.values(), "n"]
        groups.append(
            (label if where == VALIDATION else f"{where} {label}", len(PAPER_METRICS) + 1)
        )
    rows: list[Row] = [tuple(header)]
    for arm in arms:
        row = [arm.name, _folds(arm, [where for where, _ in columns])]
        for column in columns:
            if not arm.done(column[0]):
                row += [MISSING] * len(PAPER_METRICS) + ["0"]
            else:
                row += [*(cell(arm, column, m) for m in PAPER_METRICS), _count(arm, column)]
        rows.append(tuple(row))
    return Table(title, rows, groups, _missing(arms, head))


def _folds(arm: Arm, sets: Iterable[str]) -> str:
    """The number of scored folds, as in `3` or `2 of 3`."""
    done = min(arm.done(where) for where in sets)
    return str(done) if done == len(arm.folds) else f"{done} of {len(arm.folds)}"


def _count(arm: Arm, column: Column) -> str:
    """The number of values of the metrics; a range if they differ."""
    counts = [arm.statistic(column, metric).n for metric in PAPER_METRICS]
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"


def _fold_cell(arm: Arm, fold: int, medians: Sequence[Mapping[int, float]]) -> str:
    if fold not in arm.folds:
        return ""
    if fold not in arm.scores.get(VALIDATION, {}):
        return MISSING
    return _joined(number(each.get(fold), DIGITS) for each in medians)


def _average_cell(medians: Sequence[Mapping[int, float]]) -> str:
    means = [Statistic.of(of_class.values()).mean for of_class in medians]
    known = any(mean is not None for mean in means)
    return _joined(number(mean, DIGITS) for mean in means) if known else MISSING


def _joined(cells: Iterable[str]) -> str:
    return " / ".join(cells) or DASH


def _missing(arms: Sequence[Arm], head: str) -> str:
    """A sentence with the folds that are not validated."""
    gaps = [
        f"{titled(head, arm.name)}: {', '.join(map(str, lacking))}"
        for arm in arms
        if (lacking := [f for f in arm.folds if f not in arm.scores.get(VALIDATION, {})])
    ]
    return f"Missing folds, not included in any value: {'; '.join(gaps)}." if gaps else ""
