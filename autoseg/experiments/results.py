"""The results of a study as data: `WORKSPACE/experiments/STUDY/results.csv` and `study.json`.

One row of the table is one class of one case, scored by one model, with all metrics.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from autoseg import __version__
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import read_json, write_json, write_text
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.report.files import Trained
from autoseg.evaluation.scores import Statistic
from autoseg.evaluation.tables import records_as_csv, score_rows
from autoseg.experiments import status
from autoseg.experiments.runs import StudyRun, runs_of, runs_of_plan, variants
from autoseg.experiments.study import TEXT, USUAL, Study
from autoseg.models.folder import SUMMARY, VALIDATION, fold_folder
from autoseg.models.log import Epoch
from autoseg.workflow.workspace import Workspace

RESULTS, STUDY, JOBS = "results.csv", "study.json", "jobs.json"
FIRST = ("study", "task", "plan", "variant", "k", "seed", "fold", "set", "case", "class")

ResultRow = dict[str, Any]


def gather(study: Study, workspace: Workspace) -> list[status.Status]:
    """Write the table of all existing scores and the status of each run; returns the status.

    Raises:
        AutosegError: a file of scores is damaged.
    """
    folder, statuses = workspace.study(study.name), statuses_of(study, workspace)
    rows = [row for of in statuses for row in _rows(study, of.run, workspace)]
    write_text(folder / RESULTS, records_as_csv(rows, FIRST))
    about = {
        "autoseg": __version__,
        "gathered": datetime.now(UTC).isoformat(timespec="seconds"),
        "finished": all(found.state == "done" for found in statuses) and bool(statuses),
        "study": study.model_dump(mode="json"),
        "runs": [_run_to_json(found, workspace) for found in statuses],
    }
    write_json(folder / STUDY, about)
    return statuses


def statuses_of(study: Study, workspace: Workspace) -> list[status.Status]:
    """How far each run of a study is."""
    jobs = read_jobs(study, workspace)
    return [status.status_of(run, workspace, jobs) for run in runs_of(study, workspace)]


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
        if statuses := statuses_of(study, workspace):
            console.print(status.table(statuses, f"{study.name}: {status.in_short(statuses)}"))
        else:
            print(f"{study.name}: no runs yet")
        if unplanned := [of.name for of in variants(study) if not runs_of_plan(of, workspace)]:
            print(f"not planned yet: {', '.join(unplanned)}")


def _about(run: StudyRun) -> ResultRow:
    """What identifies a run in a study."""
    return {key: getattr(run, key) for key in ("plan", "variant", "k", "seed", "fold")}


def _rows(study: Study, run: StudyRun, workspace: Workspace) -> Iterator[ResultRow]:
    """The existing scores of a run: of its validation cases and of each test set."""
    if not status.is_trained(run, workspace):
        return
    begin = {"study": study.name, "task": run.task, **_about(run)}
    files = {VALIDATION: run.folder(workspace) / SUMMARY}
    for each in run.held_out:
        if status.is_scored(run, each, workspace):
            files[each.name] = status.test_folder(run, each, workspace) / status.SCORES
    for name, path in files.items():
        try:
            for case in read_json(path)["metric_per_case"]:
                yield from (begin | {"set": name} | row for row in score_rows(case))
        except (KeyError, TypeError, AttributeError) as error:
            raise AutosegError(TEXT("damaged scores", path=path, error=error)) from error


def _run_to_json(found: status.Status, workspace: Workspace) -> ResultRow:
    run = found.run
    return {
        **_about(run),
        "plan_id": status.plan_id(workspace.preprocessed(run.task, run.plan)),
        "folder": run.folder(workspace).relative_to(workspace.root).as_posix(),
        "held_out": [each.name for each in run.held_out],
        "state": found.state,
        "epochs": found.epochs,
        "mean_dice": found.dice,
        "job": found.job,
        "attempt": None if found.record is None else asdict(found.record),
    }


Values = list[float | None]
Column = tuple[str, str]  # a set of cases, and a class
Scores = dict[tuple[str, int, str], list[dict[str, float | None]]]


@dataclass(frozen=True)
class Arm:
    """One plan of a study.

    Attributes:
        name: its title in rows and columns.
        title: the same outside a table, such as `k = 5`.
        variant: the name of its plan in the study.
        folds: numbers of the folds in the study.
        trained: its models.
        scores: set of cases, fold, class -> the metrics of each case, where they exist.
    """

    name: str
    title: str
    variant: str
    folds: tuple[int, ...]
    trained: Trained
    scores: Scores

    @property
    def runs(self) -> list[Path]:
        """The folders of the folds."""
        return [fold_folder(self.trained.folder, fold) for fold in self.folds]

    @cached_property
    def logs(self) -> list[list[Epoch]]:
        """The training logs of the folds that have one."""
        return self.trained.logs(self.folds)

    @property
    def records(self) -> list[status.Record]:
        """The latest attempts at the runs, of those that have a record."""
        return [found for found in map(status.read_record, self.runs) if found]

    def of_fold(self, column: Column, fold: int, metric: str) -> Values:
        """The values of a fold's cases; empty if it has not been scored."""
        where, label = column
        found = self.scores.get((where, fold, label), ())
        return [metrics[metric] for metrics in found if metric in metrics]

    def medians(self, column: Column, metric: str) -> dict[int, float]:
        """Fold -> the median of its cases, without folds that have no value."""
        found = {fold: Statistic.of(self.of_fold(column, fold, metric)) for fold in self.folds}
        return {fold: each.median for fold, each in found.items() if each.median is not None}

    def pooled(self, column: Column, metric: str, *folds: int) -> Values:
        """The values of the cases of all folds, or of these."""
        return [v for fold in folds or self.folds for v in self.of_fold(column, fold, metric)]

    def dice(self, where: str, labels: Sequence[str], *folds: int) -> dict[str, Values]:
        """Class -> Dice of the cases of one set, of all folds or of these."""
        return {label: self.pooled((where, label), "Dice", *folds) for label in labels}

    def statistic(self, column: Column, metric: str) -> Statistic:
        """One metric over the cases of all folds."""
        return Statistic.of(self.pooled(column, metric))

    def done(self, where: str) -> set[int]:
        """The folds that have been scored on a set of cases."""
        return {fold for of, fold, _ in self.scores if of == where and fold in self.folds}


class StudyScores(NamedTuple):
    """The scores of a study for tables and figures.

    Attributes:
        study: the study's values.
        folder: of the study, `WORKSPACE/experiments/STUDY`.
        head: what distinguishes the arms: `k` or `plan`.
        arms: the plans, with all their scores.
        columns: the sets of cases, with the reported classes of each.
        labels: the classes of the first plan, with their colours; none if there is no plan.
        gathered: when the scores were collected.
    """

    study: Mapping[str, Any]
    folder: Path
    head: str
    arms: tuple[Arm, ...]
    columns: tuple[Column, ...]
    labels: ScoredClasses
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
    def last(self) -> Arm:
        """The last plan."""
        return self.arms[-1]

    @property
    def is_scored(self) -> bool:
        """Whether any run has been scored."""
        return any(arm.scores for arm in self.arms)

    @property
    def counts(self) -> tuple[int, int]:
        """The number of validated models, and of all."""
        done = sum(len(arm.done(VALIDATION)) for arm in self.arms)
        return done, sum(len(arm.folds) for arm in self.arms)

    def classes_of(self, where: str) -> list[str]:
        """The classes reported for a set of cases."""
        return [label for of, label in self.columns if of == where]

    def dice(self, where: str) -> dict[str, dict[str, Values]]:
        """Plan -> class -> Dice of the cases of a set."""
        return {arm.title: arm.dice(where, self.classes_of(where)) for arm in self.arms}


def read_scores(folder: Path) -> StudyScores:
    """Read the folder of a study, `WORKSPACE/experiments/STUDY`.

    Where a plan merges classes, such as both lungs, the merged class is reported in their place.

    Raises:
        DataError: its files are missing or damaged.
    """
    about = read_json(folder / STUDY)
    try:
        sets = [VALIDATION, *(each["name"] for each in about["study"]["held_out"])]
        runs_of: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for run in about["runs"]:
            runs_of[run["plan"]].append(run)
        head, names = _names({plan: of[-1] for plan, of in runs_of.items()})
        scores = _read_results(folder / RESULTS)
        workspace, arms = Workspace(folder.parents[1]), []
        raw = workspace.raw_folder(about["study"]["task"])
        for plan, runs in runs_of.items():
            trained = Trained((workspace.root / runs[0]["folder"]).parent, raw)
            title = names[plan] if head == "plan" else f"{head} = {names[plan]}"
            about_plan = names[plan], title, str(runs[-1]["variant"])
            folds = tuple(sorted(run["fold"] for run in runs))
            arms.append(Arm(*about_plan, folds, trained, scores.get(plan, {})))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(TEXT("damaged study", folder=folder, error=error)) from error
    labels = next(filter(None, (arm.trained.labels for arm in arms)), ScoredClasses({}))
    columns = _columns(arms, sets, labels)
    gathered = str(about.get("gathered", ""))[:16].replace("T", " ")
    return StudyScores(about["study"], folder, head, tuple(arms), columns, labels, gathered)


def _names(runs: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """What distinguishes the plans, and plan -> the name of its arm."""
    formats = {"variant": "{}", "k": "k = {}", "seed": "seed {}"}
    differ = [key for key in formats if len({str(run[key]) for run in runs.values()}) > 1]
    if differ == ["k"]:
        return "k", {plan: str(run["k"]) for plan, run in runs.items()}
    return "plan", {
        plan: ", ".join(formats[key].format(run[key]) for key in differ) or plan
        for plan, run in runs.items()
    }


def _read_results(path: Path) -> Mapping[str, Scores]:
    """Plan -> its scores."""
    found: dict[str, Scores] = defaultdict(lambda: defaultdict(list))
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                known = METRICS.keys() & row.keys()
                metrics = {name: float(row[name]) if row[name] else None for name in known}
                found[row["plan"]][row["set"], int(row["fold"]), row["class"]].append(metrics)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; start the study again") from error
    return found


def _columns(arms: Sequence[Arm], sets: Sequence[str], labels: ScoredClasses) -> tuple[Column, ...]:
    """The classes of each set; merged classes come first and replace their parts."""
    merged = labels.merged
    columns: list[Column] = []
    for where in sets:
        found = dict.fromkeys(label for arm in arms for of, _, label in arm.scores if of == where)
        if not found and where == VALIDATION:
            found = dict.fromkeys([*labels.values, *merged])
        hidden = {part for row, parts in merged.items() if row in found for part in parts}
        rows = sorted(found, key=lambda label: label not in merged)
        columns += [(where, label) for label in rows if label in merged or label not in hidden]
    return tuple(columns)
