"""Run autoseg and another program alternately on the same data, and compare time and memory.

Every benchmark prints rows of one table: what, autoseg, other, ratio, ratio of core time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from autoseg.dataset.task import Task

HEAD = ("| what | autoseg | other | ratio | of core time |", "| --- | --- | --- | ---: | ---: |")
PEAKS_IN_A_GB = 1e9 if sys.platform == "darwin" else 1e6  # bytes there, kilobytes elsewhere


@dataclass(frozen=True)
class Cost:
    """Wall time and core time of a command, and the memory of its largest process."""

    seconds: float
    cpu_seconds: float = 0.0  # 0: not measured
    peak_gb: float = 0.0

    def __str__(self) -> str:
        seconds = f"{self.seconds:.1f} s" if self.seconds >= 10 else f"{self.seconds:.2f} s"
        if self.seconds < 1:
            seconds = f"{1000 * self.seconds:.0f} ms"
        cores = f", {self.cpu_seconds:.1f} core-s" if self.cpu_seconds else ""
        return seconds + cores + (f", {self.peak_gb:.2f} GB" if self.peak_gb else "")


Command = Callable[[Path], Cost]
"""A function to measure, which may write into an empty folder."""


def bench_parser(doc: str, rounds: int = 0, needs_nnunet: bool = False) -> argparse.ArgumentParser:
    """The options of all benchmarks; `rounds`: how often both run by default."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(
        "--nnunet", type=Path, required=needs_nnunet, help="virtual environment with nnU-Net"
    )
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def run(command: list[str], environment: dict[str, str]) -> Cost:
    """Run a command as a child of a fresh process, which measures the peak of its children only."""
    script = (
        "import resource, subprocess, sys, time\n"
        "started = time.perf_counter()\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "seconds = time.perf_counter() - started\n"
        "print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss)\n"
    )
    seconds, cpu_seconds, peak = _figures(script, command, environment)
    return Cost(seconds, cpu_seconds, peak / PEAKS_IN_A_GB)


def run_measured(job: Callable[[], object], times: int = 1) -> None:
    """Do a job in this process, and print what `self_measured` reads."""
    import resource

    started, cores = time.perf_counter(), time.process_time()
    for _ in range(times):
        job()
    seconds, cores = time.perf_counter() - started, time.process_time() - cores
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / PEAKS_IN_A_GB
    print(seconds / times, cores / times, peak)


def self_measured(command: list[str], environment: dict[str, str]) -> Cost:
    """Run a command that ends by printing its seconds, core-seconds and peak in GB.

    It is started by a small process, as Linux counts the starter's peak.
    """
    script = "import subprocess, sys; subprocess.run(sys.argv[1:], check=True)"
    return Cost(*_figures(script, command, environment))


def _figures(script: str, command: list[str], environment: dict[str, str]) -> list[float]:
    """The three numbers that a small script prints last, which starts the command."""
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return [float(word) for word in done.stdout.split()[-3:]]


@dataclass(frozen=True)
class NnUNet:
    """nnU-Net in a virtual environment of its own, with a task as its data set 1."""

    environment: Path
    root: Path

    @property
    def preprocessed(self) -> Path:
        """The folder of its preprocessed data."""
        return self.root / "preprocessed" / "Dataset001_Bench"

    def run(self, command: str, *arguments: str) -> Cost:
        """Run a command of nnU-Net on the task."""
        return self.call(command, "-d", "1", *arguments)

    def call(self, command: str, *arguments: str) -> Cost:
        """Run a command of its environment."""
        return run([str(self.environment / "bin" / command), *arguments], self.places)

    @property
    def places(self) -> dict[str, str]:
        """Its environment variables."""
        return {
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(self.root / "results"),
        }


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
    """Read every file once, so that the disk cache is warm for both; returns the voxels."""
    from autoseg.image.image import read_geometry

    voxels = 0
    for case in task.cases:
        for path in (*case.images, case.label):
            path.read_bytes()
        x, y, z = read_geometry(case.label).size
        voxels += x * y * z
    return voxels


def by_turns(commands: Mapping[str, Command], rounds: int) -> dict[str, Cost]:
    """Run commands alternately, each into an empty folder; the median figures of each."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            with TemporaryDirectory() as out:
                costs[name].append(command(Path(out)))
    return {name: median(found) for name, found in costs.items()}


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    columns = zip(*((cost.seconds, cost.cpu_seconds, cost.peak_gb) for cost in costs), strict=True)
    return Cost(*(statistics.median(column) for column in columns))


def print_head() -> None:
    """The header of the table, the same in all scripts."""
    print(*HEAD, sep="\n", flush=True)


def print_row(what: str, ours: Cost, name: str, theirs: Cost) -> None:
    """One line of the table; ratios are the cost of the other divided by that of autoseg."""
    ratio = f"{theirs.seconds / ours.seconds:.1f}"
    known = ours.cpu_seconds and theirs.cpu_seconds
    of_cores = f"{theirs.cpu_seconds / ours.cpu_seconds:.1f}" if known else ""
    print(f"| {what} | {ours} | {name} {theirs} | {ratio} | {of_cores} |", flush=True)


def print_table(what: str, ours: Cost, name: str, theirs: Cost) -> None:
    """A table of one row, and where it was measured."""
    print_head()
    print_row(what, ours, name, theirs)
    print_machine()


def print_machine() -> None:
    """The last line: where and when it was measured."""
    import torch

    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    today = time.strftime("%Y-%m-%d")
    print(f"({os.cpu_count()} cores{load}, {processor()}, torch {torch.__version__}, {today})")


def processor() -> str:
    """The processor's name."""
    described = Path("/proc/cpuinfo")  # there on Linux only
    lines = described.read_text(encoding="utf-8").splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
