"""What a study found, gathered as data: `WORKSPACE/experiments/STUDY/results.csv` and `study.json`.

One row of the table is one class of one case, scored by one model, with every metric that the
evaluation gives.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autoseg import __version__
from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, write_json, write_text
from autoseg.evaluation.paper_tables import VALIDATION
from autoseg.experiments.finished import (
    SUMMARY,
    is_scored,
    is_trained,
    plan_id,
    test_folder,
    validation,
)
from autoseg.experiments.runs import StudyRun, Variant, runs_of_plan, variants
from autoseg.experiments.status import Status, status_of
from autoseg.experiments.study import Study
from autoseg.workflow.workspace import Workspace

RESULTS, STUDY = "results.csv", "study.json"
FIRST = ("study", "task", "plan", "variant", "k", "seed", "fold", "set", "case", "class")

Row = dict[str, Any]


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


def to_csv(rows: list[Row]) -> str:
    """A table of all columns that any row has, in the order in which they come up."""
    columns = list(dict.fromkeys([*FIRST, *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(study: Study, variant: Variant, run: StudyRun, workspace: Workspace) -> Iterator[Row]:
    """The scores of a run: of its validation cases and of each test set, as far as they are."""
    if not is_trained(run, workspace):
        return
    begin: Row = {
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


def _scores(path: Path, begin: Row) -> Iterator[Row]:
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


def _run_to_json(variant: Variant, status: Status, workspace: Workspace) -> Row:
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
