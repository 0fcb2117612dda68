"""How far the runs of a study are: from files alone, so that any process can ask at any time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.common.locks import holder_of
from autoseg.common.progress import counted, in_words
from autoseg.experiments.attempt import LOCK
from autoseg.experiments.finished import is_finished, is_trained, validation
from autoseg.experiments.record import Record, read_record
from autoseg.experiments.runs import StudyRun
from autoseg.models.log import LOG
from autoseg.workflow.workspace import Workspace

if TYPE_CHECKING:
    from rich.table import Table

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
    return Status(run, state, _epochs(folder), dice, record, job)


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


def _epochs(folder: Path) -> int:
    try:
        with (folder / LOG).open(encoding="utf-8") as log:
            return sum(1 for _ in log)
    except OSError:
        return 0


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
