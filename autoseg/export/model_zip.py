"""A trained model in one file to pass on: `autoseg_pack TASK -o model.zip`.

It holds what a prediction needs and what a person wants to know: the plan, the weights of the
folds, what postprocessing was learned, a cascade's previous stage, the fingerprint, the splits, the
scores of the folds and a card.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoseg import __version__
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import read_json, remove_leftovers_of_dead, to_json
from autoseg.common.progress import by_axis, in_words, listed
from autoseg.dataset.splits import FILE_NAME as SPLITS
from autoseg.evaluation.learn_postprocessing import source_of
from autoseg.evaluation.scores import Summary, combine
from autoseg.evaluation.tables import Row, number, rows_as_markdown, spread
from autoseg.fingerprint import Fingerprint
from autoseg.models.archive import ENDING, Content, write_archive
from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.folder import (
    PLAN,
    PREVIOUS_FOLDER,
    SUMMARY,
    FolderFiles,
    fold_folder,
    fold_name,
    open_model,
    plan_in,
    weights_name,
)
from autoseg.models.log import Training, read_training
from autoseg.plan.plan import Plan
from autoseg.plan.reading import load_plan
from autoseg.prediction.model import PREVIOUS, check_previous
from autoseg.prediction.postprocessing import FILE_NAME as POSTPROCESSING
from autoseg.prediction.postprocessing import Postprocessing
from autoseg.workflow.workspace import Workspace

# A model's card: what it was trained on, what for, under which licence, and how good it is.
#
# Only what is known stands in it. The data set's own `dataset.json` is asked first; the rest a
# person writes into a card file. What nobody says is "not stated".

NOT_STATED = "not stated"
# What people may say of a model: key -> heading.
STATEMENTS = {
    "intended_use": "Intended use",
    "limits": "Limits",
    "licence": "Licence of the model",
    "data_name": "Data",
    "data_description": "What the data is",
    "data_licence": "Licence of the data",
    "data_reference": "Where the data is from",
    "citation": "Citation",
    "contact": "Contact",
}
# Keys of a dataset.json that say the same.
DECLARED = {
    "data_name": ("name",),
    "data_description": ("description",),
    "data_licence": ("licence", "license"),
    "data_reference": ("reference",),
}


@dataclass(frozen=True)
class Card:
    """What is known of a model.

    Attributes:
        statements: a text, or `not stated`, for each of STATEMENTS.
        scores: of the folds' validation cases, as the networks predicted them; None if there are
            none.
        steps: what postprocessing does to a label map, in words.
        training: fold -> how long it was trained; None where that is not known.
    """

    plan: Plan
    fingerprint: Fingerprint
    statements: dict[str, str]
    scores: Summary | None = None
    steps: tuple[str, ...] = ()
    training: dict[str, Training | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The card for programs."""
        return {
            "task": self.plan.task,
            "plan": self.plan.name,
            "plan_id": self.plan.id,
            **self.statements,
            "channels": list(self.plan.channels),
            "classes": list(self.plan.labels)[1:],
            "trained_on": _data_figures(self.fingerprint),
            "dice": _dice_figures(self.scores),
            "postprocessing": list(self.steps),
            "training": {
                fold: None if of is None else {"epochs": of.epochs, "seconds": round(of.seconds, 1)}
                for fold, of in self.training.items()
            },
            "packed_with": _versions(),
        }

    def to_markdown(self) -> str:
        """The card for people."""
        facts = [("task", self.plan.task), ("plan", f"{self.plan.name} ({self.plan.id})")]
        facts += [("channels", ", ".join(self.plan.channels))]
        facts += [("classes", ", ".join(list(self.plan.labels)[1:]))]
        data = [(key.replace("_", " "), _in_words(value)) for key, value in self._data()]
        texts = {heading: self.statements[key] for key, heading in STATEMENTS.items()}
        packed = ", ".join(f"{name} {found}" for name, found in _versions().items())
        sections = {
            "Model": rows_as_markdown([("what", "value"), *facts]),
            **texts,
            "Training data in figures": rows_as_markdown([("what", "value"), *data]),
            "Dice of the cross-validation": self._scores(),
            "Postprocessing": "; ".join(self.steps) or "none",
            "Training": rows_as_markdown([("fold", "epochs", "time"), *self._times()]),
            "Names of cases": "The names of the training cases stand in fingerprint.json, "
            "splits.json and the summaries of the folds.",
            "Versions": f"Packed with {packed}.",
        }
        parts = [f"## {heading}\n\n{text.strip()}\n" for heading, text in sections.items()]
        return "\n".join([f"# {self.plan.task}\n", *parts])

    def _data(self) -> list[tuple[str, Any]]:
        return list(_data_figures(self.fingerprint).items())

    def _scores(self) -> str:
        if self.scores is None:
            return NOT_STATED
        rows: list[Row] = [("class", "mean ± std", "median", "cases")]
        for label in self.scores.labels:
            of = self.scores.statistic(label)
            rows.append((label, spread(of), number(of.median), str(of.n)))
        return (
            rows_as_markdown(rows) + "\nWhole cases, each predicted by the fold that has not "
            "learnt from it, without postprocessing."
        )

    def _times(self) -> list[Row]:
        return [
            (fold, NOT_STATED, NOT_STATED)
            if of is None
            else (fold, str(of.epochs), in_words(of.seconds))
            for fold, of in self.training.items()
        ]


def read_statements(path: Path | None, declared: Mapping[str, Any]) -> dict[str, str]:
    """What people say of a model: the card file goes before the data set's own words.

    Args:
        path: a JSON file with texts for some of STATEMENTS.
        declared: the content of the data set's `dataset.json`.

    Raises:
        AutosegError: the file has another key, or something else than text.
    """
    said = {} if path is None else read_json(path)
    keys = ", ".join(STATEMENTS)
    if not isinstance(said, dict):
        raise AutosegError(f"{path} must be an object with texts for some of: {keys}")
    for key, text in said.items():
        if key not in STATEMENTS:
            raise AutosegError(f"{path} has the unknown key {key!r}; known are {keys}")
        if not isinstance(text, str) or not text.strip():
            raise AutosegError(f"{path}: {key} must be a text; leave it out if it is not known")
    return {key: said.get(key) or _declared_rows(key, declared) for key in STATEMENTS}


def _declared_rows(key: str, declared: Mapping[str, Any]) -> str:
    found = (declared.get(name) for name in DECLARED.get(key, ()))
    return next((text for text in found if isinstance(text, str) and text.strip()), NOT_STATED)


def _data_figures(fingerprint: Fingerprint) -> dict[str, Any]:
    """Between which sizes and spacings the training cases lie, (x, y, z)."""
    spacings = fingerprint.spacings_mm
    shapes = [case.shape for case in fingerprint.cases.values()]
    presence = fingerprint.presence.values()
    return {
        "cases": len(shapes),
        "smallest_spacing_mm": [float(value) for value in spacings.min(axis=0)],
        "largest_spacing_mm": [float(value) for value in spacings.max(axis=0)],
        "smallest_size": [min(sizes) for sizes in zip(*shapes, strict=True)],
        "largest_size": [max(sizes) for sizes in zip(*shapes, strict=True)],
        "cases_with": {
            name: sum(name in found for found in presence) for name in list(fingerprint.labels)[1:]
        },
    }


def _dice_figures(scores: Summary | None) -> dict[str, Any] | None:
    if scores is None:
        return None
    found = {label: scores.statistic(label) for label in scores.labels}
    return {
        "mean": scores.foreground_mean(),
        **{
            label: {"mean": of.mean, "std": of.std, "median": of.median, "n": of.n}
            for label, of in found.items()
        },
    }


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {count}" for name, count in value.items())
    if isinstance(value, Sequence):
        return by_axis(value, "g")
    return str(value)


def _versions() -> dict[str, str]:
    return {"autoseg": __version__, "torch": version("torch"), "Python": platform.python_version()}


FINGERPRINT = "fingerprint.json"
Files = dict[str, Content]


@dataclass(frozen=True)
class Order:
    """What to pack.

    Attributes:
        task: the full name of a task, the models of which are in the workspace.
        folds: which of them; None for all that are finished.
        card: a JSON file with what people say of the model.
    """

    workspace: Workspace
    task: str
    plan: str
    folds: tuple[str, ...] | None = None
    card: Path | None = None


def pack(order: Order, out: Path, overwrite: bool) -> list[str]:
    """Write a model into one zip; the same model gives the same bytes.

    Returns:
        names of the files in it, besides the manifest.

    Raises:
        AutosegError: `out` is there already or no `.zip`, a file or a fold is missing, or the files
            belong to different plans.
    """
    if out.suffix.lower() != ENDING:
        raise AutosegError(f"{out}: a packed model ends in {ENDING}; rename it")
    if out.is_dir() or (out.exists() and not overwrite):
        raise AutosegError(f"{out} is there already; give another -o, or --overwrite it")
    folder = order.workspace.models(order.task, order.plan)
    plan = plan_in(open_model(folder))
    folds = _folds(folder, plan, order.folds)
    files = _network_files(folder, plan, folds)
    summaries = _summaries(folder, folds)
    for fold, found in summaries.items():
        files[f"{fold_name(fold)}/{SUMMARY}"] = to_json(_without_paths(found)).encode()
    files |= _previous_stage(folder, plan)
    postprocessing = _postprocessing(folder, plan)
    if postprocessing is not None:
        files[POSTPROCESSING] = folder / POSTPROCESSING
    planned = order.workspace.preprocessed(order.task, order.plan)
    files |= _planning_files(planned, folder, plan)
    steps = () if postprocessing is None else postprocessing.steps
    card = Card(
        plan=plan,
        fingerprint=Fingerprint.load(planned / FINGERPRINT),
        statements=read_statements(order.card, _declared(order.workspace.raw(order.task))),
        scores=combine([Summary.from_json(of) for of in summaries.values()]) if summaries else None,
        steps=tuple(f"keeps the largest component of {step.name}" for step in steps),
        training={fold: _training(fold_folder(folder, fold)) for fold in folds},
    )
    files["card.json"] = to_json(card.to_json()).encode()
    files["card.md"] = card.to_markdown().encode()
    files["labels.json"] = to_json(_labels(plan)).encode()
    remove_leftovers_of_dead(out)
    write_archive(out, _about(plan, folds), files)
    return sorted(files)


def _about(plan: Plan, folds: Sequence[str]) -> dict[str, Any]:
    return {
        "autoseg": __version__,
        "task": plan.task,
        "plan": plan.name,
        "plan_id": plan.id,
        "folds": list(folds),
    }


def _labels(plan: Plan) -> dict[str, Any]:
    """Names and values, for who reads label maps without autoseg."""
    order = plan.regions_class_order
    return {
        "labels": {name: list(values) for name, values in plan.labels.items()},
        "ignore_label": plan.ignore_label,
        "regions_class_order": None if order is None else list(order),
    }


def _folds(folder: Path, plan: Plan, wanted: Sequence[str] | None) -> list[str]:
    there = FolderFiles(folder).folds()
    if not there:
        raise AutosegError(f"{folder} has no finished fold; run: autoseg_train {plan.task} fold 0")
    if missing := sorted(set(wanted or ()) - set(there)):
        raise AutosegError(
            f"{folder} has no finished {listed('fold', missing)}; there: {', '.join(there)}"
        )
    return [fold for fold in there if wanted is None or fold in wanted]


def _network_files(folder: Path, plan: Plan, folds: Sequence[str]) -> Files:
    """The plan, and the weights that were trained by it."""
    files: Files = {PLAN: folder / PLAN}
    for fold in folds:
        path = folder / weights_name(fold)
        found = load_checkpoint(path)[1].get("plan_id")
        if found != plan.id:
            raise AutosegError(
                f"{path} was trained by plan {found}, but plan.json is {plan.id}; pack the folds "
                "of one plan with -f"
            )
        files[weights_name(fold)] = path
    return files


def _planning_files(planned: Path, folder: Path, plan: Plan) -> Files:
    """What the plan was made from."""
    for name in (PLAN, FINGERPRINT, SPLITS):
        if not (planned / name).is_file():
            raise AutosegError(f"{planned / name} is missing, which belongs to {folder}; copy it")
    now = load_plan(planned / PLAN)
    if now.id != plan.id:
        raise AutosegError(
            f"{planned} is plan {now.id} now, but the models in {folder} are of {plan.id}; plan "
            "as it was when they were trained"
        )
    return {name: planned / name for name in (FINGERPRINT, SPLITS)}


def _previous_stage(folder: Path, plan: Plan) -> Files:
    """The model that a cascade refines, all folds of which a prediction needs."""
    if plan.previous_stage is None:
        return {}
    previous = FolderFiles(folder).previous(plan.previous_stage)
    of = plan_in(open_model(previous.folder))
    check_previous(folder, of)
    found = _network_files(previous.folder, of, _folds(previous.folder, of, None))
    below = {f"{PREVIOUS_FOLDER}/{name}": content for name, content in found.items()}
    return {PREVIOUS: folder / PREVIOUS, **below}


def _summaries(folder: Path, folds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The scores of the folds that have some, as they stand in their files."""
    paths = {fold: fold_folder(folder, fold) / SUMMARY for fold in folds}
    there = {fold: path for fold, path in paths.items() if path.is_file()}
    for path in there.values():
        Summary.load(path)  # tells in one line if it is broken
    return {fold: read_json(path) for fold, path in there.items()}


def _without_paths(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary with bare file names: folders tell about a machine and its people."""
    keys = ("reference_file", "prediction_file")
    cases = [
        {key: Path(value).name if key in keys else value for key, value in case.items()}
        for case in summary["metric_per_case"]
    ]
    return {**summary, "metric_per_case": cases}


def _postprocessing(folder: Path, plan: Plan) -> Postprocessing | None:
    """What was learned on just these folds; None if nothing was."""
    path = folder / POSTPROCESSING
    if not path.is_file():
        return None
    values = read_json(path)
    found = Postprocessing.from_json(values, str(path))
    about = values.get("learned_on", {})
    folds = about.get("folds", [])
    there = all((fold_folder(folder, fold) / SUMMARY).is_file() for fold in folds)
    if found.plan_id != plan.id or not there or about.get("source") != source_of(folder, folds):
        raise AutosegError(
            f"{path} was learned from other scores than those of the folds; learn it anew with "
            f"autoseg_evaluate {plan.task}, or delete it"
        )
    return found


def _declared(raw: Path) -> dict[str, Any]:
    """The raw task's `dataset.json`; nothing if the data is not here."""
    path = raw / "dataset.json"
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _training(fold: Path) -> Training | None:
    """How long a fold was trained; None if it has no log that can be read."""
    with suppress(DataError):
        return read_training(fold)
    return None
