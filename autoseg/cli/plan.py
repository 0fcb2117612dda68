"""`autoseg_plan TASK`: verify, measure the data, and write the plan."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cli import common

if TYPE_CHECKING:
    from autoseg.dataset.task import Task
    from autoseg.dataset.verify import Problem
    from autoseg.fingerprint import Fingerprint
    from autoseg.planning.compose import Wishes
    from autoseg.planning.plan import Plan, Splits
    from autoseg.workspace import Workspace

TIMED_CASES = 4


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = common.parser(
        "autoseg_plan",
        "Check a raw task, measure it (fingerprint), and write a plan for it: "
        "preprocessed/TASK/NAME/plan.json.",
    )
    parser.add_argument(
        "task", metavar="TASK", help="name in raw/, a unique beginning of it, or a folder"
    )
    parser.add_argument("--name", default="default", help="name of the plan (default: %(default)s)")
    parser.add_argument(
        "--time-budget",
        metavar="TIME",
        help="for training one fold, as in 90s, 5m or 1.5h: measures this device and plans for it",
    )
    parser.add_argument(
        "--planner",
        default="default",
        choices=["default", "resenc_m", "resenc_l", "resenc_xl"],
        help="plain or residual-encoder network, as nnU-Net's planners (default: %(default)s)",
    )
    parser.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="graphics memory to plan for (default: planner's)",
    )
    parser.add_argument(
        "--overrides", type=Path, metavar="FILE", help="JSON5 file with plan values to replace"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="replace one plan value, as in --set sampling.batch_size=4; may be repeated",
    )
    parser.add_argument(
        "--config",
        choices=["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"],
        help="configuration to plan (default: the recommended one); another than that becomes the "
        "plan NAME-CONFIG",
    )
    references = parser.add_mutually_exclusive_group()
    references.add_argument(
        "--reference",
        metavar="NAME",
        help="take this reference plan, as in Task001_COVID.no_augmentation (default: the one of "
        "the task's name, if there is one)",
    )
    references.add_argument("--no-reference", action="store_true", help="plan by the rules alone")
    parser.add_argument(
        "--skip-bad-cases",
        action="store_true",
        help="go on without the cases that have errors; training leaves them out, too",
    )
    parser.add_argument(
        "--explain", action="store_true", help="print every value with its rule and evidence"
    )
    parser.add_argument(
        "--verify-only", action="store_true", help="check the data, report all problems, and stop"
    )
    common.add_device(parser)
    common.add_processes(parser)
    common.add_workspace(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command `autoseg_plan`."""
    return common.run(make_parser, _plan, argv)


def _plan(arguments: argparse.Namespace) -> int:
    from autoseg.dataset.task import find_task, without
    from autoseg.planning.budget import parse_seconds
    from autoseg.planning.compose import Wishes, other_configurations, other_plans
    from autoseg.planning.explain import citations
    from autoseg.progress import say
    from autoseg.workspace import Workspace

    workspace = Workspace.find(arguments.workspace)
    seconds = parse_seconds(arguments.time_budget) if arguments.time_budget else None
    task, problems = find_task(workspace.find_task_folder(arguments.task))
    fingerprint, skipped = _survey(workspace, task, problems, arguments)
    if fingerprint is None:
        return common.DONE
    task = without(task, skipped)
    wishes = Wishes(
        name=arguments.name,
        configuration=arguments.config,
        planner=arguments.planner,
        memory_gb=arguments.memory,
        use_reference=not arguments.no_reference,
        reference=arguments.reference,
        overrides=arguments.overrides,
        settings=tuple(arguments.settings),
        seconds=seconds,
        regions_class_order=task.regions_class_order,
        skipped_cases=skipped,
    )
    plan = _compose(task, fingerprint, wishes, arguments)
    folder = workspace.preprocessed(task.name, plan.name)
    _split(task, plan, fingerprint, folder)
    fingerprint.save(folder / "fingerprint.json")
    for other in other_plans(fingerprint, wishes, plan):
        other.save(folder / "other_configurations" / f"{other.name}.json")
    plan.save(folder / "plan.json")
    if arguments.explain:
        _explain(plan)
    say(_in_short(plan))
    if plan.previous_stage is not None:
        say(
            f"it refines {plan.previous_stage}: plan that with the same options and --config "
            f"3d_lowres, and train all its folds (autoseg_train {task.name} fold "
            f"{' '.join(map(str, range(plan.splits.folds)))} --plan {plan.previous_stage}) first"
        )
    if others := other_configurations(fingerprint, wishes, plan):
        option = "--no-reference --config NAME" if citations(plan) else "--config NAME"
        say(f"by the rules also possible, with {option}: {'; '.join(others)}")
    print(folder / "plan.json")
    return common.DONE


def _survey(
    workspace: Workspace, task: Task, problems: list[Problem], arguments: argparse.Namespace
) -> tuple[Fingerprint | None, tuple[str, ...]]:
    """Verify and measure in one pass.

    Returns:
        the fingerprint, None if the user asked for no more than verification; and the names of the
        bad cases to go on without.
    """
    from autoseg.dataset.verify import (
        Verification,
        errors_by_case,
        problems_table,
        write_verification,
    )
    from autoseg.fingerprint import survey
    from autoseg.progress import say

    folder = workspace.preprocessed(task.name)
    fingerprint, found = survey(task, arguments.processes, folder / ".survey")
    problems = [*problems, *found]
    write_verification(folder / "verification.json", problems)
    verification = Verification.of(problems)
    if problems:
        print(problems_table(problems), file=sys.stderr)
    counts = f"{len(verification.errors)} errors, {len(verification.warnings)} warnings"
    say(f"{task.name}: {len(task.cases)} cases, {counts}")
    if arguments.verify_only or not arguments.skip_bad_cases:
        verification.raise_errors(task.name)
        return None if arguments.verify_only else fingerprint, ()
    bad = errors_by_case(problems)
    Verification.of(bad.pop("", ())).raise_errors(task.name)  # of no case: nothing to skip
    if not fingerprint.cases:
        verification.raise_errors(task.name)
    if bad:
        say(f"going on without {len(bad)} of the cases, which have errors: {', '.join(bad)}")
    return fingerprint, tuple(bad)


def _split(task: Task, plan: Plan, fingerprint: Fingerprint, folder: Path) -> None:
    """Write the plan's splits, in place of those that an earlier plan of this name made."""
    from autoseg.dataset.splits import Recipe, load_or_make_splits, remake_splits

    names = tuple(case.name for case in task.cases)
    folds, seed, classes = plan.splits.folds, plan.splits.seed, fingerprint.presence
    if earlier := _earlier_plan(folder):
        splits, data = earlier
        before = Recipe(tuple(data.cases), splits.folds, splits.seed, task.groups, data.presence)
        remake_splits(folder, before, Recipe(names, folds, seed, task.groups, classes))
    load_or_make_splits(folder, task.folder, names, folds, seed, task.groups, classes)


def _earlier_plan(folder: Path) -> tuple[Splits, Fingerprint] | None:
    """What an earlier plan of this name made its splits from; None if there is none to read."""
    from autoseg.errors import AutosegError
    from autoseg.fingerprint import Fingerprint
    from autoseg.planning.plan import load_plan

    try:
        return load_plan(folder / "plan.json").splits, Fingerprint.load(folder / "fingerprint.json")
    except AutosegError:
        return None


def _compose(
    task: Task, fingerprint: Fingerprint, wishes: Wishes, arguments: argparse.Namespace
) -> Plan:
    from autoseg.planning.compose import compose, compose_unmeasured

    if wishes.seconds is None:
        return compose_unmeasured(fingerprint, wishes)

    common.spawn_workers()

    import functools

    from autoseg.devices import pick_device
    from autoseg.planning.budget import expected_work
    from autoseg.training.timing import Stopwatch

    spread = max(1, len(task.cases) // TIMED_CASES)
    cases = task.cases[::spread][:TIMED_CASES]
    workers = max(1, arguments.processes - 1)
    with Stopwatch(cases, pick_device(arguments.device), workers) as stopwatch:
        work = functools.partial(expected_work, fingerprint)
        return compose(fingerprint, wishes, work, stopwatch.measure)


def _explain(plan: Plan) -> None:
    from autoseg.planning.explain import explain

    explain(plan)


def _in_short(plan: Plan) -> str:
    """The plan in one line."""
    patch = " x ".join(str(size) for size in plan.sampling.patch_size)
    spacing = " x ".join("own" if mm is None else f"{mm:.3g}" for mm in plan.target_spacing_mm)
    grid = f"{spacing} mm" if plan.resamples else "each scan's own voxel size"
    steps = plan.training.epochs * plan.training.steps_per_epoch
    return (
        f"plan {plan.name} ({plan.id}): {grid}, patches of {patch}, batch "
        f"{plan.sampling.batch_size}, {'-'.join(map(str, plan.network.features))} feature maps, "
        f"{plan.training.epochs} epochs, {steps} steps"
    )


if __name__ == "__main__":
    raise SystemExit(main())
