"""The tables and figures of a study, and `index.html` with all of them beside the printed ones."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation

from autoseg.common.errors import AutosegError
from autoseg.common.figures import COLOURS, save_forms, take_literally
from autoseg.common.files import read_json
from autoseg.common.pages import chart, fill, write_page
from autoseg.common.progress import say
from autoseg.evaluation.comparison import SHOWN, Comparison, Difference, compare, holm
from autoseg.evaluation.evaluate import gather
from autoseg.evaluation.figures.charts import draw_groups
from autoseg.evaluation.figures.overlay import draw_cases, worst_to_best
from autoseg.evaluation.report import facts, files
from autoseg.evaluation.scores import Summary, combine
from autoseg.evaluation.tables import metric_name, spread, write_table
from autoseg.experiments import paper
from autoseg.experiments.results import RESULTS, Arm, StudyScores, read_scores
from autoseg.experiments.runs import held_out_classes
from autoseg.experiments.status import HELD_OUT, SCORES
from autoseg.experiments.study import HeldOut, Study
from autoseg.image.view import Exhibit
from autoseg.models.folder import SUMMARY, VALIDATION
from autoseg.models.log import draw_losses
from autoseg.plan.plan import Plan
from autoseg.planner.explain import rows
from autoseg.planner.overrides import leaves
from autoseg.prediction.inputs import find_inputs
from autoseg.workflow.workspace import Workspace

TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES = 4  # cases of Figure 6
REPORT = "report.html"


def report_studies(
    studies: Sequence[Study], workspace: Workspace, processes: int = 1
) -> list[AutosegError]:
    """Write the reports of all studies and print their paths; returns the errors."""
    errors, reported = [], []
    for study in studies:
        folder = workspace.study(study.name)
        print(folder / RESULTS)
        try:
            if (scores := read_scores(folder)).is_scored:
                for path in write_elements(scores, processes):
                    print(path)
                reported.append(scores)
        except AutosegError as error:
            say(f"warning: no tables and figures for {study.name}: {error}")
            errors.append(error)
    for scores in reported:  # when the figures of all of them exist
        for path in (paper.write_index(scores), write_report(scores)):
            print(path)
    return errors


def report_study(folder: Path, processes: int = 1) -> list[Path]:
    """Write `tables/`, `figures/`, `index.html` and `report.html` into a study's folder.

    For an unfinished study they name what is missing. Pictures of cases need the raw task.

    Args:
        folder: `WORKSPACE/experiments/STUDY`, as `gather` left it.
        processes: worker processes that draw cases.

    Returns:
        the written files; none if no run has been scored.

    Raises:
        DataError: a file of the study, a log, a scan or a label map is damaged.
    """
    study = read_scores(folder)
    if not study.is_scored:
        return []
    return [*write_elements(study, processes), paper.write_index(study), write_report(study)]


def write_elements(study: StudyScores, processes: int) -> list[Path]:
    """The tables and figures of `report_study`."""
    folder = study.folder
    printed, paths = paper.read_printed(study)["items"], []
    for name, element in study.report.items():
        if element in paper.TABLES:
            table = paper.TABLES[element](study, printed.get(name, {}))
            when = f" ({study.gathered})" if study.gathered else ""
            named = replace(table, title=f"{folder.name}{when}: {table.title}")
            paths += write_table(folder / files.TABLES / name, named)
        elif element == paper.PICTURES:
            paths += _write_pictures(study, folder / name, processes)
        elif figure := FIGURE_ELEMENTS[element](study):
            paths += save_forms(figure, folder / files.FIGURES / name)
    return paths


def _losses(study: StudyScores, from_zero: bool = False) -> Figure:
    return draw_losses({arm.title: arm.logs for arm in study.arms}, from_zero)


def _dice_of_plans(study: StudyScores) -> Figure:
    """A panel for each set, a group for each plan, as Figure 4B."""
    return draw_groups({where: study.dice(where) for where in study.sets}, study.labels.colours)


def _dice_of_folds(study: StudyScores, test_sets: bool = False) -> Figure | None:
    """A panel for each plan, a group for each model; on test sets this is Figure 4C."""
    sets = [where for where in study.sets if (where != VALIDATION) == test_sets]
    panels = {
        (f"{where}: " if test_sets else "") + arm.title: {
            f"fold {fold}": arm.dice(where, study.classes_of(where), fold) for fold in arm.folds
        }
        for where in sets
        for arm in study.arms
    }
    return draw_groups(panels, study.labels.colours) if panels else None


def _examples(study: StudyScores) -> Figure | None:
    """Validation cases of the last plan, from the worst to the best, as Figure 6."""
    exhibits = _exhibits(study, EXAMPLES)
    return draw_cases(exhibits) if exhibits else None


def _exhibits(study: StudyScores, count: int | None = None) -> list[Exhibit]:
    """The validation cases of the last plan that can be drawn, or so many of them."""
    trained = study.last.trained
    if trained.raw is None or not any((run / SUMMARY).is_file() for run in study.last.runs):
        return []
    summary = gather(trained.folder).combined
    chosen = summary if count is None else Summary(tuple(worst_to_best(summary, count)))
    return trained.exhibits(chosen)


def _write_pictures(study: StudyScores, out: Path, processes: int) -> list[Path]:
    """Draw every case of the last plan: validation cases, and test sets by the first fold's model.

    Pictures that are newer than their label maps are kept.
    """
    fold, plan = study.last.runs[0], study.last.trained.plan
    sets = {VALIDATION: _exhibits(study)}
    for each in map(HeldOut.model_validate, study.study["held_out"]):
        scores = fold / HELD_OUT / each.name / SCORES
        images = study.folder.parents[1] / each.images
        if plan is not None and scores.is_file() and images.is_dir():
            scans = find_inputs(images, plan.channels, name_by="folder").cases
            images_of = {case: of[0] for case, of in scans.items() if isinstance(of[0], Path)}
            classes = held_out_classes(each, plan)
            sets[each.name] = files.exhibits_of(Summary.load(scores).cases, images_of, classes)
    for name, exhibits in sets.items():
        drawn = {path.stem: path for path in (out / name / files.OVERLAYS).glob("*.png")}
        stale = [each for each in exhibits if _is_newer(each, drawn.get(each.case))]
        files.draw_gallery(stale, out / name, processes)
    return [out / name for name, exhibits in sets.items() if exhibits]


def _is_newer(exhibit: Exhibit, picture: Path | None) -> bool:
    maps = [path for path in (exhibit.prediction, exhibit.reference) if path is not None]
    return picture is None or picture.stat().st_mtime < max(f.stat().st_mtime for f in maps)


# Of Figure 2: heading -> place, and keys of the plan.
BOXES: dict[str, Any] = read_json(Path(__file__).with_name("pipeline.json"))


def draw_pipeline(plan: Plan) -> Figure:
    """From the data to the scores with the plan's values, as Figure 2 of Müller et al. 2021."""
    figure, axes = _diagram((14, 7), (-0.5, 3.5), (-0.5, 1.5))
    axes.add_patch(Rectangle((0.5, -0.49), 2.99, 1.98, fill=False, linestyle="dashed"))
    axes.text(3, 1.4, f"{plan.splits.folds}-fold cross-validation", ha="center")
    values, before = rows(plan), None
    for (heading, (place, keys)), colour in zip(BOXES.items(), COLOURS, strict=True):
        shown = [row for row in values if row.key.startswith(tuple(keys))]
        named = [("" if row.key[-1].isdecimal() else f"{row.name}: ") + row.value for row in shown]
        wrapped = [textwrap.fill(line, 50, subsequent_indent="   ") for line in named]
        before = _draw_box(axes, place, "\n".join([heading, *wrapped]), colour, before)
    return figure


def draw_network(plan: Plan) -> Figure:
    """The U-Net with its stages, feature maps and sizes, as Figure 3 of Müller et al. 2021."""
    strides = np.cumprod(plan.network.strides, axis=0)
    sizes, last = -(-np.array(plan.sampling.patch_size) // strides), len(strides) - 1
    text = fill(TEMPLATES / "network.txt.j2", plan=plan, sizes=sizes.tolist())
    figure, axes = _diagram((13, 1.2 * last + 1.5), (-0.7, 2 * last + 1.7), (-last - 0.5, 0.5))
    before, drawn = None, []
    for i, lines in enumerate(text.strip().split("\n\n")):
        place = (i, -i) if i <= last else (i + 1, i - 2 * last)
        before = _draw_box(axes, place, lines, COLOURS[1 if i <= last else 0], before)
        drawn.append(before)
        if i > last:  # in the decoder, with the skip connection
            encoder = drawn[2 * last - i]
            ends = {"patchA": encoder.get_bbox_patch(), "patchB": before.get_bbox_patch()}
            skip = {"arrowstyle": "-|>", "linestyle": "dashed", **ends}
            axes.annotate("", before.xyann, encoder.xyann, arrowprops=skip)
    return figure


def _diagram(
    size: tuple[float, float], x: tuple[float, float], y: tuple[float, float]
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=x, ylim=y)
    axes.set_axis_off()
    return figure, axes


def _draw_box(
    axes: Axes, place: tuple[float, float], text: str, colour: str, before: Annotation | None
) -> Annotation:
    """Write a text into a box, with an arrow from the box before it."""
    box = {"boxstyle": "round,pad=0.6", "facecolor": f"{colour}40"}
    style: dict[str, Any] = {"ha": "center", "va": "center", "ma": "left", "fontsize": 7}
    arrow = {"arrowstyle": "<|-", "patchB": before.get_bbox_patch()} if before else None
    start = before.xyann if before else place
    drawn = axes.annotate(text, start, place, bbox=box, arrowprops=arrow, **style)
    take_literally([drawn])
    return drawn


FIGURE_ELEMENTS: dict[str, Callable[[StudyScores], Figure | None]] = {
    "pipeline": lambda study: draw_pipeline(plan) if (plan := study.last.trained.plan) else None,
    "network": lambda study: draw_network(plan) if (plan := study.last.trained.plan) else None,
    "dice": lambda study: draw_groups(  # Figure 4A of Müller et al. 2021
        {"": {"all folds": study.last.dice(VALIDATION, study.classes)}}, study.labels.colours
    ),
    "dice_of_plans": _dice_of_plans,
    "dice_of_folds": _dice_of_folds,
    "dice_on_test_sets": partial(_dice_of_folds, test_sets=True),
    "loss": _losses,
    "loss_from_zero": partial(_losses, from_zero=True),
    "examples": _examples,
}


def write_report(study: StudyScores) -> Path:
    """Write `report.html`: the arms side by side, their differences, plans, curves and cost."""
    summaries = {arm.name: found for arm in study.arms if (found := _summary(arm))}
    first, *others = study.arms
    scored = [arm.name for arm in others if {arm.name, first.name} <= summaries.keys()]
    pairs = [compare(summaries[of], summaries[first.name], (of, first.name)) for of in scored]
    arms = []
    for arm in study.arms:
        changed = _plan_differences(first.trained.plan, arm.trained.plan)
        asked = _asked(study, arm) | _asked(study, first)
        extra = [text for key, text in changed.items() if not any(map(key.startswith, asked))]
        has_plan = None not in (first.trained.plan, arm.trained.plan)
        about = {"differences": list(changed.values()), "extra": extra, "has_plan": has_plan}
        arms.append({"name": arm.title, **about})
    charts = []
    for where in study.sets:
        name = "Dice" if where == VALIDATION else f"Dice, test set {where}"
        boxes = draw_groups({"": study.dice(where)}, study.labels.colours)
        charts.append(chart(boxes, name, f"{name} of each class and arm, a point for each case"))
    out = study.folder / REPORT
    write_page(
        out,
        TEMPLATES / "report.html.j2",
        title=study.study.get("title") or study.folder.name,
        study=study,
        arms=arms,
        tables={name: facts.class_table(of) for name, of in summaries.items()},
        charts=charts,
        spread=spread,
        differences=_corrected(pairs),
        curves=[chart(_losses(study), "Loss", "Training and validation loss of each arm")],
    )
    return out


def _summary(arm: Arm) -> Summary | None:
    """The validation scores of the folds of an arm, as far as they are there."""
    paths = [run / SUMMARY for run in arm.runs]
    found = [Summary.load(path) for path in paths if path.is_file()]
    return combine(found) if found else None


def _plan_differences(one: Plan | None, other: Plan | None) -> dict[str, str]:
    """Key -> the difference of two plans in words."""
    if one is None or other is None:
        return {}
    before, after = ({row.key: row for row in rows(plan)} for plan in (one, other))
    found = {}
    for key, row in (before | after).items():
        old, new = (of[key].value if key in of else "none" for of in (before, after))
        if old != new:
            found[key] = f"{row.name} ({key}): {new} instead of {old}"
    return found


def _asked(study: StudyScores, arm: Arm) -> set[str]:
    """The keys that the study sets for an arm: of its plan, k and seed."""
    entries = {entry["name"]: entry for entry in study.study.get("plans", ())}
    overrides = entries.get(arm.variant, {}).get("overrides", {})
    return {"splits.folds", "training.seed", *map(".".join, leaves(overrides))}


def _corrected(pairs: Sequence[Comparison]) -> dict[str, list[tuple[Comparison, Difference]]]:
    """Metric -> the differences of all arms and classes, with p values corrected together."""
    found = {}
    for metric in SHOWN:
        owners = [pair for pair in pairs for _ in pair.of(metric)]
        differences = holm([each for pair in pairs for each in pair.of(metric)])
        found[metric_name(metric)] = list(zip(owners, differences, strict=True))
    return {name: of for name, of in found.items() if any(each.n for _, each in of)}
