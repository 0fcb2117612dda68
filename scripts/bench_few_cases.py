"""Dice on unseen cases after training with few, by set, time budget and seed.

Every run is what a user would do: `autoseg_plan --time-budget`, `autoseg_train TASK fold all`,
`autoseg_predict` and `autoseg_evaluate` on the cases that were left out. Hippocampus is trained
with 5, 10 and 20 cases that a seed draws, and tested on all others; the sarcoma sets and head and
neck are tested by cross-validation in three parts, which a seed draws too.

    python scripts/bench_few_cases.py DATA --results few_cases.jsonl --code 0.1.0
    python scripts/bench_few_cases.py DATA --results few_cases.jsonl --code 0.1.0 --quick

DATA holds the sets in nnU-Net's layout. A run whose line is in the file of results is not
repeated, so an interrupted bench goes on where it stopped. `--code` names what is measured: lines
with several names are compared in one table. All sets take about five hours on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from side_by_side import link, processor

PARTS = 3
BUDGETS, SEEDS = ("2m", "8m"), (1, 2)


@dataclass(frozen=True)
class DataSet:
    """Where the cases come from: `train` of them are drawn; None means cross-validation."""

    task: str
    train: int | None = None


SETS = {
    "hippocampus-5": DataSet("Task004_Hippocampus", 5),
    "hippocampus-10": DataSet("Task004_Hippocampus", 10),
    "hippocampus-20": DataSet("Task004_Hippocampus", 20),
    "sarcoma-ct": DataSet("Task010_SarcomaCT"),
    "sarcoma-mr": DataSet("Task011_SarcomaMR"),
    "head-neck": DataSet("Task012_HeadNeckCT"),
}
QUICK = "hippocampus-5"


@dataclass(frozen=True)
class Job:
    """One training; equal jobs give equal training cases for each code."""

    code: str
    set: str
    budget: str
    seed: int
    part: int


def jobs_of(
    code: str, sets: Sequence[str], budgets: Sequence[str], seeds: Sequence[int]
) -> Iterator[Job]:
    """All jobs: every set once before the next seed or budget, so that early results are broad."""
    for seed in seeds:
        for budget in budgets:
            for name in sets:
                parts = PARTS if SETS[name].train is None else 1
                yield from (Job(code, name, budget, seed, part) for part in range(parts))


def split(cases: Sequence[str], data_set: DataSet, job: Job) -> tuple[list[str], list[str]]:
    """The cases to train with and the unseen ones."""
    drawn = np.random.default_rng(job.seed).permutation(sorted(cases)).tolist()
    if data_set.train is not None:
        return sorted(drawn[: data_set.train]), sorted(drawn[data_set.train :])
    unseen = drawn[job.part :: PARTS]
    return sorted(set(drawn) - set(unseen)), sorted(unseen)


def files_of(folder: Path) -> dict[str, Path]:
    """Label maps by case."""
    return {path.name.removesuffix(".nii.gz"): path for path in sorted(folder.glob("*.nii.gz"))}


def images_of(folder: Path, cases: Sequence[str]) -> dict[str, list[Path]]:
    """The files of each case, one or one for each channel: those of case_1 are not of case_12."""
    endings = (".nii.gz", "_[0-9][0-9][0-9][0-9].nii.gz")
    return {
        case: [path for end in endings for path in sorted(folder.glob(case + end))]
        for case in cases
    }


def run(folder: Path, *words: object) -> None:
    """Run a command of autoseg as a user would; its output goes to `log.txt`."""
    command = [sys.executable, "-m", f"autoseg.cli.{words[0]}", *map(str, words[1:])]
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(
            command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        lines = (folder / "log.txt").read_text().splitlines()
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}: {lines[-1:]}")


def measure(job: Job, data: Path, plan_options: Sequence[str], folder: Path) -> dict[str, Any]:
    """Do a job in an empty folder: its line of results."""
    data_set = SETS[job.set]
    source = data / data_set.task
    labels = files_of(source / "labelsTr")
    training, unseen = split(list(labels), data_set, job)
    task = folder / "raw" / data_set.task
    declared = json.loads((source / "dataset.json").read_text())
    declared |= {"numTraining": len(training), "numTest": 0, "test": []}
    if "training" in declared:
        declared["training"] = [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            for case in training
        ]
    images = images_of(source / "imagesTr", list(labels))
    for case, places in [(c, (task / "imagesTr", task / "labelsTr")) for c in training] + [
        (c, (folder / "images", folder / "labels")) for c in unseen
    ]:
        for path in images[case]:
            link(path, places[0] / path.name)
        link(labels[case], places[1] / labels[case].name)
    (task / "dataset.json").write_text(json.dumps(declared))
    started, core_seconds = time.monotonic(), sum(os.times()[2:4])
    place = ("--workspace", folder)
    seed = ("--set", f"training.seed={job.seed}")
    run(folder, "plan", task.name, "--time-budget", job.budget, *seed, *plan_options, *place)
    planned = time.monotonic()
    run(folder, "train", task.name, "fold", "all", *place)
    trained = time.monotonic()
    run(folder, "predict", "-i", folder / "images", "-o", folder / "predicted", *place)
    run(folder, "evaluate", "-g", folder / "labels", "-p", folder / "predicted")
    summary = json.loads((folder / "predicted" / "summary.json").read_text())
    [plan_file] = folder.glob("models/*/*/plan.json")
    plan = json.loads(plan_file.read_text())
    epochs = (plan_file.parent / "fold_all" / "log.jsonl").read_text().splitlines()
    dice = {name: metrics["Dice"] for name, metrics in summary["mean"].items()}
    return asdict(job) | {
        "dice": summary["foreground_mean"]["Dice"],
        "classes": dice,
        "cases": len(unseen),
        "epochs_planned": plan["training"]["epochs"],
        "epochs_done": len(epochs),
        "steps_per_epoch": plan["training"]["steps_per_epoch"],
        "patch_size": plan["sampling"]["patch_size"],
        "features": plan["network"]["features"],
        "plan_seconds": round(planned - started, 1),
        "train_seconds": round(trained - planned, 1),
        "core_seconds": round(sum(os.times()[2:4]) - core_seconds, 1),
        "processor": processor(),
    }


def print_table(lines: Sequence[dict[str, Any]]) -> None:
    """Mean Dice by set, budget and seed for each code, and the means of the sets."""
    found: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for line in lines:
        key = (line["code"], line["budget"], line["set"])
        found[key][line["seed"]] += [line["dice"]] * line["cases"]
    codes = list(dict.fromkeys(line["code"] for line in lines))
    columns = [(code, budget) for code in codes for budget in BUDGETS]
    print("| set |", " | ".join(f"{code}, {budget}" for code, budget in columns), "|")
    print("| --- |" + " --- |" * len(columns))
    means: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name in SETS:
        cells = []
        for code, budget in columns:
            seeds = {seed: fmean(dice) for seed, dice in found[code, budget, name].items()}
            if seeds:
                means[code, budget].append(fmean(seeds.values()))
            each = ", ".join(f"{seeds[seed]:.3f}" for seed in sorted(seeds))
            cells.append(f"{fmean(seeds.values()):.3f} ({each})" if seeds else "")
        print(f"| {name} |", " | ".join(cells), "|")
    cells = [f"{fmean(means[c]):.3f} ({len(means[c])} sets)" if means[c] else "" for c in columns]
    print("| mean |", " | ".join(cells), "|")


def main() -> None:
    """Do what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the sets, in nnU-Net's layout")
    parser.add_argument("--results", type=Path, required=True, help="file of results, JSON lines")
    parser.add_argument("--code", default="now", help="name of what is measured")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK}, the first seed")
    parser.add_argument(
        "--plan-option", action="append", default=[], help="one more word for autoseg_plan"
    )
    parser.add_argument(
        "--only-table", action="store_true", help="print the table of what is there"
    )
    args = parser.parse_args()
    if args.quick:
        args.sets, args.seeds = [QUICK], args.seeds[:1]
    lines = []
    if args.results.exists():
        lines = [json.loads(text) for text in args.results.read_text().splitlines()]
    done = {Job(*(line[key] for key in Job.__dataclass_fields__)) for line in lines}
    todo = [] if args.only_table else jobs_of(args.code, args.sets, args.budgets, args.seeds)
    for job in todo:
        if job in done:
            continue
        with TemporaryDirectory(prefix="few_cases-") as folder:
            lines.append(measure(job, args.data.absolute(), args.plan_option, Path(folder)))
        with args.results.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(f"{job}: Dice {lines[-1]['dice']:.4f}", file=sys.stderr, flush=True)
    print_table(lines)


if __name__ == "__main__":
    main()
