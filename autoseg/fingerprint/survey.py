"""One pass over a data set: every case is read once, checked and measured."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import count_labels
from autoseg.common.errors import AutosegError, DataError, VoxelError
from autoseg.common.files import dataclass_from_json, read_json, to_json, write_json
from autoseg.common.parallel import in_parallel
from autoseg.dataset.checks import CaseFacts, check_case, check_task
from autoseg.dataset.layouts import Case
from autoseg.dataset.problems import Problem, Verification, shown_path
from autoseg.dataset.task import Task
from autoseg.fingerprint.fingerprint import FORMAT, CaseFigures, Fingerprint, measure
from autoseg.fingerprint.statistics import Intensities, Sample, rounded
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image, files_of, read_image, read_label


@dataclass(frozen=True)
class _Survey:
    """What one reading of a case gives; figures only if the case has no error."""

    problems: tuple[Problem, ...]
    figures: CaseFigures | None = None
    samples: tuple[Sample, ...] = ()


def survey(
    task: Task, processes: int, cache: Path | None = None, folds: int = 5
) -> tuple[Fingerprint, list[Problem]]:
    """Read every case once, check it and measure it.

    A case with an error (unreadable, on another grid than its label map, undeclared labels, wrong
    number of channels) is told among the problems and is not in the fingerprint: to go on without
    such cases, leave out what `errors_by_case` names (`without(task, names)`).

    Memory does not grow with the set: each process holds one case at a time (at its peak about 5
    bytes a voxel and 3 more for each further channel if intensities are stored in 16 bits, else 13
    and 5), and what stays of a case is some 500 numbers a channel.

    Args:
        task: the data set.
        processes: how many cases are read at a time; the result does not depend on it.
        cache: folder with one JSON file per case, so that only new and changed cases are read.
        folds: folds that cross-validation will want; too few cases for them are a warning.

    Raises:
        RunError: a worker process was killed, most likely for lack of memory.
    """
    found = {case.name: _recall(task, case, cache) for case in task.cases}
    new = [case for case in task.cases if found[case.name] is None]
    # a worker needs no list of cases: it would be sent anew with every one of them
    work = partial(_read_case, replace(task, cases=(), groups={}), cache=cache)
    for case, result in zip(new, in_parallel(work, new, processes, "survey"), strict=True):
        found[case.name] = result
    surveys = {name: result for name, result in found.items() if result is not None}
    fingerprint = _pool(task, surveys)
    problems = [problem for result in surveys.values() for problem in result.problems]
    problems += check_task(
        task, {name: _facts(case) for name, case in fingerprint.cases.items()}, folds
    )
    return fingerprint, problems


def _facts(case: CaseFigures) -> CaseFacts:
    return CaseFacts(
        voxels=case.voxels,
        content=case.content,
        spacing_mm=case.spacing_mm,
        scales=tuple(channel.scale for channel in case.channels),
        ranges=tuple((channel.image.min, channel.image.max) for channel in case.channels),
    )


def _read_case(task: Task, case: Case, cache: Path | None) -> _Survey:
    """Read, check and measure one case, and keep the result in the cache."""
    key = _key(task, case)  # before reading: a file that changes meanwhile is read again
    image, label, unreadable = _load(task, case)
    if image is None or label is None:  # not kept: the disk or the network may be better next time
        return _Survey(tuple(unreadable))
    result = _check_and_measure(task, case, image, *label)
    if cache is not None:
        write_json(cache / f"{case.name}.json", {"key": key} | asdict(result))
    return result


def _load(
    task: Task, case: Case
) -> tuple[Image | None, tuple[NDArray[np.integer[Any]], Geometry] | None, list[Problem]]:
    image = label = None
    problems = []
    try:
        image = read_image(case.images, own_type=True)
    except DataError as error:
        problems.append(_unreadable(task, case, case.images[0], error))
    try:
        label = read_label(case.label)
    except DataError as error:
        problems.append(_unreadable(task, case, case.label, error))
    return image, label, problems


def _unreadable(task: Task, case: Case, path: Path, error: DataError) -> Problem:
    kind = "impossible values" if isinstance(error, VoxelError) else "unreadable"
    return Problem(case.name, shown_path(path, task.folder), kind, "error", str(error))


def _check_and_measure(
    task: Task,
    case: Case,
    image: Image,
    label: NDArray[np.integer[Any]],
    label_geometry: Geometry,
) -> _Survey:
    voxels = count_labels(label)
    problems = tuple(check_case(task, case, image, voxels, label_geometry))
    if Verification.of(problems).errors:
        return _Survey(problems)
    figures, samples = measure(image, label, voxels, task.labels, task.ignore_label)
    return _Survey(problems, figures, samples)


def _recall(task: Task, case: Case, cache: Path | None) -> _Survey | None:
    """The cached survey of a case, if its files and the declared labels are still the same."""
    path = None if cache is None else cache / f"{case.name}.json"
    if path is None or not path.is_file():
        return None
    try:
        values = read_json(path)
        if not isinstance(values, dict) or values.pop("key", None) != _key(task, case):
            return None
        return dataclass_from_json(_Survey, values, path)
    except AutosegError:  # damaged: the case is read again
        return None


def _key(task: Task, case: Case) -> str:
    """A hash that changes with a case's files (path, size, time) and what the task declares."""
    files = [file for path in (*case.images, case.label) for file in files_of(path)]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    declared = [FORMAT, task.channels, list(task.labels.items()), task.ignore_label]
    return hashlib.sha256(to_json([declared, stats]).encode()).hexdigest()


def _pool(task: Task, surveys: dict[str, _Survey]) -> Fingerprint:
    usable = {name: case for name, case in surveys.items() if case.figures is not None}
    cases = {name: case.figures for name, case in usable.items() if case.figures is not None}
    foreground = []
    for channel in range(len(task.channels)):
        parts = [figures.channels[channel].foreground for figures in cases.values()]
        samples = [result.samples[channel] for result in usable.values()]
        foreground.append(_mixture([part for part in parts if part is not None], samples))
    return Fingerprint(
        task=task.name,
        channels=task.channels,
        labels=task.labels,
        ignore_label=task.ignore_label,
        cases=cases,
        foreground=tuple(foreground),
    )


def _mixture(parts: Sequence[Intensities], samples: Sequence[Sample]) -> Intensities | None:
    """Pool the foreground of several cases, each weighing the same."""
    if not parts:
        return None
    means = np.array([part.mean for part in parts])
    mean = float(means.mean())
    variance = np.mean([part.std**2 for part in parts]) + np.mean((means - mean) ** 2)
    values = np.concatenate([np.array(sample) for sample in samples])
    # a sample holds the middles of equal shares, which is Hazen's definition of a quantile
    low, median, high = np.quantile(values, (0.005, 0.5, 0.995), method="hazen")
    return Intensities(
        mean=rounded(mean),
        std=rounded(float(variance) ** 0.5),
        min=min(part.min for part in parts),
        p00_5=rounded(low),
        median=rounded(median),
        p99_5=rounded(high),
        max=max(part.max for part in parts),
    )
