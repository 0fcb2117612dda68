"""What is odd about a data set as a whole, once every case has been read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autoseg.common.progress import counted
from autoseg.dataset.problems import Problem, shown, some
from autoseg.dataset.splits import find_splits, number_of_patients, patients
from autoseg.dataset.task import Task

if TYPE_CHECKING:
    from autoseg.dataset.layouts import Case
    from autoseg.dataset.task import Task
    from autoseg.image.geometry import Geometry
    from autoseg.image.image import Image


# Which scale an image's intensities are on, as far as they tell it themselves.

HOUNSFIELD = "hounsfield"
BYTES = "0..255"
UNIT = "0..1"
OTHER = "other"

FAT_HU = -100.0  # every body part holds fat or air
LARGEST_HU = 4096.0  # 12 bits; metal and padding reach further, but not 0.5 % of a scan


def scale_of(smallest: float, low: float, high: float, largest: float) -> str:
    """`hounsfield`, `0..255`, `0..1` or `other`.

    Hounsfield units need something as light as fat; a scan that was shifted by 1024 or clipped at
    0 has nothing below 0 and is `other`.

    Args:
        smallest: the least intensity of the whole image.
        low: its 0.5 percentile.
        high: its 99.5 percentile.
        largest: its greatest intensity.
    """
    if smallest >= 0 and largest <= 1:
        return UNIT
    if smallest >= 0 and largest <= 255:
        return BYTES
    if smallest <= FAT_HU and low >= -LARGEST_HU and high <= LARGEST_HU:
        return HOUNSFIELD
    return OTHER


def is_called_ct(channel: str) -> bool:
    """Whether a channel's name says that it is computed tomography, as CT, CTA or low_dose_ct."""
    return re.search(r"(^|[^a-z])cta?($|[^a-z])", channel.casefold()) is not None


SPACING_FACTOR = 3.0
UNITS = "Hounsfield units (air -1000, water 0)"
SCALES = {HOUNSFIELD: "Hounsfield units", OTHER: "another scale"}
ADVICE_ON_SCALES = (
    f"convert all cases to {UNITS}, or plan steps that bring each to one range, such as clip and "
    "rescale"
)
ADVICE_ON_ONE_SCALE = "convert them, or see to it that new scans are on this scale, too"


@dataclass(frozen=True)
class CaseFacts:
    """What is compared between cases.

    Attributes:
        voxels: label value -> number of voxels.
        content: hash of the image.
        spacing_mm: along x, y, z.
        scales: of each channel, as `scale_of` names it.
        ranges: least and greatest intensity of each channel.
    """

    voxels: Mapping[int, int]
    content: str
    spacing_mm: tuple[float, float, float]
    scales: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]


def check_task(task: Task, facts: Mapping[str, CaseFacts], folds: int = 5) -> list[Problem]:
    """Check a set as a whole; everything found here is a warning.

    Args:
        task: the data set.
        facts: by name, for the cases that can be used.
        folds: folds that cross-validation will want.
    """
    return [
        *_too_few_for_folds(task, folds),
        *_absent_labels(task, facts),
        *_duplicates(facts),
        *_odd_scales(task, facts),
        *_odd_spacings(facts),
    ]


def _too_few_for_folds(task: Task, folds: int) -> list[Problem]:
    names = [case.name for case in task.cases]
    count = len(patients(names, task.groups))
    if count >= folds or find_splits(task.folder) is not None:
        return []
    advice = (
        f"by the rules each gets a fold; a reference plan or a study that asks for {folds} needs "
        "another splits.folds, or a splits.json of yours"
    )
    if count < 2:
        advice = "there is no cross-validation, only `fold all` can be trained"
    message = f"{number_of_patients(names, task.groups)} for {folds} folds: {advice}"
    return [Problem("", "", "too few cases", "warning", message)]


def _absent_labels(task: Task, facts: Mapping[str, CaseFacts]) -> list[Problem]:
    if not facts:
        return []
    there = {value for case in facts.values() for value in case.voxels}
    return [
        Problem("", "", "absent label", "warning", f"no usable case has the label {name!r}")
        for name, values in task.labels.items()
        if not there.intersection(values)
    ]


def _duplicates(facts: Mapping[str, CaseFacts]) -> list[Problem]:
    same: defaultdict[str, list[str]] = defaultdict(list)
    for name, case in facts.items():
        same[case.content].append(name)
    return [
        Problem(
            case=names[0],
            file="",
            kind="duplicate image",
            severity="warning",
            message=f"the same image as {', '.join(names[1:])}; keep one, or group them in "
            "dataset.json, because copies in training and validation flatter the result",
        )
        for names in same.values()
        if len(names) > 1
    ]


def _odd_scales(task: Task, facts: Mapping[str, CaseFacts]) -> list[Problem]:
    """Channels called CT that are not in Hounsfield units, with the cases of each scale."""
    problems = []
    for index, channel in enumerate(task.channels):
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for name, case in facts.items():
            groups[case.scales[index]].append(name)
        if not is_called_ct(channel) or not set(groups) - {HOUNSFIELD}:
            continue
        told = " and ".join(
            f"{SCALES.get(scale, scale)} ({_range(facts, names, index)}: {some(names)})"
            for scale, names in sorted(groups.items(), key=lambda item: item[0] != HOUNSFIELD)
        )
        message = f"channel {channel!r} is on {told} instead of {UNITS}; {ADVICE_ON_ONE_SCALE}"
        if len(groups) > 1:
            message = f"channel {channel!r} is not on one scale: {told}; {ADVICE_ON_SCALES}"
        problems.append(Problem("", "", "intensity scale", "warning", message))
    return problems


def _range(facts: Mapping[str, CaseFacts], names: Sequence[str], channel: int) -> str:
    ranges = np.array([facts[name].ranges[channel] for name in names])
    return f"{counted(len(names), 'case')} from {ranges[:, 0].min():g} to {ranges[:, 1].max():g}"


def _odd_spacings(facts: Mapping[str, CaseFacts]) -> list[Problem]:
    """Cases more than three times as coarse or as fine as the median along an axis."""
    if not facts:
        return []
    median = np.median([case.spacing_mm for case in facts.values()], axis=0)
    problems = []
    for name, case in facts.items():
        ratios = np.divide(case.spacing_mm, median)
        odd = np.flatnonzero((ratios > SPACING_FACTOR) | (ratios < 1 / SPACING_FACTOR))
        if not odd.size:
            continue
        told = ", ".join(
            f"{case.spacing_mm[axis]:.4g} mm along {'xyz'[axis]} (median {median[axis]:.4g} mm)"
            for axis in odd
        )
        message = (
            f"spacing {told}: more than {SPACING_FACTOR:g} times off; check that this is meant"
        )
        problems.append(Problem(name, "", "spacing outlier", "warning", message))
    return problems


def check_case(
    task: Task, case: Case, image: Image, voxels: Mapping[int, int], label_geometry: Geometry
) -> list[Problem]:
    """Check one loaded case.

    Args:
        task: what the data set declares.
        case: the case's files.
        image: its scan, all channels.
        voxels: label value -> number of voxels in its label map.
        label_geometry: the label map's grid.
    """
    label_file = shown(case.label, task.folder)
    problems = []
    if len(image.array) != len(task.channels):
        image_file = shown(case.images[0], task.folder)
        message = (
            f"{counted(len(image.array), 'channel')}; dataset.json declares {len(task.channels)}"
        )
        problems.append(Problem(case.name, image_file, "channels", "error", message))
    if differences := image.geometry.differences(label_geometry):
        kind = "shape" if image.geometry.size != label_geometry.size else "geometry"
        message = (
            f"image and label map are not on the same grid: {', '.join(differences)}; "
            "export them on one grid"
        )
        problems.append(Problem(case.name, label_file, kind, "error", message))
    if undeclared := sorted(set(voxels) - task.declared_values):
        found = ", ".join(f"{value} in {counted(voxels[value], 'voxel')}" for value in undeclared)
        message = f"undeclared labels: {found}; declare them in dataset.json or correct them"
        problems.append(Problem(case.name, label_file, "undeclared label", "error", message))
    if not set(voxels) - {0, task.ignore_label}:
        message = "nothing is labelled; check that this is meant"
        problems.append(Problem(case.name, label_file, "empty label map", "warning", message))
    return problems
