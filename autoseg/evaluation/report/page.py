"""The files that an evaluation leaves: tables, a figure, and one HTML page with everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from autoseg.common.figures import Chart
from autoseg.common.files import write_text
from autoseg.evaluation.figures.boxes import box_plot
from autoseg.evaluation.figures.slices import Slides
from autoseg.evaluation.report.facts import Sortable
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import (
    LESIONS_TOGETHER,
    Pair,
    Row,
    as_csv,
    dice_rows,
    lesion_rows,
    metric_rows,
    rows_as_markdown,
)
from autoseg.plan.plan import Plan
from autoseg.planner.explain import DEFAULT, GROUPS, Explained, group_of, rows

# The plan's values for the report: those that somebody or some rule chose, and the defaults.


@dataclass(frozen=True)
class Decisions:
    """The values under one heading.

    Attributes:
        heading: what they are about.
        chosen: values with a source other than the defaults.
        defaults: the others.
    """

    heading: str
    chosen: tuple[Explained, ...]
    defaults: tuple[Explained, ...]


def decisions(plan: Plan) -> list[Decisions]:
    """All values of a plan, heading by heading."""
    found = rows(plan)
    return [
        Decisions(
            heading,
            tuple(row for row in found if _is_of(row, heading) and row.source != DEFAULT.source),
            tuple(row for row in found if _is_of(row, heading) and row.source == DEFAULT.source),
        )
        for heading in GROUPS
    ]


def _is_of(row: Explained, heading: str) -> bool:
    return group_of(row.key) == heading


Tables = Mapping[str, Sequence[Row]]
NO_TABLES: Tables = {}
TEMPLATES = files("autoseg.evaluation.report").joinpath("templates")


@dataclass(frozen=True)
class Report:
    """What the page tells; what is not known is left out.

    Attributes:
        title: the heading.
        key_figures: name -> number, the largest letters of the page.
        facts: name -> value, below them.
        warnings: sentences on what is missing.
        tables: heading -> rows (the first is the header) whose order means something.
        classes: the means of the classes.
        cases: every case.
        charts: figures of the scores.
        slides: cases to scroll through, the worst first.
        slides_note: which cases these are, and of how many.
        curves: figures of the training.
        data: what -> value.
        data_tables: tables on labels and intensities.
        plan: the plan's values.
        plan_notes: name of a reference plan -> where its values come from.
        times: how long training and prediction took.
        versions: what -> value: devices and versions.
    """

    title: str
    key_figures: Mapping[str, str]
    facts: Mapping[str, str]
    classes: Sortable
    cases: Sortable
    warnings: tuple[str, ...] = ()
    tables: Tables = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()
    slides: tuple[Slides, ...] = ()
    slides_note: str = ""
    curves: tuple[Chart, ...] = ()
    data: tuple[Pair, ...] = ()
    data_tables: tuple[Sortable, ...] = ()
    plan: tuple[Decisions, ...] = ()
    plan_notes: Mapping[str, str] = field(default_factory=dict)
    times: Sortable | None = None
    versions: tuple[Pair, ...] = ()


def write_tables(folder: Path, summary: Summary, tables: Tables = NO_TABLES) -> list[Path]:
    """Write summary.json, table.md, table.csv and dice.png into `folder`.

    Args:
        folder: made if it isn't there.
        summary: the scores.
        tables: further tables for table.md, heading -> rows, put first.

    Returns:
        The paths of the four files.
    """
    paths = [folder / name for name in ("summary.json", "table.md", "table.csv", "dice.png")]
    summary.save(paths[0])
    own = {
        "Mean of every metric": metric_rows(summary),
        LESIONS_TOGETHER: lesion_rows(summary),
        "Dice": dice_rows(summary),
    }
    sections = {**tables, **own}.items()
    write_text(paths[1], "\n".join(f"## {h}\n\n{rows_as_markdown(rows)}" for h, rows in sections))
    write_text(paths[2], as_csv(summary))
    box_plot(summary, paths[3])
    return paths


def write_report(out: Path, report: Report) -> None:
    """Write one HTML page that needs no other file and no network; equal reports, equal bytes."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(_template),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        report=report,
        style=Markup(_template("style.css")),
        script=Markup(_template("report.js")),
    )
    write_text(out, text)


def _template(name: str) -> str:
    return TEMPLATES.joinpath(name).read_text("utf-8")
