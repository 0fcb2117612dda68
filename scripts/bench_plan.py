"""Time autoseg's verify + fingerprint + plan against nnU-Net's verify + fingerprint.

Both read the same files with as many processes, one after the other, each as a command from start
to finish with its own clean workspace. nnU-Net is installed in a virtual environment of its own:

    python scripts/bench_plan.py WORKSPACE/raw/Task001_COVID --nnunet /path/to/venv --processes 2
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from autoseg.dataset.task import Task, read_task


@dataclass(frozen=True)
class Cost:
    """Wall time of a command, and the memory of its largest process."""

    seconds: float
    peak_gb: float


def run(command: list[str], environment: dict[str, str]) -> Cost:
    """Run a command as a child of a fresh process, which can tell its children's peak alone."""
    script = (
        "import resource, subprocess, sys, time\n"
        "started = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(time.perf_counter() - started, peak)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds, peak = done.stdout.split()[-2:]
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
    return Cost(float(seconds), float(peak) / unit)


def time_autoseg(task: Task, processes: int) -> Cost:
    """`autoseg_plan` in an empty workspace."""
    with tempfile.TemporaryDirectory() as workspace:
        command = [sys.executable, "-m", "autoseg.cli.plan", str(task.folder)]
        return run([*command, "--workspace", workspace, "--processes", str(processes)], {})


def time_nnunet(task: Task, environment: Path, processes: int) -> Cost:
    """`nnUNetv2_extract_fingerprint --verify_dataset_integrity` on links to the same files."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        raw = root / "raw" / "Dataset001_Bench"
        link_for_nnunet(task, raw)
        places = {
            "nnUNet_raw": str(root / "raw"),
            "nnUNet_preprocessed": str(root / "preprocessed"),
            "nnUNet_results": str(root / "results"),
        }
        command = [str(environment / "bin" / "nnUNetv2_extract_fingerprint"), "-d", "1"]
        return run([*command, "-np", str(processes), "--verify_dataset_integrity"], places)


def link_for_nnunet(task: Task, raw: Path) -> None:
    """The task in nnU-Net v2's layout, as links."""
    for case in task.cases:
        for channel, image in enumerate(case.images):
            link(image, raw / "imagesTr" / f"{case.name}_{channel:04d}.nii.gz")
        link(case.label, raw / "labelsTr" / f"{case.name}.nii.gz")
    description = {
        "channel_names": {str(index): name for index, name in enumerate(task.channels)},
        "labels": {name: values[0] for name, values in task.labels.items()},
        "numTraining": len(task.cases),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def link(source: Path, target: Path) -> None:
    """A symbolic link, or a copy where links are not allowed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source)
    except OSError:
        shutil.copy(source, target)


def warm_up(task: Task) -> int:
    """Read every file once, so that neither command pays for a cold disk; returns the voxels."""
    from autoseg.image import read_geometry

    voxels = 0
    for case in task.cases:
        for path in (*case.images, case.label):
            path.read_bytes()
        x, y, z = read_geometry(case.label).size
        voxels += x * y * z
    return voxels


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", type=Path, help="a raw task's folder")
    parser.add_argument("--nnunet", type=Path, help="virtual environment with nnunetv2")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    task = read_task(arguments.task)
    voxels = warm_up(task)
    started = time.strftime("%Y-%m-%d")
    print(f"{task.name}: {len(task.cases)} cases, {voxels / 1e9:.2f} G voxels, {started}")
    print("| command | seconds | peak of a process (GB) | ratio |")
    print("| --- | ---: | ---: | ---: |")
    ours = time_autoseg(task, arguments.processes)
    print(f"| autoseg_plan | {ours.seconds:.1f} | {ours.peak_gb:.2f} | 1 |", flush=True)
    if arguments.nnunet:
        theirs = time_nnunet(task, arguments.nnunet, arguments.processes)
        ratio = theirs.seconds / ours.seconds
        print(
            f"| nnU-Net fingerprint | {theirs.seconds:.1f} | {theirs.peak_gb:.2f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
