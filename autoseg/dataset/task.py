"""A raw task: a folder with scans and label maps, described by a `dataset.json`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.dataset.declaration import Declaration, read_declaration
from autoseg.dataset.layouts import (
    Case,
    declare_case_folders,
    find_case_folders,
    find_cases,
    in_case_folders,
)
from autoseg.dataset.problems import Problem, Verification


@dataclass(frozen=True)
class Task:
    """A raw data set.

    Attributes:
        name: the folder's name.
        folder: where `dataset.json` lies.
        channels: names of the image channels, in order.
        labels: name -> values that it covers, background included. Without regions in order of
            value; with regions (several values) background first, then as declared.
        ignore_label: value of voxels that nobody annotated; not among `labels`.
        regions_class_order: with regions, the value that each foreground region paints.
        cases: sorted by name.
        groups: case -> patient, for the cases where it is known.
    """

    name: str
    folder: Path
    channels: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    ignore_label: int | None
    regions_class_order: tuple[int, ...] | None
    cases: tuple[Case, ...]
    groups: dict[str, str]
    licence: str | None
    description: str | None

    @property
    def declared_values(self) -> set[int]:
        """Every value that a label map may hold, background and ignore label included."""
        values = {value for values in self.labels.values() for value in values}
        return values if self.ignore_label is None else values | {self.ignore_label}


def read_task(
    folder: Path,
    labels: Mapping[str, Sequence[int]] | None = None,
    skip: Collection[str] = (),
) -> Task:
    """Read a task whose files are all there.

    Args:
        folder: the task's.
        labels: as for `find_task`.
        skip: cases to leave out, with whatever is wrong with them.

    Raises:
        AutosegError: `dataset.json` is missing or not JSON.
        DataError: `dataset.json` is wrong, or files are missing (the first ten are named).
    """
    task, problems = find_task(folder, labels)
    Verification.of(p for p in problems if p.case not in skip).raise_errors(task.name)
    return without(task, skip)


def find_task(
    folder: Path, labels: Mapping[str, Sequence[int]] | None = None
) -> tuple[Task, list[Problem]]:
    """Read a task with the cases whose files are all there, and tell what is wrong with the rest.

    Args:
        folder: the task's.
        labels: name -> values, background included, where nothing declares any (as a plan knows
            them); without them such a task's label maps are read to find out.

    Raises:
        AutosegError: `dataset.json` is missing or not JSON.
        DataError: `dataset.json` is wrong, or there is no case at all.
    """
    folder = Path(os.path.abspath(folder))  # a link keeps its own name
    if in_case_folders(folder):
        declared, odd = declare_case_folders(folder, labels)
        cases, problems = find_case_folders(folder, len(declared.channels))
        problems = [*odd, *problems]
    else:
        declared = read_declaration(folder)
        cases, problems = find_cases(folder, declared)
    groups, unmatched = _groups(declared, cases, problems)
    task = Task(
        name=folder.name,
        folder=folder,
        channels=declared.channels,
        labels=declared.labels,
        ignore_label=declared.ignore_label,
        regions_class_order=declared.regions_class_order,
        cases=cases,
        groups=groups,
        licence=declared.licence,
        description=declared.description,
    )
    return task, [*problems, *unmatched]


def without(task: Task, names: Collection[str]) -> Task:
    """The task without the cases of these names; names that it does not have change nothing."""
    return replace(
        task,
        cases=tuple(case for case in task.cases if case.name not in names),
        groups={case: who for case, who in task.groups.items() if case not in names},
    )


def _groups(
    declared: Declaration, cases: Sequence[Case], problems: Sequence[Problem]
) -> tuple[dict[str, str], list[Problem]]:
    """Case -> patient, and what in "groups" fits no case."""
    names = [case.name for case in cases]
    if declared.group_pattern is not None:
        return _groups_by_pattern(declared, declared.group_pattern, names)
    known = {*names, *(problem.case for problem in problems)}
    unknown = sorted(set(declared.groups) - known)
    return {name: declared.groups[name] for name in names if name in declared.groups}, [
        Problem(name, declared.path.name, "groups", "error", 'is in "groups", but is not a case')
        for name in unknown
    ]


def _groups_by_pattern(
    declared: Declaration, pattern: str, names: Sequence[str]
) -> tuple[dict[str, str], list[Problem]]:
    """The patient is what the pattern matches in the name, or its first group."""
    found = {name: re.search(pattern, name) for name in names}
    groups = {
        name: (match[1] if match.re.groups else None) or match[0]
        for name, match in found.items()
        if match
    }
    if groups or not names:
        return groups, []
    message = f'the pattern {pattern!r} in "groups" fits no case\'s name, as {names[0]}; correct it'
    return {}, [Problem("", declared.path.name, "groups", "error", message)]
