"""Progress bars and log lines, and numbers, times and lists as text."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar

SECONDS_BETWEEN_LINES = 10.0
LONGEST_SILENCE_SECONDS = 80.0  # within a long step
FEW_SECONDS = 10.0
BEST = "best"  # ends the note of the best step so far, as `training.monitor` writes it
MOST_MEANT = 3  # names that a message suggests
PATIENCE_SECONDS = 60.0  # before the user reads that something is waited for; doubles each time

Found = TypeVar("Found")

COPIES: dict[str, str] = {}  # temporary folder -> the zip file that was unpacked to it


def shown(text: str) -> str:
    """A text with the zip file in place of the temporary folder with its content."""
    for folder, path in COPIES.items():
        text = text.replace(folder, path)
    return text


def say(text: str) -> None:
    """Print one line to standard error, if there is one, so that results can be piped."""
    with suppress(OSError, ValueError):  # a full disk, a closed terminal
        if sys.stderr is not None:
            print(shown(text), file=sys.stderr, flush=True)


class _Lenient(io.FileIO):
    """A file that loses what cannot be written, as the log of a run must not end the run."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def tolerate_output() -> None:
    """Let standard output and error lose what they cannot write, instead of raising errors.

    They may be missing or closed, or a full disk, or a terminal that is gone. Characters that they
    cannot show are replaced. Streams that a caller has put in their place stay as they are.
    """
    for number in range(3):  # also for worker processes, which inherit them
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would be written to as the terminal
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets this number
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        raw = _Lenient(os.devnull if stream is None else number, "w", closefd=stream is None)
        how: Any = {"errors": "replace", "line_buffering": True}
        how["encoding"] = "utf-8" if stream is None else stream.encoding
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), **how))


def on_terminal() -> bool:
    """Whether standard error is a terminal that can redraw lines."""
    with suppress(AttributeError, ValueError):  # there is none, or it is closed
        return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return False


def in_notebook() -> bool:
    """Whether a notebook shows the output, with the widgets that redraw it."""
    kernel = type(getattr(sys.modules.get("IPython"), "get_ipython", object)()).__name__
    return kernel == "ZMQInteractiveShell" and find_spec("ipywidgets") is not None


def waited(wait: Callable[[float], Found], what: str) -> Found:
    """Call `wait(seconds)` until it returns something true; say what for if that takes long."""
    seconds = PATIENCE_SECONDS
    while not (found := wait(seconds)):
        say(f"still waiting for {what}")
        seconds *= 2
    return found


_NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)


@cache
def _say_once(text: str) -> None:
    say(text)


def note(text: str) -> None:
    """Tell what was guessed or changed: printed once, or collected by `noted`."""
    text, notes = shown(text), _NOTES.get()
    if notes is None:
        _say_once(f"warning: {text}")
    elif text not in notes:
        notes.append(text)


@contextmanager
def noted(spoken: list[str] | None = None) -> Iterator[list[str]]:
    """Collect the notes of a block of this thread, to record them with its result.

    Args:
        spoken: a list to add them to, after they are printed.
    """
    notes: list[str] = []
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
        if spoken is not None:
            for text in (each for each in notes if each not in spoken):
                _say_once(f"warning: {text}")
                spoken.append(text)


def in_words(seconds: float) -> str:
    """A duration as text: `8 s`, `2 min 05 s`, `3 h 10 min`, `4 days 3 h`."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"


def in_fine_words(seconds: float) -> str:
    """A duration as text, with two digits for short ones such as that of a step: `0.35 s`."""
    return f"{seconds:.2g} s" if seconds < FEW_SECONDS else in_words(seconds)


class Progress(Protocol):
    """Counts the steps of a job."""

    def advance(self, note: str = "", total: int | None = None) -> None:
        """Report a finished step with a note; `total` corrects the number of steps."""

    def tell(self, note: str) -> None:
        """Show a note within a long step if nothing was shown for a while."""


class _Steps:
    """Counts steps, and estimates the time left from the latest half of them."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self.times = [time.monotonic()]

    def count(self, total: int | None) -> None:
        self.done += 1
        self.total = total or self.total
        self.times.append(time.monotonic())

    def seconds_left(self) -> float:
        seen = len(self.times) - 1
        first = seen // 2  # the first half, with the start-up, does not count
        step = (self.times[-1] - self.times[first]) / (seen - first)
        return step * (self.total - self.done)


class _Lines(_Steps):
    def __init__(self, job: str, total: int, done: int, every_seconds: float) -> None:
        super().__init__(total, done)
        self.job, self.every_seconds = job, every_seconds
        self.last_line = time.monotonic()
        self.patience = SECONDS_BETWEEN_LINES  # between notes of a long step; doubles each time

    def tell(self, note: str) -> None:
        now = time.monotonic()
        if now - self.last_line < self.patience:
            return
        self.last_line = now
        self.patience = min(2 * self.patience, LONGEST_SILENCE_SECONDS)
        say(f"{self.job}: {note}")

    def advance(self, note: str = "", total: int | None = None) -> None:
        self.count(total)
        now, is_last = time.monotonic(), self.done >= self.total
        if not is_last and now - self.last_line < self.every_seconds:
            return
        self.last_line = now
        left = "" if is_last else f"  {in_words(self.seconds_left())} left"
        say(f"{self.job}: {self.done}/{self.total}{'  ' + note if note else ''}{left}")


@contextmanager
def progress(
    job: str, total: int, done: int = 0, every_seconds: float = SECONDS_BETWEEN_LINES
) -> Iterator[Progress]:
    """Show the progress of a job: a bar on a terminal and in a notebook, log lines elsewhere.

    Args:
        job: its name.
        total: number of steps.
        done: number of steps that were finished before.
        every_seconds: least time between two log lines; with 0, each step also keeps a line above
            the bar.
    """
    if total == 0 or not (on_terminal() or in_notebook()):
        yield _Lines(job, total, done, every_seconds)
        return
    with _bar(job, total, done, keeps=every_seconds == 0) as bar:
        yield bar


@contextmanager
def _bar(job: str, total: int, done: int, keeps: bool) -> Iterator[Progress]:
    # Imported here: commands without a terminal need no rich, which takes a while to import.
    from rich import console, live, progress, text

    class TimeLeft(progress.ProgressColumn):
        """The time left; rich's own column ignores steps of more than 30 seconds."""

        def render(self, task: progress.Task) -> text.Text:
            end = task.fields["end"]
            if end is None or task.finished:
                return text.Text()
            return text.Text(f"{in_words(end - time.monotonic())} left")

    name = progress.TextColumn("{task.description}", markup=False)
    shape, counts = progress.BarColumn(bar_width=20), progress.MofNCompleteColumn()
    bar = progress.Progress(name, shape, counts, TimeLeft())

    def with_note(note: str) -> console.Group:
        # Text, not a string: case names may contain [brackets].
        return console.Group(bar, text.Text(note))

    task = bar.add_task(job, total=total, completed=done, end=None)
    screen = console.Console(stderr=True, highlight=False)
    with live.Live(bar, console=screen, refresh_per_second=2) as shown:

        class Bar(_Steps):
            def advance(self, note: str = "", total: int | None = None) -> None:
                self.count(total)
                end = time.monotonic() + self.seconds_left()
                bar.update(task, completed=self.done, total=self.total, end=end)
                if keeps:
                    style = "bold" if note.endswith(BEST) else ""
                    screen.print(text.Text(f"{self.done}/{self.total}  {note}", style))
                    note = ""
                shown.update(with_note(note) if note else bar, refresh=True)

            def tell(self, note: str) -> None:
                shown.update(with_note(note))

        yield Bar(total, done)


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "case"), counted(0, "case"), counted(2, "epoch"), counted(2, "patch")
    ('1 case', '0 cases', '2 epochs', '2 patches')
    """
    return f"{number} {noun if number == 1 else _plural(noun)}"


def listed(noun: str, names: Iterable[object]) -> str:
    """Names with their noun.

    >>> listed("fold", [2]), listed("fold", [2, 3, 4])
    ('fold 2', 'folds 2, 3, 4')
    """
    texts = [str(name) for name in names]
    return f"{noun if len(texts) == 1 else _plural(noun)} {', '.join(texts)}"


def nearest(given: str, names: Iterable[str]) -> str:
    """The end of a message on an unknown name: the known ones that may be meant, if any.

    The part of a task's name behind its number counts as well.

    >>> nearest("COVID", ["Task001_COVID", "Task002_Heart"]), nearest("zebra", ["plan", "train"])
    ('; did you mean Task001_COVID?', '')
    """
    keys = {key.casefold(): name for name in names for key in (name, name.partition("_")[2]) if key}
    text = given.casefold()
    parts = [key for key in keys if len(text) > 1 and text in key]
    close = parts or get_close_matches(text, keys, n=1)
    found = list(dict.fromkeys(keys[key] for key in close))[:MOST_MEANT]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def by_axis(values: Iterable[object], form: str = "") -> str:
    """One value for each axis, such as a shape or a spacing.

    >>> by_axis((160, 160, 80)), by_axis((1.58, 1.58, 2.7), ".3g")
    ('160 x 160 x 80', '1.58 x 1.58 x 2.7')
    """
    return " x ".join(format(value, form) for value in values)


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x", "sh", "tch")) else "s")
