"""Folds whose validation sees every class, by exchanging as few patients as it takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Unit = tuple[str, ...]
"""The cases of one patient, which stay together."""

Classes = Mapping[str, Collection[str]]
"""Case -> names of the classes that occur in it."""


def stratified(dealt: Sequence[Sequence[Unit]], classes: Classes) -> list[list[Unit]]:
    """Exchange patients until every fold has every class, as far as single exchanges lead there.

    Each step exchanges two patients of different folds such that more folds see more classes than
    before; of all such exchanges the one that gains most, then the one that changes the folds'
    sizes least, then the first. A class that fewer patients have than there are folds goes to as
    many folds as possible. Folds stay as even as the largest patient allows.

    Args:
        dealt: the patients of each fold.
        classes: case -> names of the classes that occur in it.
    """
    folds = [list(fold) for fold in dealt]
    names = sorted({name for found in classes.values() for name in found})
    spread = max(len(unit) for fold in folds for unit in fold)
    while exchange := _best_exchange(folds, names, classes, spread):
        (here, i), (there, j) = exchange
        folds[here][i], folds[there][j] = folds[there][j], folds[here][i]
    return folds


Place = tuple[int, int]
"""A fold, and a patient's position in it."""

Table = NDArray[np.float64]
"""Shape (patients, classes) of one fold: 1 where a patient has a class, else 0."""


def _best_exchange(
    folds: Sequence[Sequence[Unit]], names: Sequence[str], classes: Classes, spread: int
) -> tuple[Place, Place] | None:
    """The exchange after which most classes are seen in most folds, if that is more than now."""
    tables = [_table(fold, names, classes) for fold in folds]
    if not _lacks_some(tables):
        return None
    sizes = [np.array([len(unit) for unit in fold]) for fold in folds]
    totals = [int(size.sum()) for size in sizes]
    best, found = 0.0, None
    for here, there in combinations(range(len(folds)), 2):
        shift = sizes[there][np.newaxis, :] - sizes[here][:, np.newaxis]
        gain = _gains(tables[here], tables[there])
        score = gain * (2 * spread + 1) - np.abs(shift)  # what is gained first, then even sizes
        score[~_stays_even(totals, here, there, shift, spread)] = 0
        if score.max() > best:
            i, j = np.unravel_index(np.argmax(score), score.shape)
            best, found = float(score[i, j]), ((here, int(i)), (there, int(j)))
    return found


def _table(fold: Sequence[Unit], names: Sequence[str], classes: Classes) -> Table:
    has = [{name for case in unit for name in classes.get(case, ())} for unit in fold]
    return np.array([[name in there for name in names] for there in has], dtype=np.float64)


def _lacks_some(tables: Sequence[Table]) -> bool:
    """Whether a class is missing in a fold though enough patients have it."""
    counts = np.stack([table.sum(axis=0) for table in tables])
    possible = np.minimum(counts.sum(axis=0), len(tables))
    return bool((np.count_nonzero(counts, axis=0) < possible).any())


def _gains(table: Table, other: Table) -> NDArray[np.float64]:
    """How many more classes two folds see after exchanging patient i of one and j of the other."""
    return _seen_more(table, other) + _seen_more(other, table).T


def _seen_more(table: Table, other: Table) -> NDArray[np.float64]:
    """Classes that a fold gains when its patient i leaves and j of the other comes, less lost."""
    count = table.sum(axis=0)
    brought = other @ (count == 0).astype(np.float64)
    lost = (table * (count == 1)) @ (1 - other).T
    return np.asarray(brought[np.newaxis, :] - lost)


def _stays_even(
    totals: Sequence[int], here: int, there: int, shift: NDArray[np.int64], spread: int
) -> NDArray[np.bool_]:
    """Whether the folds' sizes stay within `spread` of each other when `shift` cases move."""
    others = [total for fold, total in enumerate(totals) if fold not in (here, there)]
    after = np.stack([totals[here] + shift, totals[there] - shift])
    lowest = np.minimum(after.min(axis=0), min(others, default=sum(totals)))
    highest = np.maximum(after.max(axis=0), max(others, default=0))
    return np.asarray(highest - lowest <= spread)
