"""How good the label maps of a cross-validation are after some postprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.common.parallel import in_parallel
from autoseg.image.image import read_label
from autoseg.plan.plan import Plan
from autoseg.prediction.postprocessing import KeepLargest, Postprocessing

Pair = tuple[Path, Path]
Steps = tuple[KeepLargest, ...]
Dice = dict[str, float | None]
Table = NDArray[np.int64]


def mean_dice(
    candidates: Sequence[Steps], pairs: Sequence[Pair], plan: Plan, processes: int
) -> list[Dice]:
    """Mean Dice of each class over the cases after each of some sequences of steps.

    Each case is read once.

    Args:
        candidates: the sequences; an empty one leaves the predictions as they are.
        pairs: true and predicted label maps on the same grid.
        plan: its labels, and the label whose voxels don't count.
        processes: worker processes.
    """
    measure = partial(_measure, candidates=tuple(candidates), plan=plan)
    of_cases = in_parallel(measure, pairs, processes, "postprocessing")
    names = list(plan.labels)[1:]
    found = []
    for of_candidate in zip(*of_cases, strict=True):
        columns = zip(*of_candidate, strict=True)
        found.append(
            {name: mean_of_known(column) for name, column in zip(names, columns, strict=True)}
        )
    return found


def _measure(pair: Pair, candidates: Sequence[Steps], plan: Plan) -> list[list[float | None]]:
    """Dice of each class in one case, for each candidate."""
    truth, geometry = read_label(pair[0])
    prediction, theirs = read_label(pair[1])
    if wrong := geometry.differences(theirs):
        raise DataError(f"{pair[1]}: not on the grid of {pair[0]}: {', '.join(wrong)}")
    values = sorted({v for covered in list(plan.labels.values())[1:] for v in covered})
    ignored = [] if plan.ignore_label is None else [plan.ignore_label]
    known = np.zeros(2**16, np.int64)
    known[[*values, *ignored]] = np.arange(1, len(values) + len(ignored) + 1)
    raw = _count(known, len(values) + 2, truth, prediction)
    found = []
    for steps in candidates:
        cleaned = prediction.copy()
        Postprocessing(plan.id, steps).apply(cleaned)
        changed = cleaned != prediction
        table = raw.copy()
        moved = _count_some(known, len(values) + 2, truth[changed], prediction[changed])
        table -= moved
        table[:, 0] += moved.sum(axis=1)
        scored = np.delete(table, len(values) + 1, axis=0)  # the row of ignored voxels, or an empty
        found.append([_dice(scored, known[list(v)]) for v in list(plan.labels.values())[1:]])
    return found


def _count(known: Table, size: int, truth: NDArray[Any], prediction: NDArray[Any]) -> Table:
    """Voxels by their true and their predicted value, numbered by `known`: shape (size, size)."""
    table = np.zeros((size, size), np.int64)
    for true, predicted in zip(truth.T, prediction.T, strict=True):  # eight bytes a voxel: by plane
        table += _count_some(known, size, true, predicted)
    return table


def _count_some(known: Table, size: int, truth: NDArray[Any], prediction: NDArray[Any]) -> Table:
    pairs = known[truth] * size + known[prediction]
    return np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)


def _dice(table: Table, members: NDArray[np.int64]) -> float | None:
    """Dice of the class that some values make up; None where neither side has it."""
    both = int(table[np.ix_(members, members)].sum())
    sizes = int(table[members].sum() + table[:, members].sum())
    return 2 * both / sizes if sizes else None
