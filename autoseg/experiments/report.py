"""The tables and figures of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autoseg.common.errors import AutosegError
from autoseg.common.figures import Colours, save_forms
from autoseg.common.progress import say
from autoseg.evaluation.evaluate import gather
from autoseg.evaluation.figures.boxes import draw_bars, draw_grouped_boxes
from autoseg.evaluation.figures.overlay import draw_cases, worst_median_best
from autoseg.evaluation.report.files import FIGURES, TABLES, Trained
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import write_table
from autoseg.experiments.paper import bars, fold_boxes, fold_table, mean_table, median_table, titled
from autoseg.experiments.results import RESULTS, StudyScores, read_scores
from autoseg.experiments.study import Study
from autoseg.models.folder import SUMMARY
from autoseg.models.log import draw_losses, read_log
from autoseg.workflow.workspace import Workspace


def report_studies(studies: Sequence[Study], workspace: Workspace) -> list[AutosegError]:
    """Write the tables and figures of all studies and print their paths; returns the errors."""
    errors = []
    for study in studies:
        folder = workspace.study(study.name)
        print(folder / RESULTS)
        try:
            for path in report_study(folder):
                print(path)
        except AutosegError as error:
            say(f"warning: no tables and figures for {study.name}: {error}")
            errors.append(error)
    return errors


def report_study(folder: Path) -> list[Path]:
    """Write `tables/` and `figures/` into a study's folder, from what `gather` left there.

    For an unfinished study they name what is missing. The examples (worst, median and best
    validation case of each plan) need the raw task.

    Args:
        folder: `WORKSPACE/experiments/STUDY`.

    Returns:
        the written files; none if no run has been scored.

    Raises:
        DataError: a file of the study, a log, a scan or a label map is damaged.
    """
    study = read_scores(folder)
    if not any(arm.scores for arm in study.arms):
        return []
    tables = {
        "medians": median_table(study.arms, study.columns, study.head),
        "means": mean_table(study.arms, study.columns, study.head),
        "folds": fold_table(study.arms, study.classes, study.head),
    }
    paths: list[Path] = []
    for name, table in tables.items():
        named = replace(table, title=f"{folder.name}: {table.title}")
        paths += write_table(folder / TABLES / name, named)
    raw = Workspace(folder.parents[1]).raw_folder(study.task)
    colours: Colours = {} if study.labels is None else study.labels.colours
    return paths + _write_figures(study, colours, folder / FIGURES, raw)


def _write_figures(study: StudyScores, colours: Colours, out: Path, raw: Path | None) -> list[Path]:
    losses = {
        titled(study.head, name): [log for log in map(read_log, runs.values()) if log is not None]
        for name, runs in study.folders.items()
    }
    boxes = fold_boxes(study.arms, study.classes, study.head)
    paths = save_forms(draw_losses(losses), out / "loss")
    paths += save_forms(draw_grouped_boxes(boxes, colours), out / "dice_of_folds")
    paths += save_forms(
        draw_bars(bars(study.arms, study.columns, study.head), colours), out / "dice_of_plans"
    )
    for runs in study.folders.values():
        paths += _write_examples(list(runs.values()), raw, out)
    return paths


def _write_examples(runs: Sequence[Path], raw: Path | None, out: Path) -> list[Path]:
    """The worst, the median and the best validation case of one plan."""
    models = runs[0].parent
    if raw is None or not any((run / SUMMARY).is_file() for run in runs):
        return []
    summary = gather(models).combined
    chosen = Summary(tuple(worst_median_best(summary)))
    exhibits = Trained(models, raw).exhibits(chosen)
    return save_forms(draw_cases(exhibits), out / f"examples_{models.name}") if exhibits else []
