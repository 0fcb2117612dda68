"""Measure how time and memory of the commands grow with the cases, classes and voxels of a task.

Each axis has a smallest size and larger ones. The smallest one is the fixed cost (start-up,
network, the other dimensions): it is subtracted from the others, and the exponent is the slope of
a line through the rest in logarithms, 1 for a linear growth. Exponents are those of core-seconds,
which other programs disturb less than seconds, and of the memory of the largest process.

    python scripts/bench_scale.py --quick
    python scripts/bench_scale.py --raw raw/Task012_HeadNeckCT --results scale.jsonl

Every command is the one that a user types. What is measured is added to the JSONL file of
`--results` at once, and is not measured again; `--axis` measures one axis. The classes are those
of `make_many_classes.py` on the cases of `--raw` (without it, on synthetic scans).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import psutil
from make_many_classes import make_task, regions_of, write
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from side_by_side import link, print_machine

from autoseg.common.files import write_json
from autoseg.image.geometry import Geometry

TASK = "Task100_Scale"
PATCH, LARGE_PATCH = (32, 32, 16), (64, 64, 48)
UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
HIGHEST_EXPONENT = 1.1
CONSTANT = 0.1  # of the fixed cost: less than this share more at the largest size is no growth
LEAST_SECONDS, LEAST_GB = 1.0, 0.05
NOISE = 0.2  # of the fixed cost
RESUME_SECONDS = 10.0
PAGE_MB = 25.0
TEST_SHARE = 4  # one of so many cases is predicted
POLL_SECONDS = 0.1
SMALL_NETWORK = {
    "sampling.patch_size": json.dumps(PATCH),
    "sampling.batch_size": "2",
    "network.features": "[8,16]",
    "network.strides": "[[1,1,1],[2,2,2]]",
    "network.kernels": "[[3,3,3],[3,3,3]]",
    "network.blocks_encoder": "[1,1]",
    "network.blocks_decoder": "[1]",
    "network.deep_supervision": "false",
    "inference.overlap": "[0,0,0]",
    "inference.tile_step": "null",
    "training.validation_steps": "1",
    "training.precision": "float32",
    "splits.folds": "2",
}


@dataclass(frozen=True)
class Row:
    """What a command took.

    Attributes:
        axis: what grows.
        size: cases, classes or voxels of a case.
        what: the command.
        seconds: from start to end.
        cpu_seconds: of all its processes.
        peak_gb: memory of the largest process.
        worker_gb: the same of the worker processes; 0 without any.
        page_mb: size of the report; 0 without one.
    """

    axis: str
    size: int
    what: str
    seconds: float
    cpu_seconds: float
    peak_gb: float
    worker_gb: float = 0.0
    page_mb: float = 0.0


@dataclass(frozen=True)
class Axis:
    """What grows, and the task for each size.

    Attributes:
        name: of the dimension.
        sizes: the first one is the fixed cost.
        make: writes the raw task of a size.
        is_validated: whether two folds are trained, validated and summarised as well.
        settings: of the plan.
    """

    name: str
    sizes: Sequence[int]
    make: Callable[[Path, int], None]
    is_validated: bool = False
    settings: dict[str, str] = field(default_factory=dict)


def synthetic_task(folder: Path, cases: int, shape: Sequence[int], classes: int) -> None:
    """A raw task of scans with smooth noise; of few different ones, as the files only count."""
    rng = np.random.default_rng(1)
    drawn = [synthetic_case(rng, shape, classes) for _ in range(min(cases, 8))]
    grid = Geometry.of(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), UPRIGHT)
    for number in range(cases):
        image, label = drawn[number % len(drawn)]
        name = f"case_{number:04d}"
        image[0, 0, 0] = number  # no two scans are equal
        write(folder / "imagesTr" / f"{name}_0000.nii.gz", image, grid)
        write(folder / "labelsTr" / f"{name}.nii.gz", label, grid)
    names = ["background", *(f"part_{number:03d}" for number in range(1, 1 + classes))]
    content = {
        "channel_names": {"0": "MR"},
        "labels": {name: value for value, name in enumerate(names)},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", content)


def link_test_set(folder: Path) -> None:
    """Every fourth case again as a test set, at least two."""
    labels = sorted((folder / "labelsTr").iterdir())
    for label in labels[:: max(1, min(TEST_SHARE, len(labels) // 2))]:
        image = folder / "imagesTr" / label.name.replace(".nii.gz", "_0000.nii.gz")
        link(image, folder / "imagesTs" / image.name)
        link(label, folder / "labelsTs" / label.name)


def synthetic_case(
    rng: np.random.Generator, shape: Sequence[int], classes: int
) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """A scan and its regions."""
    coarse = [max(4, size // 4) for size in shape]
    smooth = gaussian_filter(rng.standard_normal(coarse), 2.0)
    for axis, (size, small) in enumerate(zip(shape, coarse, strict=True)):
        smooth = smooth.take(np.arange(size) * small // size, axis)
    image = (500 * smooth / smooth.std() + rng.normal(0, 20, shape)).astype(np.int16)
    return image, regions_of(image, np.zeros(shape, np.uint16), 1, classes)


def measure(command: Sequence[str], log: Path) -> tuple[float, float, float, float]:
    """Seconds and core-seconds of a command, GB of its largest process and its largest worker."""
    # In a small process, as the kernel counts what was there before the command is loaded.
    script = (
        "import os, resource, subprocess, sys, time\n"
        "started = time.perf_counter()\n"
        "code = subprocess.run(sys.argv[2:], stdout=2).returncode\n"
        "seconds = time.perf_counter() - started\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "scale = 1e9 if sys.platform == 'darwin' else 1e6\n"
        "print(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / scale)\n"
        "sys.exit(code)\n"
    )
    words = [sys.executable, "-c", script, str(log), *command]
    with log.open("a", encoding="utf-8") as errors:
        errors.write(f"$ {' '.join(command)}\n")
        errors.flush()
        started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
        peaks: dict[int, int] = {}
        watcher = threading.Thread(target=_watch, args=(started, peaks), daemon=True)
        watcher.start()
        printed, _ = started.communicate()
        watcher.join()
    if started.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-20:])
        raise SystemExit(f"{tail}\nexit status {started.returncode}")
    seconds, cpu_seconds, peak = (float(word) for word in printed.split()[-3:])
    return seconds, cpu_seconds, peak, max(peaks.values(), default=0) / 1e9


def _watch(started: subprocess.Popen[str], peaks: dict[int, int]) -> None:
    """Keep the largest memory that each worker process was seen with."""
    while started.poll() is None:
        try:
            for process in psutil.Process(started.pid).children(recursive=True):
                if "spawn_main" in " ".join(process.cmdline()):
                    used = process.memory_info().rss
                    peaks[process.pid] = max(peaks.get(process.pid, 0), used)
        except psutil.Error:  # one of them has ended
            pass
        time.sleep(POLL_SECONDS)


class Bench:
    """Measures what is not in the file of the results yet."""

    def __init__(self, results: Path, processes: int) -> None:
        self.results, self.processes = results, processes
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
        self.rows = [Row(**json.loads(line)) for line in lines]

    def run(self, axis: Axis, size: int) -> None:
        """Measure all commands of one size."""
        steps = [what for what, _ in self.commands(axis, size, Path())]
        known = {row.what for row in self.rows if (row.axis, row.size) == (axis.name, size)}
        if known.issuperset(steps):
            return
        self.rows = [row for row in self.rows if (row.axis, row.size) != (axis.name, size)]
        with TemporaryDirectory(prefix="autoseg-scale-") as name:
            folder = Path(name)
            axis.make(folder / "raw" / TASK, size)
            link_test_set(folder / "raw" / TASK)
            for what, words in self.commands(axis, size, folder):
                command = [sys.executable, "-m", f"autoseg.cli.{words[0]}", *words[1:]]
                figures = measure(command, folder / "log.txt")
                page = 0.0
                for report in (folder / "out", folder / "models" / TASK / "default"):
                    pages = [*report.glob("report.html"), *report.glob("*/report.html")]
                    if what.startswith("evaluate") and pages:
                        page = max(path.stat().st_size for path in pages) / 1e6
                self.add(Row(axis.name, size, what, *(round(x, 3) for x in (*figures, page))))

    def add(self, row: Row) -> None:
        """Keep a row, and show it."""
        self.rows.append(row)
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(
            f"{row.axis} {row.size}: {row.what}: {row.seconds:.1f} s, {row.cpu_seconds:.1f} "
            f"core-s, {row.peak_gb:.2f} GB",
            flush=True,
        )

    def commands(
        self, axis: Axis, size: int, folder: Path
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        """What each command is for, and its words."""
        raw, out = folder / "raw" / TASK, folder / "out"
        shared = ("--workspace", str(folder), "--processes", str(self.processes))
        network = {**SMALL_NETWORK, **axis.settings}

        def plan(epochs: int, steps: int = 1, name: str = "default") -> tuple[str, ...]:
            values = network | {"training.epochs": epochs, "training.steps_per_epoch": steps}
            settings = (word for key, of in values.items() for word in ("--set", f"{key}={of}"))
            return ("plan", TASK, "--name", name, *settings, *shared)

        train = ("train", TASK, "fold", "all", "--plan", "default", "--device", "cpu", *shared)
        yield "plan", plan(1)
        yield "preprocess, first step", train
        yield "plan again", plan(2)
        yield "--resume, next step", (*train, "--resume")
        yield "--resume --verify, nothing to do", (*train, "--resume", "--verify")
        if axis.name.endswith("cases"):  # each case is drawn from once
            yield "(plan)", plan(1, max(1, size // 2), "walk")
            yield "epoch over all cases", (*train[:4], "--plan", "walk", *train[6:])
        model = ("-m", str(folder / "models" / TASK / "default"), "--device", "cpu")
        yield "predict", ("predict", "-i", str(raw / "imagesTs"), "-o", str(out), *model)
        truth = ("-g", str(raw / "labelsTs"), "-p", str(out), "-i", str(raw / "imagesTs"))
        yield "evaluate", ("evaluate", *truth, "--processes", str(self.processes))
        if axis.is_validated:
            folds = ("fold", "0", "1", "--plan", "default", "--device", "cpu")
            yield "two folds", ("train", TASK, *folds, *shared)
            yield "evaluate folds", ("evaluate", TASK, "--plan", "default", *shared)

    def table(self, axes: Iterable[Axis]) -> list[str]:
        """Markdown: what, the figures of each size, and the exponents."""
        lines = []
        for axis in axes:
            shown = " | ".join(f"{axis.name} {size:,}" for size in axis.sizes)
            lines += [f"| {axis.name}: seconds (core-seconds), GB | {shown} | exponent |"]
            lines += ["| --- |" + " --- |" * len(axis.sizes) + " --- |"]
            names = dict.fromkeys(row.what for row in self.rows if row.axis == axis.name)
            for what in names:
                found = {r.size: r for r in self.rows if (r.axis, r.what) == (axis.name, what)}
                if "(" in what or not found.keys() >= {*axis.sizes}:
                    continue
                rows = [found[size] for size in axis.sizes]
                cells = [_cell(row) for row in rows]
                lines.append(f"| {what} | {' | '.join(cells)} | {_exponents(rows)} |")
            lines.append("")
        return lines


def _cell(row: Row) -> str:
    text = f"{row.seconds:.1f} ({row.cpu_seconds:.1f}), {row.peak_gb:.2f}"
    text += f", workers {row.worker_gb:.2f}" * (row.worker_gb > 0)
    return text + f", page {row.page_mb:.1f} MB" * (row.page_mb > 0)


def _exponents(rows: Sequence[Row]) -> str:
    """Of core-seconds and of memory."""
    sizes = [row.size for row in rows]
    seconds = exponent(sizes, [row.cpu_seconds for row in rows], LEAST_SECONDS)
    memory = exponent(sizes, [row.peak_gb for row in rows], LEAST_GB)
    texts = [f"{of:.2f}" if of else "constant" for of in (seconds, memory)]
    return f"{texts[0]}; GB {texts[1]}"


def exponent(sizes: Sequence[float], costs: Sequence[float], least: float) -> float:
    """The exponent of the growth beyond the first size; 0 if there is hardly any.

    Args:
        sizes: ascending.
        costs: of these sizes.
        least: growth below this is noise.
    """
    fixed = min(costs)
    more = [(n - sizes[0], cost - fixed) for n, cost in zip(sizes, costs, strict=True)][1:]
    if len(more) < 2 or more[-1][1] < max(least, CONSTANT * fixed):
        return 0.0
    # Less is noise, which logarithms would blow up; if only the last size shows growth, the
    # exponent is at least that from such noise.
    noise = NOISE * fixed
    kept = [(n, cost) for n, cost in more if cost > noise] or more[-1:]
    if len(kept) < 2:
        kept = [(more[-2][0], max(noise, more[-2][1])), *kept]
    x, y = np.log(np.array(kept)).T
    return float(np.polyfit(x, y, 1)[0])


def faults(axes: Iterable[Axis], rows: Sequence[Row]) -> Iterator[str]:
    """What is above its limit."""
    for axis in axes:
        for what in dict.fromkeys(row.what for row in rows if row.axis == axis.name):
            found = {r.size: r for r in rows if (r.axis, r.what) == (axis.name, what)}
            if "(" in what or not found.keys() >= {*axis.sizes}:
                continue
            of = [found[size] for size in axis.sizes]
            for name, figures, least in (
                ("core-seconds", [row.cpu_seconds for row in of], LEAST_SECONDS),
                ("GB", [row.peak_gb for row in of], LEAST_GB),
            ):
                if (power := exponent(axis.sizes, figures, least)) > HIGHEST_EXPONENT:
                    yield f"{what}: {name} grow with {axis.name} to the power of {power:.2f}"
            largest = of[-1]
            if what == "--resume, next step" and largest.seconds > RESUME_SECONDS:
                yield f"{what}: {largest.seconds:.1f} s with {largest.size} {axis.name}"
            if largest.page_mb > PAGE_MB:
                yield f"{what}: a page of {largest.page_mb:.1f} MB with {largest.size} {axis.name}"


def axes_of(arguments: argparse.Namespace) -> list[Axis]:
    """What is measured."""
    tiny, cube = (32, 32, 24), (64, 64, 48)
    large = {"sampling.patch_size": json.dumps(LARGE_PATCH)}
    if arguments.quick:
        return [
            Axis("cases", (60, 120, 240), partial(cases_task, shape=tiny)),
            Axis("classes", (2, 10, 20), partial(classes_task, raw=arguments.raw, cases=2)),
            Axis("voxels", (64**3, 96**3, 128**3), voxels_task, settings=large),
        ]
    return [
        Axis("tiny cases", arguments.cases, partial(cases_task, shape=tiny)),
        Axis(
            "middle-sized cases",
            arguments.middle,
            partial(cases_task, shape=arguments.shape),
            settings=large,
        ),
        Axis("validated cases", arguments.validated, partial(cases_task, shape=cube), True),
        Axis(
            "classes",
            arguments.classes,
            partial(classes_task, raw=arguments.raw, cases=arguments.class_cases),
            True,
            large,
        ),
        Axis("voxels", arguments.voxels, voxels_task, settings=large),
    ]


def cases_task(folder: Path, size: int, shape: Sequence[int]) -> None:
    """A task with `size` cases of two classes."""
    synthetic_task(folder, size, shape, 2)


def classes_task(folder: Path, size: int, raw: Path | None, cases: int) -> None:
    """A task with `size` classes."""
    if raw is None:
        synthetic_task(folder, cases, (64, 64, 64), size)
    else:
        make_task(raw, folder, size, cases)


def voxels_task(folder: Path, size: int) -> None:
    """A task whose two cases have about `size` voxels each, and three classes."""
    synthetic_task(folder, 2, [round(size ** (1 / 3))] * 3, 3)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, in about eight minutes")
    parser.add_argument("--raw", type=Path, help="a raw task with scans for the classes")
    parser.add_argument("--results", type=Path, default=Path("bench_scale.jsonl"))
    parser.add_argument("--axis", nargs="+", metavar="NAME", help="only these, such as classes")
    parser.add_argument("--processes", type=int, default=2)
    sizes = {
        "--cases": (20, 125, 500, 2000),
        "--middle": (20, 75, 150, 300),
        "--validated": (10, 40, 80, 160),
        "--classes": (2, 10, 40, 117),
        "--voxels": (64**3, 128**3, 192**3, 256**3),
    }
    for option, default in sizes.items():
        parser.add_argument(option, type=int, nargs="+", default=default, metavar="N")
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 128, 64), metavar="N")
    parser.add_argument("--class-cases", type=int, default=4, metavar="N")
    arguments = parser.parse_args()
    if arguments.quick and arguments.results == Path("bench_scale.jsonl"):
        arguments.results = Path(mkdtemp()) / "quick.jsonl"
    axes = [a for a in axes_of(arguments) if not arguments.axis or a.name in arguments.axis]
    bench = Bench(arguments.results, arguments.processes)
    for axis in axes:
        for size in axis.sizes:
            bench.run(axis, size)
    print()
    print(*bench.table(axes), sep="\n")
    print_machine()
    found = list(faults(axes, bench.rows))
    print(*found or [f"no growth above the power of {HIGHEST_EXPONENT}"], sep="\n")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
