"""What a study has found, read from its folder: `results.csv` and `study.json`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import read_json
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.paper_tables import VALIDATION, Arm, Column
from autoseg.experiments.results import RESULTS, STUDY
from autoseg.plan.reading import load_plan

Scores = dict[str, dict[str, dict[int, dict[str, dict[str, list[float | None]]]]]]


@dataclass(frozen=True)
class StudyScores:
    """A study as tables and figures need it.

    Attributes:
        task: the task's name.
        head: what tells the arms apart: `k`, or else `plan`.
        arms: its plans, with all their scores.
        folders: arm -> fold -> the folder of the run.
        columns: the sets of cases, and the classes that are reported of each.
        labels: the classes of the first plan, with its colours; None if no plan is there.
    """

    task: str
    head: str
    arms: tuple[Arm, ...]
    folders: dict[str, dict[int, Path]]
    columns: tuple[Column, ...]
    labels: Labels | None

    @property
    def classes(self) -> list[str]:
        """The classes that are reported of validation cases."""
        return [label for where, label in self.columns if where == VALIDATION]


def read_scores(folder: Path) -> StudyScores:
    """Read the folder of a study, `WORKSPACE/experiments/STUDY`.

    Where a plan merges classes, such as both lungs, the merged row is reported in their place.

    Raises:
        DataError: its files are missing or damaged.
    """
    about = read_json(folder / STUDY)
    try:
        runs, task = about["runs"], about["study"]["task"]
        sets = [VALIDATION, *(each["name"] for each in about["study"]["held_out"])]
        head, names = _names(runs)
        folders: dict[str, dict[int, Path]] = {}
        for run in runs:
            place = folder.parents[1] / run["folder"]
            folders.setdefault(names[run["plan"]], {})[run["fold"]] = place
        scores = _read_results(folder / RESULTS)
        arms = tuple(
            Arm(name, tuple(sorted(folders[name])), scores.get(plan, {}))
            for plan, name in names.items()
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder} holds no results of a study ({type(error).__name__}: {error}); start the "
            "study again"
        ) from error
    labels = _labels(folders)
    return StudyScores(task, head, arms, folders, _columns(arms, sets, labels), labels)


def _names(runs: Sequence[dict[str, Any]]) -> tuple[str, dict[str, str]]:
    """What tells the plans apart, and plan -> what its arm is called."""
    plans = {run["plan"]: run for run in runs}
    differ = [
        key
        for key in ("variant", "k", "seed")
        if len({str(run[key]) for run in plans.values()}) > 1
    ]
    if differ == ["k"]:
        return "k", {plan: str(run["k"]) for plan, run in plans.items()}
    words = {"variant": "{}", "k": "k = {}", "seed": "seed {}"}
    return "plan", {
        plan: ", ".join(words[key].format(run[key]) for key in differ) or plan
        for plan, run in plans.items()
    }


def _read_results(path: Path) -> Scores:
    """Plan -> set -> fold -> class -> metric -> a number for each case."""
    found: Scores = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                of_set = found.setdefault(row["plan"], {}).setdefault(row["set"], {})
                of_class = of_set.setdefault(int(row["fold"]), {}).setdefault(row["class"], {})
                for metric in METRICS.keys() & row.keys():
                    value = float(row[metric]) if row[metric] else None
                    of_class.setdefault(metric, []).append(value)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; start the study again") from error
    return found


def _labels(folders: dict[str, dict[int, Path]]) -> Labels | None:
    for of_arm in folders.values():
        for fold in of_arm.values():
            try:
                return Labels.of_plan(load_plan(fold.parent / "plan.json"))
            except AutosegError:
                continue
    return None


def _columns(arms: Sequence[Arm], sets: Sequence[str], labels: Labels | None) -> tuple[Column, ...]:
    """The classes of each set; merged rows stand first, in place of their classes."""
    merged = {} if labels is None else labels.merged
    columns: list[Column] = []
    for where in sets:
        there = dict.fromkeys(
            label
            for arm in arms
            for scores in arm.scores.get(where, {}).values()
            for label in scores
        )
        if not there and labels is not None and where == VALIDATION:
            there = dict.fromkeys([*labels.values, *merged])
        hidden = {part for row, parts in merged.items() if row in there for part in parts}
        rows = [label for label in there if label in merged]
        rows += [label for label in there if label not in merged and label not in hidden]
        columns += [(where, label) for label in rows]
    return tuple(columns)
