"""From a raw task to its plan on disk: verify and measure the data, compose the plan, split."""

import functools
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.common.arrays import centre_of, value_boxes
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.progress import counted, listed, say
from autoseg.dataset import problems as listing
from autoseg.dataset import splits
from autoseg.dataset.merge import merge_tasks
from autoseg.dataset.task import Task, find_task, read_task, without
from autoseg.evaluation.tables import print_rows
from autoseg.fingerprint import Fingerprint, survey
from autoseg.image.image import read_label
from autoseg.models.folder import FINGERPRINT, PLAN, folds_in
from autoseg.plan.plan import Plan, differing_keys, load_plan
from autoseg.planner.budget import expected_overhead
from autoseg.planner.compose import PlanOptions, compose, other_plans, pairs_of
from autoseg.workflow.workspace import TEXT, Workspace

ALL = "all"  # the fold that trains on every case
MOST_KEYS = 4  # that a message lists
TIMED_CASES = 4  # that a time budget is measured with
SIDED_CASES = 3  # whose left and right are looked at


@dataclass(frozen=True)
class Surveyed:
    """A verified and measured task.

    Attributes:
        task: without the skipped cases.
        fingerprint: statistics of its cases.
        skipped: names of the cases with errors that are left out.
    """

    task: Task
    fingerprint: Fingerprint
    skipped: tuple[str, ...] = ()

    @functools.cached_property
    def mirrored_labels(self) -> dict[str, str] | None:
        """The labels that the task declares to be mirror images; {} if the headers must be wrong.

        They are wrong if labels that are named after the left and the right side lie apart along
        another axis than that of the header: exchanging them would teach the network nonsense.
        """
        task = self.task
        pairs, names = pairs_of({n: list(v) for n, v in task.labels.items()}, task.mirrored_labels)
        apart = np.zeros(3)  # mm, towards left, back and head
        for case in task.cases[:SIDED_CASES] if pairs else ():
            label, grid = read_label(case.label)
            to_mm, boxes = np.reshape(grid.direction, (3, 3)) * grid.spacing_mm, value_boxes(label)
            for one, other in pairs:
                if one in boxes and other in boxes:
                    places = (centre_of(label[boxes[v]] == v, boxes[v]) for v in (one, other))
                    apart += abs(to_mm @ np.subtract(*places))
        if not apart.any() or apart.argmax() == 0:
            return task.mirrored_labels
        kind = "sides, exchanged" if task.mirrored_labels else "sides"
        say(TEXT(kind, names=names, axis=("", "front-back", "head-foot")[apart.argmax()]))
        return task.mirrored_labels or {}


def survey_task(
    workspace: Workspace, folder: Path, processes: int, skip_bad_cases: bool = False, folds: int = 5
) -> Surveyed:
    """Verify and measure a task in one pass; problems are printed and written next to its plans.

    A folder outside `raw/` is recorded, so that the task's name can be used from now on.

    Args:
        workspace: holds the task's plans.
        folder: the raw task.
        processes: number of cases to read at a time.
        skip_bad_cases: leave out cases with errors instead of stopping.
        folds: largest number of folds to come; too few cases for them are a warning.

    Raises:
        AutosegError: the data have errors; the message names the first one.
    """
    task, problems = find_task(folder)
    workspace.remember_raw_folder(task.folder)
    plans = workspace.preprocessed(task.name)
    fingerprint, more = survey(task, processes, plans / ".survey", folds)
    problems = [*problems, *more]
    listing.write_verification(plans / "verification.json", problems)
    found = listing.errors_in(problems)
    alone = found if len(found) == 1 and not skip_bad_cases else []  # it ends the command
    if shown := [problem for problem in problems if problem not in alone]:
        print(listing.problems_table(shown), file=sys.stderr)
    cases, errors = counted(len(task.cases), "case"), len(found)
    warnings = counted(len(problems) - errors, "warning")
    say(f"{task.name}: {cases}, {counted(errors, 'error')}, {warnings}")
    bad = listing.errors_by_case(problems)
    if not skip_bad_cases:
        some_can_be_left_out = "" not in bad and fingerprint.cases
        advice = TEXT("bad cases") if some_can_be_left_out else ""
        listing.raise_errors(problems, task.name, advice, listed=True)
    listing.raise_errors(bad.pop("", ()), task.name)  # of the whole task
    if not fingerprint.cases:
        listing.raise_errors(problems, task.name)
    if bad:
        say(f"skipping {counted(len(bad), 'case')} with errors: {', '.join(bad)}")
    return Surveyed(without(task, bad), fingerprint, tuple(bad))


def merge(workspace: Workspace, tasks: Sequence[str], name: str, processes: int) -> None:
    """Make one task of several, in `raw/`, and print a table of its labels.

    Raises:
        AutosegError: there are fewer than two tasks, they cannot be merged, or `name` exists.
    """
    if len(tasks) < 2:
        raise AutosegError(TEXT("merge one"))
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise AutosegError(f"--merge {name!r} is not a folder name; use letters, digits, _ . -")
    found = [read_task(workspace.find_task_folder(task)) for task in tasks]
    print_rows(merge_tasks(found, workspace.raw(name), processes))
    say(f"{workspace.raw(name)}: {counted(sum(len(t.cases) for t in found), 'case')}")


def differences(one: Plan, other: Plan) -> str:
    """The keys in which two plans differ, for a message."""
    keys = differing_keys(one, other)
    return ", ".join(keys[:MOST_KEYS]) + (", ..." if len(keys) > MOST_KEYS else "")


def fitted(options: PlanOptions, surveyed: Surveyed) -> PlanOptions:
    """The options, completed by the values that the task decides."""
    return replace(
        options,
        regions_class_order=surveyed.task.regions_class_order,
        codes=surveyed.task.codes,
        annotated=_annotated(surveyed),
        mirrored_labels=surveyed.mirrored_labels,
        skipped_cases=surveyed.skipped,
        patients=len(_patients(surveyed.task)),
    )


def _annotated(surveyed: Surveyed) -> dict[str, tuple[str, ...]]:
    """Partly annotated case -> its annotated classes, in the order of the labels."""
    task, presence = surveyed.task, surveyed.fingerprint.presence
    names = [name for name, values in task.labels.items() if values != (0,)]
    known = {case: task.annotated.get(case, names) or found for case, found in presence.items()}
    for case, labels in known.items():
        if not labels:
            raise DataError(TEXT("annotated", path=task.path, case=case))
    if never := set(names) - {name for labels in known.values() for name in labels}:
        raise DataError(f"{task.path}: {min(never)!r} is annotated in no case; remove the label")
    return {
        case: tuple(name for name in names if name in labels)
        for case, labels in known.items()
        if not set(names) <= set(labels)
    }


def _patients(task: Task) -> list[splits.Patient]:
    return splits.patients([case.name for case in task.cases], task.groups)


def write_plan(
    workspace: Workspace,
    surveyed: Surveyed,
    options: PlanOptions,
    processes: int,
    device: str | None,
    splits_file: Path | None = None,
) -> Plan:
    """Compose a plan and write it with its splits and fingerprint to `preprocessed/TASK/PLAN/`.

    Args:
        workspace: where to write.
        surveyed: the task.
        options: the user's options.
        processes: worker processes for measuring, with a time budget.
        device: device to measure, with a time budget.
        splits_file: a file of splits to use instead of made ones.

    Raises:
        PlanError: an option is invalid for this task.
        DataError: the cases cannot be split into so many folds, or `splits_file` is not valid.
        AutosegError: folds of this plan were trained with other splits than `splits_file`.
    """
    task, fingerprint = surveyed.task, surveyed.fingerprint
    options = fitted(options, surveyed)
    names = [case.name for case in task.cases]
    chosen = None if splits_file is None else splits.read_splits(splits_file, names)
    plan = _compose(task, fingerprint, options, processes, device)
    if plan.orientation is None and "," in (orders := fingerprint.counted_orientations):
        say(TEXT("orders", plan=plan, orders=orders))
    if plan.annotated:
        cases = counted(len(fingerprint.cases), "case")
        say(TEXT("partly annotated", plan=plan, count=len(plan.annotated), cases=cases))
    sides = plan.provenance.get("mirrored_labels")
    exchanged = plan.mirrored_labels and plan.left_right in plan.mirrored_axes
    if exchanged and sides and sides.source.startswith("rule"):
        say(f"plan {plan.name}: labels exchanged by mirroring left and right: {sides.evidence}")
    folder = workspace.preprocessed(task.name, plan.name)
    if chosen is not None:
        _use_splits(chosen, task, folder, workspace.models(task.name, plan.name))
    else:
        _split(task, plan, fingerprint, folder)
        if theirs := splits.other_nnunet_splits(task.folder, folder / splits.SPLITS_FILE):
            say(f"nnU-Net split the cases differently; to use its folds, add --splits {theirs}")
    fingerprint.save(folder / "fingerprint.json")
    for other in other_plans(fingerprint, options, plan):
        other.save(folder / "other_configurations" / f"{other.name}.json")
    plan.save(folder / PLAN)
    return plan


def _use_splits(chosen: Sequence[splits.Split], task: Task, folder: Path, models: Path) -> None:
    """Replace the splits of a plan by the user's, unless folds were trained with others."""
    names, saved = [case.name for case in task.cases], folder / splits.SPLITS_FILE
    with suppress(AutosegError):  # none are saved, or those of other cases
        if splits.read_splits(saved, names) == chosen:
            return
    if trained := [fold for fold in folds_in(models) if fold != "all"]:
        raise AutosegError(TEXT("other splits", models=models, folds=listed("fold", trained)))
    splits.write_splits(saved, chosen)
    splits.load_or_make_splits(folder, task.folder, names)  # names the cases that they leave out


def _split(task: Task, plan: Plan, fingerprint: Fingerprint, folder: Path) -> None:
    """Write the plan's splits; splits that an earlier plan of this name made are replaced."""
    if len(_patients(task)) == 1 and splits.find_splits(task.folder) is None:
        say("one patient cannot be split into folds; only `fold all` can be trained")
        return
    wanted = _how_to_split(plan, task, fingerprint, [case.name for case in task.cases])
    earlier = None
    with suppress(AutosegError):  # there is no earlier plan of this name
        data = Fingerprint.load(folder / FINGERPRINT)
        earlier = _how_to_split(load_plan(folder / PLAN), task, data, list(data.cases))
    if earlier is not None:
        splits.remake_splits(folder, earlier, wanted)
    splits.load_or_make_splits(folder, task.folder, *wanted)


def _how_to_split(
    plan: Plan, task: Task, fingerprint: Fingerprint, names: list[str]
) -> tuple[Any, ...]:
    """The arguments of `make_splits`."""
    return names, plan.splits.folds, plan.splits.seed, task.groups, fingerprint.presence


def find_split(plan: Plan, task: Task, folder: Path, fold: str) -> splits.Split:
    """The cases of a fold.

    Raises:
        AutosegError: there is no such fold.
    """
    names = [case.name for case in task.cases]
    if fold == ALL:
        return splits.Split(tuple(names), ())
    how = _how_to_split(plan, task, Fingerprint.load(folder / FINGERPRINT), names)
    found = splits.load_or_make_splits(folder, task.folder, *how)
    if not fold.isdecimal() or int(fold) >= len(found):
        raise AutosegError(f"fold {fold!r} does not exist; choose 0 to {len(found) - 1}, or {ALL}")
    return found[int(fold)]


def _compose(
    task: Task, fingerprint: Fingerprint, options: PlanOptions, processes: int, device: str | None
) -> Plan:
    if options.seconds is None:
        return compose(fingerprint, options)

    # torch, whose import takes seconds, is needed for measuring only.
    from autoseg.networks.devices import pick_device
    from autoseg.training.learner import Stopwatch

    spread = max(1, len(task.cases) // TIMED_CASES)
    cases = task.cases[::spread][:TIMED_CASES]
    with Stopwatch(cases, pick_device(device), max(1, processes - 1)) as stopwatch:
        work = functools.partial(expected_overhead, fingerprint)
        return compose(fingerprint, options, work, stopwatch.measure)
