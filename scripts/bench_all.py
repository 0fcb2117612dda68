"""Run all benchmarks and print one table.

    python scripts/bench_all.py --nnunet /path/to/venv
    python scripts/bench_all.py --nnunet /path/to/venv --task WORKSPACE/raw/Task001_COVID

The data are a task of chest CTs for planning and preprocessing (the real ones, or a phantom of
`scripts/make_phantom.py`; by default, a phantom of 6 cases), the Hippocampus scans of the tests for
prediction, and synthetic data for the others. Nothing else should run meanwhile. nnU-Net is
installed in a virtual environment of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from side_by_side import HEAD, print_head, print_machine

HERE = Path(__file__).parent
HIPPOCAMPUS = HERE.parent / "tests" / "data" / "Task004_Hippocampus"


def benches(task: Path, plan: Path, nnunet: Path) -> Iterator[tuple[str, ...]]:
    """Each script with its arguments."""
    against = ("--nnunet", str(nnunet))
    yield "bench_startup.py", *against
    yield "bench_plan.py", str(task), *against
    yield "bench_preprocess.py", str(task), str(plan), *against
    yield "bench_augmentation.py", "--samples", "0", "--plan-samples", "40"
    yield "bench_transforms.py", *against
    yield "bench_training.py", *against
    yield "bench_predict.py", str(HIPPOCAMPUS), "--time-budget", "5m", *against
    yield "bench_predict.py", "--ct", "--rounds", "1"
    yield "bench_resample.py", "--rounds", "1"
    yield "bench_export.py", *against
    yield "bench_evaluate.py", "--cases", "20", *against


def rows_of(script: str, *arguments: str) -> list[str]:
    """The rows of its table, without the header."""
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.splitlines()
    start = lines.index(HEAD[0]) + len(HEAD)
    return [line for line in lines[start:] if line.startswith("|")]


def draw_phantom(workspace: Path) -> Path:
    """Write six phantom CTs of the size of the real set."""
    task = workspace / "raw" / "Task001_COVID"
    command = [sys.executable, str(HERE / "make_phantom.py"), str(task), "--cases", "6"]
    command += ["--scale", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return task


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nnunet", type=Path, required=True, help="virtual environment with it")
    parser.add_argument("--task", type=Path, help="raw task to plan and preprocess")
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        workspace = Path(name)
        task = arguments.task.resolve() if arguments.task else draw_phantom(workspace)
        planning = [sys.executable, "-m", "autoseg.cli.plan", str(task), "--workspace", name]
        subprocess.run(planning, check=True, stdout=subprocess.DEVNULL)
        plan = workspace / "preprocessed" / task.name / "default" / "plan.json"
        print_head()
        for script, *more in benches(task, plan, arguments.nnunet):
            print(*rows_of(script, *more), sep="\n", flush=True)
    print_machine()


if __name__ == "__main__":
    main()
