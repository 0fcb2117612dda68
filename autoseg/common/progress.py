"""Progress: a bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 10.0
FEW_SECONDS = 10.0
MOST_SECONDS = 80.0  # without a line inside of a long step


def say(text: str) -> None:
    """Print one line for the user at once (standard error, so that results can be piped)."""
    print(text, file=sys.stderr, flush=True)


def in_words(seconds: float) -> str:
    """Seconds as a person writes them: `8 s`, `2 min 05 s`, `3 h 10 min`, `4 days 3 h`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"


def in_fine_words(seconds: float) -> str:
    """The same with two digits of short times, such as that of a step: `0.35 s`."""
    return f"{seconds:.2g} s" if seconds < FEW_SECONDS else in_words(seconds)


class Progress(Protocol):
    """Counts steps of one named job."""

    def advance(self, note: str = "", total: int | None = None) -> None:
        """One step is done; `note` is shown beside it, `total` corrects the number of steps."""
        ...

    def tell(self, note: str) -> None:
        """A sign of life amid a long step; shown where nothing else was for a while."""
        ...


class _Steps:
    """Which step a job is at, and how long the others will take at the pace of its latest half."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self.times = [time.monotonic()]

    def advance(self, total: int | None) -> None:
        self.done += 1
        self.total = total or self.total
        self.times.append(time.monotonic())

    def seconds_left(self) -> float:
        seen = len(self.times) - 1
        first = seen // 2  # what was slow at the beginning, such as starting up, is forgotten
        step = (self.times[-1] - self.times[first]) / (seen - first)
        return step * (self.total - self.done)


class _Lines:
    def __init__(self, job: str, total: int, done: int, every_seconds: float) -> None:
        self.job, self.every_seconds = job, every_seconds
        self.steps = _Steps(total, done)
        self.last_line = time.monotonic()
        self.patience = SECONDS_BETWEEN_LINES  # for signs of life, which become rarer

    def tell(self, note: str) -> None:
        now = time.monotonic()
        if now - self.last_line < self.patience:
            return
        self.last_line = now
        self.patience = min(2 * self.patience, MOST_SECONDS)
        say(f"{self.job}: {note}")

    def advance(self, note: str = "", total: int | None = None) -> None:
        self.steps.advance(total)
        done, total = self.steps.done, self.steps.total
        now = time.monotonic()
        if done < total and now - self.last_line < self.every_seconds:
            return
        self.last_line = now
        left = f"  {in_words(self.steps.seconds_left())} left" if done < total else ""
        say(f"{self.job}: {done}/{total}{'  ' + note if note else ''}{left}")


@contextmanager
def progress(
    job: str, total: int, done: int = 0, every_seconds: float = SECONDS_BETWEEN_LINES
) -> Iterator[Progress]:
    """Show the progress of `job` through `total` steps, of which `done` are there already.

    Without a terminal a line is written at most every `every_seconds`. On a terminal the latest
    note stands below the bar, where a long one takes no room from it.
    """
    if not sys.stderr.isatty() or total == 0:
        yield _Lines(job, total, done, every_seconds)
        return
    with _bar(job, total, done) as bar:
        yield bar


@contextmanager
def _bar(job: str, total: int, done: int) -> Iterator[Progress]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        """Counts down to the end; rich's own column forgets steps of more than 30 seconds."""

        def render(self, task: Task) -> Text:
            end = task.fields["end"]
            if end is None or task.finished:
                return Text()
            return Text(f"{in_words(end - time.monotonic())} left")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeLeft(),
    )
    steps = _Steps(total, done)
    bar = RichProgress(*columns)
    task = bar.add_task(job, total=total, completed=done, end=None)
    with Live(bar, console=Console(stderr=True), refresh_per_second=2) as live:

        class Bar:
            def advance(self, note: str = "", total: int | None = None) -> None:
                steps.advance(total)
                end = time.monotonic() + steps.seconds_left()
                bar.update(task, completed=steps.done, total=steps.total, end=end)
                # Text, not a string: names of cases may have [brackets].
                live.update(Group(bar, Text(note)) if note else bar, refresh=True)

            def tell(self, note: str) -> None:
                live.update(Group(bar, Text(note)))

        yield Bar()


# Numbers and names with their noun: `1 case`, `2 cases`, `folds 2, 3`.

HISSING = ("s", "x", "sh", "tch")


def counted(number: int, noun: str) -> str:
    """How many of a thing there are.

    >>> counted(1, "case"), counted(0, "case"), counted(2, "epoch"), counted(2, "patch")
    ('1 case', '0 cases', '2 epochs', '2 patches')
    """
    return f"{number} {noun if number == 1 else _plural(noun)}"


def listed(noun: str, names: Iterable[object]) -> str:
    """Which ones there are.

    >>> listed("fold", [2]), listed("fold", [2, 3, 4])
    ('fold 2', 'folds 2, 3, 4')
    """
    texts = [str(name) for name in names]
    return f"{noun if len(texts) == 1 else _plural(noun)} {', '.join(texts)}"


def by_axis(values: Iterable[object], form: str = "") -> str:
    """One value for each axis.

    >>> by_axis((160, 160, 80)), by_axis((1.58, 1.58, 2.7), ".3g")
    ('160 x 160 x 80', '1.58 x 1.58 x 2.7')
    """
    return " x ".join(format(value, form) for value in values)


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(HISSING) else "s")
