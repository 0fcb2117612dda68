"""A trained model in one zip file to pass on: `autoseg_pack TASK -o model.zip`.

It holds what a prediction needs (the plan, the weights of the folds, the learned postprocessing,
the previous stage of a cascade) and what describes the model (the fingerprint, the splits, the
scores of the folds and a card).
"""

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from autoseg import __version__
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import read_json, to_json
from autoseg.common.locks import writing
from autoseg.common.pages import fill
from autoseg.common.progress import by_axis, in_words
from autoseg.dataset.splits import SPLITS_FILE as SPLITS
from autoseg.evaluation.learn_postprocessing import source_of
from autoseg.evaluation.scores import Statistic, Summary, combine
from autoseg.evaluation.tables import Row, number, rows_as_markdown, spread
from autoseg.export.networks import TEXT, identity
from autoseg.fingerprint import Fingerprint
from autoseg.models import folder as layout
from autoseg.models.archive import ENDING, Content, write_archive
from autoseg.models.log import read_training
from autoseg.plan.plan import Plan, load_plan
from autoseg.prediction.model import PREVIOUS, check_previous, choose_folds, read_weights
from autoseg.prediction.postprocessing import FILE_NAME as POSTPROCESSING
from autoseg.prediction.postprocessing import Postprocessing
from autoseg.workflow.workspace import Workspace

Files = dict[str, Content]


class PackOptions(NamedTuple):
    """What to pack.

    Attributes:
        task: the full name of a task with models in the workspace.
        folds: which of them; None for all that are finished.
        card: a JSON file with statements about the model, see STATEMENTS.
    """

    workspace: Workspace
    task: str
    plan: str
    folds: tuple[str, ...] | None = None
    card: Path | None = None


def pack(order: PackOptions, out: Path, overwrite: bool) -> list[str]:
    """Write a model into one zip; the same model gives the same bytes.

    Returns:
        names of the files in it, besides the manifest.

    Raises:
        AutosegError: `out` exists or does not end in `.zip`, a file or a fold is missing, or the
            files belong to different plans.
    """
    if out.suffix.lower() != ENDING:
        raise AutosegError(f"{out}: the name of a packed model must end in {ENDING}")
    if out.is_dir() or (out.exists() and not overwrite):
        raise AutosegError(f"{out} is there already; choose another -o, or use --overwrite")
    folder = order.workspace.models(order.task, order.plan)
    planned = order.workspace.preprocessed(order.task, order.plan)
    model = layout.open_model(folder)
    plan = layout.plan_in(model)
    folds = sorted(set(choose_folds(model, folder, plan, order.folds)))
    files = _network_files(model, plan, folds) | _previous_stage(folder, plan)
    source = read_json(folder / layout.CARD)["source"] if (folder / layout.CARD).is_file() else None
    if source is None:
        files |= _planning_files(planned, folder, plan)
    else:  # imported: nothing was planned here
        files[layout.FINGERPRINT] = folder / layout.FINGERPRINT
    if (postprocessing := _postprocessing(folder, plan, source is not None)) is not None:
        files[POSTPROCESSING] = folder / POSTPROCESSING
    if model.has(layout.CALIBRATION):
        files[layout.CALIBRATION] = model.path(layout.CALIBRATION)
    scores = []
    for fold in folds:
        path = layout.fold_folder(folder, fold) / layout.SUMMARY
        if path.is_file():
            scores.append(Summary.load(path))
            name = f"{layout.fold_name(fold)}/{layout.SUMMARY}"
            files[name] = to_json(_without_paths(read_json(path))).encode()
    dataset = order.workspace.raw(order.task) / "dataset.json"
    declared = read_json(dataset) if dataset.is_file() else {}
    steps = () if postprocessing is None else postprocessing.steps
    fingerprint = Fingerprint.load((planned if source is None else folder) / layout.FINGERPRINT)
    card = about_plan(plan)
    card |= read_statements(order.card, declared if isinstance(declared, dict) else {})
    card |= {"trained_on": _data_figures(fingerprint), "dice": None}
    if scores:
        pooled = combine(scores)
        of_classes = {label: pooled.statistic(label)._asdict() for label in pooled.labels}
        card["dice"] = {"mean": pooled.foreground_mean(), **of_classes}
    card["postprocessing"] = [f"keeps the largest component of {step.name}" for step in steps]
    card["training"] = {fold: _training(layout.fold_folder(folder, fold)) for fold in folds}
    card |= {} if source is None else {"source": source}
    versions = {"torch": version("torch"), "Python": platform.python_version()}
    card["packed_with"] = {"autoseg": __version__, **versions}
    files[layout.CARD], files["card.md"] = to_json(card).encode(), card_page(card).encode()
    files["labels.json"] = to_json(labels_of(plan)).encode()
    with writing(out):
        write_archive(out, {"autoseg": __version__, **identity(plan), "folds": folds}, files)
    return sorted(files)


def labels_of(plan: Plan) -> dict[str, Any]:
    """What the values of label maps mean, for programs that do not read plans."""
    return plan.model_dump(mode="json", include={"labels", "ignore_label", "regions_class_order"})


def about_plan(plan: Plan) -> dict[str, Any]:
    """What a card says of a plan."""
    classes = list(plan.labels)[1:]
    return {**identity(plan), "channels": list(plan.channels), "classes": classes}


def _network_files(model: layout.ModelFiles, plan: Plan, folds: Sequence[str]) -> Files:
    """The plan and the weights that were trained by it."""
    for fold in folds:
        read_weights(model, fold, plan)  # raises an error if they are damaged or of another plan
    names = [layout.PLAN, *(layout.weights_name(fold) for fold in folds)]
    return {name: model.path(name) for name in names}


def _previous_stage(folder: Path, plan: Plan) -> Files:
    """All folds of the model that a cascade refines: a prediction needs them."""
    if plan.previous_stage is None:
        return {}
    previous = layout.FolderFiles(folder).previous(plan.previous_stage).folder
    model = layout.open_model(previous)
    previous_plan = layout.plan_in(model)
    check_previous(folder, previous_plan)
    folds = choose_folds(model, previous, previous_plan, None)
    found = _network_files(model, previous_plan, folds)
    below = {f"{layout.PREVIOUS_FOLDER}/{name}": content for name, content in found.items()}
    return {PREVIOUS: folder / PREVIOUS, **below}


def _planning_files(planned: Path, folder: Path, plan: Plan) -> Files:
    """What the plan was made from."""
    for name in (layout.PLAN, layout.FINGERPRINT, SPLITS):
        if not (planned / name).is_file():
            raise AutosegError(f"{planned / name} is missing; restore it: {folder} depends on it")
    path = planned / layout.PLAN
    if (now := load_plan(path)).id != plan.id:
        raise AutosegError(TEXT("plan now", path=path, now=now, folder=folder, plan=plan))
    return {name: planned / name for name in (layout.FINGERPRINT, SPLITS)}


def _without_paths(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary with bare file names: folders reveal a machine and its users."""
    for case in summary["metric_per_case"]:
        for key in case.keys() & {"reference_file", "prediction_file"}:
            case[key] = Path(case[key]).name
    return summary


def _postprocessing(folder: Path, plan: Plan, imported: bool) -> Postprocessing | None:
    """The postprocessing that was learned from just these folds, if any."""
    path = folder / POSTPROCESSING
    if not path.is_file():
        return None
    values = read_json(path)
    found = Postprocessing.from_json(values, str(path))
    about = values.get("learned_on", {})
    folds = about.get("folds", [])
    if imported and found.plan_id == plan.id:
        return found
    complete = all((layout.fold_folder(folder, fold) / layout.SUMMARY).is_file() for fold in folds)
    if found.plan_id != plan.id or not complete or about.get("source") != source_of(folder, folds):
        raise AutosegError(TEXT("other scores", path=path, plan=plan))
    return found


# A model's card: what it was trained on, its intended use, its licence, and its scores. Statements
# come from a card file, else from the data set's `dataset.json`.

# Statements about a model: key -> heading, and names of the same in a dataset.json.
STATEMENTS: dict[str, list[str]] = read_json(Path(__file__).with_name("statements.json"))


def _training(fold: Path) -> dict[str, float] | None:
    """How long a fold was trained; None if it has no readable log."""
    with suppress(DataError):
        if (found := read_training(fold)) is not None:
            return {"epochs": found.epochs, "seconds": round(found.seconds, 1)}
    return None


def card_page(card: Mapping[str, Any]) -> str:
    """The card for people."""
    keys = ("format", "name", "trainer", "plans", "configuration") if "source" in card else ()
    unknown = (layout.NOT_STATED,) * 2
    rows: dict[str, list[Row]] = {
        "imported": [(f"imported: {key}", str(card["source"][key])) for key in keys],
        "data": [(key.replace("_", " "), _figure_text(n)) for key, n in card["trained_on"].items()],
        "times": [
            (fold, *((str(of["epochs"]), in_words(of["seconds"])) if of else unknown))
            for fold, of in card["training"].items()
        ],
        "dice": [
            (label, spread(Statistic(**of)), number(of["median"]), str(of["n"]))
            for label, of in (card["dice"] or {}).items()
            if label != "mean"
        ],
    }
    template = Path(__file__).with_name("card.md.j2")
    return fill(template, card=card, statements=STATEMENTS, table=rows_as_markdown, **rows) + "\n"


def read_statements(path: Path | None, declared: Mapping[str, Any]) -> dict[str, str]:
    """The statements about a model: those of the card file override those of the data set.

    Args:
        path: a JSON file with texts for some of STATEMENTS.
        declared: the content of the data set's `dataset.json`.

    Raises:
        AutosegError: the file has an unknown key, or a value that is not a text.
    """
    stated = {} if path is None else read_json(path)
    keys = ", ".join(STATEMENTS)
    if not isinstance(stated, dict):
        raise AutosegError(f"{path} must be an object with texts for some of: {keys}")
    for key, text in stated.items():
        if key not in STATEMENTS:
            raise AutosegError(f"{path} has the unknown key {key!r}; choose from {keys}")
        if not isinstance(text, str) or not text.strip():
            raise AutosegError(f"{path}: {key} must be a text; remove it if it is unknown")
        if key == layout.QUALIFICATION and text not in layout.QUALIFICATIONS:
            known = ", ".join(layout.QUALIFICATIONS)
            raise AutosegError(f"{path}: {key} is {text!r}; choose {known}")
    found = {}
    for key, (_, *names) in STATEMENTS.items():
        texts = [stated.get(key), *(declared.get(name) for name in names)]
        given = (text for text in texts if isinstance(text, str) and text.strip())
        found[key] = next(given, layout.NOT_STATED)
    return found


def _data_figures(fingerprint: Fingerprint) -> dict[str, Any]:
    """The ranges of sizes and spacings (x, y, z) of the training cases."""
    if not fingerprint.cases:
        return {"cases": layout.NOT_STATED}
    spacings = fingerprint.spacings_mm
    shapes = [case.shape for case in fingerprint.cases.values()]
    presence, names = fingerprint.presence.values(), list(fingerprint.labels)[1:]
    return {
        "cases": len(shapes),
        "smallest_spacing_mm": spacings.min(axis=0).tolist(),
        "largest_spacing_mm": spacings.max(axis=0).tolist(),
        "smallest_size": [min(sizes) for sizes in zip(*shapes, strict=True)],
        "largest_size": [max(sizes) for sizes in zip(*shapes, strict=True)],
        "cases_with": {n: sum(n in found for found in presence) for n in names},
    }


def _figure_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count}" for name, count in value.items())
    return by_axis(value, "g") if isinstance(value, list) else str(value)
