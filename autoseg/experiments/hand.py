"""A worker process from outside: give it a run, hear how it ended, stop it, start it anew."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from autoseg.experiments.worker import Answer

if TYPE_CHECKING:
    from autoseg.experiments.attempt import Order

ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
COMMAND = (sys.executable, "-m", "autoseg.experiments.worker")


class Event(NamedTuple):
    """A run of this slot has ended."""

    slot: int
    answer: Answer


class Hand:
    """One worker process at a time: a new one after it has died.

    Args:
        slot: its number.
        threads: how many its computing may take.
        events: where to put how its runs ended.
    """

    def __init__(self, slot: int, threads: int, events: queue.SimpleQueue[Event]) -> None:
        self.slot, self.threads, self.events = slot, threads, events
        self.process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()  # of the two below, which the reader changes, too
        self._is_open = False
        self._owes_answer = False

    def give(self, order: Order) -> None:
        """Let the worker do a run; it must be idle. How the run ends will be an event."""
        with self._lock:
            if not self._is_open:
                self._start()
            self._owes_answer = True
        stdin = self.process.stdin if self.process is not None else None
        assert stdin is not None
        with suppress(OSError):  # it has died: its reader tells
            stdin.write(order.model_dump_json() + "\n")
            stdin.flush()

    def stop(self) -> None:
        """Let the worker end: at once if it is idle, else when its run has saved its state."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()

    def wait(self) -> None:
        """Until the worker has ended."""
        if self.process is not None and self._reader is not None:
            self.process.wait()
            self._reader.join()

    def kill(self) -> None:
        """End the worker in the middle of what it does."""
        if self.process is not None:
            self.process.kill()

    def _start(self) -> None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", ITK_THREADS)
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=os.environ | dict.fromkeys(names, str(self.threads)),
            start_new_session=True,  # Ctrl-C is for the queue, which tells each worker once
        )
        self._is_open = True
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        """Hand on the answers; if the worker ends and owes one, say how it ended."""
        assert process.stdout is not None
        for line in process.stdout:
            with self._lock:
                self._owes_answer = False
            self.events.put(Event(self.slot, Answer.of(line)))
        status = process.wait()
        with self._lock:
            self._is_open = False
            owed, self._owes_answer = self._owes_answer, False
        if owed:
            self.events.put(Event(self.slot, Answer("failed", how_it_ended(status))))


def how_it_ended(status: int) -> str:
    """The exit status of a process that ended without an answer, in words."""
    if status >= 0:
        return f"its process ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ", most often because memory ran out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"
