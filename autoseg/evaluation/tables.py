"""Scores as rows of text: for the terminal, Markdown, CSV and the report."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence

from autoseg.evaluation.metrics import COUNTS, METRICS
from autoseg.evaluation.summary import CaseScores, Statistic, Summary

Row = tuple[str, ...]
NOTHING = "-"


def dice_rows(summary: Summary) -> list[Row]:
    """Dice of cases x classes: a header, the cases, then mean ± std, median and n.

    The last column is the mean over the classes; its entry in the row of means is the foreground
    mean. A dash stands where there is no number, and `missing` for a case without a prediction.
    """
    labels = summary.labels
    rows: list[Row] = [("case", *labels, "mean")]
    for case in summary.cases:
        dice = [case.labels[label].dice for label in labels]
        rows.append((case.case, *map(number, dice), number(case.mean())))
    rows += [(case, *["missing"] * (len(labels) + 1)) for case in summary.missing]
    of = [summary.statistic(label) for label in labels]
    rows.append(("mean ± std", *map(spread, of), number(summary.foreground_mean())))
    rows.append(("median", *(number(s.median) for s in of), ""))
    rows.append(("n", *(str(s.n) for s in of), ""))
    return rows


def metric_rows(summary: Summary) -> list[Row]:
    """The mean over the cases of every metric: a header, then one row for each class."""
    rows: list[Row] = [("class", *METRICS)]
    for label in summary.labels:
        rows.append((label, *(number(summary.statistic(label, m).mean) for m in METRICS)))
    return rows


def dice_text(case: CaseScores) -> str:
    """One line for a picture: the case and its Dice by class."""
    dice = ", ".join(f"{label} {number(of.dice)}" for label, of in case.labels.items())
    return f"{case.case}: Dice {dice}"


def number(value: float | None) -> str:
    """A score with four digits; a dash for None."""
    return NOTHING if value is None else f"{value:.4f}"


def spread(statistic: Statistic) -> str:
    """`mean ± std`, as far as there are both."""
    if statistic.std is None:
        return number(statistic.mean)
    return f"{number(statistic.mean)} ± {number(statistic.std)}"


def as_markdown(summary: Summary) -> str:
    """The Dice table in Markdown."""
    return rows_as_markdown(dice_rows(summary))


def rows_as_markdown(rows: Sequence[Row]) -> str:
    """A header and rows as a Markdown table, numbers to the right."""
    safe = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    header, *body = _aligned(safe)
    rule = [("-" if i == 0 else "-:").rjust(len(cell), "-") for i, cell in enumerate(header)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *body))


def as_csv(summary: Summary) -> str:
    """Every number of every case: one line for each case and class, empty where there is none.

    Missing cases have lines without numbers.
    """
    names = METRICS | COUNTS
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "class", *names, "reference_ml", "predicted_ml"))
    for case in summary.cases:
        for label, scores in case.labels.items():
            volumes = case.volume_ml[label]
            numbers = (getattr(scores, attribute) for attribute in names.values())
            writer.writerow((case.case, label, *numbers, volumes.reference, volumes.predicted))
    for missing in summary.missing:
        for label in summary.labels:
            writer.writerow((missing, label, *[""] * (len(names) + 2)))
    return text.getvalue()


def print_table(summary: Summary) -> None:
    """Print the Dice table on standard output."""
    print_rows(dice_rows(summary))


def print_rows(rows: Sequence[Row]) -> None:
    """Print a header and rows: a drawn table on a terminal, aligned plain text elsewhere."""
    if not sys.stdout.isatty():
        for cells in _aligned(rows):
            print("  ".join(cells).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    header, *body = rows
    table = Table()
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for row in body:
        table.add_row(*map(Text, row))
    Console().print(table)


def _aligned(rows: Sequence[Row]) -> list[list[str]]:
    """The cells padded to the width of their column: the first to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        [
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
