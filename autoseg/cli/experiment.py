"""`autoseg_experiment STUDY`: train and test all models of a study, here or on a cluster."""

import argparse
import sys
import textwrap
from functools import partial
from pathlib import Path

from autoseg.cli import common
from autoseg.common.errors import AutosegError, RunError
from autoseg.common.progress import counted, say

WIDTH = 200  # of tables that are not printed on a terminal
EXAMPLE = Path(__file__).with_name("study_example.json5").read_text("utf-8")


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = common.parser("autoseg_experiment")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(parser.description or "", 79)
    parser.epilog = common.declarations()["autoseg_experiment"]["epilog"] + EXAMPLE
    return parser


def _experiment(arguments: argparse.Namespace) -> int:
    from autoseg.experiments.results import print_status
    from autoseg.experiments.study import read_study, with_slurm

    workspace = common.find_workspace(arguments)
    studies = [read_study(given) for given in dict.fromkeys(arguments.studies)]
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise AutosegError(f"two studies have the same name: {', '.join(names)}; rename a file")
    width = None if sys.stdout.isatty() else WIDTH
    resources = (arguments.processes, arguments.device)
    if arguments.status:
        print_status(studies, workspace, width)
        return common.DONE
    common.spawn_workers()
    if arguments.slurm is not None:
        from autoseg.experiments.slurm import submit_studies

        studies = [with_slurm(study, arguments.slurm) for study in studies]
        numbers = submit_studies(studies, workspace, *resources)
        print_status(studies, workspace, width)
        print(f"new jobs: {' '.join(numbers) or 'none'}")
        return common.DONE

    from autoseg.experiments.local import run_studies
    from autoseg.experiments.report import report_studies

    failed = run_studies(studies, workspace, arguments.jobs, *resources)
    print_status(studies, workspace, width)
    unreported = report_studies(studies, workspace, arguments.processes)
    for run, log in failed.items():
        say(f"{run} failed; log: {log}")
    if failed:
        runs = counted(len(failed), "run")
        raise RunError(f"{runs} failed; start the study again to repeat failed runs")
    if unreported:
        raise AutosegError(f"all runs are done, but without a report: {unreported[0]}")
    return common.DONE


main = partial(common.run, make_parser, _experiment)

if __name__ == "__main__":
    raise SystemExit(main())
