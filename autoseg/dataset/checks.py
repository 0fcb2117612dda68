"""Checks of a case, and of a data set once all cases have been read."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.common.progress import counted
from autoseg.dataset.problems import Problem, join_names, shown_path
from autoseg.dataset.splits import count_patients, find_splits, patients
from autoseg.dataset.task import Case, Task
from autoseg.image.geometry import Geometry, counted_codes, most_common
from autoseg.image.image import Image

HOUNSFIELD, BYTES, UNIT, OTHER = "hounsfield", "0..255", "0..1", "other"  # intensity scales
FAT_HU = -100.0  # every body part contains fat or air
LARGEST_HU = 4096.0  # 12 bits; metal and padding exceed it, but not in 0.5 % of a scan

SPACING_FACTOR = 3.0  # from the median, beyond which a spacing is an outlier
SCALE_NAMES = {HOUNSFIELD: "Hounsfield units", OTHER: "another scale"}


def check_case(
    task: Task, case: Case, image: Image, voxels: Mapping[int, int], label_geometry: Geometry
) -> list[Problem]:
    """Check one loaded case.

    Args:
        task: the data set.
        case: files of the case.
        image: the scan, all channels.
        voxels: label value -> number of voxels in the label map.
        label_geometry: grid of the label map.
    """
    label_file = shown_path(case.label, task.folder)
    problems = []
    if len(image.array) != (declared := len(task.channels)):
        file, found = shown_path(case.images[0], task.folder), counted(len(image.array), "channel")
        problems.append(Problem.of("channels", case.name, file, found=found, declared=declared))
    if differences := image.geometry.differences(label_geometry):
        kind = "shape" if image.geometry.size != label_geometry.size else "geometry"
        kind = "geometry, nearly" if image.geometry.nearly(label_geometry) else kind
        found = ", ".join(differences)
        problems.append(Problem.of(kind, case.name, label_file, found=found))
    if undeclared := sorted(set(voxels) - task.declared_values):
        found = ", ".join(f"{value} in {counted(voxels[value], 'voxel')}" for value in undeclared)
        problems.append(Problem.of("undeclared label", case.name, label_file, found=found))
    if not set(voxels) - {0, task.ignore_label}:
        problems.append(Problem.of("empty label map", case.name, label_file))
    return problems


@dataclass(frozen=True)
class CaseFacts:
    """Properties that are compared between cases.

    Attributes:
        voxels: label value -> number of voxels.
        content: hash of the image.
        orientation: of the axes x, y, z as they are stored.
        spacing_mm: along x, y, z in the orientation that most cases have.
        scales: intensity scale of each channel, as named by `scale_of`.
        ranges: minimum and maximum intensity of each channel.
    """

    voxels: Mapping[int, int]
    content: str
    orientation: str
    spacing_mm: tuple[float, float, float]
    scales: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]


def check_task(task: Task, facts: Mapping[str, CaseFacts], folds: int = 5) -> list[Problem]:
    """Check the data set as a whole; all problems found are warnings.

    Args:
        task: the data set.
        facts: case name -> facts, for the usable cases.
        folds: number of folds that cross-validation will use.
    """
    names, problems = [case.name for case in task.cases], []
    available = len(patients(names, task.groups))
    if available < folds and find_splits(task.folder) is None:
        kind = "too few cases" if available > 1 else "too few cases, one"
        found = count_patients(names, task.groups)
        problems.append(Problem.of(kind, found=found, folds=folds))
    if facts:
        problems += [*_absent_labels(task, facts), *_duplicates(facts), *_wrong_scales(task, facts)]
        problems += [*_mixed_orientations(facts), *_spacing_outliers(facts)]
        problems += _constant_scans(task, facts)
    return problems


def scale_of(smallest: float, low: float, high: float, largest: float) -> str:
    """Guess the intensity scale: `hounsfield`, `0..255`, `0..1` or `other`.

    Hounsfield units require voxels as light as fat; a scan that was shifted by 1024 or clipped at
    0 has nothing below 0 and is `other`.

    Args:
        smallest: minimum of the image.
        low: 0.5 percentile.
        high: 99.5 percentile.
        largest: maximum.
    """
    if smallest >= 0 and largest <= 1:
        return UNIT
    if smallest >= 0 and largest <= 255:
        return BYTES
    if smallest <= FAT_HU and low >= -LARGEST_HU and high <= LARGEST_HU:
        return HOUNSFIELD
    return OTHER


def is_ct_name(channel: str) -> bool:
    """Return whether a channel name means computed tomography, such as CT, CTA or low_dose_ct."""
    return re.search(r"(^|[^a-z])cta?($|[^a-z])", channel.casefold()) is not None


def _absent_labels(task: Task, facts: Mapping[str, CaseFacts]) -> Iterator[Problem]:
    for name, values in task.labels.items():
        having = [case for case, found in facts.items() if found.voxels.keys() & set(values)]
        if not having:
            yield Problem.of("absent label", name=name)
        elif len(having) == 1 < len(facts):
            yield Problem.of("rare label", having[0], name=name)


def _duplicates(facts: Mapping[str, CaseFacts]) -> list[Problem]:
    same: defaultdict[str, list[str]] = defaultdict(list)
    for name, case in facts.items():
        same[case.content].append(name)
    copies = [names for names in same.values() if len(names) > 1]
    return [Problem.of("duplicate image", n[0], others=", ".join(n[1:])) for n in copies]


def _wrong_scales(task: Task, facts: Mapping[str, CaseFacts]) -> Iterator[Problem]:
    """A problem for each CT channel that is not in Hounsfield units in every case."""
    for index, channel in enumerate(task.channels):
        by_scale: defaultdict[str, list[str]] = defaultdict(list)
        for name, case in facts.items():
            by_scale[case.scales[index]].append(name)
        if not is_ct_name(channel) or not set(by_scale) - {HOUNSFIELD}:
            continue
        found = " and ".join(
            f"{SCALE_NAMES.get(scale, scale)} ({_range(facts, names, index)}: {join_names(names)})"
            for scale, names in sorted(by_scale.items(), key=lambda item: item[0] != HOUNSFIELD)
        )
        kind = "intensity scale, mixed" if len(by_scale) > 1 else "intensity scale"
        yield Problem.of(kind, channel=channel, found=found)


def _range(facts: Mapping[str, CaseFacts], names: Sequence[str], channel: int) -> str:
    ranges = np.array([facts[name].ranges[channel] for name in names])
    return f"{counted(len(names), 'case')} from {ranges[:, 0].min():g} to {ranges[:, 1].max():g}"


def _mixed_orientations(facts: Mapping[str, CaseFacts]) -> Iterator[Problem]:
    """A problem if the axes of the cases are stored in different orders or directions."""
    codes = [case.orientation for case in facts.values()]
    usual = most_common(codes)
    others = [name for name, case in facts.items() if case.orientation != usual]
    if others:
        counts, names = counted_codes(codes), join_names(others)
        yield Problem.of("mixed orientation", counts=counts, usual=usual, names=names)


def _constant_scans(task: Task, facts: Mapping[str, CaseFacts]) -> Iterator[Problem]:
    """A problem for each channel of a case that holds one value everywhere."""
    for name, case in facts.items():
        for channel, (low, high) in zip(task.channels, case.ranges, strict=True):
            if low == high:
                yield Problem.of("constant scan", name, channel=channel, value=low)


def _spacing_outliers(facts: Mapping[str, CaseFacts]) -> Iterator[Problem]:
    """A problem for each case whose spacing is far from the median along an axis."""
    median = np.median([case.spacing_mm for case in facts.values()], axis=0)
    for name, case in facts.items():
        ratios = np.divide(case.spacing_mm, median)
        outlying = np.flatnonzero((ratios > SPACING_FACTOR) | (ratios < 1 / SPACING_FACTOR))
        if outlying.size:
            found = ", ".join(
                f"{case.spacing_mm[axis]:.4g} mm along {'xyz'[axis]} (median {median[axis]:.4g} mm)"
                for axis in outlying
            )
            yield Problem.of("spacing outlier", name, found=found, factor=SPACING_FACTOR)
