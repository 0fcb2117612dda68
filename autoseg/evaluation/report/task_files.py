"""What `autoseg_evaluate TASK` leaves beside the report: tables, figures, and every case drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from autoseg.common.figures import Colours, save_figure, save_forms
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import say
from autoseg.dataset.task import find_task
from autoseg.evaluation.comparison import Comparison
from autoseg.evaluation.cross_validation import CrossValidation, tables
from autoseg.evaluation.figures.boxes import draw_box_plot, draw_differences, draw_grouped_boxes
from autoseg.evaluation.figures.overlay import draw_cases, draw_overlay, exhibit, worst_median_best
from autoseg.evaluation.figures.slices import write_scroll
from autoseg.evaluation.figures.views import Exhibit, read_view
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.scores import CaseScores, Summary
from autoseg.evaluation.tables import write_table
from autoseg.models.folder import PLAN, fold_folder
from autoseg.models.log import draw_losses, read_log
from autoseg.plan.plan import Plan
from autoseg.plan.reading import load_plan

# Every case of an evaluation as pictures: an overlay, and a scroll through its slices.

OVERLAYS, SCROLLS = "overlays", "scrolls"


def draw_gallery(exhibits: Sequence[Exhibit], out: Path, processes: int) -> list[Path]:
    """Draw `overlays/CASE.png` and `scrolls/CASE.png`, which is animated, for every case.

    Args:
        exhibits: the cases.
        out: the folder above these two.
        processes: worker processes; the pictures do not depend on it.

    Returns:
        the pictures, case by case.

    Raises:
        DataError: a file cannot be read, or a case's files lie on different grids.
        RunError: a worker process was killed.
    """
    pairs = in_parallel(partial(_draw, out=out), exhibits, processes, "drawing cases")
    return [path for pair in pairs for path in pair]


def exhibits_of(
    cases: Sequence[CaseScores], images: Mapping[str, Path], labels: Labels
) -> list[Exhibit]:
    """The scored cases whose files are all there; how many are not is said.

    Args:
        cases: the scores, which name the label maps.
        images: case -> its scan.
        labels: the classes.
    """
    found, missing = [], []
    for case in cases:
        files = (images.get(case.case), Path(case.reference_file), Path(case.prediction_file))
        gone = [str(path or "its scan") for path in files if path is None or not path.exists()]
        if gone or files[0] is None:
            missing.append(f"{case.case}: {gone[0]}")
        else:
            found.append(exhibit(case, files[0], labels))
    if missing:
        say(f"{len(missing)} of {len(cases)} cases cannot be drawn; missing of {missing[0]}")
    return found


def _draw(shown: Exhibit, out: Path) -> list[Path]:
    view = read_view(shown)
    paths = [out / OVERLAYS / f"{shown.case}.png", out / SCROLLS / f"{shown.case}.png"]
    save_figure(draw_overlay(view), paths[0])
    write_scroll(view, paths[1])
    return paths


TABLES, FIGURES = "tables", "figures"


@dataclass(frozen=True)
class Trained:
    """The models of one plan, and what is needed to draw their cases.

    Attributes:
        folder: `models/TASK/PLAN`.
        raw: the raw task's folder; None if it is not there, and no case can be drawn.
    """

    folder: Path
    raw: Path | None

    @cached_property
    def plan(self) -> Plan | None:
        """The plan; None if it is not there."""
        path = self.folder / PLAN
        return load_plan(path) if path.is_file() else None

    @property
    def labels(self) -> Labels | None:
        """The classes that were scored, with the plan's colours."""
        return None if self.plan is None else Labels.of_plan(self.plan)

    @property
    def colours(self) -> Colours:
        """Class -> colour, for those that the plan gives one."""
        labels = self.labels
        return {} if labels is None else labels.colours

    def exhibits(self, summary: Summary) -> list[Exhibit]:
        """The scored cases that can be drawn."""
        labels, plan = self.labels, self.plan
        if labels is None or plan is None or self.raw is None:
            say("no case is drawn: the plan or the raw task is not in this workspace")
            return []
        task, _ = find_task(self.raw, plan.labels)
        images = {case.name: case.images[0] for case in task.cases}
        return exhibits_of(summary.cases, images, labels)


def write_cross_validation(
    trained: Trained,
    validation: CrossValidation,
    out: Path,
    processes: int,
    exhibits: Sequence[Exhibit] | None = None,
) -> list[Path]:
    """Write `tables/`, `figures/`, and of every case `overlays/CASE.png` and `scrolls/CASE.png`.

    Args:
        trained: the models.
        validation: their scores.
        out: the folder above these.
        processes: worker processes that draw; the files do not depend on it.
        exhibits: the cases that can be drawn; looked for if None.

    Returns:
        the tables and figures, without the pictures of cases.

    Raises:
        DataError: a log, a scan or a label map is damaged.
        RunError: a worker process was killed.
    """
    paths = []
    for name, table in tables(validation).items():
        paths += write_table(out / TABLES / name, table)
    paths += _write_figures(trained, validation, out / FIGURES)
    if exhibits is None:
        exhibits = trained.exhibits(validation.combined)
    if exhibits:
        chosen = _examples(exhibits, validation.combined)
        paths += save_forms(draw_cases(chosen), out / FIGURES / "examples")
        draw_gallery(exhibits, out, processes)
    return paths


def save_comparison(comparison: Comparison, out: Path, colours: Colours) -> list[Path]:
    """Write a comparison as `against_B` in CSV, Markdown, LaTeX, SVG and PNG."""
    stem = out / f"against_{comparison.b}"
    paths = write_table(stem, comparison.table())
    return paths + save_forms(draw_differences(comparison, colours=colours), stem)


def _write_figures(trained: Trained, validation: CrossValidation, out: Path) -> list[Path]:
    name, colours = trained.folder.name, trained.colours
    paths = save_forms(draw_box_plot(validation.combined, colours), out / "dice")
    boxes = draw_grouped_boxes({name: fold_groups(validation)}, colours)
    paths += save_forms(boxes, out / "dice_of_folds")
    logs = [read_log(fold_folder(trained.folder, fold)) for fold in validation.folds]
    if losses := [log for log in logs if log is not None]:
        paths += save_forms(draw_losses({name: losses}), out / "loss")
    return paths


def fold_groups(validation: CrossValidation) -> dict[str, dict[str, list[float | None]]]:
    """Fold -> class -> Dice of the cases, for box plots; nothing for folds that are missing."""
    none = Summary(())
    folds = dict.fromkeys(validation.missing, none) | validation.folds
    return {
        f"fold {fold}": {label: of.values(label) for label in of.labels}
        for fold, of in sorted(folds.items())
    }


def _examples(exhibits: Sequence[Exhibit], summary: Summary) -> list[Exhibit]:
    """The worst, the median and the best of the cases that can be drawn."""
    of = {each.case: each for each in exhibits}
    there = Summary(tuple(case for case in summary.cases if case.case in of))
    return [of[case.case] for case in worst_median_best(there)] or list(exhibits[:1])
