"""Time autoseg's verify + fingerprint + plan against nnU-Net's verify + fingerprint.

Both read the same files with as many processes, one after the other, each as a command from start
to finish with its own clean workspace. nnU-Net is installed in a virtual environment of its own:

    python scripts/bench_plan.py WORKSPACE/raw/Task001_COVID --nnunet /path/to/venv --processes 2
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from side_by_side import (
    Cost,
    bench_parser,
    by_turns,
    nnunet_with,
    print_table,
    run,
    warm_up,
)

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
    parser = bench_parser(__doc__, rounds=1, needs_nnunet=True)
    parser.add_argument("task", type=Path, help="a raw task's folder")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    task = read_task(arguments.task)
    voxels = warm_up(task)
    costs = by_turns(
        {
            "autoseg": lambda _: time_autoseg(task, arguments.processes),
            "nnU-Net": lambda _: time_nnunet(task, arguments.nnunet, arguments.processes),
        },
        arguments.rounds,
    )
    what = f"plan {len(task.cases)} scans, {voxels / 1e9:.2g} G voxels (memory: of a process)"
    print_table(what, costs["autoseg"], "nnU-Net", costs["nnU-Net"])


if __name__ == "__main__":
    main()
