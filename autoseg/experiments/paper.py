"""The tables of a study in the layout of Müller et al. 2021, and a page with the printed values.

Two statistics are told apart. `medians`, `means` and the related work are about the cases of all
folds pooled. `folds` and `fold_metrics` show the median of each fold's cases, and the mean of these
medians as AVG. Folds that have not been scored yet appear as missing.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from autoseg.common.arrays import mean_of_known
from autoseg.common.pages import Chart, picture_uri, write_page
from autoseg.evaluation.figures.overlay import chart_of_file
from autoseg.evaluation.report.files import FIGURES, OVERLAYS, TEMPLATES
from autoseg.evaluation.tables import DASH, MINUS, Row, Table, number, spread
from autoseg.experiments.results import STUDY, Arm, Column, StudyScores, read_scores
from autoseg.experiments.study import read_paper, read_study, study_names
from autoseg.models.folder import VALIDATION
from autoseg.planner.explain import rows as plan_rows

PAPER_METRICS = {"Dice": "DSC", "IoU": "IoU", "Sensitivity": "Sens", "Specificity": "Spec"}
WITH_STD = ("Dice", "IoU")  # in Table 1
OF_FOLDS = ("Dice", "Sensitivity", "Specificity")  # in Table 1 of the arXiv version
MISSING = "missing"
DIGITS = 3
INDEX = "index.html"
PICTURES = "pictures"
THUMBNAIL_PIXELS = 360
Item = Mapping[str, Any]  # a table or figure as a paper prints it, see `read_paper`
FoldColumn = tuple[Arm, str, str, str]  # plan, class, metric, heading
SCORE = re.compile(r"[\d./ ]+")


def difference(own: str, printed: str) -> str:
    """Own score minus the printed one, without std; `differs` for text, empty if incomparable."""
    if own == printed or not printed:
        return "equal" * bool(printed)
    scores = [text.partition("±")[0].strip() for text in (own, printed)]
    if not all(map(SCORE.fullmatch, scores)):
        return "" if own in (MISSING, DASH) else "differs"
    pairs = zip(*(text.split(" / ") for text in scores), strict=False)
    digits = len(printed.partition(".")[2].split(" ")[0])
    return " / ".join(f"{float(a) - float(b):+.{digits}f}" for a, b in pairs).replace("-", MINUS)


def median_table(study: StudyScores, _: Item) -> Table:
    """Median ± std over the cases of all folds pooled: plans x (sets and classes) x metrics.

    This is Table 1 of the paper, in which only Dice and IoU have a std.
    """

    def cell(arm: Arm, column: Column, metric: str) -> str:
        of = arm.statistic(column, metric)
        std = "" if of.std is None or metric not in WITH_STD else f" ± {of.std:.2f}"
        return number(of.median, DIGITS) + std

    counts = "; ".join(
        f"{arm.title}: " + ", ".join(f"{_named(of)} {_count(arm, of)}" for of in study.columns)
        for arm in study.arms
    )
    table = _by_metric("Median ± std over the cases of all folds, pooled", study, cell)
    return replace(table, note=f"{table.note} Cases: {counts}.".strip())


def mean_table(study: StudyScores, _: Item) -> Table:
    """The same layout with mean ± std, the number of folds and the number of cases."""

    title = "Mean ± std over the cases of all folds"
    return _by_metric(title, study, lambda *of: spread(Arm.statistic(*of), DIGITS), counted=True)


def fold_table(study: StudyScores, _: Item) -> Table:
    """Median Dice of folds x plans and classes, as the paper's Table 2."""
    columns = [(arm, label, "Dice", label) for arm in study.arms for label in study.classes]
    names = [(arm.title, len(study.classes)) for arm in study.arms]
    return _by_fold("Median DSC of every fold", columns, names, _missing(study.arms))


def fold_metric_table(study: StudyScores, _: Item) -> Table:
    """Medians of folds x classes and metrics for the last plan: Table 1 of the arXiv version."""
    arm = study.last
    columns = [(arm, label, m, PAPER_METRICS[m]) for label in study.classes for m in OF_FOLDS]
    names = [(label, len(OF_FOLDS)) for label in study.classes]
    return _by_fold(f"Medians of every fold of {arm.title}", columns, names, _missing([arm]))


def training_table(study: StudyScores, _: Item) -> Table:
    """Number of epochs and hours of training for each plan, and for all together."""
    rows: list[Row] = [(study.head, "models", "mean epochs", "hours", "last training loss")]
    logs = {arm.name: arm.logs for arm in study.arms}
    every = [log for of_plan in logs.values() for log in of_plan]
    for name, of in (logs | {f"all {len(every)} models": every}).items():
        cells = (MISSING,) * 3
        if of:
            hours = sum(epoch.seconds for log in of for epoch in log) / 3600
            loss = fmean(log[-1].training_loss for log in of)
            cells = (f"{fmean(map(len, of)):.1f}", f"{hours:.2f}", number(loss, DIGITS))
        rows.append((name, str(len(of)), *cells))
    return Table("Epochs and hours of training", rows)


def related_table(study: StudyScores, printed: Item) -> Table:
    """Published scores of related work, with a row for the study: the paper's Table 3.

    The Dice of the study is the pooled median of the best plan, on each set of cases.
    """
    dice, cases = [], []
    for where in study.sets:
        column = (where, printed["label"])
        medians = [arm.statistic(column, "Dice").median for arm in study.arms]
        dice.append(number(max((m for m in medians if m is not None), default=None), DIGITS))
        folds = [[arm.of_fold(column, f, "Dice") for f in arm.folds] for arm in study.arms]
        join = sum if where == VALIDATION else max  # every fold is tested on all cases of a set
        cases.append(str(max(join(map(len, of_arm)) for of_arm in folds)))
    sizes, scores, task = " / ".join(cases), " / ".join(dice), study.study["task"]
    filled = {"cases": sizes, "training": cases[0], "dice": scores, "task": task}
    own = tuple(text.format_map(filled) for text in printed["own"])
    return Table("Related work", [printed["columns"], *printed["published"], own])


def _value_table(study: StudyScores, printed: Item) -> Table:
    """The values of the last plan that a figure prints."""
    plan = study.last.trained.plan
    values = {row.key: row.value for row in plan_rows(plan)} if plan else {}
    shown = [(key, values.get(key, DASH)) for key in printed.get("values", ())]
    return Table("", [("key", "value"), *shown])


def _by_metric(
    title: str, study: StudyScores, cell: Callable[[Arm, Column, str], str], counted: bool = False
) -> Table:
    """Plans x (sets and classes) x metrics, if wanted with the numbers of folds and cases."""
    header = [study.head, *["folds"] * counted]
    groups = [("", len(header))]
    for column in study.columns:
        header += [*PAPER_METRICS.values(), *["n"] * counted]
        groups.append((_named(column), len(PAPER_METRICS) + counted))
    rows: list[Row] = [tuple(header)]
    for arm in study.arms:
        done, folds = min(len(arm.done(where)) for where in study.sets), len(arm.folds)
        row = [arm.name, *[str(done) if done == folds else f"{done} of {folds}"] * counted]
        for column in study.columns:
            is_done = arm.done(column[0])
            row += [cell(arm, column, m) if is_done else MISSING for m in PAPER_METRICS]
            row += [_count(arm, column)] * counted
        rows.append(tuple(row))
    return Table(title, rows, groups, _missing(study.arms, study.sets))


def _by_fold(
    title: str, columns: Sequence[FoldColumn], groups: Sequence[tuple[str, int]], note: str
) -> Table:
    """A row for each fold, the mean of their medians (AVG), and the number of cases.

    Args:
        title: the caption.
        columns: plan, class, metric and heading.
        groups: above the columns.
        note: below the table.
    """
    folds = sorted({fold for arm, *_ in columns for fold in arm.folds})
    found: list[Row] = [("fold", *map(str, folds), "AVG", "n")]
    for arm, label, metric, heading in columns:
        medians, done = arm.medians((VALIDATION, label), metric), arm.done(VALIDATION)
        cells = {f: number(medians.get(f), DIGITS) if f in done else MISSING for f in arm.folds}
        mean, n = mean_of_known(medians.values()), arm.statistic((VALIDATION, label), metric).n
        average = MISSING if mean is None else number(mean, DIGITS)
        # Empty where the plan has no such fold.
        found.append((heading, *(cells.get(fold, "") for fold in folds), average, str(n)))
    return Table(title, list(zip(*found, strict=True)), [("", 1), *groups], note)


def _named(column: Column) -> str:
    """The name of a class; that of its set precedes it except for validation cases."""
    return column[1] if column[0] == VALIDATION else " ".join(column)


def _count(arm: Arm, column: Column) -> str:
    """The number of values of the metrics; a range if they differ."""
    counts = [arm.statistic(column, metric).n for metric in PAPER_METRICS]
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"


def _missing(arms: Sequence[Arm], sets: Sequence[str] = (VALIDATION,)) -> str:
    """A sentence with the folds that are not scored on these sets of cases."""
    gaps = [
        f"{arm.title}{'' if where == VALIDATION else f' on {where}'}: {lacking}"
        for where in sets
        for arm in arms
        if (lacking := ", ".join(str(f) for f in arm.folds if f not in arm.done(where)))
    ]
    return f"Missing folds, not included in any value: {'; '.join(gaps)}." if gaps else ""


TABLES: dict[str, Callable[[StudyScores, Item], Table]] = {
    "medians": median_table,
    "means": mean_table,
    "folds": fold_table,
    "fold_metrics": fold_metric_table,
    "training": training_table,
    "related_work": related_table,
}


def write_index(study: StudyScores) -> Path:
    """Write `index.html`: all tables and figures in the paper's order, beside the printed values.

    What another study of the same paper and task makes is shown, too.
    """
    folder = study.folder
    others = [read_scores(path.parent) for path in sorted(folder.parent.glob(f"*/{STUDY}"))]
    paper, task = study.study.get("paper"), study.study.get("task")
    alike = [of for of in others if (of.study.get("paper"), of.study.get("task")) == (paper, task)]
    studies = [study, *(of for of in alike if of.is_scored and paper and of.folder != folder)]
    printed, (done, runs) = read_printed(study), study.counts
    names = dict.fromkeys([*printed["order"], *study.report])
    write_page(
        folder / INDEX,
        TEMPLATES / "study.html.j2",
        title=study.study.get("title") or folder.name,
        citation=printed["citation"],
        warning=f"{done} of {runs} models are validated." if done < runs else "",
        difference=difference,
        parts=[_part(name, studies, printed["items"].get(name, {})) for name in names],
    )
    return folder / INDEX


def read_printed(study: StudyScores) -> dict[str, Any]:
    """The values printed by the paper that a study reproduces, if any."""
    name = study.study.get("paper")
    return read_paper(name) if name else {"citation": "", "order": (), "items": {}}


def _part(name: str, studies: Sequence[StudyScores], printed: Item) -> dict[str, Any]:
    """A table or figure on the page; the page is that of the first study."""
    notes = [printed.get("note")]
    part = {"name": name, "title": name, "caption": "", **printed, "notes": notes, "rows": ()}
    owner = next((study for study in studies if name in study.report), None)
    if owner is None:
        makers = [study for study in study_names() if name in read_study(study).report]
        notes.append(f"Not made yet; run {' or '.join(makers)}." if makers else "")
        return part
    notes.append(f"From the study {owner.folder.name}." if owner is not studies[0] else "")
    element = owner.report[name]
    table = TABLES.get(element, _value_table)(owner, printed)
    notes.append(table.note)
    known = {(key, "value"): text for key, text in printed.get("values", {}).items()}
    for row in printed.get("rows", ()):
        cells = zip(printed["columns"], row, strict=True)
        known |= {(row[0], column): text for column, text in cells}
    part |= {"table": table, "rows": table.flat, "printed": known, "small": element == PICTURES}
    if element not in TABLES:
        part["pictures"] = list(_pictures(owner, name, element == PICTURES))
        notes.append("" if part["pictures"] else "Not drawn: a model, a plan or a scan is missing.")
    return part


def _pictures(owner: StudyScores, name: str, small: bool) -> Iterator[tuple[Chart, str]]:
    """Each picture of a figure, and the link to its file."""
    pattern = f"{name}/*/{OVERLAYS}/*.png" if small else f"{FIGURES}/{name}.png"
    for path in sorted(owner.folder.glob(pattern)):
        title = f"{path.parents[1].name}: {path.stem}" if small else name
        drawn = chart_of_file(path, title, title, THUMBNAIL_PIXELS if small else 0)
        if not small:  # with sharp lines
            drawn = replace(drawn, data=picture_uri("png", path.read_bytes()))
        yield drawn, f"../{path.relative_to(owner.folder.parent).as_posix()}"
