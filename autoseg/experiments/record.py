"""What became of a run: `run.json` beside its model, for whoever asks from whatever process."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from autoseg import __version__
from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, write_json

FILE_NAME = "run.json"
State = Literal["running", "done", "failed", "stopped"]


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

    state: State
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

    def end(self, state: State, error: str | None = None) -> None:
        """Write how the attempt ended."""
        seconds = round(self.seconds + time.monotonic() - self.started, 2)
        self.record = replace(self.record, state=state, error=error, seconds=seconds)
        self._write()

    def _write(self) -> None:
        write_json(self.folder / FILE_NAME, asdict(self.record))
