"""Collects the content of the report of a cross-validation, or of a folder of predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from autoseg import __version__
from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.common.pages import SIZE, Chart, chart, fill
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import counted, listed, say
from autoseg.dataset.problems import join_names
from autoseg.evaluation.evaluate import CrossValidation
from autoseg.evaluation.figures.overlay import Exhibits, chart_of_file, evenly, scans_in, volume_of
from autoseg.evaluation.label_review import Finding
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.report import facts, files
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import in_mm, number
from autoseg.fingerprint import Fingerprint
from autoseg.image.picture import draw_view
from autoseg.image.view import PREDICTION, REFERENCE, Exhibit, read_view
from autoseg.models.folder import VALIDATION, fold_folder
from autoseg.models.log import ADVICE, draw_dice, read_training
from autoseg.plan.plan import Plan
from autoseg.planner.explain import citations

MOST_KEY_CLASSES = 4
MOST_CASES = 8  # with pictures in the page
VOLUMES = 3  # cases in the viewer
MODEL_KEYS = ("folds", "model_id", "plan", "plan_id", "task")  # of predictions.json
CHARTS = read_json(Path(__file__).with_name("charts.json"))  # figure -> its words in the page


def cross_validation_report(
    trained: files.Trained,
    validation: CrossValidation,
    exhibits: Sequence[Exhibit],
    fingerprint: Path,
    tables: files.Tables,
    processes: int,
    volumes: int = VOLUMES,
    overlays: Path | None = None,
) -> files.Report:
    """The report of a cross-validation.

    Args:
        trained: the models.
        validation: their scores.
        exhibits: the cases that can be drawn.
        fingerprint: the file of the fingerprint; left out of the report if it is missing.
        tables: further tables.
        processes: worker processes that draw cases; the report does not depend on it.
        volumes: the number of cases in the viewer, evenly from the worst to the best.
        overlays: folder of the pictures of cases; those that are there are not drawn again.

    Raises:
        DataError: a log, a scan or a label map is damaged.
        RunError: a worker process was killed.
    """
    summary, folder, plan = validation.combined, trained.folder, trained.plan
    runs = {k: fold_folder(folder, k) for k in validation.folds}
    trainings = {k: read_training(run) for k, run in runs.items()}
    records = {k: facts.read_predictions(run / VALIDATION) for k, run in runs.items()}
    missing, figures = validation.missing, dict(files.figures_of(trained, validation))
    curves = {"loss": figures.pop("loss")} if "loss" in figures else {}
    if dice := {k: each for k, each in trainings.items() if each is not None and each.dice}:
        curves["dice_in_training"] = draw_dice(dice)
    about = {
        "task": folder.parent.name,
        "plan": folder.name + (f" (id {plan.id})" if plan else ""),
        "folds": ", ".join(map(str, validation.folds)),
        "missing folds": ", ".join(map(str, missing)) or "none",
    }
    drawn = _draw(summary, exhibits, processes, volumes, overlays)
    folds = {case.case: str(k) for k, of in validation.folds.items() for case in of.cases}
    title = f"Cross-validation of {folder.parent.name}"
    report = _report(title, about, summary, folds, charts=_charts(figures), **drawn)
    overfitting = {k: of.overfitting for k, of in trainings.items() if of and of.overfitting}
    lacking = [f"Not validated yet and not included: {listed('fold', missing)}"] * bool(missing)
    doubtful = [f"Fold {fold}: {found}; {ADVICE}." for fold, found in overfitting.items()]
    return replace(
        report,
        key_figures={**report.key_figures, "folds": str(len(validation.folds))},
        warnings=(*lacking, *report.warnings, *doubtful),
        tables={**tables, **report.tables},
        curves=_charts(curves),
        fingerprint=_read_fingerprint(fingerprint),
        plan=files.decisions(plan) if plan else {},
        plan_notes=citations(plan) if plan else {},
        methods=methods_of(plan, validation) if plan else "",
        times={k: (trainings[k], records[k]) for k in validation.folds},
        versions=tuple(facts.version_rows(filter(None, records.values()))),
    )


def folder_report(
    truth: Path,
    predicted: Path,
    summary: Summary,
    exhibits: Sequence[Exhibit],
    labels: ScoredClasses,
    processes: int,
    volumes: int = VOLUMES,
) -> files.Report:
    """The report of a folder of predictions.

    Args:
        truth: the folder of the reference label maps.
        predicted: the folder that was scored.
        summary: the scores.
        exhibits: the cases with scans.
        labels: the classes, with their colours.
        processes: worker processes that draw cases; the report does not depend on it.
        volumes: the number of cases in the viewer, evenly from the worst to the best.

    Raises:
        DataError: a scan or a label map is damaged.
        RunError: a worker process was killed.
    """
    about = {"reference": str(truth), "predicted": str(predicted)}
    record = facts.read_predictions(predicted)
    for key in MODEL_KEYS:
        if record and key in record.head:
            values = record.head[key] if isinstance(record.head[key], list) else [record.head[key]]
            about[f"predicted by {key}"] = ", ".join(map(str, values))
    title = f"Evaluation of {predicted.resolve().name}"
    charts = _charts(files.score_figures(summary, labels.colours))
    drawn = _draw(summary, exhibits, processes, volumes)
    report = _report(title, about, summary, facts.NO_NAMES, charts=charts, **drawn)
    if record is None:
        return report
    versions = tuple(facts.version_rows([record]))
    return replace(report, times={"": (None, record)}, versions=versions)


def _report(
    title: str, about: Mapping[str, str], summary: Summary, folds: Mapping[str, str], **drawn: Any
) -> files.Report:
    """What the reports of folders and of cross-validations share."""
    links = {case: f"#case-{i}" for i, case in enumerate(drawn["pictures"], 1)}  # of the template
    return files.Report(
        title=title,
        key_figures=_key_figures(summary),
        facts={
            **about,
            "cases": str(len(summary.cases)),
            "surface tolerance": in_mm(summary.tolerance_mm),
            "missing cases": str(len(summary.missing)),
            "foreground mean Dice": number(summary.foreground_mean()),
            "created by": f"autoseg {__version__}",
            "size of this page": SIZE,
        },
        classes=facts.class_table(summary),
        cases=facts.case_table(summary, folds, links),
        warnings=_missing_cases(summary),
        tables=files.lesion_tables(summary),
        summary=summary,
        penalties=facts.penalties(summary),
        **drawn,
    )


def find_exhibits(summary: Summary, images: Path, labels: ScoredClasses) -> list[Exhibit]:
    """The files of the cases that have a scan in `images`; warns of those without one."""
    scans = scans_in(images, (case.case for case in summary.cases))
    return files.exhibits_of(summary.cases, scans, labels)


def _key_figures(summary: Summary) -> dict[str, str]:
    """The mean Dice, that of each class or of the worst one, and the number of cases."""
    figures = {"mean Dice": number(summary.foreground_mean(), 3)}
    means = {label: summary.statistic(label).mean for label in summary.labels}
    known = [(mean, label) for label, mean in means.items() if mean is not None]
    if 1 < len(means) <= MOST_KEY_CLASSES:
        figures |= {f"Dice {label}": number(mean, 3) for label, mean in means.items()}
    elif len(means) > 1 and known:
        mean, worst = min(known, key=lambda pair: pair[0])
        figures[f"lowest Dice: {worst}"] = number(mean, 3)
    return figures | {"cases": str(len(summary.cases))}


def _missing_cases(summary: Summary) -> tuple[str, ...]:
    count = len(summary.missing)
    has, counts = ("has", "counts") if count == 1 else ("have", "count")
    text = f"{counted(count, 'case')} {has} no prediction and {counts} in no mean: "
    return (text + join_names(summary.missing),) if count else ()


def _charts(figures: Mapping[str, Figure]) -> tuple[Chart, ...]:
    return tuple(chart(figure, **CHARTS[name]) for name, figure in figures.items())


def _draw(
    summary: Summary, exhibits: Exhibits, processes: int, volumes: int, overlays: Path | None = None
) -> dict[str, Any]:
    """Pictures of the worst cases, and some cases for the viewer."""
    by_case = {exhibit.case: exhibit for exhibit in exhibits}
    names = [case.case for case in facts.worst_first(summary.cases) if case.case in by_case]
    worst = [by_case[name] for name in names[:MOST_CASES]]
    chosen = evenly(exhibits, summary, volumes)
    return {
        "pictures": _pictures(worst, processes, "drawing cases for the report", overlays=overlays),
        "volumes": list(in_parallel(volume_of, chosen, processes, "packing cases for the viewer")),
    }


def _pictures(exhibits: Exhibits, processes: int, job: str, **how: Any) -> dict[str, Chart]:
    """Case -> its picture."""
    drawn = in_parallel(partial(_draw_case, **how), exhibits, processes, job)
    return dict(zip((exhibit.case for exhibit in exhibits), drawn, strict=True))


def _draw_case(exhibit: Exhibit, overlays: Path | None = None, at_errors: bool = False) -> Chart:
    """Three planes of a case; those with most differing voxels if wanted."""
    title, at = exhibit.title or exhibit.case, None
    alt = f"{exhibit.case}: three planes with image, contours and errors"
    if overlays is not None and (path := overlays / f"{exhibit.case}.png").is_file():
        return chart_of_file(path, title, alt)
    view = read_view(exhibit)
    if at_errors:
        differs = view.maps[REFERENCE] != view.maps[PREDICTION]
        x, y, z = (int(differs.sum(axis=axes).argmax()) for axes in ((1, 2), (0, 2), (0, 1)))
        at = x, y, z
    return chart(draw_view(view, at=at), title, alt, form="webp")


def draw_labels(found: Sequence[Finding], exhibits: Exhibits, processes: int) -> dict[str, Chart]:
    """Case -> a picture of its suspicious labels, for the first ones that can be drawn."""
    by_case = {exhibit.case: exhibit for exhibit in exhibits}
    known = [of for of in found if of.case in by_case][:MOST_CASES]
    drawn = [replace(by_case[of.case], title=f"{of.case}: {of.suspicion}") for of in known]
    return _pictures(drawn, processes, "drawing labels to review", at_errors=True)


def methods_of(plan: Plan, validation: CrossValidation) -> str:
    """A paragraph for a paper."""
    template = files.TEMPLATES / "methods.txt.j2"
    about = {"plan": plan, "validation": validation, "version": __version__}
    return " ".join(fill(template, **about, counted=counted, in_mm=in_mm).split())


def _read_fingerprint(path: Path) -> Fingerprint | None:
    if not path.is_file():
        return None
    try:
        return Fingerprint.load(path)
    except AutosegError as error:
        say(f"warning: the report has no section on the data: {error}")
        return None
