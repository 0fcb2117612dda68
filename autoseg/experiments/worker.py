"""A process that does one run after the other, as another process tells it.

    python -m autoseg.experiments.worker

Orders come as lines of JSON on standard input, answers go as lines of JSON to standard output; what
a run prints goes to its log file. So importing torch is paid once, and what a run does to its
process, such as being killed for its memory, stays in this one. When the other process ends, by
whatever means, the run saves its state and this process ends, too.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, TextIO

from autoseg.common.errors import AutosegError, InUse, Stopped

if TYPE_CHECKING:  # imported late: the processes that a run spawns import this module, too
    from autoseg.experiments.attempt import Order

Ended = Literal["done", "failed", "stopped", "elsewhere"]
STOPPED_STATUS = 128 + signal.SIGTERM


@dataclass(frozen=True)
class Answer:
    """How a run ended, and why; `elsewhere` means that another process works on it."""

    state: Ended
    text: str = ""

    def to_line(self) -> str:
        """As it is sent."""
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def of(line: str) -> Answer:
        """Read what was sent."""
        return Answer(**json.loads(line))


def main() -> int:
    """Do what comes in until nothing more comes; returns the exit status."""
    import multiprocessing

    multiprocessing.set_start_method("spawn", force=True)
    _take_signals()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing else may print among the answers
    try:
        for order in _orders(sys.stdin):
            answers.write(_do(order).to_line())
            answers.flush()
    except (Stopped, BrokenPipeError):
        return STOPPED_STATUS
    return 0


def _take_signals() -> None:
    """Ctrl-C and what a cluster sends are for the other process to judge."""
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    _stop_at_sigterm()


def _stop_at_sigterm() -> None:
    """The first SIGTERM from now on stops in order; more of them must not disturb that."""

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped("stopped by SIGTERM; what was finished is kept", number)

    signal.signal(signal.SIGTERM, stop)


def _orders(lines: TextIO) -> Iterator[Order]:
    """The orders as they come; when no more can come, SIGTERM ends what this process does."""
    from autoseg.experiments.attempt import Order

    inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    busy = threading.Event()

    def receive() -> None:
        for line in lines:
            inbox.put(line)
        inbox.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=receive, daemon=True).start()
    while (line := inbox.get()) is not None:
        busy.set()
        yield Order.model_validate_json(line)
        busy.clear()


def _do(order: Order) -> Answer:
    from autoseg.experiments.attempt import attempt

    _stop_at_sigterm()
    with _printing_to(Path(order.log)):
        print(f"---- {order.run}, {datetime.now():%Y-%m-%d %H:%M:%S}", file=sys.stderr)
        try:
            attempt(order)
        except InUse as error:
            return Answer("elsewhere", str(error))
        except Stopped as error:
            print(f"stopped: {error}", file=sys.stderr)
            return Answer("stopped", str(error))
        except Exception as error:
            if isinstance(error, AutosegError):
                print(f"error: {error}", file=sys.stderr)
            else:
                traceback.print_exc()
            return Answer("failed", str(error) or type(error).__name__)
    return Answer("done")


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """Whatever this process and its children print in the block goes to the log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(2)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(before, 1)
            os.dup2(before, 2)
            os.close(before)


if __name__ == "__main__":
    raise SystemExit(main())
