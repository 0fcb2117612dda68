"""`autoseg_experiment STUDY`: train and test all models of a study, here or on a cluster."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cli import common
from autoseg.common.errors import AutosegError, RunError
from autoseg.common.progress import counted, say

if TYPE_CHECKING:
    from autoseg.experiments.study import Study
    from autoseg.workflow.workspace import Workspace

WIDTH = 200  # of tables that are not printed on a terminal
EXAMPLE = Path(__file__).with_name("study_example.json5").read_text("utf-8")
EPILOG = f"""\
example of a study file; only `task` is required (with `extends: "OTHER"` the
file takes all keys that it does not contain from another study):

{EXAMPLE}"""


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = common.parser("autoseg_experiment")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(parser.description or "", 79)
    parser.epilog = EPILOG
    return parser


def _experiment(arguments: argparse.Namespace) -> int:
    from autoseg.experiments.study import read_study, with_slurm

    workspace = common.find_workspace(arguments)
    studies = [read_study(given) for given in dict.fromkeys(arguments.studies)]
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise AutosegError(f"two studies have the same name: {', '.join(names)}; rename a file")
    if arguments.status:
        _print_status(studies, workspace)
        return common.DONE
    common.spawn_workers()
    if arguments.slurm is None:
        return _run(studies, workspace, arguments)
    studies = [with_slurm(study, arguments.slurm) for study in studies]
    return _submit(studies, workspace, arguments)


def _run(studies: Sequence[Study], workspace: Workspace, arguments: argparse.Namespace) -> int:
    from autoseg.experiments.local import run_studies
    from autoseg.experiments.report import report_studies

    failed = run_studies(studies, workspace, arguments.jobs, arguments.processes, arguments.device)
    _print_status(studies, workspace)
    unreported = report_studies(studies, workspace, arguments.processes)
    for run, log in failed.items():
        say(f"{run} failed; log: {log}")
    if failed:
        runs = counted(len(failed), "run")
        raise RunError(f"{runs} failed; start the study again to repeat failed runs")
    if unreported:
        raise AutosegError(f"all runs are done, but without a report: {unreported[0]}")
    return common.DONE


def _submit(studies: Sequence[Study], workspace: Workspace, arguments: argparse.Namespace) -> int:
    from autoseg.experiments.slurm import submit_studies

    numbers = submit_studies(studies, workspace, arguments.processes, arguments.device)
    _print_status(studies, workspace)
    print(f"new jobs: {' '.join(numbers) or 'none'}")
    return common.DONE


def _print_status(studies: Sequence[Study], workspace: Workspace) -> None:
    from autoseg.experiments.results import print_status

    print_status(studies, workspace, None if sys.stdout.isatty() else WIDTH)


main = partial(common.run, make_parser, _experiment)

if __name__ == "__main__":
    raise SystemExit(main())
