"""A raw task: a folder with scans and label maps, described by a `dataset.json`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.dataset import layouts
from autoseg.dataset.declaration import Declaration, read_declaration
from autoseg.dataset.problems import Problem, raise_errors


@dataclass(frozen=True, kw_only=True)
class Task(Declaration):
    """A raw data set: what its `dataset.json` declares, and its files.

    Attributes:
        name: name of the folder.
        folder: folder of `dataset.json`.
        cases: sorted by name.
    """

    name: str
    folder: Path
    cases: tuple[layouts.Case, ...]

    @property
    def declared_values(self) -> set[int]:
        """All values that a label map may contain, background and ignore label included."""
        values = {value for values in self.labels.values() for value in values}
        return values if self.ignore_label is None else values | {self.ignore_label}


def read_task(
    folder: Path, labels: Mapping[str, Sequence[int]] | None = None, skip: Collection[str] = ()
) -> Task:
    """Read a task and require that its files are complete.

    Args:
        folder: folder of the task.
        labels: as for `find_task`.
        skip: cases to leave out, together with their problems.

    Raises:
        AutosegError: `dataset.json` is missing or not JSON.
        DataError: `dataset.json` is invalid, or files are missing (the first ten are named).
    """
    task, problems = find_task(folder, labels)
    raise_errors((p for p in problems if p.case not in skip), task.name)
    return without(task, skip)


def find_task(
    folder: Path, labels: Mapping[str, Sequence[int]] | None = None
) -> tuple[Task, list[Problem]]:
    """Read a task with its complete cases, and the problems of the others.

    Args:
        folder: folder of the task.
        labels: label name -> values, background included, for a task that declares none (a plan
            knows them); by default the label maps of such a task are read to find out.

    Raises:
        AutosegError: `dataset.json` is missing or not JSON.
        DataError: `dataset.json` is invalid, or there is no case at all.
    """
    folder = Path(os.path.abspath(folder))  # unlike Path.resolve, this keeps the name of a link
    if layouts.has_case_folders(folder):
        declared, undeclared = layouts.declare_case_folders(folder, labels)
        cases, problems = layouts.find_case_folders(folder, len(declared.channels))
        problems = [*undeclared, *problems]
    else:
        declared = read_declaration(folder)
        cases, problems = layouts.find_cases(folder, declared)
    groups, unmatched = _groups(declared, cases, problems)
    known = vars(declared) | {"groups": groups}
    task = Task(**known, name=folder.name, folder=folder, cases=cases)
    return task, [*problems, *unmatched]


def without(task: Task, names: Collection[str]) -> Task:
    """Return the task without these cases; unknown names are ignored."""
    return replace(
        task,
        cases=tuple(case for case in task.cases if case.name not in names),
        groups={case: patient for case, patient in task.groups.items() if case not in names},
    )


def _groups(
    declared: Declaration, cases: Sequence[layouts.Case], problems: Sequence[Problem]
) -> tuple[dict[str, str], list[Problem]]:
    """Return case -> patient, and a problem for each entry of "groups" that matches no case."""
    names = [case.name for case in cases]
    if declared.group_pattern is None:
        known = {*names, *(problem.case for problem in problems)}
        groups = {name: declared.groups[name] for name in names if name in declared.groups}
        unmatched = [
            (name, 'is in "groups", but is not a case')
            for name in sorted(set(declared.groups) - known)
        ]
    else:
        groups = _groups_by_pattern(declared.group_pattern, names)
        unmatched = []
        if names and not groups:
            message = (
                f'the pattern {declared.group_pattern!r} in "groups" matches no case name, such '
                f"as {names[0]}; correct it"
            )
            unmatched.append(("", message))
    return groups, [
        Problem(name, declared.path.name, "groups", "error", message) for name, message in unmatched
    ]


def _groups_by_pattern(pattern: str, names: Sequence[str]) -> dict[str, str]:
    """Return as each patient the first group of the match, or else the whole match."""
    matches = {name: re.search(pattern, name) for name in names}
    return {
        name: (match[1] if match.re.groups else None) or match[0]
        for name, match in matches.items()
        if match
    }
