"""Compare training recipes by the Dice that each reaches in the same time on real data.

Every recipe of a JSON5 file replaces values of the plan that `autoseg_plan --time-budget` makes.
The steps of all recipes are timed first, alternately and several times. Each recipe gets the number
of steps that fits the time of the first recipe at its fastest step: a busy machine makes the runs
slower, not worse. Existing runs are not repeated.

    python scripts/compare_recipes.py WORKSPACE Task004 Task012 --budget 3m
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

ROUNDS = 3
Values = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One recipe on one task: its plan's name, and what is compared."""

    task: str
    recipe: str
    plan: str
    steps: int


def run(*words: object, threads: int | None = None, log: Path | None = None) -> None:
    """Run a command of autoseg as a user would."""
    command = [sys.executable, "-m", f"autoseg.cli.{words[0]}", *map(str, words[1:])]
    environment = dict(os.environ)
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads)}
    output = log.open("a") if log else None
    subprocess.run(command, check=True, env=environment, stdout=output, stderr=output)


def plan_recipes(
    workspace: Path,
    task: str,
    recipes: dict[str, Values],
    budget: str,
    settings: Sequence[str],
    threads: int | None,
) -> list[Entry]:
    """Plan the first recipe for the budget, derive the others, and give all the same time."""
    from autoseg.plan.plan import load_plan
    from autoseg.workflow.workspace import Workspace

    places = Workspace(workspace)
    raw = places.find_task_folder(task)
    first = places.preprocessed(raw.name, f"base-{budget}")
    if not (first / "plan.json").exists():
        words = ["plan", task, "--workspace", workspace, "--name", first.name]
        words += ["--time-budget", budget]
        words += [word for setting in settings for word in ("--set", setting)]
        run(*words, threads=threads)
    base = load_plan(first / "plan.json")
    plans = derive(base.model_dump(mode="json", exclude={"provenance", "measured"}), recipes)
    folders = {r: places.preprocessed(raw.name, values["name"]) for r, values in plans.items()}
    if missing := [r for r, folder in folders.items() if not (folder / "plan.json").exists()]:
        give_equal_time(plans, time_steps(raw, plans, threads))
        for recipe in missing:
            save(plans[recipe], folders[recipe], first)
    entries = []
    for recipe, folder in folders.items():
        training = load_plan(folder / "plan.json").training
        steps = training.epochs * training.steps_per_epoch
        entries.append(Entry(raw.name, recipe, folder.name, steps))
    return entries


def derive(base: Values, recipes: dict[str, Values]) -> dict[str, Values]:
    """The plan of each recipe, named after it, with a fixed number of steps."""
    from autoseg.planner.overrides import merge

    budget = base["name"].removeprefix("base-")
    base["training"]["seconds"] = None
    plans = {}
    for recipe, values in recipes.items():
        plans[recipe] = cut_to_stages(copy.deepcopy(merge(base, values)))
        plans[recipe]["name"] = f"{budget}-{re.sub(r'[^a-zA-Z0-9.-]+', '_', recipe)}"
    return plans


def give_equal_time(plans: dict[str, Values], seconds: dict[str, float]) -> None:
    """The number of steps of each plan that fits the time of the first one."""
    first = next(iter(plans))
    time = plans[first]["training"]["steps_per_epoch"] * seconds[first]
    for recipe, values in plans.items():
        values["training"]["steps_per_epoch"] = max(1, round(time / seconds[recipe]))


def save(values: Values, folder: Path, first: Path) -> None:
    """The plan, with the fingerprint and the splits of the first one."""
    from autoseg.plan.plan import make_plan

    folder.mkdir(parents=True, exist_ok=True)
    for beside in ("fingerprint.json", "splits.json"):
        shutil.copy(first / beside, folder / beside)
    make_plan(values, values["name"]).save(folder / "plan.json")


def cut_to_stages(values: Values) -> Values:
    """Lists by stage, no longer than the network has stages."""
    network = values["network"]
    stages = len(network["features"])
    network["blocks_encoder"] = network["blocks_encoder"][:stages]
    network["blocks_decoder"] = network["blocks_decoder"][: stages - 1]
    return values


def time_steps(task: Path, plans: dict[str, Values], threads: int | None) -> dict[str, float]:
    """Seconds a training step of each plan: the fastest of several rounds, taken in turn."""
    import torch

    from autoseg.dataset.task import find_task
    from autoseg.networks.devices import pick_device
    from autoseg.plan.plan import make_plan
    from autoseg.training.learner import Stopwatch

    found, _ = find_task(task)
    if threads:
        torch.set_num_threads(threads)
    seconds = dict.fromkeys(plans, float("inf"))
    with Stopwatch(found.cases[:4], pick_device(None), workers=1) as stopwatch:
        for _ in range(ROUNDS):
            for recipe, values in plans.items():
                step = stopwatch.measure(make_plan(values, recipe)).step_seconds
                seconds[recipe] = min(seconds[recipe], step)
    for recipe, step in seconds.items():
        print(f"{task.name}, {recipe}: {step:.3f} s a step", flush=True)
    return seconds


def dice(workspace: Path, entry: Entry, fold: str) -> float | None:
    """Mean validation Dice of a run; None if there is none yet."""
    from autoseg.evaluation.scores import Summary
    from autoseg.models.folder import SUMMARY, fold_folder

    path = fold_folder(workspace / "models" / entry.task / entry.plan, fold) / SUMMARY
    return Summary.load(path).foreground_mean() if path.exists() else None


def train(workspace: Path, entry: Entry, fold: str, threads: int | None) -> None:
    """Run one fold, or continue it where it was interrupted."""
    if dice(workspace, entry, fold) is not None:
        return
    words = [entry.task, "fold", fold, "--plan", entry.plan, "--workspace", workspace]
    log = workspace / "compare.log"
    run("train", *words, "--processes", 2, "--resume", threads=threads, log=log)
    print(
        f"{entry.task}, {entry.recipe}, fold {fold}: {dice(workspace, entry, fold):.4f}", flush=True
    )


def table(workspace: Path, entries: Sequence[Entry], folds: Sequence[str]) -> str:
    """Recipes as rows, tasks as columns: mean Dice over the folds, and the steps."""
    tasks = list(dict.fromkeys(entry.task for entry in entries))
    lines = [f"| recipe | {' | '.join(tasks)} |", f"| --- |{' --- |' * len(tasks)}"]
    for recipe in dict.fromkeys(entry.recipe for entry in entries):
        cells = []
        for task in tasks:
            (entry,) = [e for e in entries if (e.task, e.recipe) == (task, recipe)]
            found = [value for fold in folds if (value := dice(workspace, entry, fold)) is not None]
            spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
            cells.append(f"{fmean(found):.4f}{spread} ({entry.steps} steps)" if found else "")
        lines.append(f"| {recipe} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    import json5

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path, help="with the tasks in raw/")
    parser.add_argument("tasks", nargs="+", help="names, or unique prefixes of names")
    parser.add_argument("--budget", default="3m", help="time of the first recipe's run")
    parser.add_argument("--recipes", type=Path, default=Path(__file__).with_name("recipes.json5"))
    parser.add_argument(
        "--only", nargs="+", metavar="RECIPE", help="recipes to compare (default: all)"
    )
    parser.add_argument("--folds", nargs="+", default=["0"])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, with one thread each if several"
    )
    arguments = parser.parse_args()
    threads = 1 if arguments.jobs > 1 else None
    recipes = json5.loads(arguments.recipes.read_text(encoding="utf-8"))
    if arguments.only:
        first = next(iter(recipes))
        recipes = {name: recipes[name] for name in dict.fromkeys([first, *arguments.only])}
    workspace = arguments.workspace.resolve()
    entries = [
        entry
        for task in arguments.tasks
        for entry in plan_recipes(
            workspace, task, recipes, arguments.budget, arguments.settings, threads
        )
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = [
            pool.submit(train, workspace, entry, fold, threads)
            for entry in entries
            for fold in arguments.folds
        ]
        for done in runs:
            done.result()
    print(table(workspace, entries, arguments.folds))


if __name__ == "__main__":
    main()
