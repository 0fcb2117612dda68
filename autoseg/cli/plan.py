"""`autoseg_plan TASK`: verify, measure the data, and write the plan."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cli import common
from autoseg.common.progress import by_axis, counted

if TYPE_CHECKING:
    from autoseg.plan.plan import Plan

MANY_STEPS = 20_000  # of training: hours on most processors


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = common.parser(
        "autoseg_plan",
        "Check a raw task, measure it (fingerprint), and write a plan for it: "
        "preprocessed/TASK/NAME/plan.json.",
        common.PLAN,
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
    from autoseg.common.progress import say
    from autoseg.planner.budget import parse_seconds
    from autoseg.planner.compose import Wishes, other_configurations
    from autoseg.planner.explain import citations
    from autoseg.workflow.task_plan import fitted, survey_task, write_plan
    from autoseg.workflow.workspace import Workspace

    workspace = Workspace.find(arguments.workspace)
    seconds = parse_seconds(arguments.time_budget) if arguments.time_budget else None
    folder = workspace.find_task_folder(arguments.task)
    skip = arguments.skip_bad_cases and not arguments.verify_only
    surveyed = survey_task(workspace, folder, arguments.processes, skip)
    if arguments.verify_only:
        return common.DONE
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
    )
    if seconds is not None:
        common.spawn_workers()
    plan = write_plan(workspace, surveyed, wishes, arguments.processes, arguments.device)
    if arguments.explain:
        _explain(plan)
    _tell(plan)
    if others := other_configurations(surveyed.fingerprint, fitted(wishes, surveyed), plan):
        option = "--no-reference --config NAME" if citations(plan) else "--config NAME"
        say(f"by the rules also possible, with {option}: {'; '.join(others)}")
    print(workspace.preprocessed(plan.task, plan.name) / "plan.json")
    return common.DONE


def _tell(plan: Plan) -> None:
    """The plan in short, and what its user should know before training."""
    from autoseg.common.progress import say

    say(_in_short(plan))
    if plan.training.seconds is None and plan.training.steps >= MANY_STEPS:
        say(
            "that is a long training, made for a graphics card; --time-budget 2h plans for this "
            "device and the time that you have"
        )
    if plan.previous_stage is not None:
        say(
            f"it refines {plan.previous_stage}: plan that with the same options and --config "
            f"3d_lowres, and train all its folds (autoseg_train {plan.task} fold "
            f"{' '.join(map(str, range(plan.splits.folds)))} --plan {plan.previous_stage}) first"
        )


def _explain(plan: Plan) -> None:
    from autoseg.planner.explain import explain

    explain(plan)


def _in_short(plan: Plan) -> str:
    """The plan in one line."""
    patch = by_axis(plan.sampling.patch_size)
    spacing = by_axis("own" if mm is None else f"{mm:.3g}" for mm in plan.target_spacing_mm)
    grid = f"{spacing} mm" if plan.resamples else "each scan's own voxel size"
    training = plan.training
    return (
        f"plan {plan.name} ({plan.id}): {grid}, patches of {patch}, batch "
        f"{plan.sampling.batch_size}, {'-'.join(map(str, plan.network.features))} feature maps, "
        f"{counted(training.epochs, 'epoch')}, {counted(training.steps, 'step')}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
