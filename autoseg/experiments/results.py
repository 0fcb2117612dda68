"""The results of a study as data: `WORKSPACE/experiments/STUDY/results.csv` and `study.json`.

One row of the table is one class of one case, scored by one model, with all metrics.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from autoseg import __version__
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.figures import Colours
from autoseg.common.files import read_json, write_json, write_text
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import Statistic
from autoseg.evaluation.tables import rows_as_csv
from autoseg.experiments import status
from autoseg.experiments.runs import StudyRun, Variant, runs_of_plan, variants
from autoseg.experiments.study import USUAL, Study
from autoseg.models.folder import PLAN, SUMMARY, VALIDATION
from autoseg.plan.plan import Plan, load_plan
from autoseg.workflow.workspace import Workspace

RESULTS, STUDY, JOBS = "results.csv", "study.json", "jobs.json"
FIRST = ("study", "task", "plan", "variant", "k", "seed", "fold", "set", "case", "class")

ResultRow = dict[str, Any]


def gather(study: Study, workspace: Workspace) -> list[status.Status]:
    """Write the table of all existing scores and the status of each run; returns the status.

    Raises:
        AutosegError: a file of scores is damaged.
    """
    folder = workspace.study(study.name)
    pairs = [(v, run) for v in variants(study) for run in runs_of_plan(v, workspace)]
    rows = [row for variant, run in pairs for row in _rows(study, variant, run, workspace)]
    write_text(folder / RESULTS, to_csv(rows))
    statuses = [status.status_of(run, workspace, read_jobs(study, workspace)) for _, run in pairs]
    runs = [
        _run_to_json(variant, found, workspace)
        for (variant, _), found in zip(pairs, statuses, strict=True)
    ]
    about = {
        "autoseg": __version__,
        "gathered": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": all(found.state == "done" for found in statuses) and bool(statuses),
        "study": study.model_dump(mode="json"),
        "runs": runs,
    }
    write_json(folder / STUDY, about)
    return statuses


def read_jobs(study: Study, workspace: Workspace) -> dict[str, str]:
    """Run -> id of the Slurm job that it was submitted as."""
    try:
        return dict(read_json(workspace.study(study.name) / JOBS))
    except (AutosegError, TypeError, ValueError):
        return {}


def print_status(studies: Sequence[Study], workspace: Workspace, width: int | None) -> None:
    """Print the status of all runs; `width` is that of the table, None for the terminal's."""
    console = Console(width=width)
    for study in studies:
        jobs = read_jobs(study, workspace)
        of_plans = {each.name: runs_of_plan(each, workspace) for each in variants(study)}
        statuses = [
            status.status_of(run, workspace, jobs) for runs in of_plans.values() for run in runs
        ]
        if statuses:
            console.print(status.table(statuses, f"{study.name}: {status.in_short(statuses)}"))
        else:
            print(f"{study.name}: no runs yet")
        if unplanned := [name for name, runs in of_plans.items() if not runs]:
            print(f"not planned yet: {', '.join(unplanned)}")


def to_csv(rows: list[ResultRow]) -> str:
    """A table with the columns of all rows, in the order of their first appearance."""
    columns = list(dict.fromkeys([*FIRST, *(key for row in rows for key in row)]))
    return rows_as_csv([columns, *([row.get(name, "") for name in columns] for row in rows)])


def _about(variant: Variant, run: StudyRun) -> ResultRow:
    """What identifies a run in a study."""
    numbers = {"k": variant.k, "seed": variant.seed, "fold": run.fold}
    return {"plan": run.plan, "variant": variant.source.name, **numbers}


def _rows(
    study: Study, variant: Variant, run: StudyRun, workspace: Workspace
) -> Iterator[ResultRow]:
    """The existing scores of a run: of its validation cases and of each test set."""
    if not status.is_trained(run, workspace):
        return
    begin = {"study": study.name, "task": run.task, **_about(variant, run)}
    yield from _scores(run.folder(workspace) / SUMMARY, begin | {"set": VALIDATION})
    for each in run.held_out:
        if status.is_scored(run, each, workspace):
            scores = status.test_folder(run, each, workspace) / status.SCORES
            yield from _scores(scores, begin | {"set": each.name})


def _scores(path: Path, begin: ResultRow) -> Iterator[ResultRow]:
    """The rows of one file of scores, with all its metrics."""
    try:
        for case in read_json(path)["metric_per_case"]:
            for name, metrics in case["metrics"].items():
                volumes = case.get("volume_ml", {}).get(name, {})
                ml = {f"{key}_ml": value for key, value in volumes.items()}
                yield begin | {"case": case["case"], "class": name} | metrics | ml
    except (KeyError, TypeError, AttributeError) as error:
        raise AutosegError(
            f"{path} is damaged ({error!r}); delete it and restart the study"
        ) from error


def _run_to_json(variant: Variant, found: status.Status, workspace: Workspace) -> ResultRow:
    run = found.run
    return {
        **_about(variant, run),
        "plan_id": status.plan_id(workspace.preprocessed(run.task, run.plan)),
        "folder": run.folder(workspace).relative_to(workspace.root).as_posix(),
        "held_out": [each.name for each in run.held_out],
        "state": found.state,
        "epochs": found.epochs,
        "mean_dice": found.dice,
        "job": found.job,
        "attempt": None if found.record is None else asdict(found.record),
    }


Values = Sequence[float | None]
FoldScores = Mapping[str, Mapping[str, Values]]  # class -> metric -> one value per case
Column = tuple[str, str]  # a set of cases, and a class
Scores = dict[str, dict[str, dict[int, dict[str, dict[str, list[float | None]]]]]]


@dataclass(frozen=True)
class Arm:
    """One plan of a study.

    Attributes:
        name: its title in rows and columns.
        folds: numbers of the folds in the study.
        scores: set of cases -> fold -> its scores, where they exist.
    """

    name: str
    folds: tuple[int, ...]
    scores: Mapping[str, Mapping[int, FoldScores]]

    def of_fold(self, column: Column, fold: int, metric: str) -> Values:
        """The values of a fold's cases; empty if it has not been scored."""
        where, label = column
        return self.scores.get(where, {}).get(fold, {}).get(label, {}).get(metric, ())

    def medians(self, column: Column, metric: str) -> dict[int, float]:
        """Fold -> the median of its cases, without folds that have no value."""
        found = {fold: Statistic.of(self.of_fold(column, fold, metric)) for fold in self.folds}
        return {fold: each.median for fold, each in found.items() if each.median is not None}

    def pooled(self, column: Column, metric: str, *folds: int) -> list[float | None]:
        """The values of the cases of all folds, or of these."""
        return [v for fold in folds or self.folds for v in self.of_fold(column, fold, metric)]

    def dice(self, where: str, labels: Sequence[str], *folds: int) -> dict[str, Values]:
        """Class -> Dice of the cases of one set, of all folds or of these."""
        return {label: self.pooled((where, label), "Dice", *folds) for label in labels}

    def statistic(self, column: Column, metric: str) -> Statistic:
        """One metric over the cases of all folds."""
        return Statistic.of(self.pooled(column, metric))

    def done(self, where: str) -> int:
        """The number of folds that have been scored on a set of cases."""
        return len(set(self.folds) & self.scores.get(where, {}).keys())


@dataclass(frozen=True)
class StudyScores:
    """The scores of a study for tables and figures.

    Attributes:
        study: the study's values.
        folder: of the study, `WORKSPACE/experiments/STUDY`.
        head: what distinguishes the arms: `k` or `plan`.
        arms: the plans, with all their scores.
        folders: arm -> fold -> folder of the run.
        columns: the sets of cases, with the reported classes of each.
        labels: the classes of the first plan, with their colours; None if there is no plan.
        variants: arm -> the name of its plan in the study.
        gathered: when the scores were collected.
    """

    study: Mapping[str, Any]
    folder: Path
    head: str
    arms: tuple[Arm, ...]
    folders: dict[str, dict[int, Path]]
    columns: tuple[Column, ...]
    labels: ScoredClasses | None
    variants: dict[str, str]
    gathered: str

    @property
    def classes(self) -> list[str]:
        """The classes reported for validation cases."""
        return self.classes_of(VALIDATION)

    @property
    def report(self) -> dict[str, str]:
        """File name -> the table or figure in it."""
        return self.study.get("report") or {name: name for name in USUAL}

    @property
    def sets(self) -> list[str]:
        """The sets of cases: the validation cases, then the test sets."""
        return list(dict.fromkeys(where for where, _ in self.columns))

    @property
    def last(self) -> dict[int, Path]:
        """Fold -> folder of the run, for the last plan."""
        return self.folders[self.arms[-1].name]

    @property
    def models(self) -> Path:
        """The folder of the models of the last plan."""
        return next(iter(self.last.values())).parent

    @property
    def plan(self) -> Plan | None:
        """The last plan; None if its file is missing."""
        path = self.models / PLAN
        return load_plan(path) if path.is_file() else None

    @property
    def colours(self) -> Colours:
        """Class -> colour, for the classes to which the plan assigns one."""
        return {} if self.labels is None else self.labels.colours

    @property
    def is_scored(self) -> bool:
        """Whether any run has been scored."""
        return any(arm.scores for arm in self.arms)

    def classes_of(self, where: str) -> list[str]:
        """The classes reported for a set of cases."""
        return [label for of, label in self.columns if of == where]


def read_scores(folder: Path) -> StudyScores:
    """Read the folder of a study, `WORKSPACE/experiments/STUDY`.

    Where a plan merges classes, such as both lungs, the merged class is reported in their place.

    Raises:
        DataError: its files are missing or damaged.
    """
    about = read_json(folder / STUDY)
    try:
        runs = about["runs"]
        sets = [VALIDATION, *(each["name"] for each in about["study"]["held_out"])]
        head, names = _names(runs)
        kinds = {names[run["plan"]]: str(run["variant"]) for run in runs}
        folders: dict[str, dict[int, Path]] = {}
        for run in runs:
            path = folder.parents[1] / run["folder"]
            folders.setdefault(names[run["plan"]], {})[run["fold"]] = path
        scores = _read_results(folder / RESULTS)
        arms = tuple(
            Arm(name, tuple(sorted(folders[name])), scores.get(plan, {}))
            for plan, name in names.items()
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder} is not a study folder ({error!r}); restart the study") from error
    labels = _labels(folders)
    columns = _columns(arms, sets, labels)
    gathered = str(about.get("gathered", ""))[:16].replace("T", " ")
    return StudyScores(
        about["study"], folder, head, arms, folders, columns, labels, kinds, gathered
    )


def _names(runs: Sequence[dict[str, Any]]) -> tuple[str, dict[str, str]]:
    """What distinguishes the plans, and plan -> the name of its arm."""
    plans = {run["plan"]: run for run in runs}
    differ = [
        key
        for key in ("variant", "k", "seed")
        if len({str(run[key]) for run in plans.values()}) > 1
    ]
    if differ == ["k"]:
        return "k", {plan: str(run["k"]) for plan, run in plans.items()}
    formats = {"variant": "{}", "k": "k = {}", "seed": "seed {}"}
    return "plan", {
        plan: ", ".join(formats[key].format(run[key]) for key in differ) or plan
        for plan, run in plans.items()
    }


def _read_results(path: Path) -> Scores:
    """Plan -> set of cases -> fold -> class -> metric -> a value for each case."""
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


def _labels(folders: dict[str, dict[int, Path]]) -> ScoredClasses | None:
    for of_arm in folders.values():
        for fold in of_arm.values():
            try:
                return ScoredClasses.of_plan(load_plan(fold.parent / PLAN))
            except AutosegError:
                continue
    return None


def _columns(
    arms: Sequence[Arm], sets: Sequence[str], labels: ScoredClasses | None
) -> tuple[Column, ...]:
    """The classes of each set; merged classes come first and replace their parts."""
    merged = {} if labels is None else labels.merged
    columns: list[Column] = []
    for where in sets:
        found = dict.fromkeys(
            label
            for arm in arms
            for scores in arm.scores.get(where, {}).values()
            for label in scores
        )
        if not found and labels is not None and where == VALIDATION:
            found = dict.fromkeys([*labels.values, *merged])
        hidden = {part for row, parts in merged.items() if row in found for part in parts}
        rows = [label for label in found if label in merged]
        rows += [label for label in found if label not in merged and label not in hidden]
        columns += [(where, label) for label in rows]
    return tuple(columns)
