"""Which cases train and which validate, fold by fold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import read_json, write_json
from autoseg.common.progress import counted, say
from autoseg.dataset.problems import some

# Folds whose validation sees every class, by exchanging as few patients as it takes.

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


FILE_NAME = "splits.json"
NNUNET_FILE_NAME = "splits_final.json"
MOST_NAMED = 5  # cases in a message


@dataclass(frozen=True)
class Split:
    """One fold: the names of the cases, each tuple sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def make_splits(
    cases: Iterable[str],
    folds: int = 5,
    seed: int = 12345,
    groups: Mapping[str, str] | None = None,
    classes: Classes | None = None,
) -> tuple[Split, ...]:
    """Divide cases into folds for cross-validation, each case validating once.

    The result depends on the set of names, not on their order nor on the platform. Without groups
    it is what nnU-Net makes of the same cases and seed (scikit-learn's shuffled KFold). With
    groups, all cases of a patient fall into the same fold, the largest patients first, each into
    the fold that has the fewest cases.

    With classes, patients are then exchanged between folds, as few as it takes, until every fold
    validates every class that enough patients have (`stratified`). Nothing changes where that is so
    already, as it is where every case has every class.

    With as many folds as patients this is leave-one-out.

    Args:
        cases: names of the cases.
        folds: number of folds, at least 2.
        seed: seed of the shuffle.
        groups: case -> patient; a case that is not in it is a patient of its own.
        classes: case -> names of the classes that occur in it.

    Raises:
        DataError: there are fewer patients than folds.
    """
    units = patients(cases, groups or {})
    if folds < 2:
        raise DataError(f"{counted(folds, 'fold')}: cross-validation needs at least 2")
    if len(units) < folds:
        raise DataError(
            f"{number_of_patients(cases, groups or {})} cannot fill {folds} folds; choose fewer "
            "folds (--set splits.folds=2), add cases, or write splits.json"
        )
    order = np.arange(len(units))
    np.random.RandomState(seed).shuffle(order)  # this stream never changes between releases
    if groups:
        dealt = _deal_out([units[i] for i in order], folds)
    else:
        dealt = [[units[i] for i in part] for part in np.array_split(order, folds)]
    if classes:
        dealt = stratified(dealt, classes)
    validation = [sorted(case for unit in fold for case in unit) for fold in dealt]
    everybody = {case for unit in units for case in unit}
    return tuple(
        Split(train=tuple(sorted(everybody - set(fold))), validation=tuple(fold))
        for fold in validation
    )


def patients(cases: Iterable[str], groups: Mapping[str, str]) -> list[Unit]:
    """The cases patient by patient, sorted; a case without a group is a patient of its own."""
    together: defaultdict[tuple[bool, str], list[str]] = defaultdict(list)
    for case in cases:
        together[case in groups, groups.get(case, case)].append(case)
    return sorted(tuple(sorted(names)) for names in together.values())


def number_of_patients(cases: Iterable[str], groups: Mapping[str, str]) -> str:
    """How many patients there are, in words; they are called cases where nothing is grouped."""
    return counted(len(patients(cases, groups)), "patient" if groups else "case")


def _deal_out(units: Sequence[Unit], folds: int) -> list[list[Unit]]:
    """Give patient after patient, the largest first, to the fold with the fewest cases."""
    dealt: list[list[Unit]] = [[] for _ in range(folds)]
    for unit in sorted(units, key=len, reverse=True):
        min(dealt, key=lambda fold: sum(map(len, fold))).append(unit)
    return dealt


def read_splits(path: Path, cases: Iterable[str]) -> tuple[Split, ...]:
    """Read splits, autoseg's or nnU-Net's: a JSON list of {"train": [...], "val": [...]}.

    Raises:
        AutosegError: the file is missing or not JSON.
        DataError: it has no folds, an unknown case, a case twice in a fold, or an empty side.
    """
    folds = _read_folds(path)
    known = set(cases)
    return tuple(_split(fold, known, f"{path}: fold {number}") for number, fold in enumerate(folds))


def count_folds(path: Path) -> int:
    """How many folds a file of splits has, whatever cases they are of.

    Raises:
        AutosegError: the file is missing or not JSON.
        DataError: it has no folds.
    """
    return len(_read_folds(path))


def _read_folds(path: Path) -> list[Any]:
    folds = read_json(path)
    if not isinstance(folds, list) or not folds:
        raise DataError(f'{path}: must be a list of {{"train": [...], "val": [...]}}')
    return folds


def _split(fold: Any, known: set[str], where: str) -> Split:
    train, validation = _names(fold, "train", where), _names(fold, "val", where)
    if unknown := sorted({*train, *validation} - known):
        raise DataError(
            f"{where} names {some(unknown, MOST_NAMED)}, not a case of this task; "
            "correct the names, or delete the file to have new splits made"
        )
    if both := sorted(set(train) & set(validation)):
        raise DataError(
            f"{where} has {some(both, MOST_NAMED)} in train and in val; keep each in one"
        )
    return Split(tuple(sorted(train)), tuple(sorted(validation)))


def _names(fold: Any, side: str, where: str) -> list[str]:
    names = fold.get(side) if isinstance(fold, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'{where}: "{side}" must be a list of case names')
    if not names:
        raise DataError(f'{where}: "{side}" is empty; it needs at least one case')
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise DataError(f'{where}: "{side}" has {some(twice, MOST_NAMED)} twice')
    return names


def write_splits(path: Path, splits: Iterable[Split]) -> None:
    """Write splits in nnU-Net's form, atomically."""
    write_json(
        path,
        [{"train": list(split.train), "val": list(split.validation)} for split in splits],
    )


def load_or_make_splits(
    folder: Path,
    task_folder: Path,
    cases: Sequence[str],
    folds: int = 5,
    seed: int = 12345,
    groups: Mapping[str, str] | None = None,
    classes: Classes | None = None,
) -> tuple[Split, ...]:
    """The splits to use: those in `folder/splits.json`, else the user's, else new ones.

    The user's are `splits_final.json` in `folder`, or `splits.json` or `splits_final.json` in the
    raw task's folder. Whatever is used is written to `folder/splits.json` once, so that it stays.

    Raises:
        DataError: as `read_splits` and `make_splits`.
    """
    kept = folder / FILE_NAME
    path = find_splits(folder) or find_splits(task_folder)
    if path is None:
        splits = make_splits(cases, folds, seed, groups, classes)
    else:
        splits = read_splits(path, cases)
        _tell_left_out(path, splits, cases)
    if path != kept:
        write_splits(kept, splits)
    return splits


def find_splits(folder: Path) -> Path | None:
    """The file of splits in a folder, autoseg's or nnU-Net's; None if there is none."""
    paths = (folder / FILE_NAME, folder / NNUNET_FILE_NAME)
    return next((path for path in paths if path.exists()), None)


@dataclass(frozen=True)
class Recipe:
    """What splits are made from: the arguments of `make_splits`."""

    cases: tuple[str, ...]
    folds: int
    seed: int
    groups: Mapping[str, str]
    classes: Classes

    def make(self) -> tuple[Split, ...]:
        """The splits."""
        groups = {case: who for case, who in self.groups.items() if case in set(self.cases)}
        return make_splits(self.cases, self.folds, self.seed, groups, self.classes)


def remake_splits(folder: Path, earlier: Recipe, wanted: Recipe) -> None:
    """Make `folder/splits.json` anew if an earlier plan made it; the user's own splits stay.

    Raises:
        DataError: there are fewer patients than folds.
    """
    kept = folder / FILE_NAME
    try:
        theirs = read_splits(kept, earlier.cases) != earlier.make()
    except AutosegError:  # missing, damaged, or of other cases
        return
    if not theirs:
        write_splits(kept, wanted.make())


def _tell_left_out(path: Path, splits: Iterable[Split], cases: Iterable[str]) -> None:
    named = {case for split in splits for case in (*split.train, *split.validation)}
    if left_out := sorted(set(cases) - named):
        say(f"{path} leaves out {some(left_out, MOST_NAMED)}; delete it to have new splits made")
