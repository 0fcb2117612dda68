"""Writes the files of an evaluation: tables, a figure, and the report as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from autoseg.common.figures import Chart, save_figure
from autoseg.common.files import write_text
from autoseg.evaluation.figures.boxes import draw_box_plot
from autoseg.evaluation.figures.slices import CaseSlices
from autoseg.evaluation.report.facts import Fact, Sortable
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import (
    POOLED_LESIONS,
    Row,
    as_csv,
    dice_rows,
    lesion_rows,
    metric_rows,
    rows_as_markdown,
)
from autoseg.plan.plan import Plan
from autoseg.planner.explain import DEFAULT, GROUPS, Explained, group_of, rows

Tables = Mapping[str, Sequence[Row]]  # heading -> header and rows
NO_TABLES: Tables = {}
TEMPLATES = files("autoseg.evaluation.report").joinpath("templates")


@dataclass(frozen=True)
class Decisions:
    """The plan values under one heading.

    Attributes:
        heading: the section of the plan.
        chosen: values chosen by a rule or a person.
        defaults: the other values.
    """

    heading: str
    chosen: tuple[Explained, ...]
    defaults: tuple[Explained, ...]


def decisions(plan: Plan) -> list[Decisions]:
    """All values of a plan by heading."""
    explained, found = rows(plan), []
    for heading in GROUPS:
        values = [row for row in explained if group_of(row.key) == heading]
        chosen = tuple(row for row in values if row.source != DEFAULT.source)
        defaults = tuple(row for row in values if row.source == DEFAULT.source)
        found.append(Decisions(heading, chosen, defaults))
    return found


@dataclass(frozen=True)
class Report:
    """The content of the page; parts that are unknown are left out.

    Attributes:
        title: the heading.
        key_figures: name -> number, shown in the largest font.
        facts: name -> value, shown below the key figures.
        classes: the means of the classes.
        cases: all cases.
        warnings: sentences on what is missing.
        tables: heading -> header and rows of tables in a fixed order.
        charts: figures of the scores.
        slices: pictures of cases, the worst first.
        slices_note: which cases are shown.
        curves: figures of the training.
        data: facts about the images.
        data_tables: tables of labels and intensities.
        plan: the values of the plan.
        plan_notes: short name of a publication that values come from -> its citation.
        times: durations of training and prediction.
        versions: devices and versions.
    """

    title: str
    key_figures: Mapping[str, str]
    facts: Mapping[str, str]
    classes: Sortable
    cases: Sortable
    warnings: tuple[str, ...] = ()
    tables: Tables = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()
    slices: tuple[CaseSlices, ...] = ()
    slices_note: str = ""
    curves: tuple[Chart, ...] = ()
    data: tuple[Fact, ...] = ()
    data_tables: tuple[Sortable, ...] = ()
    plan: tuple[Decisions, ...] = ()
    plan_notes: Mapping[str, str] = field(default_factory=dict)
    times: Sortable | None = None
    versions: tuple[Fact, ...] = ()


def write_tables(folder: Path, summary: Summary, tables: Tables = NO_TABLES) -> list[Path]:
    """Write summary.json, table.md, table.csv and dice.png into `folder`.

    Args:
        folder: created if it does not exist.
        summary: the scores.
        tables: further tables for table.md, placed first.

    Returns:
        The paths of the four files.
    """
    paths = [folder / name for name in ("summary.json", "table.md", "table.csv", "dice.png")]
    sections = {
        **tables,
        "Mean of every metric": metric_rows(summary),
        POOLED_LESIONS: lesion_rows(summary),
        "Dice": dice_rows(summary),
    }
    texts = (f"## {name}\n\n{rows_as_markdown(found)}" for name, found in sections.items())
    summary.save(paths[0])
    write_text(paths[1], "\n".join(texts))
    write_text(paths[2], as_csv(summary))
    save_figure(draw_box_plot(summary), paths[3])
    return paths


def write_report(out: Path, report: Report) -> None:
    """Write one self-contained HTML page; equal reports give equal bytes."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(_template),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        report=report, style=Markup(_template("style.css")), script=Markup(_template("report.js"))
    )
    write_text(out, text)


def _template(name: str) -> str:
    return TEMPLATES.joinpath(name).read_text("utf-8")
