"""Collects the content of the report of a cross-validation, or of a folder of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoseg import __version__
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.figures import Colours
from autoseg.common.pages import SIZE, Chart, chart, fill
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import counted, listed, say
from autoseg.dataset.problems import join_names
from autoseg.evaluation.evaluate import CrossValidation
from autoseg.evaluation.figures.charts import SURFACE, draw_groups, draw_scores, draw_volumes
from autoseg.evaluation.figures.overlay import find_image, volume_of, worst_to_best
from autoseg.evaluation.label_review import Finding
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.report import facts, files
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import in_mm, number
from autoseg.fingerprint import Fingerprint
from autoseg.image.picture import draw_view
from autoseg.image.view import PREDICTION, REFERENCE, Exhibit, read_view
from autoseg.models.folder import VALIDATION, fold_folder
from autoseg.models.log import ADVICE, Training, draw_dice, draw_losses, read_training
from autoseg.plan.plan import Plan
from autoseg.planner.explain import citations

MOST_KEY_CLASSES = 4
MOST_CASES = 8  # with pictures in the page
VOLUMES = 3  # cases in the viewer
MODEL_KEYS = ("folds", "model_id", "plan", "plan_id", "task")  # of predictions.json


def cross_validation_report(
    trained: files.Trained,
    validation: CrossValidation,
    exhibits: Sequence[Exhibit],
    fingerprint: Path,
    tables: files.Tables,
    processes: int,
    volumes: int = VOLUMES,
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

    Raises:
        DataError: a log, a scan or a label map is damaged.
        RunError: a worker process was killed.
    """
    summary, folder, plan = validation.combined, trained.folder, trained.plan
    links = _links(summary, exhibits)
    trainings = {k: read_training(fold_folder(folder, k)) for k in validation.folds}
    records = {
        k: facts.read_predictions(fold_folder(folder, k) / VALIDATION) for k in validation.folds
    }
    folds = {case.case: str(k) for k, of in validation.folds.items() for case in of.cases}
    boxes = chart(
        draw_groups({folder.name: files.fold_groups(validation)}, trained.colours),
        "Dice of the folds",
        "Box plots of Dice for each fold and class",
    )
    missing = validation.missing
    return files.Report(
        title=f"Cross-validation of {folder.parent.name}",
        key_figures=_key_figures(summary) | {"folds": str(len(validation.folds))},
        facts={
            "task": folder.parent.name,
            "plan": folder.name + (f" (id {plan.id})" if plan else ""),
            "folds": ", ".join(map(str, validation.folds)),
            "missing folds": ", ".join(map(str, missing)) or "none",
            **_facts(summary),
        },
        warnings=(
            *([f"Not validated yet and not included: {listed('fold', missing)}"] * bool(missing)),
            *_missing_cases(summary),
            *_overfitting(trainings),
        ),
        tables={**tables, **files.lesion_tables(summary)},
        cases=facts.case_table(summary, folds, links),
        charts=(*_charts(summary, trained.colours), boxes),
        curves=tuple(_curves(trained, validation, trainings)),
        fingerprint=_read_fingerprint(fingerprint),
        plan=files.decisions(plan) if plan else {},
        plan_notes=citations(plan) if plan else {},
        methods=methods_of(plan, validation) if plan else "",
        **_common(summary, exhibits, volumes, processes),
        times={k: (trainings[k], records[k]) for k in validation.folds},
        versions=tuple(facts.version_rows(each for each in records.values() if each)),
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
    links = _links(summary, exhibits)
    record = facts.read_predictions(predicted)
    model = {key: record.head[key] for key in MODEL_KEYS if key in record.head} if record else {}
    return files.Report(
        title=f"Evaluation of {predicted.resolve().name}",
        key_figures=_key_figures(summary),
        facts={
            "reference": str(truth),
            "predicted": str(predicted),
            **{f"predicted by {key}": _joined(value) for key, value in model.items()},
            **_facts(summary),
        },
        warnings=_missing_cases(summary),
        tables=files.lesion_tables(summary),
        cases=facts.case_table(summary, links=links),
        charts=_charts(summary, labels.colours),
        times={"": (None, record)} if record else {},
        **_common(summary, exhibits, volumes, processes),
        versions=tuple(facts.version_rows([record])) if record else (),
    )


def find_exhibits(summary: Summary, images: Path, labels: ScoredClasses) -> list[Exhibit]:
    """The files of the cases that have a scan in `images`; warns of those without one."""
    scans = {}
    for case in summary.cases:
        with suppress(DataError):
            scans[case.case] = find_image(images, case.case)
    return files.exhibits_of(summary.cases, scans, labels)


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _key_figures(summary: Summary) -> dict[str, str]:
    """The mean Dice, that of each class or of the worst one, and the number of cases."""
    figures = {"mean Dice": number(summary.foreground_mean(), 3)}
    means = {label: summary.statistic(label).mean for label in summary.labels}
    known = {label: mean for label, mean in means.items() if mean is not None}
    if 1 < len(means) <= MOST_KEY_CLASSES:
        figures |= {f"Dice {label}": number(mean, 3) for label, mean in means.items()}
    elif len(means) > 1 and known:
        worst = min(known, key=lambda label: known[label])
        figures[f"lowest Dice: {worst}"] = number(known[worst], 3)
    return figures | {"cases": str(len(summary.cases))}


def _facts(summary: Summary) -> dict[str, str]:
    return {
        "cases": str(len(summary.cases)),
        "surface tolerance": in_mm(summary.tolerance_mm),
        "missing cases": str(len(summary.missing)),
        "foreground mean Dice": number(summary.foreground_mean()),
        "created by": f"autoseg {__version__}",
        "size of this page": SIZE,
    }


def _missing_cases(summary: Summary) -> tuple[str, ...]:
    count = len(summary.missing)
    verbs = ("has", "counts") if count == 1 else ("have", "count")
    text = f"{counted(count, 'case')} {verbs[0]} no prediction and {verbs[1]} in no mean: "
    return (text + join_names(summary.missing),) if count else ()


def _overfitting(trainings: Mapping[int, Training | None]) -> Iterable[str]:
    for fold, training in trainings.items():
        if training is not None and training.overfitting is not None:
            yield f"Fold {fold}: {training.overfitting}; {ADVICE}."


def _common(
    summary: Summary, exhibits: Sequence[Exhibit], volumes: int, processes: int
) -> dict[str, Any]:
    """What the reports of folders and of cross-validations share."""
    worst = _worst(summary, exhibits)
    drawn = in_parallel(_draw_case, worst, processes, "drawing cases for the report")
    by_case = {each.case: each for each in exhibits}
    cases = Summary(tuple(case for case in summary.cases if case.case in by_case))
    chosen = [by_case[case.case] for case in worst_to_best(cases, volumes)]
    return {
        "classes": facts.class_table(summary),
        "pictures": dict(zip((each.case for each in worst), drawn, strict=True)),
        "volumes": list(in_parallel(volume_of, chosen, processes, "packing cases for the viewer")),
        "count": len(summary.cases),
        "failures": summary.failures,
        "penalties": facts.penalties(summary),
    }


def _worst(summary: Summary, exhibits: Sequence[Exhibit]) -> list[Exhibit]:
    """The cases with pictures, the worst first."""
    by_case = {exhibit.case: exhibit for exhibit in exhibits}
    names = [case.case for case in facts.worst_first(summary.cases) if case.case in by_case]
    return [by_case[name] for name in names[:MOST_CASES]]


def _draw_case(exhibit: Exhibit) -> Chart:
    alt = f"{exhibit.case}: three planes with image, contours and errors"
    return chart(draw_view(read_view(exhibit)), exhibit.title or exhibit.case, alt, form="webp")


def methods_of(plan: Plan, validation: CrossValidation) -> str:
    """A paragraph for a paper."""
    summary = validation.combined
    about = {
        "plan": plan,
        "version": __version__,
        "counted": counted,
        "folds": len(validation.folds),
        "cases": len(summary.cases),
        "tolerance": in_mm(summary.tolerance_mm),
    }
    return " ".join(fill(files.TEMPLATES / "methods.txt.j2", **about).split())


def draw_labels(
    found: Sequence[Finding], exhibits: Sequence[Exhibit], processes: int
) -> dict[str, Chart]:
    """Case -> a picture of its suspicious labels, for the first ones that can be drawn."""
    suspicions = {of.case: of.suspicion for of in found}
    titled = {e.case: replace(e, title=f"{e.case}: {suspicions.get(e.case)}") for e in exhibits}
    drawn = [titled[case] for case in suspicions if case in titled][:MOST_CASES]
    pictures = in_parallel(_draw_difference, drawn, processes, "drawing labels to review")
    return dict(zip((exhibit.case for exhibit in drawn), pictures, strict=True))


def _draw_difference(exhibit: Exhibit) -> Chart:
    """The planes with most differing voxels."""
    view = read_view(exhibit)
    differs = view.maps[REFERENCE] != view.maps[PREDICTION]
    x, y, z = (int(differs.sum(axis=axes).argmax()) for axes in ((1, 2), (0, 2), (0, 1)))
    alt = f"{exhibit.case}: three planes with image, contours and errors"
    return chart(draw_view(view, at=(x, y, z)), exhibit.title, alt, form="webp")


def _links(summary: Summary, exhibits: Sequence[Exhibit]) -> dict[str, str]:
    """Case -> its anchor in the page, as numbered by the template."""
    return {each.case: f"#case-{i}" for i, each in enumerate(_worst(summary, exhibits), 1)}


def _charts(summary: Summary, colours: Colours) -> tuple[Chart, ...]:
    drawn = {
        "Dice": draw_scores(summary, colours=colours),
        "Surface distances": draw_scores(summary, SURFACE, colours),
        "Agreement of volumes (Bland-Altman)": draw_volumes(summary, colours),
    }
    return tuple(
        chart(of, name, f"{name} of each class, a point a case") for name, of in drawn.items()
    )


def _curves(
    trained: files.Trained, validation: CrossValidation, trainings: Mapping[int, Training | None]
) -> Iterable[Chart]:
    if logs := trained.logs(validation.folds):
        yield chart(
            draw_losses({trained.folder.name: logs}),
            "Loss",
            "Training and validation loss over the epochs, all folds together",
            "Points are the epochs of all folds; the curve is smoothed by Gaussian process "
            "regression, and the band is its 95 % confidence band.",
        )
    known = {k: each for k, each in trainings.items() if each is not None and each.dice}
    if known:
        yield chart(
            draw_dice(known),
            "Dice during training",
            "Mean Dice of patches over the epochs, a line for each fold",
            "Dice of patches, not of whole cases: it shows the progress of the training, not the "
            "quality of the model.",
        )


def _read_fingerprint(path: Path) -> Fingerprint | None:
    if not path.is_file():
        return None
    try:
        return Fingerprint.load(path)
    except AutosegError as error:
        say(f"warning: the report has no section on the data: {error}")
        return None
