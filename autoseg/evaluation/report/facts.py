"""Tables that the report's reader can sort: every cell knows what it is sorted by."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.common.progress import by_axis, in_fine_words, say
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.evaluation.tables import NOTHING, Pair, Row, metric_name, number, spread
from autoseg.fingerprint import Fingerprint
from autoseg.models.log import Training

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


# What the data is, in words: the fingerprint as the report tells it.

RANGE = "\N{EN DASH}"


def data_rows(fingerprint: Fingerprint) -> list[Pair]:
    """What -> its values over the cases."""
    cases = list(fingerprint.cases.values())
    shapes = np.array([case.shape for case in cases], dtype=np.float64)
    spacings = fingerprint.spacings_mm
    orientations = sorted({case.orientation for case in cases})
    return [
        ("cases", str(len(cases))),
        ("channels", ", ".join(fingerprint.channels)),
        ("voxels along x, y, z: median", by_axis(np.median(shapes, axis=0), ".4g")),
        ("voxels: smallest to largest", _ranges(shapes)),
        ("voxel size in mm: median", by_axis(np.median(spacings, axis=0), ".4g")),
        ("voxel size in mm: smallest to largest", _ranges(spacings)),
        ("extent in mm: median", by_axis(np.rint(np.median(shapes * spacings, axis=0)), ".4g")),
        ("left after cutting off zeros", f"{fingerprint.relative_size_after_cropping:.0%}"),
        ("orientation", ", ".join(orientations)),
    ]


def label_rows(fingerprint: Fingerprint) -> list[Row]:
    """Labels x how much of them there is: a header, then one row for each, without background."""
    shares = fingerprint.voxel_shares
    header = ("label", "value", "cases with it", "share of voxels", "median ml", "median pieces")
    rows: list[Row] = [header]
    cases = list(fingerprint.cases.values())
    names = list(dict.fromkeys(name for case in cases for name in case.labels))
    for name in names:
        found = [of for case in cases if (of := case.labels.get(name)) and of.present]
        rows.append(
            (
                name,
                ", ".join(map(str, fingerprint.labels.get(name, ()))),
                str(len(found)),
                f"{100 * shares.get(name, 0.0):.3g} %",
                _median(of.volume_ml for of in found),
                _median(of.components for of in found),
            )
        )
    return rows


def intensity_rows(fingerprint: Fingerprint) -> list[Row]:
    """Channels x intensities of the labelled voxels: a header, then one row for each."""
    header = ("channel", "mean", "std", "min", "0.5 %", "median", "99.5 %", "max")
    rows: list[Row] = [header]
    for name, of in zip(fingerprint.channels, fingerprint.foreground, strict=True):
        if of is None:
            rows.append((name, *[NOTHING] * (len(header) - 1)))
            continue
        figures = (of.mean, of.std, of.min, of.p00_5, of.median, of.p99_5, of.max)
        rows.append((name, *(f"{figure:.4g}" for figure in figures)))
    return rows


def _ranges(values: np.ndarray) -> str:
    """The range along each axis; one number where all cases have the same."""
    parts = []
    for low, high in zip(values.min(axis=0), values.max(axis=0), strict=True):
        parts.append(f"{low:.4g}" if low == high else f"{low:.4g}{RANGE}{high:.4g}")
    return by_axis(parts)


def _median(values: Iterable[float]) -> str:
    known = list(values)
    return f"{statistics.median(known):.3g}" if known else NOTHING


# When, how long, on what and with which versions: what training and prediction have recorded.

RECORD = "predictions.json"  # as prediction writes it beside its label maps
PREDICTED = ("cases predicted", "a case (median)")


@dataclass(frozen=True)
class Predictions:
    """What a folder of predictions records.

    Attributes:
        head: what made them: plan, model, folds.
        runs: the commands that took part: device, versions, when they began.
        seconds: of every case, all stages together.
    """

    head: Mapping[str, Any]
    runs: tuple[Mapping[str, Any], ...] = ()
    seconds: tuple[float, ...] = ()


def read_predictions(folder: Path) -> Predictions | None:
    """The record in a folder of predictions; None if there is none that can be read."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        seconds = [_seconds(case) for case in found["cases"].values()]
        runs = sorted(found.get("runs", {}).values(), key=lambda run: str(run.get("started")))
    except (AutosegError, AttributeError, KeyError, TypeError, ValueError) as error:
        say(f"warning: {path} is damaged and left out of the report ({error})")
        return None
    head = {key: value for key, value in found.items() if key not in ("runs", "cases")}
    return Predictions(head, tuple(runs), tuple(value for value in seconds if value is not None))


def version_rows(predictions: Iterable[Predictions]) -> list[Pair]:
    """What was recorded -> its values: each once, in the order of the runs."""
    values: dict[str, list[str]] = {}
    for run in (run for each in predictions for run in each.runs):
        for name, value in run.items():
            known = values.setdefault(name, [])
            if str(value) not in known:
                known.append(str(value))
    return [(name, ", ".join(known)) for name, known in values.items()]


def fold_times(
    trainings: Mapping[int, Training | None], predictions: Mapping[int, Predictions | None]
) -> Sortable:
    """Folds x times of their training, and of the prediction of their validation cases."""
    names = ("fold", "epochs", "training", "an epoch", *PREDICTED)
    lines = [
        Line(
            (Cell(str(fold), fold), *_training(trainings.get(fold)), *_cells(predictions.get(fold)))
        )
        for fold in sorted(trainings.keys() | predictions.keys())
    ]
    return Sortable("Time of the folds", tuple(map(Column, names)), tuple(lines))


def prediction_times(predicted: Predictions) -> Sortable:
    """One line: how long the predictions took."""
    columns = tuple(map(Column, PREDICTED))
    return Sortable("Time of the predictions", columns, (Line(_cells(predicted)),))


def _cells(predicted: Predictions | None) -> tuple[Cell, Cell]:
    """How many cases were predicted, and how long the middle one took."""
    if predicted is None or not predicted.seconds:
        return Cell(NOTHING), Cell(NOTHING)
    count = len(predicted.seconds)
    return Cell(str(count), count), _time(statistics.median(predicted.seconds))


def _training(training: Training | None) -> tuple[Cell, Cell, Cell]:
    if training is None:
        return Cell(NOTHING), Cell(NOTHING), Cell(NOTHING)
    epochs = Cell(str(training.epochs), training.epochs)
    if training.seconds is None or not training.epochs:
        return epochs, Cell(NOTHING), Cell(NOTHING)
    return epochs, _time(training.seconds), _time(training.seconds / training.epochs)


def _time(seconds: float) -> Cell:
    return Cell(in_fine_words(seconds), seconds)


def _seconds(case: Mapping[str, Any]) -> float | None:
    """Of all stages; older records have one number."""
    found = case.get("seconds")
    if isinstance(found, Mapping):
        return float(sum(found.values()))
    return None if found is None else float(found)
