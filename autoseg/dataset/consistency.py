"""What is odd about a data set as a whole, once every case has been read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.common.progress import counted
from autoseg.dataset.scales import HOUNSFIELD, OTHER, is_called_ct
from autoseg.dataset.splits import find_splits, number_of_patients, patients
from autoseg.dataset.task import Task
from autoseg.dataset.verify import Problem, some

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
