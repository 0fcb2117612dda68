"""Sortable tables and facts for the report: scores, the data, and the records of the runs."""

import re
import statistics
from collections.abc import Iterable, Mapping
from itertools import product
from math import inf
from pathlib import Path
from typing import Any, Literal, NamedTuple

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.common.progress import counted, say
from autoseg.evaluation.comparison import bootstrap_interval
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import TEXT, CaseScores, Summary
from autoseg.evaluation.tables import DASH, metric_name, number, spread

Fact = tuple[str, str]  # name, value
SortOrder = Literal["ascending", "descending"]

SHOWN = ("Dice", "HD95_mm", "NSD", "VolumeDifference_ml")  # before the reader chooses
LESIONS = ("LesionRecall", "LesionPrecision")
RESAMPLES = 1999  # there may be a thousand intervals on a page
PENALTY = " †"
MOST_ROWS = 3000  # of the table of cases; browsers scroll longer tables slowly
ALL = "mean of the classes"
VOLUME_COLUMNS = ("reference (ml)", "prediction (ml)")
WORD_BREAK = re.compile("(?<=[a-z])(?=[A-Z])")
RECORD = "predictions.json"  # written by prediction beside its label maps
Names = Mapping[str, str]  # such as case -> fold
NO_NAMES: Names = {}


class Cell(NamedTuple):
    """A cell of a sortable table.

    Attributes:
        text: the displayed text.
        value: the number to sort by; None if there is none, or if the text is sorted by.
        link: an anchor in the page.
        share: the share of the cell's width to fill as a bar; None: no bar.
        more: a second, smaller line.
    """

    text: str
    value: float | None = None
    link: str = ""
    share: float | None = None
    more: str = ""


UNKNOWN = Cell(DASH)


class Column(NamedTuple):
    """The header of a column.

    Attributes:
        name: the displayed text.
        first: the order after the first click, which brings the worst to the top.
        is_text: whether cells are sorted by their text instead of their value.
        shown: whether the column is there before the reader chooses; None: it always is.
    """

    name: str
    first: SortOrder = "ascending"
    is_text: bool = False
    shown: bool | None = None

    @property
    def parts(self) -> list[str]:
        """The name, split where a long word may be broken."""
        return WORD_BREAK.split(self.name)


class Line(NamedTuple):
    """A row of a sortable table, and the class by which it can be selected."""

    cells: tuple[Cell, ...]
    group: str = ""


class Sortable(NamedTuple):
    """A sortable table.

    Attributes:
        name: the caption.
        columns: one for each cell of a line.
        lines: in the order shown first.
        sorted_by: the column by which the lines are sorted in ascending order; None: unsorted.
        groups: the classes to select from, starting with the one shown first; empty: no selection.
        note: a sentence below the table.
    """

    name: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    sorted_by: int | None = None
    groups: tuple[str, ...] = ()
    note: str = ""


def class_table(summary: Summary) -> Sortable:
    """Classes x metrics: mean ± std over the cases, and below its confidence interval and n."""
    lines, metrics = [], measured(summary)
    for label in summary.labels:
        cells = [Cell(label)]
        for metric in metrics:
            of = summary.statistic(label, metric)
            if not of.n or (metric in LESIONS and not summary.has_lesions(label)):
                cells.append(UNKNOWN)
                continue
            known = [value for value in summary.values(label, metric) if value is not None]
            interval = bootstrap_interval(known, RESAMPLES)
            text = "" if interval is None else " to ".join(number(v, 3) for v in interval) + ", "
            is_penalised = any(case.penalised(label, metric) for case in summary.cases)
            share = of.mean if metric == "Dice" else None
            mean = spread(of, 3) + PENALTY * is_penalised
            cells.append(Cell(mean, of.mean, share=share, more=f"{text}n = {of.n}"))
        lines.append(Line(tuple(cells)))
    columns = (Column("class", is_text=True), *map(_metric_column, metrics))
    title = "Mean ± std; below: 95 % confidence interval of the mean"
    return Sortable(title, columns, tuple(lines))


def penalties(summary: Summary) -> str:
    """A sentence on the distances of missing classes; empty if there are none."""
    found = [
        (case.value(label, "HD95_mm") or 0.0, label, case.case)
        for case in summary.cases
        for label in case.classes
        if case.surfaces and case.penalised(label, "HD95_mm")
    ]
    if not found:
        return ""
    largest, label, case = max(found)
    about = {"mark": PENALTY.strip(), "times": counted(len(found), "time")}
    return TEXT("penalties", largest=largest, label=label, case=case, **about)


def case_table(
    summary: Summary, folds: Names = NO_NAMES, links: Names = NO_NAMES, most_rows: int = MOST_ROWS
) -> Sortable:
    """A line for each case and class with all metrics, the worst cases first.

    The page shows the lines of one class at a time, first the means over the classes.

    Args:
        summary: the scores.
        folds: case -> the fold in which it is a validation case.
        links: case -> the anchor of its pictures in the page.
        most_rows: the maximum number of lines; the worst cases are kept.
    """
    several, metrics = len(summary.classes) > 1, measured(summary)
    groups = ((ALL,) if several else ()) + summary.labels
    cases = {case.case: case for case in worst_first(summary.cases)}
    names = [*cases, *summary.missing]
    shown = names[: max(1, most_rows // max(1, len(groups)))]
    missing = [Cell("missing"), *[UNKNOWN] * (len(metrics) + len(VOLUME_COLUMNS) - 1)]
    lines: list[Line] = []
    for name, group in product(shown, groups):
        head = [Cell(name, link=links.get(name, "")), Cell(folds.get(name, DASH))]
        scores = _scores(cases[name], group, metrics) if name in cases else missing
        lines.append(Line((*head[: 2 if folds else 1], *scores), group))
    heads = ("case", "fold") if folds else ("case",)
    columns = [Column(name, is_text=True) for name in heads]
    columns += map(_metric_column, metrics)
    columns += [Column(name, shown=False) for name in VOLUME_COLUMNS]
    note = f"The {len(shown)} worst of {len(names)} cases; table.csv beside this page has all."
    content = tuple(columns), tuple(lines), len(heads), groups if several else ()
    return Sortable("All cases", *content, note=note * (len(shown) < len(names)))


def measured(summary: Summary) -> list[str]:
    """The metrics that are defined for any case; old summaries lack some."""
    labels = summary.labels
    known = [metric for metric in METRICS if any(summary.statistic(of, metric).n for of in labels)]
    with_lesions = any(map(summary.has_lesions, labels))
    return [metric for metric in known if with_lesions or metric not in LESIONS]


def worst_first(cases: Iterable[CaseScores]) -> list[CaseScores]:
    """Sort by mean Dice, then by name; cases whose Dice is undefined are correct and come last."""

    known = sorted(cases, key=lambda case: case.case)
    return sorted(known, key=lambda case: inf if (dice := case.mean()) is None else dice)


def _metric_column(metric: str) -> Column:
    first: SortOrder = "descending" if METRICS[metric].better == "lower" else "ascending"
    return Column(metric_name(metric), first, shown=metric in SHOWN)


def _scores(case: CaseScores, group: str, metrics: Iterable[str]) -> list[Cell]:
    """The metrics of a class in a case, or their means over the classes, and the volumes."""
    cells = []
    for metric in metrics:
        value = case.mean(metric) if group == ALL else case.value(group, metric)
        labels = case.classes if group == ALL else (group,)
        text = number(value, 3) + PENALTY * any(case.penalised(of, metric) for of in labels)
        cells.append(Cell(text, value, share=value if metric == "Dice" else None))
    # Volumes of overlapping regions cannot be summed; a partly annotated case may lack the class.
    if group not in case.volume_ml:
        return cells + [UNKNOWN] * len(VOLUME_COLUMNS)
    volume = case.volume_ml[group]
    return cells + [Cell(number(ml, 2), ml) for ml in (volume.reference, volume.predicted)]


class Predictions(NamedTuple):
    """The record in a folder of predictions.

    Attributes:
        head: the models: task, plan, folds.
        runs: device, versions and start of each command that took part.
        seconds: of each case, all stages together.
    """

    head: Mapping[str, Any]
    runs: tuple[Mapping[str, Any], ...] = ()
    seconds: tuple[float, ...] = ()

    @property
    def median(self) -> float | None:
        """The median time of a case."""
        return statistics.median(self.seconds) if self.seconds else None


def read_predictions(folder: Path) -> Predictions | None:
    """The record in a folder of predictions; None if it is missing or malformed."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        of_cases = [case["seconds"] for case in found.pop("cases").values() if case.get("seconds")]
        # Of all stages; old records have a single number.
        seconds = (sum(of.values()) if isinstance(of, Mapping) else of for of in of_cases)
        runs = sorted(found.pop("runs", {}).values(), key=lambda run: str(run.get("started")))
        return Predictions(found, tuple(runs), tuple(map(float, seconds)))
    except (AutosegError, AttributeError, KeyError, TypeError, ValueError) as error:
        say(f"warning: {path} is damaged and left out of the report ({error})")
        return None


def version_rows(predictions: Iterable[Predictions]) -> list[Fact]:
    """The distinct values of everything recorded about the runs, in order of the runs."""
    values: dict[str, dict[str, None]] = {}
    for run in (run for each in predictions for run in each.runs):
        for name, value in run.items():
            values.setdefault(name, {})[str(value)] = None
    return [(name, ", ".join(distinct)) for name, distinct in values.items()]
