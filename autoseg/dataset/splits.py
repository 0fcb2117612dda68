"""Splits of the cases into training and validation, fold by fold."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Doubles, Mask
from autoseg.common.errors import AutosegError, DataError, raise_if
from autoseg.common.files import read_json, write_json
from autoseg.common.progress import counted, say
from autoseg.dataset.problems import TEXT, join_names
from autoseg.image.formats import composed

SPLITS_FILE = "splits.json"
NNUNET_FILE_NAME = "splits_final.json"
NNUNET_PREPROCESSED = "nnUNet_preprocessed"  # nnU-Net's folder of splits, beside that of its tasks
MOST_NAMED = 5  # cases in a message

Patient = tuple[str, ...]
"""The cases of one patient, which stay together."""

Classes = Mapping[str, Collection[str]]
"""Case -> names of the classes that occur in it."""


class Split(NamedTuple):
    """The case names of one fold, sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def make_splits(
    cases: Collection[str],
    folds: int = 5,
    seed: int = 12345,
    groups: Mapping[str, str] | None = None,
    classes: Classes | None = None,
) -> tuple[Split, ...]:
    """Divide cases into folds for cross-validation; each case is validated once.

    The result depends on the set of names, but not on their order or the platform. Without groups
    it equals nnU-Net's splits for the same cases and seed (scikit-learn's shuffled KFold). With
    groups, all cases of a patient are in the same fold: the largest patients are assigned first,
    each to the fold with the fewest cases.

    With classes, as few patients as possible are then exchanged between folds, until every fold
    validates every class that enough patients have (see `stratified`). If all folds do so already,
    for example because every case has every class, nothing changes.

    With as many folds as patients this is leave-one-out.

    Args:
        cases: names of the cases.
        folds: number of folds, at least 2.
        seed: seed of the shuffle.
        groups: case -> patient; a case without an entry is a patient of its own. Other cases are
            ignored.
        classes: case -> names of the classes that occur in it.

    Raises:
        DataError: there are fewer patients than folds.
    """
    groups = {case: groups[case] for case in cases if case in groups} if groups else {}
    units = patients(cases, groups)
    raise_if(folds < 2, DataError(f"{counted(folds, 'fold')}: cross-validation needs at least 2"))
    if len(units) < folds:
        kind = "too many folds" if len(units) > 1 else "one patient"
        raise DataError(TEXT(kind, found=count_patients(cases, groups), folds=folds))
    order = np.arange(len(units))
    np.random.RandomState(seed).shuffle(order)  # a stream that NumPy guarantees never to change
    shuffled = [units[i] for i in order]
    assigned = [[units[i] for i in part] for part in np.array_split(order, folds)]
    if groups:  # each patient, largest first, to the fold with the fewest cases
        assigned = [[] for _ in range(folds)]
        for unit in sorted(shuffled, key=len, reverse=True):
            min(assigned, key=lambda fold: sum(map(len, fold))).append(unit)
    if classes:
        assigned = stratified(assigned, classes)
    validation = [sorted(case for unit in fold for case in unit) for fold in assigned]
    everything = {case for unit in units for case in unit}
    return tuple(Split(tuple(sorted(everything - set(v))), tuple(v)) for v in validation)


def patients(cases: Iterable[str], groups: Mapping[str, str]) -> list[Patient]:
    """Return the cases of each patient, sorted; a case without a group is a patient of its own."""
    together: defaultdict[tuple[bool, str], list[str]] = defaultdict(list)
    for case in cases:
        together[case in groups, groups.get(case, case)].append(case)
    return sorted(tuple(sorted(names)) for names in together.values())


def count_patients(cases: Iterable[str], groups: Mapping[str, str]) -> str:
    """Return the number of patients as text; without groups they are called cases."""
    return counted(len(patients(cases, groups)), "patient" if groups else "case")


def load_or_make_splits(
    folder: Path, task_folder: Path, cases: Sequence[str], *how: Any, **named: Any
) -> tuple[Split, ...]:
    """Return the splits in `folder/splits.json`, or else the user's, or else new ones.

    The user's splits are `splits_final.json` in `folder`, or `splits.json` or `splits_final.json`
    in the folder of the raw task. The splits are saved as `folder/splits.json`, so that they stay
    the same. `how` and `named` are the further arguments of `make_splits`.

    Raises:
        DataError: as `read_splits` and `make_splits`.
    """
    saved = folder / SPLITS_FILE
    path = find_splits(folder) or find_splits(task_folder)
    if path is None:
        splits = make_splits(cases, *how, **named)
    else:
        splits = read_splits(path, cases)
        used = {case for split in splits for case in (*split.train, *split.validation)}
        if unused := sorted(set(cases) - used):
            say(f"{path} leaves out {join_names(unused, MOST_NAMED)}; delete it to make new splits")
    if path != saved:
        write_splits(saved, splits)
    return splits


def find_splits(folder: Path) -> Path | None:
    """Return the splits file in a folder, autoseg's or nnU-Net's; None if there is none."""
    paths = (folder / SPLITS_FILE, folder / NNUNET_FILE_NAME)
    return next((path for path in paths if path.exists()), None)


def other_nnunet_splits(task_folder: Path, used: Path) -> Path | None:
    """Return nnU-Net's own splits of a task in `nnUNet_raw` if they differ from the used ones."""
    path = task_folder.parent.parent / NNUNET_PREPROCESSED / task_folder.name / NNUNET_FILE_NAME
    with suppress(AutosegError):  # missing or damaged
        return path if read_json(path) != read_json(used) else None
    return None


def read_splits(path: Path, cases: Iterable[str]) -> tuple[Split, ...]:
    """Read splits of autoseg or nnU-Net: a JSON list of {"train": [...], "val": [...]}.

    Raises:
        AutosegError: the file is missing or not JSON.
        DataError: it has no folds, an unknown case, a case twice in a fold, or an empty list.
    """
    folds, known = enumerate(_read_folds(path)), set(cases)
    return tuple(_split_of(fold, known, f"{path}: fold {number}") for number, fold in folds)


def count_folds(path: Path) -> int:
    """Return the number of folds in a splits file, without checking their cases.

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


def _split_of(fold: Any, known: set[str], where: str) -> Split:
    train, validation = _names(fold, "train", where), _names(fold, "val", where)
    if unknown := sorted({*train, *validation} - known):
        names = join_names(unknown, MOST_NAMED)
        raise DataError(TEXT("unknown cases", where=where, names=names))
    if both := sorted(set(train) & set(validation)):
        raise DataError(f"{where}: {join_names(both, MOST_NAMED)} is in train and val; keep one")
    return Split(tuple(sorted(train)), tuple(sorted(validation)))


def _names(fold: Any, key: str, where: str) -> list[str]:
    names = fold.get(key) if isinstance(fold, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'{where}: "{key}" must be a list of case names')
    if not (names := [composed(name) for name in names]):
        raise DataError(f'{where}: "{key}" is empty; it needs at least one case')
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f'{where}: "{key}" lists {join_names(repeated, MOST_NAMED)} twice')
    return names


def write_splits(path: Path, splits: Iterable[Split]) -> None:
    """Write splits in nnU-Net's format, atomically."""
    write_json(path, [{"train": split.train, "val": split.validation} for split in splits])


def remake_splits(folder: Path, earlier: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Replace `folder/splits.json` if an earlier plan made it; the user's splits are kept.

    Args:
        folder: of the plan.
        earlier: the arguments of `make_splits` for the earlier plan.
        wanted: those for the new one.

    Raises:
        DataError: there are fewer patients than folds.
    """
    saved = folder / SPLITS_FILE
    try:
        was_made = read_splits(saved, earlier[0]) == make_splits(*earlier)
    except AutosegError:  # missing, damaged, or for other cases
        return
    if was_made:
        write_splits(saved, make_splits(*wanted))


# Stratification: exchange patients between folds, so that validation sees every class.

Place = tuple[int, int]
"""A fold, and the position of a patient in it."""

Table = NDArray[np.float64]
"""Shape (patients, classes) of one fold: 1 where a patient has a class, else 0."""


def stratified(assigned: Sequence[Sequence[Patient]], classes: Classes) -> list[list[Patient]]:
    """Exchange patients until every fold has every class, or no exchange improves on it.

    Each step exchanges two patients of different folds so that more folds contain more classes.
    Among these exchanges the one with the largest gain is chosen, then the one that changes the
    fold sizes least, then the first. A class that fewer patients have than there are folds is
    spread over as many folds as possible. Fold sizes differ by at most the size of the largest
    patient.

    Args:
        assigned: the patients of each fold.
        classes: case -> names of the classes that occur in it.
    """
    folds = [list(fold) for fold in assigned]
    names = sorted({name for found in classes.values() for name in found})
    spread = max(len(unit) for fold in folds for unit in fold)
    while exchange := _best_exchange(folds, names, classes, spread):
        (here, i), (there, j) = exchange
        folds[here][i], folds[there][j] = folds[there][j], folds[here][i]
    return folds


def _best_exchange(
    folds: Sequence[Sequence[Patient]], names: Sequence[str], classes: Classes, spread: int
) -> tuple[Place, Place] | None:
    """Return the exchange with the largest gain, or None if there is no gain."""
    tables = [_table(fold, names, classes) for fold in folds]
    if not _lacks_some(tables):
        return None
    sizes = [np.array([len(unit) for unit in fold]) for fold in folds]
    totals = [int(size.sum()) for size in sizes]
    best, found = 0.0, None
    for here, there in combinations(range(len(folds)), 2):
        shift = sizes[there][np.newaxis, :] - sizes[here][:, np.newaxis]
        gain = _gains(tables[here], tables[there]) + _gains(tables[there], tables[here]).T
        score = gain * (2 * spread + 1) - np.abs(shift)  # gain first, then even sizes
        score[~_stays_even(totals, here, there, shift, spread)] = 0
        if score.max() > best:
            i, j = np.unravel_index(np.argmax(score), score.shape)
            best, found = float(score[i, j]), ((here, int(i)), (there, int(j)))
    return found


def _table(fold: Sequence[Patient], names: Sequence[str], classes: Classes) -> Table:
    present = [{name for case in unit for name in classes.get(case, ())} for unit in fold]
    return np.array([[name in found for name in names] for found in present], dtype=np.float64)


def _lacks_some(tables: Sequence[Table]) -> bool:
    """Return whether a fold lacks a class although enough patients have it."""
    counts = np.stack([table.sum(axis=0) for table in tables])
    possible = np.minimum(counts.sum(axis=0), len(tables))
    return bool((np.count_nonzero(counts, axis=0) < possible).any())


def _gains(table: Table, other: Table) -> Doubles:
    """Return the classes that a fold gains minus those it loses: (its patients, the other's)."""
    count = table.sum(axis=0)
    gained = other @ (count == 0).astype(np.float64)
    lost = (table * (count == 1)) @ (1 - other).T
    return np.asarray(gained[np.newaxis, :] - lost)


def _stays_even(
    totals: Sequence[int], here: int, there: int, shift: NDArray[np.int64], spread: int
) -> Mask:
    """Return whether fold sizes stay within `spread` of each other when `shift` cases move."""
    others = [total for fold, total in enumerate(totals) if fold not in (here, there)]
    after = np.stack([totals[here] + shift, totals[there] - shift])
    lowest = np.minimum(after.min(axis=0), min(others, default=sum(totals)))
    highest = np.maximum(after.max(axis=0), max(others, default=0))
    return np.asarray(highest - lowest <= spread)
