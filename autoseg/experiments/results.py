"""What a study found, gathered as data: `WORKSPACE/experiments/STUDY/results.csv` and `study.json`.

One row of the table is one class of one case, scored by one model, with every metric that the
evaluation gives.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoseg import __version__
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import read_json, write_json, write_text
from autoseg.evaluation.labels import Labels
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import Statistic
from autoseg.experiments.runs import StudyRun, Variant, runs_of_plan, variants
from autoseg.experiments.status import (
    SUMMARY,
    Status,
    is_scored,
    is_trained,
    plan_id,
    status_of,
    test_folder,
    validation,
)
from autoseg.experiments.study import Study
from autoseg.plan.reading import load_plan
from autoseg.workflow.workspace import Workspace

RESULTS, STUDY = "results.csv", "study.json"
FIRST = ("study", "task", "plan", "variant", "k", "seed", "fold", "set", "case", "class")

ResultRow = dict[str, Any]


def study_folder(study: Study, workspace: Workspace) -> Path:
    """Where a study's results, logs and jobs are kept."""
    return workspace.root / "experiments" / study.name


def gather(study: Study, workspace: Workspace) -> list[Status]:
    """Write the table of all scores that are there, and how far each run is; returns the latter.

    Raises:
        AutosegError: a file of scores is damaged.
    """
    folder = study_folder(study, workspace)
    pairs = [(v, run) for v in variants(study) for run in runs_of_plan(v, workspace)]
    rows = [row for variant, run in pairs for row in _rows(study, variant, run, workspace)]
    write_text(folder / RESULTS, to_csv(rows))
    statuses = [status_of(run, workspace, read_jobs(study, workspace)) for _, run in pairs]
    runs = [
        _run_to_json(variant, status, workspace)
        for (variant, _), status in zip(pairs, statuses, strict=True)
    ]
    about = {
        "autoseg": __version__,
        "gathered": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": all(status.state == "done" for status in statuses) and bool(statuses),
        "study": study.model_dump(mode="json"),
        "runs": runs,
    }
    write_json(folder / STUDY, about)
    return statuses


def read_jobs(study: Study, workspace: Workspace) -> dict[str, str]:
    """The cluster's numbers of the runs that were handed to it, by the runs' names."""
    try:
        return dict(read_json(study_folder(study, workspace) / "jobs.json"))
    except (AutosegError, TypeError, ValueError):
        return {}


def to_csv(rows: list[ResultRow]) -> str:
    """A table of all columns that any row has, in the order in which they come up."""
    columns = list(dict.fromkeys([*FIRST, *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(
    study: Study, variant: Variant, run: StudyRun, workspace: Workspace
) -> Iterator[ResultRow]:
    """The scores of a run: of its validation cases and of each test set, as far as they are."""
    if not is_trained(run, workspace):
        return
    begin: ResultRow = {
        "study": study.name,
        "task": run.task,
        "plan": run.plan,
        "variant": variant.source.name,
        "k": variant.k,
        "seed": variant.seed,
        "fold": run.fold,
    }
    yield from _scores(validation(run.folder(workspace)), begin | {"set": VALIDATION})
    for each in run.held_out:
        if is_scored(run, each, workspace):
            yield from _scores(
                test_folder(run, each, workspace) / SUMMARY, begin | {"set": each.name}
            )


def _scores(path: Path, begin: ResultRow) -> Iterator[ResultRow]:
    """The rows of one file of scores: whatever metrics it has."""
    try:
        for case in read_json(path)["metric_per_case"]:
            for name, metrics in case["metrics"].items():
                volumes = case.get("volume_ml", {}).get(name, {})
                ml = {f"{key}_ml": value for key, value in volumes.items()}
                yield begin | {"case": case["case"], "class": name} | metrics | ml
    except (KeyError, TypeError, AttributeError) as error:
        raise AutosegError(
            f"{path} is not a summary of scores ({type(error).__name__}: {error}); delete it and "
            "start the study again"
        ) from error


def _run_to_json(variant: Variant, status: Status, workspace: Workspace) -> ResultRow:
    run = status.run
    record = {} if status.record is None else asdict(status.record)
    return {
        "plan": run.plan,
        "plan_id": plan_id(workspace.preprocessed(run.task, run.plan)),
        "variant": variant.source.name,
        "k": variant.k,
        "seed": variant.seed,
        "fold": run.fold,
        "folder": run.folder(workspace).relative_to(workspace.root).as_posix(),
        "held_out": [each.name for each in run.held_out],
        "state": status.state,
        "epochs": status.epochs,
        "mean_dice": status.dice,
        "job": status.job,
        "attempt": record or None,
    }


# What a study has found, read from its folder: `results.csv` and `study.json`.

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


VALIDATION = "validation"


Values = Sequence[float | None]


FoldScores = Mapping[str, Mapping[str, Values]]  # class -> metric -> a number a case


Column = tuple[str, str]  # a set of cases, and a class


@dataclass(frozen=True)
class Arm:
    """One plan of a study.

    Attributes:
        name: how rows and columns call it.
        folds: the numbers of those that the study wants.
        scores: set of cases -> fold -> its scores, as far as they are there.
    """

    name: str
    folds: tuple[int, ...]
    scores: Mapping[str, Mapping[int, FoldScores]]

    def of_fold(self, column: Column, fold: int, metric: str) -> Values:
        """The numbers of a fold's cases; none if it has not been scored."""
        where, label = column
        return self.scores.get(where, {}).get(fold, {}).get(label, {}).get(metric, ())

    def medians(self, column: Column, metric: str) -> dict[int, float]:
        """Fold -> the median of its cases, for the folds that have a number."""
        of = {fold: Statistic.of(self.of_fold(column, fold, metric)) for fold in self.folds}
        return {fold: each.median for fold, each in of.items() if each.median is not None}

    def statistic(self, column: Column, metric: str) -> Statistic:
        """One metric over the cases of all folds."""
        return Statistic.of(
            value for fold in self.folds for value in self.of_fold(column, fold, metric)
        )

    def done(self, where: str) -> int:
        """How many folds have been scored on a set of cases."""
        return len(set(self.folds) & self.scores.get(where, {}).keys())
