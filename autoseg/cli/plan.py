"""`autoseg_plan TASK`: verify and measure the data, and write the plan."""

import argparse
from pathlib import Path

from autoseg.cli import common
from autoseg.common.pages import fill
from autoseg.common.progress import by_axis, counted, say

MERGE_HINT = ", or --merge NAME to make one task of several"
MANY_STEPS = 20_000  # training steps that take hours on most CPUs


def _plan(arguments: argparse.Namespace) -> int:
    from autoseg.planner.budget import parse_seconds
    from autoseg.planner.compose import PlanOptions, other_configurations
    from autoseg.planner.explain import citations, explain
    from autoseg.workflow.task_plan import fitted, merge, survey_task, write_plan

    workspace = common.find_workspace(arguments)
    seconds = parse_seconds(arguments.time_budget) if arguments.time_budget else None
    if arguments.merge:
        first = common.take_task(arguments, more=None)
        merge(workspace, [first, *arguments.words], arguments.merge, arguments.processes)
        arguments.task, arguments.words = str(workspace.raw(arguments.merge)), []
    folder = workspace.find_task_folder(common.take_task(arguments, MERGE_HINT))
    if arguments.device is not None and seconds is None:
        from autoseg.workflow.api import describe_device  # needs torch, which is slow to import

        describe_device(arguments.device)  # an error if there is none
        say("--device is measured with --time-budget only; autoseg_train takes it again")
    skip = arguments.skip_bad_cases and not arguments.verify_only
    surveyed = survey_task(workspace, folder, arguments.processes, skip)
    if arguments.verify_only:
        return common.DONE
    given = common.named_in(PlanOptions, arguments) | {"settings": tuple(arguments.settings)}
    options = PlanOptions(**given, seconds=seconds)
    if seconds is not None:
        common.spawn_workers()
    means = arguments.processes, arguments.device
    plan = write_plan(workspace, surveyed, options, *means, arguments.splits)
    if arguments.explain:
        explain(plan)
    spacing = by_axis("own" if mm is None else f"{mm:.3g}" for mm in plan.target_spacing_mm)
    facts = {"spacing": spacing, "by_axis": by_axis, "counted": counted, "many": MANY_STEPS}
    say(fill(Path(__file__).with_name("plan.txt.j2"), plan=plan, **facts).rstrip())
    if others := other_configurations(surveyed.fingerprint, fitted(options, surveyed), plan):
        option = "--no-reference --config NAME" if citations(plan) else "--config NAME"
        say(f"other configurations, with {option}: {'; '.join(others)}")
    print(workspace.preprocessed(plan.task, plan.name) / "plan.json")
    return common.DONE


main = common.command("autoseg_plan", _plan)

if __name__ == "__main__":
    raise SystemExit(main())
