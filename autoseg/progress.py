"""Progress: a bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Print one line for the user at once (standard error, so that results can be piped)."""
    print(text, file=sys.stderr, flush=True)


def in_words(seconds: float) -> str:
    """Seconds as a person writes them: `8 s`, `2 min 05 s`, `3 h 10 min`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress(Protocol):
    """Counts steps of one named job."""

    def advance(self, note: str = "", total: int | None = None) -> None:
        """One step is done; `note` is shown beside it, `total` corrects the number of steps."""
        ...


class _Lines:
    def __init__(self, job: str, total: int, done: int, every_seconds: float) -> None:
        self.job, self.total, self.done, self.first = job, total, done, done
        self.every_seconds = every_seconds
        self.started = self.last_line = time.monotonic()

    def advance(self, note: str = "", total: int | None = None) -> None:
        self.done += 1
        self.total = total or self.total
        now = time.monotonic()
        if self.done < self.total and now - self.last_line < self.every_seconds:
            return
        self.last_line = now
        left = (now - self.started) / (self.done - self.first) * (self.total - self.done)
        left_text = f"  {in_words(left)} left" if self.done < self.total else ""
        say(f"{self.job}: {self.done}/{self.total}{'  ' + note if note else ''}{left_text}")


@contextmanager
def progress(
    job: str, total: int, done: int = 0, every_seconds: float = SECONDS_BETWEEN_LINES
) -> Iterator[Progress]:
    """Show the progress of `job` through `total` steps, of which `done` are there already.

    Without a terminal a line is written at most every `every_seconds`.
    """
    if not sys.stderr.isatty() or total == 0:
        yield _Lines(job, total, done, every_seconds)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),  # names of cases may have [brackets]
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(job, total=total, completed=done, note="")

        class _Bar:
            def advance(self, note: str = "", total: int | None = None) -> None:
                bar.update(task, advance=1, note=note, total=total)

        yield _Bar()
