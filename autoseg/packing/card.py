"""A model's card: what it was trained on, what for, under which licence, and how good it is.

Only what is known stands in it. The data set's own `dataset.json` is asked first; the rest a person
writes into a card file. What nobody says is "not stated".
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoseg import __version__
from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.common.progress import in_words
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import Row, number, rows_as_markdown, spread
from autoseg.fingerprint import Fingerprint
from autoseg.plan.plan import Plan

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
class Training:
    """How long a fold was trained: epochs and their seconds, as its log has them."""

    epochs: int
    seconds: float


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
    return {key: said.get(key) or _declared(key, declared) for key in STATEMENTS}


def _declared(key: str, declared: Mapping[str, Any]) -> str:
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
        return " x ".join(f"{number:g}" for number in value)
    return str(value)


def _versions() -> dict[str, str]:
    return {"autoseg": __version__, "torch": version("torch"), "Python": platform.python_version()}
