"""Time autoseg's preprocessing of a task against nnU-Net's, to the same spacing.

Both read the same files with as many processes, one after the other, and write into an empty
folder. nnU-Net makes its own plan, in which the spacing is replaced by that of our plan. It is
installed in a virtual environment of its own:

    autoseg_plan Task001_COVID --workspace WORKSPACE
    python scripts/bench_preprocess.py WORKSPACE/raw/Task001_COVID \\
        WORKSPACE/preprocessed/Task001_COVID/default/plan.json --nnunet /path/to/venv --processes 2
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from side_by_side import (
    Cost,
    bench_parser,
    nnunet_with,
    print_table,
    run,
    warm_up,
)

from autoseg.dataset.task import Task, read_task
from autoseg.plan.plan import Plan, load_plan
from autoseg.preprocessing.preprocess import preprocess
from autoseg.preprocessing.store import CaseStore

OURS = "_preprocess"  # the task, as this script calls itself to be measured


def time_autoseg(task: Path, plan: Path, processes: int) -> Cost:
    """The preprocessing of `autoseg_train`, as a command."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, __file__, OURS, str(plan), str(task), folder, str(processes)]
        return run(command, {})


def run_autoseg(plan_file: str, task_folder: str, out: str, processes: str) -> None:
    """The command that `time_autoseg` measures."""
    plan = load_plan(Path(plan_file))
    task = read_task(Path(task_folder), plan.labels, plan.skipped_cases)
    preprocess(plan, task.cases, CaseStore(Path(out), plan.preprocessing_id), int(processes))


def time_nnunet(task: Task, plan: Plan, environment: Path, processes: int) -> Cost:
    """`nnUNetv2_preprocess -c 3d_fullres` at the plan's spacing, on links to the same files."""
    with nnunet_with(task, environment) as nnunet:
        nnunet.run("nnUNetv2_extract_fingerprint", "-np", str(processes))
        nnunet.run("nnUNetv2_plan_experiment")
        file = nnunet.preprocessed / "nnUNetPlans.json"
        plans = json.loads(file.read_text(encoding="utf-8"))
        zyx = plan.target_spacing_mm[::-1]
        spacing = [zyx[axis] for axis in plans["transpose_forward"]]
        plans["configurations"]["3d_fullres"]["spacing"] = spacing
        file.write_text(json.dumps(plans), encoding="utf-8")
        return nnunet.run("nnUNetv2_preprocess", "-c", "3d_fullres", "-np", str(processes))


def main() -> None:
    """The command line."""
    parser = bench_parser(__doc__, needs_nnunet=True)
    parser.add_argument("task", type=Path, help="a raw task's folder")
    parser.add_argument("plan", type=Path, help="the plan.json of autoseg_plan")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    plan = load_plan(arguments.plan)
    task = read_task(arguments.task, plan.labels, plan.skipped_cases)
    voxels = warm_up(task)
    ours = time_autoseg(arguments.task, arguments.plan, arguments.processes)
    theirs = time_nnunet(task, plan, arguments.nnunet, arguments.processes)
    what = f"preprocess {len(task.cases)} scans, {voxels / 1e9:.2g} G voxels (memory: of a process)"
    print_table(what, ours, "nnU-Net", theirs)


if __name__ == "__main__":
    if sys.argv[1:2] == [OURS]:
        run_autoseg(*sys.argv[2:])
    else:
        main()
