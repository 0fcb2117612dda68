"""Hard circumstances for a command: less memory, eager workers, clocks and dates that are wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from autoseg.common import parallel
from tests.forking import spawn_workers

Before = Callable[[], None]
FAR_SECONDS = 70 * 365 * 86400


def with_more_memory(megabytes: int) -> Before:
    """Let the process take that much more address space than it has, and no more."""
    return partial(_limit_memory, megabytes)


def _limit_memory(megabytes: int) -> None:
    import resource  # POSIX alone has it

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    size = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def eager_workers() -> None:
    """Spawn worker processes, as in use, however short the job."""
    spawn_workers()
    parallel.WORKER_START_SECONDS = 0.0


def backward_clock() -> None:
    """Every look at the clock gives an hour less than the one before."""
    now = [time.time()]

    def tick() -> float:
        now[0] -= 3600.0
        return now[0]

    local = time.localtime
    time.time = tick
    time.time_ns = lambda: int(tick() * 1e9)
    time.localtime = lambda seconds=None: local(tick() if seconds is None else seconds)
    own = time.strftime
    time.strftime = lambda form, at=None: own(form, local(tick()) if at is None else at)


def date_from_the_future(folder: Path) -> None:
    """Let every file have been changed in 70 years."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() + FAR_SECONDS,) * 2)
