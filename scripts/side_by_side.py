"""Run autoseg and nnU-Net on the same task, one after the other, and compare what they cost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from autoseg.dataset.task import Task


@dataclass(frozen=True)
class Cost:
    """Time of a command, of the clock and of all cores, and the memory of its largest process."""

    seconds: float
    cpu_seconds: float
    peak_gb: float


def run(command: list[str], environment: dict[str, str]) -> Cost:
    """Run a command as a child of a fresh process, which can tell its children's peak alone."""
    script = (
        "import resource, subprocess, sys, time\n"
        "started = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "seconds = time.perf_counter() - started\n"
        "print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds, cpu_seconds, peak = done.stdout.split()[-3:]
    unit = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere
    return Cost(float(seconds), float(cpu_seconds), float(peak) / unit)


@dataclass(frozen=True)
class NnUNet:
    """nnU-Net in a virtual environment of its own, with a task as its data set 1."""

    environment: Path
    root: Path

    @property
    def preprocessed(self) -> Path:
        """Where it puts what it makes of the task."""
        return self.root / "preprocessed" / "Dataset001_Bench"

    def run(self, command: str, *arguments: str) -> Cost:
        """Run one of its commands on the task."""
        places = {
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(self.root / "results"),
        }
        return run([str(self.environment / "bin" / command), "-d", "1", *arguments], places)


@contextmanager
def nnunet_with(task: Task, environment: Path) -> Iterator[NnUNet]:
    """nnU-Net with links to a task's files, in a temporary folder."""
    with TemporaryDirectory() as folder:
        link_for_nnunet(task, Path(folder) / "raw" / "Dataset001_Bench")
        yield NnUNet(environment, Path(folder))


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
    from autoseg.image.image import read_geometry

    voxels = 0
    for case in task.cases:
        for path in (*case.images, case.label):
            path.read_bytes()
        x, y, z = read_geometry(case.label).size
        voxels += x * y * z
    return voxels


def print_header(task: Task, voxels: int) -> None:
    """What is compared, and the head of the table."""
    today = time.strftime("%Y-%m-%d")
    print(f"{task.name}: {len(task.cases)} cases, {voxels / 1e9:.2f} G voxels, {today}")
    if hasattr(os, "getloadavg"):
        print(f"(load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)")
    print("| command | seconds | of all cores | peak of a process (GB) | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)


def print_row(what: str, cost: Cost, against: Cost) -> None:
    """One line of the table; the ratio is that of the seconds."""
    ratio = cost.seconds / against.seconds
    times = f"{cost.seconds:.1f} | {cost.cpu_seconds:.1f}"
    print(f"| {what} | {times} | {cost.peak_gb:.2f} | {ratio:.2f} |", flush=True)
