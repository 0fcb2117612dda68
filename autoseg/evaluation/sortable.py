"""Tables that the report's reader can sort: every cell knows what it is sorted by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.evaluation.tables import NOTHING, metric_name, number, spread

Order = Literal["ascending", "descending"]

MOST_ROWS = 3000  # of the table of cases; more make a page that browsers scroll slowly
ALL = "mean of the classes"
ML = ("truth (ml)", "prediction (ml)")
WORD_IN_WORD = re.compile("(?<=[a-z])(?=[A-Z])")
NO_NAMES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Cell:
    """What is written in a place of a table.

    Attributes:
        text: as it is read.
        value: the number to sort by; None: there is none, or the text is sorted by.
        link: an address in the page.
        share: of the cell's width to fill as a bar; None: no bar.
    """

    text: str
    value: float | None = None
    link: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Column:
    """What stands above.

    Attributes:
        name: as it is read.
        first: the order of the first click, which brings the worst to the top.
        is_text: sorted by what is read; numbers are sorted as numbers.
    """

    name: str
    first: Order = "ascending"
    is_text: bool = False

    @property
    def parts(self) -> list[str]:
        """The name, cut where a long word may be broken."""
        return WORD_IN_WORD.split(self.name)


@dataclass(frozen=True)
class Line:
    """One row: its cells, and the class by which it can be chosen."""

    cells: tuple[Cell, ...]
    group: str = ""


@dataclass(frozen=True)
class Sortable:
    """A table to sort.

    Attributes:
        name: what it lists, in words.
        columns: one for each cell of a line.
        lines: in the order that is shown first.
        sorted_by: the column that this order follows, from low to high; None: of none.
        groups: the classes to choose from, the one that is shown first in front; empty: no choice.
        note: a sentence below.
    """

    name: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    sorted_by: int | None = None
    groups: tuple[str, ...] = ()
    note: str = ""


def class_table(summary: Summary) -> Sortable:
    """Classes x metrics: mean ± std over the cases, and in brackets over how many."""
    lines, metrics = [], measured(summary)
    for label in summary.labels:
        cells = [Cell(label)]
        for metric in metrics:
            of = summary.statistic(label, metric)
            text = f"{spread(of, 3)} ({of.n})" if of.n else NOTHING
            cells.append(Cell(text, of.mean, share=of.mean if metric == "Dice" else None))
        lines.append(Line(tuple(cells)))
    columns = (Column("class", is_text=True), *_metric_columns(metrics))
    return Sortable("Mean ± std over the cases (n)", columns, tuple(lines))


def case_table(
    summary: Summary,
    folds: Mapping[str, str] = NO_NAMES,
    links: Mapping[str, str] = NO_NAMES,
    most_rows: int = MOST_ROWS,
) -> Sortable:
    """A line for each case and class, with every metric; the worst cases are first.

    The page shows the lines of one class at a time, first the means over the classes.

    Args:
        summary: the scores.
        folds: case -> the fold that it validates.
        links: case -> where in the page it is drawn.
        most_rows: how many lines at most; the worst cases remain.
    """
    several, metrics = len(summary.classes) > 1, measured(summary)
    groups = ((ALL,) if several else ()) + summary.labels
    ordered = worst_first(summary.cases)
    names = [case.case for case in ordered] + list(summary.missing)
    room = max(1, most_rows // max(1, len(groups)))
    shown = names[:room]
    note = "" if len(shown) == len(names) else _cut(len(shown), len(names))
    lines: list[Line] = []
    for case in ordered[:room]:
        head = _head(case.case, folds, links)
        lines += [Line((*head, *_scores(case, group, metrics)), group) for group in groups]
    count = len(metrics) + len(ML)
    for name in shown[len(ordered) :]:
        empty = (Cell("missing"), *[Cell(NOTHING)] * (count - 1))
        head = _head(name, folds, links)
        lines += [Line((*head, *empty), group) for group in groups]
    columns = [Column(name, is_text=True) for name in ("case", *_fold_heading(folds))]
    sorted_by = len(columns)
    columns += [*_metric_columns(metrics), *(Column(name) for name in ML)]
    choice = groups if several else ()
    return Sortable("Every case", tuple(columns), tuple(lines), sorted_by, choice, note)


def measured(summary: Summary) -> list[str]:
    """The metrics that any case has; a summary of before surfaces were measured lacks some."""
    labels = summary.labels
    return [m for m in METRICS if any(summary.statistic(label, m).n for label in labels)]


def worst_first(cases: Iterable[CaseScores]) -> list[CaseScores]:
    """By their mean Dice, then by name; those without one, which are right, come last."""
    return sorted(cases, key=lambda case: (_or_last(case.mean()), case.case))


def text_table(name: str, rows: Sequence[Sequence[str]], note: str = "") -> Sortable:
    """Rows of text under a header; cells that are plain numbers are sorted as such."""
    header, *body = rows
    lines = tuple(Line(tuple(Cell(text, _as_number(text)) for text in row)) for row in body)
    columns = tuple(
        Column(head, is_text=not any(line.cells[i].value is not None for line in lines))
        for i, head in enumerate(header)
    )
    return Sortable(name, columns, lines, note=note)


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def _cut(shown: int, of: int) -> str:
    return f"The {shown} worst of {of} cases are listed; table.csv beside this page has all."


def _fold_heading(folds: Mapping[str, str]) -> tuple[str, ...]:
    return ("fold",) if folds else ()


def _head(case: str, folds: Mapping[str, str], links: Mapping[str, str]) -> tuple[Cell, ...]:
    fold = (Cell(folds.get(case, NOTHING)),) if folds else ()
    return (Cell(case, link=links.get(case, "")), *fold)


def _metric_columns(metrics: Iterable[str]) -> list[Column]:
    columns = []
    for metric in metrics:
        first: Order = "descending" if METRICS[metric].better == "lower" else "ascending"
        columns.append(Column(metric_name(metric), first))
    return columns


def _scores(case: CaseScores, group: str, metrics: Iterable[str]) -> list[Cell]:
    """The metrics of a class in a case, or their means over the classes, and the volumes."""
    cells = []
    for metric in metrics:
        value = case.mean(metric) if group == ALL else case.value(group, metric)
        cells.append(Cell(number(value), value, share=value if metric == "Dice" else None))
    if group == ALL:  # regions overlap: their volumes have no sum
        return cells + [Cell(NOTHING)] * len(ML)
    volume = case.volume_ml[group]
    pair = (volume.reference, volume.predicted)
    return cells + [Cell(number(ml, 2), ml) for ml in pair]


def _as_number(text: str) -> float | None:
    try:
        return float(text.rstrip(" %"))
    except ValueError:
        return None
