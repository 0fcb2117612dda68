"""`autoseg_experiment STUDY`: trains and tests every model of a study, here or on a cluster."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoseg.cli import common
from autoseg.common.progress import counted

if TYPE_CHECKING:
    from autoseg.common.errors import AutosegError
    from autoseg.experiments.study import Study
    from autoseg.workflow.workspace import Workspace

WIDTH = 200  # of tables that go into a file
EXAMPLE = """
{
  title: "Does a wider network help?",
  task: "Task004_Hippocampus",
  plans: [ // with reference, rules_only, configuration, planner, memory_gb,
           // time_budget or pretrained, as the options of autoseg_plan and _train
    { name: "narrow" },
    { name: "wide", overrides: { network: { features: [48, 96, 192, 384] } } },
  ],
  k: [3, 5], // numbers of folds; seeds: [1, 2] for values of training.seed
  folds: [0, 1], // only these; all without it
  overrides: { training: { epochs: 50 } }, // of all plans
  skip_bad_cases: false,
  held_out: [{ // labelled scans for all models; folders in the workspace
    name: "unseen",
    images: "test_sets/unseen/images",
    labels: "test_sets/unseen/labels",
    classes: { Anterior: [1], Posterior: [2] }, // what is scored: values there
  }],
  slurm: { time: "12h", gpus: 1 }, // keys as those of --slurm
}
"""
EPILOG = f"""\
a study's file, of which only `task` is needed (it may also begin with
`extends: "ANOTHER"`, a study whose keys stand unless this file has them):
{EXAMPLE}"""


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = common.parser(
        "autoseg_experiment",
        "Train and test all models of a study: plans x k x seeds x folds, and held-out test sets. "
        "What is finished is not done again, and what was interrupted goes on: start it as often "
        "as you like.",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(parser.description or "", 79)
    parser.epilog = EPILOG
    parser.add_argument(
        "studies",
        nargs="+",
        metavar="STUDY",
        help="a study's JSON5 file, or one that comes with autoseg, as in covid_sensitivity; "
        "several share their runs",
    )
    parser.add_argument(
        "--jobs",
        type=common.at_least_one,
        default=1,
        metavar="N",
        help="runs at a time: each on a graphics card of its own, or with its share of the cores "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--slurm",
        nargs="*",
        metavar="KEY=VALUE",
        help="hand the runs to Slurm instead; keys are those of the study's slurm section, as in "
        "partition=gpu time=12h gpus=1 cpus=8 memory_gb=32 parallel=4",
    )
    parser.add_argument("--status", action="store_true", help="only print how far the runs are")
    common.add_device(parser)
    common.add_processes(parser)
    common.add_workspace(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command `autoseg_experiment`."""
    return common.run(make_parser, _experiment, argv)


def _experiment(arguments: argparse.Namespace) -> int:
    from autoseg.common.errors import AutosegError
    from autoseg.experiments.study import read_study, with_slurm
    from autoseg.workflow.workspace import Workspace

    workspace = Workspace.find(arguments.workspace)
    studies = [read_study(given) for given in dict.fromkeys(arguments.studies)]
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise AutosegError(f"two of the studies have one name: {', '.join(names)}; rename a file")
    if arguments.status:
        _print_status(studies, workspace)
        return common.DONE
    common.spawn_workers()
    if arguments.slurm is None:
        return _run_here(studies, workspace, arguments)
    studies = [with_slurm(study, arguments.slurm) for study in studies]
    return _submit(studies, workspace, arguments)


def _run_here(studies: Sequence[Study], workspace: Workspace, arguments: argparse.Namespace) -> int:
    from autoseg.common.errors import AutosegError, RunError
    from autoseg.common.progress import say
    from autoseg.experiments.local import run_studies

    failed = run_studies(studies, workspace, arguments.jobs, arguments.processes, arguments.device)
    _print_status(studies, workspace)
    unreported = _print_results(studies, workspace)
    for run, log in failed.items():
        say(f"{run} failed; log: {log}")
    if failed:
        runs, them = counted(len(failed), "run"), "it" if len(failed) == 1 else "them"
        raise RunError(f"{runs} failed; start the study again to try {them} anew")
    if unreported:
        raise AutosegError(f"all runs are done, but not reported: {unreported[0]}")
    return common.DONE


def _submit(studies: Sequence[Study], workspace: Workspace, arguments: argparse.Namespace) -> int:
    from autoseg.experiments.slurm import submit_studies

    numbers = submit_studies(studies, workspace, arguments.processes, arguments.device)
    _print_status(studies, workspace)
    print(f"new jobs: {' '.join(numbers) or 'none'}")
    return common.DONE


def _print_status(studies: Sequence[Study], workspace: Workspace) -> None:
    from rich.console import Console

    from autoseg.experiments.results import read_jobs
    from autoseg.experiments.runs import runs_of_plan, variants
    from autoseg.experiments.status import in_short, status_of, table

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for study in studies:
        jobs = read_jobs(study, workspace)
        of_plans = {each.name: runs_of_plan(each, workspace) for each in variants(study)}
        statuses = [status_of(run, workspace, jobs) for runs in of_plans.values() for run in runs]
        if statuses:
            console.print(table(statuses, f"{study.name}: {in_short(statuses)}"))
        else:
            print(f"{study.name}: no run yet")
        if unplanned := [name for name, runs in of_plans.items() if not runs]:
            print(f"not planned yet: {', '.join(unplanned)}")


def _print_results(studies: Sequence[Study], workspace: Workspace) -> list[AutosegError]:
    """Write the tables and figures of all studies; returns what kept some of them away."""
    from autoseg.common.errors import AutosegError
    from autoseg.common.progress import say
    from autoseg.experiments.report import report_study
    from autoseg.experiments.results import RESULTS

    problems = []
    for study in studies:
        folder = workspace.study(study.name)
        print(folder / RESULTS)
        try:
            for path in report_study(folder):
                print(path)
        except AutosegError as error:  # the runs that failed are still to be told
            say(f"warning: no tables and figures of {study.name}: {error}")
            problems.append(error)
    return problems


if __name__ == "__main__":
    raise SystemExit(main())
