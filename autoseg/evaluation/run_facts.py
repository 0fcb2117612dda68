"""When, how long, on what and with which versions: what training and prediction have recorded."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.common.progress import in_fine_words, say
from autoseg.evaluation.sortable import Cell, Column, Line, Sortable
from autoseg.evaluation.tables import NOTHING, Pair
from autoseg.models.log import Training

RECORD = "predictions.json"  # as prediction writes it beside its label maps
PREDICTED = ("cases predicted", "a case (median)")


@dataclass(frozen=True)
class Predictions:
    """What a folder of predictions records.

    Attributes:
        head: what made them: plan, model, folds.
        runs: the commands that took part: device, versions, when they began.
        seconds: of every case, all stages together.
    """

    head: Mapping[str, Any]
    runs: tuple[Mapping[str, Any], ...] = ()
    seconds: tuple[float, ...] = ()


def read_predictions(folder: Path) -> Predictions | None:
    """The record in a folder of predictions; None if there is none that can be read."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        seconds = [_seconds(case) for case in found["cases"].values()]
        runs = sorted(found.get("runs", {}).values(), key=lambda run: str(run.get("started")))
    except (AutosegError, AttributeError, KeyError, TypeError, ValueError) as error:
        say(f"warning: {path} is damaged and left out of the report ({error})")
        return None
    head = {key: value for key, value in found.items() if key not in ("runs", "cases")}
    return Predictions(head, tuple(runs), tuple(value for value in seconds if value is not None))


def version_rows(predictions: Iterable[Predictions]) -> list[Pair]:
    """What was recorded -> its values: each once, in the order of the runs."""
    values: dict[str, list[str]] = {}
    for run in (run for each in predictions for run in each.runs):
        for name, value in run.items():
            known = values.setdefault(name, [])
            if str(value) not in known:
                known.append(str(value))
    return [(name, ", ".join(known)) for name, known in values.items()]


def fold_times(
    trainings: Mapping[int, Training | None], predictions: Mapping[int, Predictions | None]
) -> Sortable:
    """Folds x times of their training, and of the prediction of their validation cases."""
    names = ("fold", "epochs", "training", "an epoch", *PREDICTED)
    lines = [
        Line(
            (Cell(str(fold), fold), *_training(trainings.get(fold)), *_cells(predictions.get(fold)))
        )
        for fold in sorted(trainings.keys() | predictions.keys())
    ]
    return Sortable("Time of the folds", tuple(map(Column, names)), tuple(lines))


def prediction_times(predicted: Predictions) -> Sortable:
    """One line: how long the predictions took."""
    columns = tuple(map(Column, PREDICTED))
    return Sortable("Time of the predictions", columns, (Line(_cells(predicted)),))


def _cells(predicted: Predictions | None) -> tuple[Cell, Cell]:
    """How many cases were predicted, and how long the middle one took."""
    if predicted is None or not predicted.seconds:
        return Cell(NOTHING), Cell(NOTHING)
    count = len(predicted.seconds)
    return Cell(str(count), count), _time(statistics.median(predicted.seconds))


def _training(training: Training | None) -> tuple[Cell, Cell, Cell]:
    if training is None:
        return Cell(NOTHING), Cell(NOTHING), Cell(NOTHING)
    epochs = Cell(str(training.epochs), training.epochs)
    if training.seconds is None or not training.epochs:
        return epochs, Cell(NOTHING), Cell(NOTHING)
    return epochs, _time(training.seconds), _time(training.seconds / training.epochs)


def _time(seconds: float) -> Cell:
    return Cell(in_fine_words(seconds), seconds)


def _seconds(case: Mapping[str, Any]) -> float | None:
    """Of all stages; older records have one number."""
    found = case.get("seconds")
    if isinstance(found, Mapping):
        return float(sum(found.values()))
    return None if found is None else float(found)
