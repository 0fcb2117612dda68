"""The scores of one evaluation as rows of text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from autoseg.evaluation.metrics import COUNTS, METRICS
from autoseg.evaluation.rows import NOTHING, Row, number, print_rows, spread
from autoseg.evaluation.scores import CaseScores
from autoseg.evaluation.summary import Summary

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
