"""Which classes to score: their names, and the values that they have in the label maps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.dataset.declaration import read_declaration
from autoseg.errors import DataError
from autoseg.files import read_json
from autoseg.image import read_label

BACKGROUND = (0,)


@dataclass(frozen=True)
class Labels:
    """The classes of an evaluation.

    Attributes:
        values: name -> the integers that make the class; background is not among them.
        ignore: voxels of this value in the truth don't count; None if there is no such value.
    """

    values: dict[str, tuple[int, ...]]
    ignore: int | None = None


def find_labels(truth: Path, predicted: Path) -> Labels | None:
    """The classes that files beside the label maps name, or None if no file does.

    The names come from `predictions.json` in the folder of predictions, else from `dataset.json`
    beside the folder of the truth. The value to ignore always comes from `dataset.json`: it belongs
    to the truth.

    Raises:
        AutosegError: such a file is broken.
    """
    of_model = _read_predictions(predicted / "predictions.json")
    if not (truth.parent / "dataset.json").is_file():
        return Labels(of_model) if of_model else None
    declared = read_declaration(truth.parent)
    return Labels(of_model or _foreground(declared.labels), declared.ignore_label)


def labels_in(paths: Iterable[Path], ignore: int | None = None) -> Labels:
    """One class for every integer that the label maps hold, named after it, but 0 and `ignore`."""
    found: set[int] = set()
    for path in paths:
        found.update(int(value) for value in np.unique(read_label(path)[0]))
    return Labels({str(value): (value,) for value in sorted(found - {0, ignore})}, ignore)


def _read_predictions(path: Path) -> dict[str, tuple[int, ...]]:
    """The classes in a `predictions.json`; none if there is no such file, or no such key in it."""
    found = read_json(path) if path.is_file() else {}
    try:
        labels = found.get("labels", {})
        return _foreground({name: tuple(map(int, values)) for name, values in labels.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f'{path}: "labels" must be like {{"tumour": [1, 2]}}; predict again, or delete the file'
        ) from error


def _foreground(labels: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: values for name, values in labels.items() if values != BACKGROUND}
