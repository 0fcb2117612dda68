"""How far the runs of a study are: from files alone, so that any process can ask at any time."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from autoseg import __version__
from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, write_json
from autoseg.common.locks import holder_of
from autoseg.common.progress import counted, in_words
from autoseg.experiments.runs import StudyRun
from autoseg.experiments.study import HeldOut
from autoseg.models.log import count_epochs
from autoseg.plan.reading import load_plan
from autoseg.workflow.workspace import Workspace

if TYPE_CHECKING:
    from rich.table import Table


# What of a run is there already; asked of files alone, so that any process can ask.

SUMMARY = "summary.json"
TEST_SET = "test_set.json"


def is_finished(run: StudyRun, workspace: Workspace) -> bool:
    """Is nothing of the run missing?"""
    return is_trained(run, workspace) and all(
        is_scored(run, each, workspace) for each in run.held_out
    )


def is_trained(run: StudyRun, workspace: Workspace) -> bool:
    """Is the model there, trained by the plan that is there now, and validated?"""
    folder = run.folder(workspace)
    if not all(path.is_file() for path in (folder / "final.safetensors", validation(folder))):
        return False
    planned = plan_id(workspace.preprocessed(run.task, run.plan))
    return planned is not None and plan_id(folder.parent) == planned


def is_scored(run: StudyRun, test_set: HeldOut, workspace: Workspace) -> bool:
    """Has the model been scored on this test set, as it is described now?"""
    folder = test_folder(run, test_set, workspace)
    there = (folder / SUMMARY).is_file()
    return there and is_described(folder, described(run, test_set, workspace))


def is_described(folder: Path, wanted: dict[str, Any]) -> bool:
    """Is what lies in a test set's folder of this description?"""
    try:
        return bool(read_json(folder / TEST_SET) == wanted)
    except AutosegError:
        return False


def validation(folder: Path) -> Path:
    """The scores of a fold's validation cases."""
    return folder / "validation" / SUMMARY


def test_folder(run: StudyRun, test_set: HeldOut, workspace: Workspace) -> Path:
    """Where predictions and scores of a test set go: beside the model that made them."""
    return run.folder(workspace) / "held_out" / test_set.name


def described(run: StudyRun, test_set: HeldOut, workspace: Workspace) -> dict[str, Any]:
    """A test set and the plan of the model, as its scores record them."""
    models = run.folder(workspace).parent
    return {"plan_id": plan_id(models), **test_set.model_dump(mode="json")}


def plan_id(folder: Path) -> str | None:
    """The id of the plan in a folder; None if there is none."""
    path = folder / "plan.json"
    try:
        return _id_of(path, path.stat().st_mtime_ns)
    except (AutosegError, OSError):
        return None


@lru_cache(maxsize=1000)
def _id_of(path: Path, _changed: int) -> str:
    return load_plan(path).id


# What became of a run: `run.json` beside its model, for whoever asks from whatever process.

FILE_NAME = "run.json"
RunState = Literal["running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Record:
    """The latest attempt of a run.

    Attributes:
        state: `running` may also be what a killed process left.
        began: when the latest attempt began, as in 2026-01-31T12:00:00+00:00.
        seconds: that all attempts took together; of one that was killed they are lost.
        attempts: how often it was begun.
        device: what it ran on.
        machine: the computer's name.
        pid: the process's number there.
        slurm_job: the cluster's number of it.
        error: why it failed or stopped, in one line.
        log: the file that its output went to.
        autoseg: the version.
    """

    state: RunState
    began: str
    seconds: float = 0.0
    attempts: int = 1
    device: str = ""
    machine: str = ""
    pid: int = 0
    slurm_job: str | None = None
    error: str | None = None
    log: str = ""
    autoseg: str = __version__


def read_record(folder: Path) -> Record | None:
    """The record in a run's folder; None if there is none, or none that can be read."""
    try:
        return Record(**read_json(folder / FILE_NAME))
    except (AutosegError, TypeError):
        return None


class Recorder:
    """Writes the record of an attempt that begins now."""

    def __init__(self, folder: Path, log: str, device: str, slurm_job: str | None) -> None:
        before = read_record(folder)
        self.folder = folder
        self.started = time.monotonic()
        self.seconds = 0.0 if before is None else before.seconds
        self.record = Record(
            state="running",
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=self.seconds,
            attempts=1 if before is None else before.attempts + 1,
            device=device,
            machine=platform.node(),
            pid=os.getpid(),
            slurm_job=slurm_job,
            log=log,
        )
        self._write()

    def end(self, state: RunState, error: str | None = None) -> None:
        """Write how the attempt ended."""
        seconds = round(self.seconds + time.monotonic() - self.started, 2)
        self.record = replace(self.record, state=state, error=error, seconds=seconds)
        self._write()

    def _write(self) -> None:
        write_json(self.folder / FILE_NAME, asdict(self.record))


State = Literal["done", "running", "submitted", "waiting", "stopped", "failed"]
COLOURS = {"running": "cyan", "stopped": "yellow", "failed": "red", "done": "green"}
FOLD_LOCK = ".lock"  # of whoever trains the fold without a study


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        epochs: done so far.
        dice: mean Dice of the validation cases, once they are scored.
        record: of its latest attempt, if it was begun by a study.
        job: the cluster's number of it.
    """

    run: StudyRun
    state: State
    epochs: int
    dice: float | None
    record: Record | None
    job: str | None = None

    @property
    def note(self) -> str:
        """What else there is to say of it."""
        if self.record is None or self.state == "done":
            return "" if self.job is None else f"job {self.job}"
        if self.state == "failed":
            return str(self.record.error)
        where = f"on {self.record.machine}" if self.state == "running" else "goes on when started"
        return where if self.record.slurm_job is None else f"{where}, job {self.record.slurm_job}"


def status_of(run: StudyRun, workspace: Workspace, jobs: dict[str, str] | None = None) -> Status:
    """How far a run is.

    Args:
        run: the run.
        workspace: where it lies.
        jobs: the cluster's numbers of runs that were handed to it, by the runs' names.
    """
    folder = run.folder(workspace)
    record = read_record(folder)
    job = (jobs or {}).get(str(run))
    dice = _dice(folder) if is_trained(run, workspace) else None
    state = _state(run, workspace, record, job)
    return Status(run, state, count_epochs(folder), dice, record, job)


def is_held(run: StudyRun, workspace: Workspace) -> bool:
    """Does a living process work on the run?"""
    folder = run.folder(workspace)
    return any(holder_of(folder / name) is not None for name in (LOCK, FOLD_LOCK))


def _state(run: StudyRun, workspace: Workspace, record: Record | None, job: str | None) -> State:
    if is_held(run, workspace):
        return "running"
    if is_finished(run, workspace):
        return "done"
    if record is not None and record.state == "failed":
        return "failed"
    if record is not None:  # what says that it runs was killed
        return "stopped"
    return "waiting" if job is None else "submitted"


def _dice(folder: Path) -> float | None:
    try:
        values: dict[str, Any] = read_json(validation(folder))["foreground_mean"]
        dice: float | None = values["Dice"]
        return dice
    except (AutosegError, KeyError, TypeError):
        return None


def table(statuses: Sequence[Status], title: str = "") -> Table:
    """The status of runs for a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", box=None)
    for name, right in (("plan", 0), ("fold", 1), ("state", 0), ("epochs", 1)):
        made.add_column(name, justify="right" if right else "left", no_wrap=True)
    for name in ("time", "Dice"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("", overflow="fold")
    for each in statuses:
        seconds = each.record.seconds if each.record is not None else 0
        made.add_row(
            each.run.plan,
            str(each.run.fold),
            Text(each.state, style=COLOURS.get(each.state, "")),
            str(each.epochs) if each.epochs else "",
            in_words(seconds) if seconds else "",
            "" if each.dice is None else f"{each.dice:.3f}",
            Text(each.note),
        )
    return made


def in_short(statuses: Sequence[Status]) -> str:
    """How many runs are in which state, in one line."""
    counts = Counter(each.state for each in statuses)
    parts = [f"{counts[state]} {state}" for state in get_args(State) if counts[state]]
    return f"{counted(len(statuses), 'run')}: {', '.join(parts)}" if parts else "no run"


LOCK = ".run.lock"
