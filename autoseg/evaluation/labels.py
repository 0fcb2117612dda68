"""Which classes to score: their names, and the values that they have in the label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from autoseg.common.errors import DataError
from autoseg.common.files import read_json
from autoseg.common.parallel import in_parallel
from autoseg.dataset.declaration import read_declaration
from autoseg.image.image import read_label
from autoseg.image.label_writer import HIGHEST_LABEL
from autoseg.plan.evaluation import DEFAULT_TOLERANCE_MM, Evaluation
from autoseg.plan.plan import Plan

BACKGROUND = 0
Values = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Labels:
    """The classes of an evaluation.

    Attributes:
        values: name -> the integers that make the class; background is not among them.
        ignore: voxels of this value in the truth don't count; None if there is no such value.
        tolerance_mm: name -> how far its surfaces may lie apart; classes without one have 1 mm.
        merged: rows that stand for several classes together -> their names.
        in_prediction: name -> the integers that make the class in the predictions, where these
            have others than the truth.
        colours: name -> `#RRGGBB` in figures, for the classes that the plan gives one.
    """

    values: Values
    ignore: int | None = None
    tolerance_mm: dict[str, float] = field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    in_prediction: Values = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def planned(values: Values, evaluation: Evaluation, ignore: int | None = None) -> Labels:
        """Foreground classes, with a plan's tolerances and merged rows."""
        return Labels(
            values,
            ignore,
            evaluation.tolerance_of(values),
            evaluation.rows(values),
            colours=evaluation.colours_of(values),
        )

    @staticmethod
    def of_plan(plan: Plan) -> Labels:
        """All foreground classes of a plan, scored as it wants."""
        foreground = dict(list(plan.labels.items())[1:])
        return Labels.planned(foreground, plan.evaluation, plan.ignore_label)

    def tolerance_of(self, name: str) -> float:
        """How far the surfaces of a class may lie apart, in mm."""
        return self.tolerance_mm.get(name, DEFAULT_TOLERANCE_MM)

    def predicted(self, name: str) -> tuple[int, ...]:
        """The integers that make a class in the predictions."""
        return self.in_prediction.get(name, self.values[name])


@dataclass(frozen=True)
class Names:
    """What files beside the label maps say; None where there is no such file.

    Attributes:
        of_truth: the classes in `dataset.json` beside the folder of the truth.
        of_model: those in `labels.json` in the folder of the predictions.
        ignore: voxels of this value in the truth don't count.
        evaluation: how the model's plan wants predictions to be scored.
    """

    of_truth: Values | None
    of_model: Values | None
    ignore: int | None
    evaluation: Evaluation


def read_names(truth: Path, predicted: Path) -> Names:
    """What `labels.json` and `dataset.json` say about two folders of label maps.

    Raises:
        AutosegError: such a file is broken.
    """
    of_model, evaluation = _read_predictions(_side_file(predicted))
    if not (truth.parent / "dataset.json").is_file():
        return Names(None, of_model, None, evaluation)
    declared = read_declaration(truth.parent)
    return Names(_foreground(declared.labels), of_model, declared.ignore_label, evaluation)


def _side_file(predicted: Path) -> Path:
    """Where the model's names are: in older folders, `predictions.json` holds them too."""
    labels = predicted / "labels.json"
    return labels if labels.is_file() else predicted / "predictions.json"


def find_labels(names: Names) -> Labels | None:
    """The classes that the files name, or None if no file does.

    The names come from the model, else from the truth. The value to ignore always comes from the
    truth.
    """
    values = names.of_model or names.of_truth
    return Labels.planned(values, names.evaluation, names.ignore) if values else None


def labels_in(paths: Sequence[Path], ignore: int | None = None, processes: int = 1) -> Labels:
    """One class for every integer that the label maps hold, named after it, but 0 and `ignore`."""
    found = set().union(*in_parallel(_values_in, paths, processes, "looking for classes"))
    return Labels({str(value): (value,) for value in sorted(found - {0, ignore})}, ignore)


def _values_in(path: Path) -> set[int]:
    label: NDArray[Any] = read_label(path)[0]
    there = np.zeros(HIGHEST_LABEL + 1, bool)  # np.unique would sort all voxels
    there[label.ravel(order="K")] = True
    return {int(value) for value in np.flatnonzero(there)}


def _read_predictions(path: Path) -> tuple[Values | None, Evaluation]:
    """The classes of a model's file, if it is there and names some, and its evaluation."""
    found = read_json(path) if path.is_file() else {}
    try:
        labels = found.get("labels", {})
        values = _foreground({name: tuple(map(int, values)) for name, values in labels.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f'{path}: "labels" must be like {{"tumour": [1, 2]}}; predict again, or delete the file'
        ) from error
    try:
        return values or None, Evaluation.model_validate(found.get("evaluation", {}))
    except ValidationError as error:
        raise DataError(
            f'{path}: "evaluation" is none of a plan ({error.errors()[0]["msg"]}); predict again, '
            "or delete the file"
        ) from error


def _foreground(labels: Values) -> Values:
    return {name: values for name, values in labels.items() if BACKGROUND not in values}
