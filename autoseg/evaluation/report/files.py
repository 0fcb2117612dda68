"""Writes the files of an evaluation: tables, figures, pictures of cases, and the report page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from autoseg.common.figures import Colours, save_figure, save_forms
from autoseg.common.files import write_text
from autoseg.common.pages import SIZE, Chart, fill, write_page
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import say
from autoseg.dataset.task import Task, find_task
from autoseg.evaluation import evaluate, tables
from autoseg.evaluation.comparison import Comparison
from autoseg.evaluation.evaluate import CrossValidation
from autoseg.evaluation.figures import charts
from autoseg.evaluation.figures.overlay import Exhibits, draw_cases, evenly, exhibit, overlay
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.report.facts import Fact, Predictions, Sortable
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.fingerprint import Fingerprint
from autoseg.image.view import Exhibit
from autoseg.models.folder import PLAN, fold_folder
from autoseg.models.log import Epoch, Training, draw_losses, read_log
from autoseg.plan.plan import Plan, load_plan
from autoseg.planner.explain import GROUPS, Explained, group_of, rows

METHODS, BIBTEX = "methods.txt", "references.bib"
TABLES, FIGURES, OVERLAYS = "tables", "figures", "overlays"
TEMPLATES = Path(__file__).parent / "templates"
Rows = Sequence[tables.Row]  # a header and rows
Tables = Mapping[str, Rows]  # by heading


def decisions(plan: Plan) -> dict[str, list[Explained]]:
    """All values of a plan by heading."""
    explained = rows(plan)
    return {name: [row for row in explained if group_of(row.key) == name] for name in GROUPS}


@dataclass(frozen=True)
class Report:
    """The content of the page; parts that are unknown are left out.

    Attributes:
        title: the heading.
        key_figures: name -> number, shown in the largest font.
        facts: name -> value, shown below the key figures.
        classes: the means of the classes.
        cases: all cases.
        summary: the scores, and what failed.
        warnings: sentences on what is missing.
        tables: heading -> header and rows of tables in a fixed order.
        charts: figures of the scores.
        pictures: case -> its picture, the worst first.
        penalties: a sentence on the distances of missing classes.
        volumes: cases for the viewer (see `volume_of`).
        methods: a paragraph for a paper; empty without a plan.
        curves: figures of the training.
        fingerprint: of the images.
        plan: heading -> values of the plan.
        plan_notes: short name of a publication that values come from -> its citation.
        times: fold -> its training, and its predictions.
        versions: devices and versions.
        labels: a header and the rows of the table "Labels to review"; None: not reviewed.
        label_pictures: case -> its picture where the labels differ most.
    """

    title: str
    key_figures: Mapping[str, str]
    facts: Mapping[str, str]
    classes: Sortable
    cases: Sortable
    summary: Summary
    warnings: tuple[str, ...] = ()
    tables: Tables = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()
    pictures: Mapping[str, Chart] = field(default_factory=dict)
    penalties: str = ""
    volumes: Sequence[Mapping[str, Any]] = ()
    methods: str = ""
    curves: tuple[Chart, ...] = ()
    fingerprint: Fingerprint | None = None
    plan: Mapping[str, Sequence[Explained]] = field(default_factory=dict)
    plan_notes: Mapping[str, str] = field(default_factory=dict)
    times: Mapping[Any, tuple[Training | None, Predictions | None]] = field(default_factory=dict)
    versions: tuple[Fact, ...] = ()
    labels: Rows | None = None
    label_pictures: Mapping[str, Chart] = field(default_factory=dict)


def write_tables(folder: Path, summary: Summary, further: Tables) -> list[Path]:
    """Write summary.json, table.md, table.csv and dice.png into `folder`.

    Args:
        folder: created if it does not exist.
        summary: the scores.
        further: tables for table.md, placed first.

    Returns:
        The paths of the four files.
    """
    paths = [folder / name for name in ("summary.json", "table.md", "table.csv", "dice.png")]
    sections = {
        **further,
        "Mean of every metric": tables.metric_rows(summary),
        **lesion_tables(summary),
        "Dice": tables.dice_rows(summary),
    }
    texts = (f"## {name}\n\n{tables.rows_as_markdown(of)}" for name, of in sections.items())
    summary.save(paths[0])
    write_text(paths[1], "\n".join(texts))
    write_text(paths[2], tables.as_csv(summary))
    save_figure(charts.draw_scores(summary), paths[3])
    return paths


def lesion_tables(summary: Summary) -> Tables:
    """The table of lesions, if any class has some."""
    found = tables.lesion_rows(summary)
    return {tables.POOLED_LESIONS: found} if len(found) > 1 else {}


def write_report(out: Path, report: Report) -> None:
    """Write one self-contained HTML page, and beside it the paragraph for a paper.

    Equal reports give equal bytes.
    """
    bibtex = fill(TEMPLATES / f"{BIBTEX}.j2", methods=report.methods)
    page = TEMPLATES / "report.html.j2"
    write_page(out, page, title=report.title, report=report, bibtex=bibtex, size=SIZE, np=np)
    if report.methods:
        write_text(out.with_name(METHODS), report.methods + "\n")
        write_text(out.with_name(BIBTEX), bibtex)


@dataclass(frozen=True)
class Trained:
    """The models of one plan, and the data needed to draw their cases.

    Attributes:
        folder: `models/TASK/PLAN`.
        raw: the folder of the raw task; None if it is missing: then no case can be drawn.
    """

    folder: Path
    raw: Path | None

    @cached_property
    def plan(self) -> Plan | None:
        """The plan; None if its file is missing."""
        path = self.folder / PLAN
        return load_plan(path) if path.is_file() else None

    @cached_property
    def task(self) -> Task | None:
        """The raw task; None if it is missing, or the plan."""
        plan, raw = self.plan, self.raw
        return None if plan is None or raw is None else find_task(raw, plan.labels)[0]

    @property
    def labels(self) -> ScoredClasses | None:
        """The scored classes, with the colours of the plan."""
        return None if self.plan is None else ScoredClasses.of_plan(self.plan)

    @property
    def colours(self) -> Colours:
        """Class -> colour, for the classes to which the plan assigns one."""
        return self.labels.colours if self.labels is not None else {}

    def logs(self, folds: Iterable[int]) -> list[list[Epoch]]:
        """The training logs of those folds that have one."""
        logs = (read_log(fold_folder(self.folder, fold)) for fold in folds)
        return [log for log in logs if log]

    def exhibits(self, summary: Summary) -> list[Exhibit]:
        """The scored cases that can be drawn."""
        labels, task = self.labels, self.task
        if labels is None or task is None:
            say("no case is drawn: the plan or the raw task is missing in this workspace")
            return []
        images = {case.name: case.images[0] for case in task.cases}
        return exhibits_of(summary.cases, images, labels)


def write_cross_validation(
    trained: Trained, validation: CrossValidation, out: Path, processes: int, exhibits: Exhibits
) -> list[Path]:
    """Write `tables/`, `figures/`, and for each case `overlays/CASE.png`.

    Args:
        trained: the models.
        validation: their scores.
        out: the output folder.
        processes: worker processes that draw; the files do not depend on it.
        exhibits: the cases that can be drawn.

    Returns:
        The paths of the tables and figures, without the pictures of the cases.

    Raises:
        DataError: a log, a scan or a label map is damaged.
        RunError: a worker process was killed.
    """
    paths = []
    for name, table in evaluate.tables(validation).items():
        paths += tables.write_table(out / TABLES / name, table)
    figures = dict(figures_of(trained, validation))
    if exhibits:
        figures["examples"] = draw_cases(evenly(exhibits, validation.combined) or exhibits[:1])
        draw_gallery(exhibits, out, processes)
    for name, figure in figures.items():
        paths += save_forms(figure, out / FIGURES / name)
    return paths


def exhibits_of(
    cases: Sequence[CaseScores], images: Mapping[str, Path], labels: ScoredClasses
) -> list[Exhibit]:
    """The scored cases whose files all exist; warns of the others.

    Args:
        cases: the scores, which name the label maps.
        images: case -> its scan.
        labels: the classes.
    """
    found, missing = [], []
    for case in cases:
        image = images.get(case.case)
        files = (image, Path(case.reference_file), Path(case.prediction_file))
        absent = [str(path or "its scan") for path in files if path is None or not path.exists()]
        if absent or image is None:
            missing.append(f"{case.case}: {absent[0]}")
        else:
            found.append(exhibit(case, image, labels))
    if missing:
        say(f"{len(missing)} of {len(cases)} cases cannot be drawn; missing for {missing[0]}")
    return found


def draw_gallery(exhibits: Exhibits, out: Path, processes: int) -> None:
    """Draw `overlays/CASE.png` for each case.

    Args:
        exhibits: the cases.
        out: the output folder.
        processes: worker processes; the pictures do not depend on it.

    Raises:
        DataError: a file cannot be read, or the grids of a case differ.
        RunError: a worker process was killed.
    """
    in_parallel(partial(_draw, out=out), exhibits, processes, "drawing cases")


def _draw(exhibit: Exhibit, out: Path) -> None:
    overlay(exhibit, out / OVERLAYS / f"{exhibit.case}.png")


def save_comparison(comparison: Comparison, out: Path, colours: Colours) -> list[Path]:
    """Write a comparison as `against_B` in CSV, Markdown, LaTeX, SVG and PNG."""
    stem = out / f"against_{comparison.b}"
    paths = tables.write_table(stem, comparison.table())
    return paths + save_forms(charts.draw_differences(comparison, colours=colours), stem)


def score_figures(summary: Summary, colours: Colours) -> dict[str, Figure]:
    """Name -> figure of the scores."""
    return {
        "dice": charts.draw_scores(summary, colours=colours),
        "surface": charts.draw_scores(summary, charts.SURFACE, colours),
        "volumes": charts.draw_volumes(summary, colours),
    }


@lru_cache(maxsize=1)  # for the folder and for the page
def figures_of(trained: Trained, validation: CrossValidation) -> Mapping[str, Figure]:
    """Name -> figure of the scores of all folds, and of their training."""
    name, colours = trained.folder.name, trained.colours
    found = score_figures(validation.combined, colours)
    found["dice_of_folds"] = charts.draw_groups({name: fold_groups(validation)}, colours)
    if logs := trained.logs(validation.folds):
        found["loss"] = draw_losses({name: logs})
    return found


def fold_groups(validation: CrossValidation) -> dict[str, dict[str, list[float | None]]]:
    """Fold -> class -> Dice of the cases, for box plots; missing folds have no classes."""
    folds = dict.fromkeys(validation.missing, Summary(())) | validation.folds
    return {f"fold {fold}": of.dice for fold, of in sorted(folds.items())}
