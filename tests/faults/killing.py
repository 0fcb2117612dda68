"""Commands in processes of their own that can be killed at any moment, without slow imports."""

from __future__ import annotations

import importlib
import io
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.forking import begin

KILLED = -9


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, and what it said on standard error."""

    status: int
    said: str

    @property
    def error(self) -> str:
        """Its one line of what went wrong; no more than that may be said of it."""
        lines = [line for line in self.said.splitlines() if line.startswith("error: ")]
        assert self.status in (1, 2), self
        assert "Traceback" not in self.said, self.said
        assert len(lines) == 1, self
        assert self.said.splitlines()[-1] == lines[0], self.said
        return lines[0]


def _run(command: str, words: Sequence[str], before: Callable[[], None] | None) -> tuple[int, str]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        if before is not None:
            before()
        status = importlib.import_module(f"autoseg.cli.{command}").main(list(words))
    return status, said.getvalue()


def attempt(
    command: str,
    words: Sequence[str],
    before: Callable[[], None] | None = None,
    meanwhile: Callable[[BaseProcess], None] | None = None,
) -> Ended:
    """One of autoseg's commands, as a fork of a process that has imported everything.

    Args:
        command: its name.
        words: what follows it.
        before: what the process does first, such as limiting itself; picklable.
        meanwhile: what to do here while it runs.
    """
    process, told = begin(_run, command, words, before)
    if meanwhile is not None:
        meanwhile(process)
    try:
        status, said = told.recv()
    except EOFError:  # it was killed
        status, said = None, ""
    process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode if status is None else status, said)


def finish(command: str, words: Sequence[str], before: Callable[[], None] | None = None) -> float:
    """Run a command to its end; returns its seconds."""
    begun = time.monotonic()
    ended = attempt(command, words, before)
    assert ended.status == 0, (command, words, ended)
    return time.monotonic() - begun


def kill_after(seconds: float, command: str, words: Sequence[str]) -> bool:
    """Kill a command that long after its start; returns whether it was still at work."""

    def kill(process: BaseProcess) -> None:
        process.join(seconds)
        process.kill()

    return attempt(command, words, meanwhile=kill).status == KILLED


def visible(folder: Path) -> dict[str, Path]:
    """The files that a person sees, by their path in the folder; what begins with a dot is not."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    parts = {name: Path(name).parts for name in found}
    return {n: p for n, p in sorted(found.items()) if not any(x.startswith(".") for x in parts[n])}
