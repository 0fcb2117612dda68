"""A task's plan on disk: the data verified and measured, the plan composed, the cases split."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from autoseg.common.errors import AutosegError
from autoseg.common.progress import counted, say
from autoseg.dataset.problems import (
    Problem,
    Verification,
    errors_by_case,
    problems_table,
    write_verification,
)
from autoseg.dataset.splits import (
    Recipe,
    Unit,
    find_splits,
    load_or_make_splits,
    patients,
    remake_splits,
)
from autoseg.dataset.task import Task, find_task, without
from autoseg.fingerprint import Fingerprint, survey
from autoseg.plan.plan import Plan, Splits
from autoseg.plan.reading import load_plan
from autoseg.planner.compose import Wishes, compose, compose_unmeasured, other_plans
from autoseg.workflow.workspace import Workspace

TIMED_CASES = 4


@dataclass(frozen=True)
class Surveyed:
    """A task that was read once, verified and measured.

    Attributes:
        task: without the bad cases that are left out.
        fingerprint: what its cases are.
        skipped: names of the bad cases that are left out.
    """

    task: Task
    fingerprint: Fingerprint
    skipped: tuple[str, ...] = ()


def survey_task(
    workspace: Workspace,
    folder: Path,
    processes: int,
    skip_bad_cases: bool = False,
    folds: int = 5,
) -> Surveyed:
    """Verify and measure a task in one pass; problems are printed and written beside its plans.

    A folder outside of `raw/` is noted there, too: afterwards the task's name stands for it.

    Args:
        workspace: holds the task's plans.
        folder: the raw task.
        processes: how many cases are read at a time.
        skip_bad_cases: leave out cases with errors instead of stopping.
        folds: most that will be wanted; too few cases for them are a warning.

    Raises:
        AutosegError: the data have errors; the message names the first.
    """
    task, problems = find_task(folder)
    workspace.remember_raw_folder(task.folder)
    room = workspace.preprocessed(task.name)
    fingerprint, found = survey(task, processes, room / ".survey", folds)
    problems = [*problems, *found]
    write_verification(room / "verification.json", problems)
    verification = Verification.of(problems)
    if problems:
        print(problems_table(problems), file=sys.stderr)
    counts = (
        counted(len(task.cases), "case"),
        counted(len(verification.errors), "error"),
        counted(len(verification.warnings), "warning"),
    )
    say(f"{task.name}: {', '.join(counts)}")
    if not skip_bad_cases:
        verification.raise_errors(task.name, _advice(fingerprint, problems))
        return Surveyed(task, fingerprint)
    bad = _bad_cases(task, fingerprint, problems)
    return Surveyed(without(task, bad), fingerprint, bad)


def _advice(fingerprint: Fingerprint, problems: list[Problem]) -> str:
    """How to go on, if it is some cases that are bad and others are whole."""
    if "" in errors_by_case(problems) or not fingerprint.cases:
        return ""
    return "mend these cases, or leave them out with --skip-bad-cases"


def _bad_cases(task: Task, fingerprint: Fingerprint, problems: list[Problem]) -> tuple[str, ...]:
    bad = errors_by_case(problems)
    Verification.of(bad.pop("", ())).raise_errors(task.name)  # of no case: nothing to skip
    if not fingerprint.cases:
        Verification.of(problems).raise_errors(task.name)
    if bad:
        say(f"going on without {counted(len(bad), 'case')} with errors: {', '.join(bad)}")
    return tuple(bad)


def fitted(wishes: Wishes, surveyed: Surveyed) -> Wishes:
    """The wishes with what the task itself decides."""
    return replace(
        wishes,
        regions_class_order=surveyed.task.regions_class_order,
        skipped_cases=surveyed.skipped,
        patients=len(_patients(surveyed.task)),
    )


def _patients(task: Task) -> list[Unit]:
    return patients([case.name for case in task.cases], task.groups)


def write_plan(
    workspace: Workspace, surveyed: Surveyed, wishes: Wishes, processes: int, device: str | None
) -> Plan:
    """Compose a plan and write it with all that belongs to it: `preprocessed/TASK/PLAN/`.

    Args:
        workspace: where to write.
        surveyed: the task.
        wishes: what the user asks for.
        processes: with a time budget, the worker processes to measure with.
        device: with a time budget, the one to measure.

    Raises:
        PlanError: a wish cannot be fulfilled.
        DataError: the cases cannot be split into so many folds.
    """
    task, fingerprint = surveyed.task, surveyed.fingerprint
    wishes = fitted(wishes, surveyed)
    plan = _compose(task, fingerprint, wishes, processes, device)
    folder = workspace.preprocessed(task.name, plan.name)
    _split(task, plan, fingerprint, folder)
    fingerprint.save(folder / "fingerprint.json")
    for other in other_plans(fingerprint, wishes, plan):
        other.save(folder / "other_configurations" / f"{other.name}.json")
    plan.save(folder / "plan.json")
    return plan


def _split(task: Task, plan: Plan, fingerprint: Fingerprint, folder: Path) -> None:
    """Write the plan's splits, in place of those that an earlier plan of this name made."""
    if len(_patients(task)) == 1 and find_splits(task.folder) is None:
        say("one patient cannot be split into folds: only `fold all` can be trained")
        return
    names = tuple(case.name for case in task.cases)
    folds, seed, classes = plan.splits.folds, plan.splits.seed, fingerprint.presence
    if earlier := _earlier_plan(folder):
        splits, data = earlier
        before = Recipe(tuple(data.cases), splits.folds, splits.seed, task.groups, data.presence)
        remake_splits(folder, before, Recipe(names, folds, seed, task.groups, classes))
    load_or_make_splits(folder, task.folder, names, folds, seed, task.groups, classes)


def _earlier_plan(folder: Path) -> tuple[Splits, Fingerprint] | None:
    """What an earlier plan of this name made its splits from; None if there is none to read."""
    try:
        return load_plan(folder / "plan.json").splits, Fingerprint.load(folder / "fingerprint.json")
    except AutosegError:
        return None


def _compose(
    task: Task, fingerprint: Fingerprint, wishes: Wishes, processes: int, device: str | None
) -> Plan:
    if wishes.seconds is None:
        return compose_unmeasured(fingerprint, wishes)

    from autoseg.networks.devices import pick_device
    from autoseg.planner.budget import expected_work
    from autoseg.training.timing import Stopwatch

    spread = max(1, len(task.cases) // TIMED_CASES)
    cases = task.cases[::spread][:TIMED_CASES]
    with Stopwatch(cases, pick_device(device), max(1, processes - 1)) as stopwatch:
        work = functools.partial(expected_work, fingerprint)
        return compose(fingerprint, wishes, work, stopwatch.measure)
