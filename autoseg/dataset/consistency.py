"""What is odd about a data set as a whole, once every case has been read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoseg.dataset.scales import HOUNSFIELD, is_called_ct
from autoseg.dataset.splits import number_of_patients, patients
from autoseg.dataset.task import Task
from autoseg.dataset.verify import Problem, some

SPACING_FACTOR = 3.0


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
    if len(patients(names, task.groups)) >= folds:
        return []
    there = number_of_patients(names, task.groups)
    advice = "a plan takes fewer, unless splits.folds or a splits.json says otherwise"
    message = f"{there} for {folds} folds; {advice}"
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
            f"{scale} ({_range(facts, names, index)}: {some(names)})"
            for scale, names in sorted(groups.items(), key=lambda item: item[0] != HOUNSFIELD)
        )
        message = (
            f"channel {channel!r} holds intensities on the scale {told}; a CT is in Hounsfield "
            "units (air -1000, water 0): convert the rest, or plan a window and a rescaling"
        )
        problems.append(Problem("", "", "intensity scale", "warning", message))
    return problems


def _range(facts: Mapping[str, CaseFacts], names: Sequence[str], channel: int) -> str:
    ranges = np.array([facts[name].ranges[channel] for name in names])
    noun = "case" if len(names) == 1 else "cases"
    return f"{len(names)} {noun} from {ranges[:, 0].min():g} to {ranges[:, 1].max():g}"


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
