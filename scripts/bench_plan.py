"""Time autoseg's verify + fingerprint + plan against nnU-Net's verify + fingerprint.

Both read the same files with as many processes, one after the other, each as a command from start
to finish with its own clean workspace. nnU-Net is installed in a virtual environment of its own:

    python scripts/bench_plan.py WORKSPACE/raw/Task001_COVID --nnunet /path/to/venv --processes 2
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from side_by_side import Cost, nnunet_with, print_header, print_row, run, warm_up

from autoseg.dataset.task import Task, read_task


def time_autoseg(task: Task, processes: int) -> Cost:
    """`autoseg_plan` in an empty workspace."""
    with TemporaryDirectory() as workspace:
        command = [sys.executable, "-m", "autoseg.cli.plan", str(task.folder)]
        return run([*command, "--workspace", workspace, "--processes", str(processes)], {})


def time_nnunet(task: Task, environment: Path, processes: int) -> Cost:
    """`nnUNetv2_extract_fingerprint --verify_dataset_integrity` on links to the same files."""
    with nnunet_with(task, environment) as nnunet:
        arguments = ("-np", str(processes), "--verify_dataset_integrity")
        return nnunet.run("nnUNetv2_extract_fingerprint", *arguments)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", type=Path, help="a raw task's folder")
    parser.add_argument("--nnunet", type=Path, help="virtual environment with nnunetv2")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    task = read_task(arguments.task)
    print_header(task, warm_up(task))
    ours = time_autoseg(task, arguments.processes)
    print_row("autoseg_plan", ours, ours)
    if arguments.nnunet:
        theirs = time_nnunet(task, arguments.nnunet, arguments.processes)
        print_row("nnU-Net fingerprint", theirs, ours)


if __name__ == "__main__":
    main()
