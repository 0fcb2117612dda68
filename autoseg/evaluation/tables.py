"""Tables of scores as rows of text: printed, and written as Markdown, CSV and LaTeX."""

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from autoseg.common.files import read_json, write_text
from autoseg.common.pages import fill
from autoseg.evaluation.metrics import COUNTS, METRICS
from autoseg.evaluation.scores import CaseScores, Statistic, Summary

Row = tuple[str, ...]
DASH = "-"
MINUS = "\N{MINUS SIGN}"
MOST_IN_A_LINE = 7  # classes
LATEX_TABLE = Path(__file__).with_name("table.tex.j2")
PAGE_CHARACTERS = 130  # width of a LaTeX page at the smallest readable size
NEGATIVE = re.compile(r"-(?=\d)")
POOLED_LESIONS = "Lesions (connected components of a class), all cases pooled"
# How LaTeX writes special characters; column of a CSV file -> count of lesions; the words of a
# comparison.
LATEX, LESIONS, COMPARED = read_json(Path(__file__).with_name("tables.json")).values()


@dataclass(frozen=True)
class Table:
    """A table for a paper.

    Attributes:
        title: the caption.
        rows: the header and the rows.
        groups: (name, number of columns) above the header, in order, for all columns; a group
            without a name has no rule. In Markdown and CSV the names precede those of the columns.
        note: a sentence below the table.
    """

    title: str
    rows: Sequence[Row]
    groups: Sequence[tuple[str, int]] = ()
    note: str = ""

    @property
    def flat(self) -> list[Row]:
        """The rows with the names of the groups in the header."""
        header = self.rows[0]
        if self.groups:
            above = [name for name, columns in self.groups for _ in range(columns)]
            header = tuple(f"{a} {b}".strip() for a, b in zip(above, header, strict=True))
        return [header, *self.rows[1:]]


def number(value: float | None, digits: int = 4) -> str:
    """A score with four decimals; a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


def spread(statistic: Statistic, digits: int = 4) -> str:
    """`mean ± std`, or only the mean if there is no std."""
    mean = number(statistic.mean, digits)
    return mean if statistic.std is None else f"{mean} ± {number(statistic.std, digits)}"


def metric_name(metric: str) -> str:
    """The name of a metric in a header, with its unit if it has one."""
    unit = METRICS[metric].unit
    return f"{metric.partition('_')[0]} ({unit})" if unit else metric


def in_mm(distances: Mapping[str, float]) -> str:
    """The distance of each class, or a single one if they are equal."""
    if len(set(distances.values())) == 1:
        return f"{next(iter(distances.values())):g} mm"
    return ", ".join(f"{name} {mm:g} mm" for name, mm in distances.items()) or DASH


def dice_text(case: CaseScores) -> str:
    """A case and its Dice by class, in one line; of many classes the mean and the worst."""
    dice = {label: case.value(label, "Dice") for label in case.labels}
    text = f"{case.case}: Dice "
    if len(dice) > MOST_IN_A_LINE:
        text += f"{number(case.mean())} (mean of {len(case.classes)} classes), worst: "
        known = sorted((value, label) for label, value in dice.items() if value is not None)
        dice = {label: value for value, label in known[:3]}
    return text + ", ".join(f"{label} {number(value)}" for label, value in dice.items())


def dice_rows(summary: Summary) -> list[Row]:
    """Dice of cases x classes: a header, the cases, then mean ± std, median and n.

    The last column is the mean over the classes; in the row of means it is the foreground mean. A
    dash marks an undefined Dice, and `missing` a case without a prediction.
    """
    labels = summary.labels
    of = [summary.statistic(label) for label in labels]
    scored = [
        (case.case, *(number(case.value(label, "Dice")) for label in labels), number(case.mean()))
        for case in summary.cases
    ]
    return [
        ("case", *labels, "mean"),
        *scored,
        *((case, *["missing"] * (len(labels) + 1)) for case in summary.missing),
        ("mean ± std", *map(spread, of), number(summary.foreground_mean())),
        ("median", *(number(s.median) for s in of), ""),
        ("n", *(str(s.n) for s in of), ""),
    ]


def metric_rows(summary: Summary) -> list[Row]:
    """The mean of metrics x classes over the cases, and in brackets the number of cases.

    A case for which a metric is undefined counts in no mean.
    """
    return rows_of_metrics("metric: mean (n)", summary, lambda s: number(s.mean))


def rows_of_metrics(corner: str, summary: Summary, show: Callable[[Statistic], str]) -> list[Row]:
    """A header and a row for each metric, with the `n` of each entry in brackets.

    Args:
        corner: the first cell of the header.
        summary: the scores.
        show: formats the statistic of a class and a metric, without its n.
    """
    rows: list[Row] = [(corner, *summary.labels)]
    for metric in METRICS:
        of = [summary.statistic(label, metric) for label in summary.labels]
        rows.append((metric_name(metric), *(f"{show(s)} ({s.n})" for s in of)))
    return rows


def lesion_rows(summary: Summary) -> list[Row]:
    """The lesions of all cases pooled: a header, then one row for each class that has lesions."""
    rows: list[Row] = [("class", "lesions", "found", "missed", "false", "recall", "precision")]
    for label in filter(summary.has_lesions, summary.labels):
        of = summary.lesions(label)
        counts = map(str, (of.reference, of.found, of.missed, of.false))
        ratios = (METRICS[name].of(of) for name in ("LesionRecall", "LesionPrecision"))
        rows.append((label, *counts, *map(number, ratios)))
    return rows


def print_dice(*summaries: Summary) -> None:
    """Print one Dice table on standard output."""
    cases = tuple(case for summary in summaries for case in summary.cases)
    header, *rows = dice_rows(replace(summaries[0], cases=cases))
    print_rows([("Dice", *header[1:]), *rows])


def print_rows(rows: Sequence[Row]) -> None:
    """Print a header and rows: a table with borders on a terminal, else aligned plain text."""
    if not sys.stdout.isatty():
        for cells in _aligned(rows):
            print("  ".join(cells).rstrip())
        return
    header, *body = rows
    table = RichTable()
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for row in body:
        table.add_row(*map(Text, row))
    Console().print(table)


def _aligned(rows: Sequence[Row]) -> list[list[str]]:
    """Cells padded to the width of their column: the first left-aligned, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    formats = [f"{'>' if i else '<'}{width}" for i, width in enumerate(widths)]
    return [list(map(format, row, formats)) for row in rows]


def as_csv(summary: Summary) -> str:
    """All scores of all cases as CSV: one line for each case and class, empty where undefined.

    Missing cases have lines without scores.
    """
    columns = ("case", "class", *METRICS, *COUNTS, "reference_ml", "predicted_ml", *LESIONS)
    rows = [
        row
        | {name: case["lesions"].get(row["class"], {}).get(key) for name, key in LESIONS.items()}
        for case in map(CaseScores.to_json, summary.cases)
        for row in score_rows(case)
    ]
    rows += [{"case": case, "class": label} for case in summary.missing for label in summary.labels]
    return records_as_csv(rows, columns)


def score_rows(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each class of a case of `summary.json`: its metrics, voxel counts and volumes."""
    for name, metrics in case["metrics"].items():
        volumes = case.get("volume_ml", {}).get(name, {})
        ml = {f"{key}_ml": value for key, value in volumes.items()}
        yield {"case": case["case"], "class": name, **metrics, **ml}


def records_as_csv(rows: Sequence[Mapping[str, object]], first: Sequence[str]) -> str:
    """Rows by column as CSV: first these columns, then those of all rows as they appear."""
    columns = list(dict.fromkeys([*first, *(key for row in rows for key in row)]))
    return rows_as_csv([columns, *([row.get(name, "") for name in columns] for row in rows)])


def rows_as_csv(rows: Sequence[Sequence[object]]) -> str:
    """A header and rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def rows_as_markdown(rows: Sequence[Row]) -> str:
    """A header and rows as a Markdown table with right-aligned numbers."""
    header, *body = _aligned([tuple(cell.replace("|", "\\|") for cell in row) for row in rows])
    rule = [("-" if i == 0 else "-:").rjust(len(cell), "-") for i, cell in enumerate(header)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *body))


def write_table(stem: Path, table: Table) -> list[Path]:
    """Write a table as `.csv`, `.md` and `.tex`; returns the three paths."""
    note = f"\n{table.note}\n" if table.note else ""
    markdown = f"{table.title}\n\n{rows_as_markdown(table.flat)}{note}"
    paths = [stem.with_name(stem.name + ending) for ending in (".csv", ".md", ".tex")]
    for path, text in zip(paths, (rows_as_csv(table.flat), markdown, as_latex(table)), strict=True):
        write_text(path, text)
    return paths


def as_latex(table: Table) -> str:
    """The table for LaTeX with the packages booktabs and (for wide tables) graphicx.

    Groups that do not fit side by side are placed below each other.
    """
    title = table.title if not table.title or table.title.endswith(".") else f"{table.title}."
    caption = escaped(" ".join(filter(None, (title, table.note))))
    return fill(LATEX_TABLE, caption=caption, parts=_split(table), escaped=escaped) + "\n"


def _split(table: Table) -> list[Table]:
    """The table in parts that fit a page, each with the columns of the first group."""
    if not table.groups:
        return [table]
    widths = [max(map(len, column)) + 2 for column in zip(*table.rows, strict=True)]
    ends = list(accumulate(columns for _, columns in table.groups))
    head, room = ends[0], 0
    parts: list[tuple[int, int]] = []  # the first group, and the one behind the last
    for i in range(1, len(ends)):
        width = sum(widths[ends[i - 1] : ends[i]])
        if not parts or width > room:
            parts.append((i, i))
            room = PAGE_CHARACTERS - sum(widths[:head])
        parts[-1] = parts[-1][0], i + 1
        room -= width
    found = []
    for start, end in parts:
        columns = slice(ends[start - 1], ends[end - 1])
        rows = [(*row[:head], *row[columns]) for row in table.rows]
        found.append(replace(table, rows=rows, groups=[table.groups[0], *table.groups[start:end]]))
    return found


def escaped(text: str) -> str:
    """Text for LaTeX: special characters escaped, a lone dash and minus signs typeset as such."""
    if text == DASH:
        return "--"
    marked = NEGATIVE.sub(MINUS, text) if NEGATIVE.match(text) else text
    return marked.translate(str.maketrans(LATEX))
