"""How far the runs of a study are, from files alone, so that any process can ask at any time."""

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from rich.table import Table
from rich.text import Text

from autoseg import __version__
from autoseg.common.errors import AutosegError, InUse, Stopped
from autoseg.common.files import read_json, write_json
from autoseg.common.locks import holder_of
from autoseg.common.progress import counted, in_words
from autoseg.experiments.runs import StudyRun
from autoseg.experiments.study import HeldOut
from autoseg.models.folder import FINAL, PLAN, SUMMARY
from autoseg.models.log import count_epochs
from autoseg.plan.plan import load_plan
from autoseg.workflow.workspace import FOLD_LOCK, Workspace

RECORD, SCORES, TEST_SET = "run.json", "summary.json", "test_set.json"
HELD_OUT = "held_out"  # folder of the test sets in that of a run
LOCK = ".run.lock"  # held during an attempt; FOLD_LOCK also during training without a study
COLOURS = {"running": "cyan", "stopped": "yellow", "failed": "red", "done": "green"}

AttemptState = Literal["running", "done", "failed", "stopped"]
State = Literal["done", "running", "submitted", "waiting", "stopped", "failed"]


def is_finished(run: StudyRun, workspace: Workspace) -> bool:
    """Whether the run is trained and scored on all its test sets."""
    scored = (is_scored(run, each, workspace) for each in run.held_out)
    return is_trained(run, workspace) and all(scored)


def is_trained(run: StudyRun, workspace: Workspace) -> bool:
    """Whether the model is there, trained by the current plan, and validated."""
    folder, planned = run.folder(workspace), workspace.preprocessed(run.task, run.plan)
    is_there = (folder / FINAL).is_file() and (folder / SUMMARY).is_file()
    return is_there and plan_id(folder.parent) == plan_id(planned) is not None


def is_scored(run: StudyRun, test_set: HeldOut, workspace: Workspace) -> bool:
    """Whether the model has been scored on this test set as the study describes it now."""
    scored = (test_folder(run, test_set, workspace) / SCORES).is_file()
    return scored and is_described(run, test_set, workspace)


def is_described(run: StudyRun, test_set: HeldOut, workspace: Workspace) -> bool:
    """Whether the folder of a test set was written for this plan and description."""
    with suppress(AutosegError):
        found = read_json(test_folder(run, test_set, workspace) / TEST_SET)
        return bool(found == described(run, test_set, workspace))
    return False


def test_folder(run: StudyRun, test_set: HeldOut, workspace: Workspace) -> Path:
    """The folder for predictions and scores of a test set, inside the run's folder."""
    return run.folder(workspace) / HELD_OUT / test_set.name


def described(run: StudyRun, test_set: HeldOut, workspace: Workspace) -> dict[str, Any]:
    """The test set and the id of the model's plan, as they are recorded beside the scores."""
    models = run.folder(workspace).parent
    return {"plan_id": plan_id(models), **test_set.model_dump(mode="json")}


def plan_id(folder: Path) -> str | None:
    """The id of the plan in a folder; None if there is no readable plan."""
    path = folder / PLAN
    with suppress(AutosegError, OSError):
        return _id_of(path, path.stat().st_mtime_ns)
    return None


@lru_cache(maxsize=1000)
def _id_of(path: Path, _modified: int) -> str:
    return load_plan(path).id


@dataclass(frozen=True)
class Record:
    """The latest attempt at a run: `run.json` beside its model.

    Attributes:
        state: `running` may also be left over from a killed process.
        began: start of the latest attempt, as in 2026-01-31T12:00:00+00:00.
        seconds: duration of all attempts together, without those that were killed.
        attempts: their number.
        device: what the run computes on.
        threads: computing threads; None if 0.1.0 wrote the record.
        machine: the computer's name.
        pid: process id there.
        slurm_job: id of the Slurm job.
        error: why the run failed or stopped, in one line.
        log: the file with its output.
        autoseg: the version.
        memory_gb: the largest memory of the process, or of its graphics card; None if unknown.
        energy_kwh: of the machine's processors during all attempts; None if unknown.
    """

    state: AttemptState
    began: str
    seconds: float = 0.0
    attempts: int = 1
    device: str = ""
    threads: int | None = None
    machine: str = ""
    pid: int = 0
    slurm_job: str | None = None
    error: str | None = None
    log: str = ""
    autoseg: str = __version__
    memory_gb: float | None = None
    energy_kwh: float | None = None


def read_record(folder: Path) -> Record | None:
    """The record in a run's folder; None if there is no readable record."""
    with suppress(AutosegError, TypeError):
        return Record(**read_json(folder / RECORD))
    return None


@contextmanager
def recorded(folder: Path, log: str, slurm_job: str | None) -> Iterator[Callable[..., None]]:
    """Record the attempt in the block, and how it ends; yields a function that changes fields."""
    began, started = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    before = read_record(folder) or Record("stopped", began, attempts=0)
    record = Record("running", began, before.seconds, before.attempts + 1, log=log)
    record = replace(record, machine=platform.node(), pid=os.getpid(), slurm_job=slurm_job)

    def update(**changes: Any) -> None:
        nonlocal record
        record = replace(record, **changes)
        write_json(folder / RECORD, asdict(record))

    def end(state: AttemptState, error: str | None = None) -> None:
        seconds = round(before.seconds + time.monotonic() - started, 2)
        update(state=state, error=error, seconds=seconds)

    update()
    try:
        yield update
    except (Stopped, KeyboardInterrupt, InUse) as error:  # in use by autoseg_train
        end("stopped", str(error))
        raise
    except BaseException as error:
        end("failed", f"{type(error).__name__}: {error}")
        raise
    end("done")


class Status(NamedTuple):
    """How far a run is.

    Attributes:
        epochs: finished epochs.
        dice: mean Dice of the validation cases, once they are scored.
        record: the latest attempt, if a study started one.
        job: id of the Slurm job that the run was submitted as.
    """

    run: StudyRun
    state: State
    epochs: int
    dice: float | None
    record: Record | None
    job: str | None = None

    @property
    def note(self) -> str:
        """The reason of a failure, or where the run is."""
        if self.record is None or self.state == "done":
            return "" if self.job is None else f"job {self.job}"
        notes = {"failed": str(self.record.error), "running": f"on {self.record.machine}"}
        note = notes.get(self.state, "continues when the study is started")
        job = None if self.state == "failed" else self.record.slurm_job
        return note if job is None else f"{note}, job {job}"


def status_of(run: StudyRun, workspace: Workspace, jobs: dict[str, str] | None = None) -> Status:
    """How far a run is.

    Args:
        run: the run.
        workspace: where it is.
        jobs: run -> id of the Slurm job that it was submitted as.
    """
    folder = run.folder(workspace)
    record, job, dice = read_record(folder), (jobs or {}).get(str(run)), None
    if is_trained(run, workspace):
        with suppress(AutosegError, KeyError, TypeError):
            dice = read_json(folder / SUMMARY)["foreground_mean"]["Dice"]
    state: State = "waiting" if job is None else "submitted"
    if held_by(run, workspace):
        state = "running"
    elif is_finished(run, workspace):
        state = "done"
    elif record is not None:  # if it says "running" without a lock, the process was killed
        state = "failed" if record.state == "failed" else "stopped"
    return Status(run, state, count_epochs(folder), dice, record, job)


def held_by(run: StudyRun, workspace: Workspace) -> str | None:
    """The living process that works on the run; None if there is none."""
    folder = run.folder(workspace)
    return holder_of(folder / LOCK) or holder_of(folder / FOLD_LOCK)


def table(statuses: Sequence[Status], title: str = "") -> Table:
    """The status of runs as a table for a terminal."""
    made = Table(title=title or None, title_justify="left", box=None)
    for name in ("plan", "fold", "state", "epochs", "time", "Dice"):
        is_text = name in ("plan", "state")
        made.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    made.add_column("", overflow="fold")
    for each in statuses:
        state = Text(each.state, style=COLOURS.get(each.state, ""))
        epochs = str(each.epochs) if each.epochs else ""
        seconds = each.record.seconds if each.record else 0
        dice = "" if each.dice is None else f"{each.dice:.3f}"
        spent = in_words(seconds) if seconds else ""
        run = each.run.plan, str(each.run.fold)
        made.add_row(*run, state, epochs, spent, dice, Text(each.note))
    return made


def in_short(statuses: Sequence[Status]) -> str:
    """The number of runs in each state, in one line."""
    counts = Counter(each.state for each in statuses)
    parts = [f"{counts[state]} {state}" for state in get_args(State) if counts[state]]
    return f"{counted(len(statuses), 'run')}: {', '.join(parts)}" if parts else "no run"
