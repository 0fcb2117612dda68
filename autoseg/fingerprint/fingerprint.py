"""The fingerprint of a data set: shapes, spacings, intensities and labels of all cases.

It is measured in one pass over the data set: each case is read once, checked and measured.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Doubles, LabelMap, count_labels
from autoseg.common.errors import AutosegError, DataError, VoxelError
from autoseg.common.files import dataclass_from_json, obstacle, read_json, to_json, write_json
from autoseg.common.pages import fill
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import noted
from autoseg.dataset.checks import CaseFacts, check_case, check_task
from autoseg.dataset.problems import Problem, errors_in, shown_path
from autoseg.dataset.task import Case, Task
from autoseg.fingerprint.statistics import CaseStatistics, IntensityStatistics, Quantiles, measure
from autoseg.image.geometry import Geometry, counted_codes, most_common
from autoseg.image.image import Image, files_of, read_image, read_label
from autoseg.plan.labels import annotated_part

FORMAT = 3
READABLE = (2, FORMAT)  # 2, of version 0.1.0, has no `body`


@dataclass(frozen=True)
class Fingerprint:
    """Properties of a data set, from which the rules make a plan.

    Attributes:
        task, channels, labels, ignore_label: as declared by the task.
        foreground: for each channel the intensities of the foreground voxels (label above zero,
            not ignored) of all cases; None if no case has foreground. Cases have equal weights, as
            in nnU-Net, which draws equally many voxels from each. Mean, standard deviation, minimum
            and maximum are exact; median and percentiles are estimated from 500 quantiles per case.
        cases: case name -> statistics of every case without an error, sorted by name.
    """

    task: str
    channels: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    ignore_label: int | None
    foreground: tuple[IntensityStatistics | None, ...]
    cases: dict[str, CaseStatistics]

    @property
    def spacings_mm(self) -> Doubles:
        """Spacing of each case (x, y, z), shape (n, 3)."""
        return np.array([case.spacing_mm for case in self.cases.values()], dtype=np.float64)

    @property
    def shapes_after_crop(self) -> NDArray[np.int64]:
        """Shape of each case after cropping to nonzero voxels (x, y, z), shape (n, 3)."""
        return np.array([case.shape_after_crop for case in self.cases.values()], dtype=np.int64)

    @property
    def median_spacing_mm(self) -> tuple[float, float, float]:
        """Median over the cases along each axis."""
        x, y, z = np.median(self.spacings_mm, axis=0)
        return float(x), float(y), float(z)

    @property
    def relative_size_after_cropping(self) -> float:
        """Median over the cases of the fraction of voxels that cropping to nonzero keeps."""
        shapes = np.array([case.shape for case in self.cases.values()], dtype=np.int64)
        return float(np.median(self.shapes_after_crop.prod(axis=1) / shapes.prod(axis=1)))

    @property
    def presence(self) -> dict[str, frozenset[str]]:
        """Case name -> names of its labels, without background."""
        return {
            name: frozenset(label for label, found in case.labels.items() if found.present)
            for name, case in self.cases.items()
        }

    @property
    def voxel_shares(self) -> dict[str, float]:
        """Label name -> fraction of all voxels of all cases (regions may overlap)."""
        total = sum(sum(case.voxels.values()) for case in self.cases.values())
        return {
            name: sum(case.voxels.get(v, 0) for case in self.cases.values() for v in values) / total
            for name, values in self.labels.items()
        }

    @property
    def usual_orientation(self) -> str:
        """The orientation in which most cases are stored."""
        return most_common(case.orientation for case in self.cases.values())

    @property
    def counted_orientations(self) -> str:
        """The number of cases with each orientation, such as `3 RAS, 1 LPS`."""
        return counted_codes(case.orientation for case in self.cases.values())

    def turned_to(self, orientation: str | None) -> "Fingerprint":
        """The same with the axes of all cases in this orientation; None: as they are stored."""
        if orientation is None:
            return self
        turned = {name: case.turned_to(orientation) for name, case in self.cases.items()}
        return replace(self, cases=turned)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return {"format": FORMAT} | asdict(self)

    def _repr_html_(self) -> str:
        """A line for each property of the data set and each channel, for notebooks."""
        shape = np.median([case.shape for case in self.cases.values()], axis=0)
        template = Path(__file__).with_name("fingerprint.html.j2")
        return fill(template, of=self, shape=shape)

    def save(self, path: Path) -> None:
        """Write a JSON file, atomically; equal fingerprints give equal bytes."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> "Fingerprint":
        """Read a file that was written by `save`.

        Raises:
            AutosegError: the file is missing, not JSON, or not a fingerprint of this version.
        """
        return Fingerprint.parse(read_json(path), path)

    @staticmethod
    def parse(values: Any, path: Path) -> "Fingerprint":
        """The same for the content of a file; `path` appears in messages."""
        found = values.get("format") if isinstance(values, dict) else None
        if found not in READABLE:
            raise DataError(f"{path} has format {found!r}, not {FORMAT}; delete it and plan again")
        fields = {key: value for key, value in values.items() if key != "format"}
        return dataclass_from_json(Fingerprint, fields, path, "delete it and plan again")


@dataclass(frozen=True)
class _CaseSurvey:
    """The result of reading a case; figures only if the case has no error."""

    problems: tuple[Problem, ...]
    figures: CaseStatistics | None = None
    samples: tuple[Quantiles, ...] = ()


def survey(
    task: Task, processes: int, cache: Path | None = None, folds: int = 5
) -> tuple[Fingerprint, list[Problem]]:
    """Read each case once, check it and measure it.

    A case with an error (unreadable, image and label map on different grids, undeclared labels,
    wrong number of channels) is reported among the problems and is not in the fingerprint. To
    continue without such cases use `without(task, errors_by_case(problems))`.

    Memory does not grow with the data set: each process holds one case at a time (at most about 5
    bytes per voxel, and 3 for each further channel, if intensities are stored in 16 bits, else 13
    and 5), and keeps about 500 numbers per channel of it.

    Args:
        task: the data set.
        processes: number of cases that are read at a time; the result does not depend on it.
        cache: folder with one JSON file per case, so that only new and changed cases are read.
        folds: number of folds of the cross-validation; fewer cases are a warning.

    Raises:
        RunError: a worker process was killed, usually because memory ran out.
    """
    found = {case.name: _blocked(task, case) or _recall(task, case, cache) for case in task.cases}
    new = [case for case in task.cases if found[case.name] is None]
    # without the list of cases, which would be sent to a worker with each case
    work = partial(_read_case, replace(task, cases=(), groups={}, listed=None), cache=cache)
    for case, result in zip(new, in_parallel(work, new, processes, "survey"), strict=True):
        found[case.name] = result
    surveys = {name: result for name, result in found.items() if result is not None}
    fingerprint = _pool(task, surveys)
    problems = [problem for result in surveys.values() for problem in result.problems]
    usual = fingerprint.usual_orientation if fingerprint.cases else ""
    facts = {name: _facts(case, usual) for name, case in fingerprint.cases.items()}
    return fingerprint, problems + check_task(task, facts, folds)


def _facts(case: CaseStatistics, orientation: str) -> CaseFacts:
    spacing_mm = case.turned_to(orientation).spacing_mm
    scales = tuple(channel.scale for channel in case.channels)
    ranges = tuple((channel.image.min, channel.image.max) for channel in case.channels)
    return CaseFacts(case.voxels, case.content, case.orientation, spacing_mm, scales, ranges)


def _read_case(task: Task, case: Case, cache: Path | None) -> _CaseSurvey:
    """Read, check and measure one case, and cache the result."""
    key = _key(task, case)  # before reading: if a file changes meanwhile, it is read again
    image, label, problems = _load(task, case)
    if image is None or label is None:  # not cached: the disk or network may work next time
        return _CaseSurvey(tuple(problems))
    voxels = count_labels(label[0])
    problems += check_case(task, case, image, voxels, label[1])
    result = _CaseSurvey(tuple(problems))
    if not errors_in(problems):
        measured = measure(image, label[0], voxels, task.labels, task.ignore_label)
        result = _CaseSurvey(tuple(problems), *measured)
    if cache is not None:
        write_json(cache / f"{case.name}.json", {"key": key} | asdict(result))
    return result


def _load(
    task: Task, case: Case
) -> tuple[Image | None, tuple[LabelMap, Geometry] | None, list[Problem]]:
    image = label = None
    problems = []
    with noted() as notes:
        try:
            image = read_image(case.images, own_type=True)
        except DataError as error:
            problems.append(_unreadable(task, case, case.images[0], error))
        try:
            label = read_label(case.label)
            if names := task.annotated.get(case.name):
                label = annotated_part(label[0], task.labels, names), label[1]
        except DataError as error:
            problems.append(_unreadable(task, case, case.label, error))
    for text in notes:  # without the path, so that those of many cases become one line
        file = next((f for f in (case.label, *case.images) if text.startswith(f"{f}: ")), None)
        shown, text = file and shown_path(file, task.folder), text.removeprefix(f"{file}: ")
        problems.append(Problem.of("reading", case.name, shown or "", text=text))
    return image, label, problems


def _unreadable(task: Task, case: Case, path: Path, error: DataError) -> Problem:
    kind = "impossible values" if isinstance(error, VoxelError) else "unreadable"
    return Problem.of(kind, case.name, shown_path(path, task.folder), text=str(error))


def _blocked(task: Task, case: Case) -> _CaseSurvey | None:
    """The problems of a case with a file that cannot be opened, such as a link to nothing."""
    found = [(path, reason) for path in (*case.images, case.label) if (reason := obstacle(path))]
    problems = [_unreadable(task, case, path, DataError(reason)) for path, reason in found]
    return _CaseSurvey(tuple(problems)) if problems else None


def _recall(task: Task, case: Case, cache: Path | None) -> _CaseSurvey | None:
    """Return the cached survey of a case if its files and the declaration are unchanged."""
    path = None if cache is None else cache / f"{case.name}.json"
    with suppress(AutosegError):  # missing or damaged: the case is read again
        values = None if path is None else read_json(path)
        if path and isinstance(values, dict) and values.pop("key", None) == _key(task, case):
            return dataclass_from_json(_CaseSurvey, values, path)
    return None


def _key(task: Task, case: Case) -> str:
    """Return a hash of the files of a case (path, size, time) and of the declaration."""
    files = [file for path in (*case.images, case.label) for file in files_of(path)]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    declared = [FORMAT, task.channels, list(task.labels.items()), task.ignore_label]
    if case.name in task.annotated:
        declared.append(task.annotated[case.name])
    return hashlib.sha256(to_json([declared, stats]).encode()).hexdigest()


def _pool(task: Task, surveys: dict[str, _CaseSurvey]) -> Fingerprint:
    cases = {name: case.figures for name, case in surveys.items() if case.figures is not None}
    foreground = []
    for channel in range(len(task.channels)):
        parts = [figures.channels[channel].foreground for figures in cases.values()]
        samples = [surveys[name].samples[channel] for name in cases]
        foreground.append(_mixture([part for part in parts if part is not None], samples))
    declared = (task.name, task.channels, task.labels, task.ignore_label)
    return Fingerprint(*declared, foreground=tuple(foreground), cases=cases)


def _mixture(
    parts: Sequence[IntensityStatistics], samples: Sequence[Quantiles]
) -> IntensityStatistics | None:
    """Pool the foreground of several cases with equal weights."""
    if not parts:
        return None
    means = np.array([part.mean for part in parts])
    mean = float(means.mean())
    variance = np.mean([part.std**2 for part in parts]) + np.mean((means - mean) ** 2)
    values = np.concatenate([np.array(sample) for sample in samples])
    # samples are the centres of equal intervals, which is Hazen's definition of a quantile
    low, median, high = np.quantile(values, (0.005, 0.5, 0.995), method="hazen")
    least, most = min(part.min for part in parts), max(part.max for part in parts)
    std = float(variance) ** 0.5
    return IntensityStatistics.rounded(mean, std, least, low, median, high, most)
