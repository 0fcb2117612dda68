"""The scores of one evaluation as rows of text."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.common.files import write_text
from autoseg.evaluation.metrics import COUNTS, METRICS
from autoseg.evaluation.scores import CaseScores, Statistic, Summary

# Rows of text as tables: printed, and in Markdown, CSV and LaTeX.

Row = tuple[str, ...]
Pair = tuple[str, str]  # what -> its value
NOTHING = "-"
MINUS = "\N{MINUS SIGN}"
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    MINUS: r"$-$",
    **{special: f"\\{special}" for special in "&%$#_{}"},
}
LETTERS_OF_A_PAGE = 130  # side by side, when LaTeX makes them as small as can be read
NEGATIVE = re.compile(r"-(?=\d)")


@dataclass(frozen=True)
class Table:
    """A table for a paper.

    Attributes:
        title: in words; LaTeX's caption.
        rows: the header and the rows.
        groups: (name, number of columns) above the header, in order, for all columns; an empty name
            spans nothing. In Markdown and CSV the names stand before those of the columns.
        note: a sentence below it.
    """

    title: str
    rows: Sequence[Row]
    groups: Sequence[tuple[str, int]] = ()
    note: str = ""

    @property
    def flat(self) -> list[Row]:
        """The rows with the groups' names in the header."""
        above = [name for name, columns in self.groups for _ in range(columns)]
        header = self.rows[0]
        if above:
            header = tuple(
                f"{a} {b}".strip() if a else b for a, b in zip(above, header, strict=True)
            )
        return [header, *self.rows[1:]]


def number(value: float | None, digits: int = 4) -> str:
    """A score with four digits; a dash for None."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def spread(statistic: Statistic, digits: int = 4) -> str:
    """`mean ± std`, as far as there are both."""
    mean = number(statistic.mean, digits)
    return mean if statistic.std is None else f"{mean} ± {number(statistic.std, digits)}"


def write_table(stem: Path, table: Table) -> list[Path]:
    """Write a table as `.csv`, `.md` and `.tex`; returns the three paths."""
    texts = {
        ".csv": rows_as_csv(table.flat),
        ".md": f"{table.title}\n\n{rows_as_markdown(table.flat)}"
        + (f"\n{table.note}\n" if table.note else ""),
        ".tex": as_latex(table),
    }
    for ending, text in texts.items():
        write_text(stem.with_name(stem.name + ending), text)
    return [stem.with_name(stem.name + ending) for ending in texts]


def rows_as_markdown(rows: Sequence[Row]) -> str:
    """A header and rows as a Markdown table, numbers to the right."""
    safe = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    header, *body = _aligned(safe)
    rule = [("-" if i == 0 else "-:").rjust(len(cell), "-") for i, cell in enumerate(header)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *body))


def rows_as_csv(rows: Sequence[Row]) -> str:
    """A header and rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def as_latex(table: Table) -> str:
    """The table for LaTeX, with the packages booktabs and (for wide ones) graphicx.

    Groups that have no room beside each other stand below each other.
    """
    below = ["", "  \\medskip", ""]
    parts = [_tabular(part) for part in _side_by_side(table)]
    lines = [
        "% \\usepackage{booktabs, graphicx}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{escaped(' '.join(filter(None, (_sentence(table.title), table.note))))}}}",
        *parts[0],
        *(line for part in parts[1:] for line in (*below, *part)),
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _side_by_side(table: Table) -> list[Table]:
    """The table in parts that a page has room for, each with the first group's columns."""
    if not table.groups:
        return [table]
    widths = [max(map(len, column)) + 2 for column in zip(*table.rows, strict=True)]
    head, *groups = table.groups
    parts: list[list[tuple[str, int]]] = []
    starts: list[int] = []
    column, room = head[1], 0
    for group in groups:
        width = sum(widths[column : column + group[1]])
        if not parts or width > room:
            parts.append([])
            starts.append(column)
            room = LETTERS_OF_A_PAGE - sum(widths[: head[1]])
        parts[-1].append(group)
        column, room = column + group[1], room - width
    return [
        replace(
            table,
            rows=[(*row[: head[1]], *row[start:end]) for row in table.rows],
            groups=[head, *part],
        )
        for part, start, end in zip(parts, starts, [*starts[1:], column], strict=True)
    ]


def _tabular(table: Table) -> list[str]:
    """What stands between the caption and the end."""
    header, *body = table.rows
    return [
        "  \\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"  \\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        "    \\toprule",
        *_above(table.groups),
        f"    {_cells(header)} \\\\",
        "    \\midrule",
        *(f"    {_cells(row)} \\\\" for row in body),
        "    \\bottomrule",
        "  \\end{tabular}}",
    ]


def escaped(text: str) -> str:
    """Text as LaTeX prints it: a lone dash and a minus are what they mean."""
    if text == NOTHING:
        return "--"
    marked = NEGATIVE.sub(MINUS, text) if NEGATIVE.match(text) else text
    return "".join(LATEX.get(character, character) for character in marked)


def _sentence(text: str) -> str:
    return text if not text or text.endswith(".") else f"{text}."


def _cells(row: Row) -> str:
    return " & ".join(map(escaped, row))


def _above(groups: Sequence[tuple[str, int]]) -> list[str]:
    """The names above several columns, and rules below these."""
    if not groups:
        return []
    cells, rules, column = [], [], 1
    for name, columns in groups:
        cells.append(f"\\multicolumn{{{columns}}}{{c}}{{{escaped(name)}}}")
        if name:
            rules.append(f"\\cmidrule(lr){{{column}-{column + columns - 1}}}")
        column += columns
    return [f"    {' & '.join(cells)} \\\\", f"    {' '.join(rules)}"]


def print_rows(rows: Sequence[Row]) -> None:
    """Print a header and rows: a drawn table on a terminal, aligned plain text elsewhere."""
    if not sys.stdout.isatty():
        for cells in _aligned(rows):
            print("  ".join(cells).rstrip())
        return
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    header, *body = rows
    drawn = Drawn()
    for i, name in enumerate(header):
        drawn.add_column(Text(name), justify="right" if i else "left")
    for row in body:
        drawn.add_row(*map(Text, row))
    Console().print(drawn)


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


LESIONS_TOGETHER = "Lesions (connected parts of a class), all cases together"
LESIONS = {
    "lesions": "reference",
    "lesions_found": "found",
    "lesions_missed": "missed",
    "lesions_false": "false",
}


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
    """The mean of every metric over the cases, and in brackets over how many: a header, a row each.

    A case without a number, such as a class that is in neither map, counts in no mean.
    """
    rows: list[Row] = [("metric: mean (n)", *summary.labels)]
    for metric in METRICS:
        of = [summary.statistic(label, metric) for label in summary.labels]
        means = (f"{number(s.mean)} ({s.n})" for s in of)
        rows.append((metric_name(metric), *means))
    return rows


def metric_name(metric: str) -> str:
    """A metric as a table's header names it: with its unit, if it has one."""
    unit = METRICS[metric].unit
    return f"{metric.partition('_')[0]} ({unit})" if unit else metric


def lesion_rows(summary: Summary) -> list[Row]:
    """Lesions of all cases together: a header, then one row for each class."""
    rows: list[Row] = [("class", "lesions", "found", "missed", "false", "recall", "precision")]
    for label in summary.labels:
        of = summary.lesions(label)
        counts = map(str, (of.reference, of.found, of.missed, of.false))
        rows.append((label, *counts, number(of.recall), number(of.precision)))
    return rows


def dice_text(case: CaseScores) -> str:
    """One line for a picture: the case and its Dice by class."""
    dice = ", ".join(f"{label} {number(of.dice)}" for label, of in case.labels.items())
    return f"{case.case}: Dice {dice}"


def in_mm(of_classes: Mapping[str, float]) -> str:
    """A distance of every class, or of all where it is the same."""
    if len(set(of_classes.values())) == 1:
        return f"{next(iter(of_classes.values())):g} mm"
    return ", ".join(f"{name} {mm:g} mm" for name, mm in of_classes.items()) or NOTHING


def as_csv(summary: Summary) -> str:
    """Every number of every case: one line for each case and class, empty where there is none.

    Missing cases have lines without numbers.
    """
    names = (*METRICS, *COUNTS, "reference_ml", "predicted_ml", *LESIONS)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "class", *names))
    for case in summary.cases:
        writer.writerows((case.case, label, *_numbers(case, label)) for label in case.labels)
    for missing in summary.missing:
        for label in summary.labels:
            writer.writerow((missing, label, *[""] * len(names)))
    return text.getvalue()


def _numbers(case: CaseScores, label: str) -> list[float | None]:
    scores, volumes, lesions = case.labels[label], case.volume_ml[label], case.lesions.get(label)
    return [
        *(case.value(label, metric) for metric in METRICS),
        *(getattr(scores, attribute) for attribute in COUNTS.values()),
        *(volumes.reference, volumes.predicted),
        *(getattr(lesions, name, None) for name in LESIONS.values()),
    ]


def print_table(summary: Summary) -> None:
    """Print the Dice table on standard output."""
    header, *rows = dice_rows(summary)
    print_rows([("Dice", *header[1:]), *rows])
