"""Gathers what the report tells: of a cross-validation, or of two folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from autoseg import __version__
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.figures import Chart, Colours, chart
from autoseg.common.progress import say
from autoseg.evaluation.cross_validation import CrossValidation
from autoseg.evaluation.figures.boxes import draw_box_plot, draw_grouped_boxes
from autoseg.evaluation.figures.overlay import find_image
from autoseg.evaluation.figures.slices import MOST_CASES, MOST_SLICES, Slides, draw_slides
from autoseg.evaluation.figures.views import Exhibit
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.report import facts
from autoseg.evaluation.report.facts import (
    Sortable,
    case_table,
    class_table,
    read_predictions,
    text_table,
    version_rows,
    worst_first,
)
from autoseg.evaluation.report.page import Report, Tables, decisions
from autoseg.evaluation.report.task_files import Trained, exhibits_of, fold_groups
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import LESIONS_TOGETHER, in_mm, lesion_rows, number
from autoseg.fingerprint import Fingerprint
from autoseg.models import log
from autoseg.models.folder import VALIDATION, fold_folder
from autoseg.models.log import ADVICE, draw_losses, read_log
from autoseg.planner.explain import citations

MOST_NAMES = 10
FEW_CLASSES = 4
MADE_BY = {"task", "plan", "plan_id", "model_id", "folds"}


def cross_validation_report(
    trained: Trained,
    validation: CrossValidation,
    exhibits: Sequence[Exhibit],
    fingerprint: Path,
    tables: Tables,
    processes: int,
) -> Report:
    """The report of a cross-validation.

    Args:
        trained: the models.
        validation: their scores.
        exhibits: the cases that can be drawn.
        fingerprint: the file of what the data is; left out of the report if it is not there.
        tables: further tables, heading -> rows.
        processes: worker processes that draw slices; the report does not depend on it.

    Raises:
        DataError: a log, a scan or a label map is damaged.
        RunError: a worker process was killed.
    """
    summary, folder, plan = validation.combined, trained.folder, trained.plan
    slides = _worst_slides(summary, exhibits, processes)
    found = _read_fingerprint(fingerprint)
    trainings = {k: log.read_training(fold_folder(folder, k)) for k in validation.folds}
    records = {k: read_predictions(fold_folder(folder, k) / VALIDATION) for k in validation.folds}
    folds = {case.case: str(k) for k, of in validation.folds.items() for case in of.cases}
    boxes = chart(
        draw_grouped_boxes({folder.name: fold_groups(validation)}, trained.colours),
        "Dice of the folds",
        "Box plots of Dice for every fold and class",
    )
    missing = ", ".join(map(str, validation.missing))
    return Report(
        title=f"Cross-validation of {folder.parent.name}",
        key_figures=_key_figures(summary) | {"folds": str(len(validation.folds))},
        facts={
            "task": folder.parent.name,
            "plan": folder.name + (f" (id {plan.id})" if plan else ""),
            "folds": ", ".join(map(str, validation.folds)),
            "missing folds": missing or "none",
            **_facts(summary),
        },
        warnings=(
            *_missing_folds(missing),
            *_missing_cases(summary),
            *_overfitted(trainings),
        ),
        tables={**tables, LESIONS_TOGETHER: lesion_rows(summary)},
        classes=class_table(summary),
        cases=case_table(summary, folds, _links(slides)),
        charts=(*_charts(summary, trained.colours), boxes),
        slides=tuple(slides),
        slides_note=_slides_note(len(slides), len(summary.cases), "overlays/ and scrolls/"),
        curves=tuple(_curves(trained, validation, trainings)),
        data=tuple(facts.data_rows(found)) if found else (),
        data_tables=tuple(_data_tables(found)) if found else (),
        plan=tuple(decisions(plan)) if plan else (),
        plan_notes=citations(plan) if plan else {},
        times=facts.fold_times(trainings, records),
        versions=tuple(version_rows(each for each in records.values() if each)),
    )


def folder_report(
    truth: Path,
    predicted: Path,
    summary: Summary,
    exhibits: Sequence[Exhibit],
    labels: Labels,
    processes: int,
) -> Report:
    """The report of a folder of predictions.

    Args:
        truth: the folder of the right label maps.
        predicted: the folder that was scored.
        summary: the scores.
        exhibits: the cases whose scans are known.
        labels: the classes, with their colours.
        processes: worker processes that draw slices; the report does not depend on it.

    Raises:
        DataError: a scan or a label map is damaged.
        RunError: a worker process was killed.
    """
    slides = _worst_slides(summary, exhibits, processes)
    record = read_predictions(predicted)
    times = None
    made: dict[str, str] = {}
    if record is not None:
        made = {
            f"predicted by {key}": _told(record.head[key]) for key in MADE_BY & set(record.head)
        }
        times = facts.prediction_times(record)
    return Report(
        title=f"Evaluation of {predicted.resolve().name}",
        key_figures=_key_figures(summary),
        facts={
            "truth": str(truth),
            "predicted": str(predicted),
            **dict(sorted(made.items())),
            **_facts(summary),
        },
        warnings=tuple(_missing_cases(summary)),
        tables={LESIONS_TOGETHER: lesion_rows(summary)},
        classes=class_table(summary),
        cases=case_table(summary, links=_links(slides)),
        charts=tuple(_charts(summary, labels.colours)),
        slides=tuple(slides),
        slides_note=_slides_note(len(slides), len(summary.cases), ""),
        times=times,
        versions=tuple(version_rows([record])) if record else (),
    )


def worst_exhibits(summary: Summary, images: Path, labels: Labels) -> list[Exhibit]:
    """Those of the worst cases that have a scan in `images`; how many have none is said."""
    worst = worst_first(summary.cases)[:MOST_CASES]
    scans = {}
    for case in worst:
        with suppress(DataError):
            scans[case.case] = find_image(images, case.case)
    return exhibits_of(worst, scans, labels)


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _key_figures(summary: Summary) -> dict[str, str]:
    """Few enough to be read at once: the mean, each class or the worst, and how many cases."""
    figures = {"mean Dice": number(summary.foreground_mean(), 3)}
    of = {label: summary.statistic(label).mean for label in summary.labels}
    known = {label: mean for label, mean in of.items() if mean is not None}
    if 1 < len(of) <= FEW_CLASSES:
        figures |= {f"Dice {label}": number(mean, 3) for label, mean in of.items()}
    elif len(of) > 1 and known:
        worst = min(known, key=lambda label: known[label])
        figures[f"lowest Dice: {worst}"] = number(known[worst], 3)
    return figures | {"cases": str(len(summary.cases))}


def _facts(summary: Summary) -> dict[str, str]:
    return {
        "cases": str(len(summary.cases)),
        "surface tolerance": in_mm(summary.tolerance_mm),
        "missing cases": str(len(summary.missing)),
        "foreground mean Dice": number(summary.foreground_mean()),
        "made by": f"autoseg {__version__}",
    }


def _missing_folds(named: str) -> list[str]:
    noun = "folds" if "," in named else "fold"
    return [f"Not validated yet, and in no figure: {noun} {named}"] if named else []


def _missing_cases(summary: Summary) -> list[str]:
    count = len(summary.missing)
    if not count:
        return []
    named = ", ".join(summary.missing[:MOST_NAMES]) + (", ..." if count > MOST_NAMES else "")
    noun, verb = ("case has", "counts") if count == 1 else ("cases have", "count")
    return [f"{count} {noun} no prediction and {verb} in no mean: {named}"]


def _worst_slides(summary: Summary, exhibits: Sequence[Exhibit], processes: int) -> list[Slides]:
    of = {exhibit.case: exhibit for exhibit in exhibits}
    worst = [of[case.case] for case in worst_first(summary.cases) if case.case in of]
    return draw_slides(worst[:MOST_CASES], processes)


def _links(slides: Sequence[Slides]) -> dict[str, str]:
    """Case -> its place in the page, as the template numbers them."""
    return {of.case: f"#case-{index}" for index, of in enumerate(slides, 1)}


def _slides_note(shown: int, of: int, elsewhere: str) -> str:
    cases = f"All {of} cases"
    if shown < of:
        cases = f"{shown} of {of} cases: those with the lowest mean Dice whose scans are there"
    bound = f"; a page holds at most {MOST_CASES} cases with {MOST_SLICES} slices each"
    more = f", all are in {elsewhere} beside it" if elsewhere and shown < of else ""
    return f"{cases}, the worst first{bound}{more}."


def _charts(summary: Summary, colours: Colours) -> list[Chart]:
    figure = draw_box_plot(summary, colours)
    return [chart(figure, "Dice by class", "Box plot of Dice for every class, a dot for each case")]


def _curves(
    trained: Trained,
    validation: CrossValidation,
    trainings: Mapping[int, log.Training | None],
) -> Iterable[Chart]:
    logs = [read_log(fold_folder(trained.folder, k)) for k in validation.folds]
    if losses := [log for log in logs if log is not None]:
        yield chart(
            draw_losses({trained.folder.name: losses}),
            "Loss",
            "Training and validation loss over the epochs, all folds together",
            "Points are the epochs of all folds; the curve is smoothed by Gaussian-process "
            "regression, and its band holds it with 95 % confidence.",
        )
    known = {k: each for k, each in trainings.items() if each is not None and each.dice}
    if known:
        yield chart(
            log.draw_dice(known),
            "Dice while training",
            "Mean Dice of patches over the epochs, a line for each fold",
            "Of patches, not of whole cases: it shows how training went, not how good the model "
            "is.",
        )


def _overfitted(trainings: Mapping[int, log.Training | None]) -> Iterable[str]:
    for fold, training in trainings.items():
        if training is not None and training.overfitting is not None:
            yield f"Fold {fold}: {training.overfitting}; {ADVICE}."


def _read_fingerprint(path: Path) -> Fingerprint | None:
    if not path.is_file():
        return None
    try:
        return Fingerprint.load(path)
    except AutosegError as error:
        say(f"warning: the report does not tell what the data is: {error}")
        return None


def _data_tables(fingerprint: Fingerprint) -> list[Sortable]:
    return [
        text_table("Labels", facts.label_rows(fingerprint)),
        text_table(
            "Intensities of labelled voxels",
            facts.intensity_rows(fingerprint),
            "Over all cases, each weighing the same.",
        ),
    ]
