"""autoseg's commands in this process: what they say, and how they end."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

LONGEST_LINE = 5000  # of an error: a path, what is wrong, what to do


@dataclass(frozen=True)
class Told:
    """How a command ended, and what it wrote to standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line in which it says why it stopped."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


def tell(command: str, *words: str | Path) -> Told:
    """Run a command; it may never show a traceback, nor a type of exception instead of words."""
    module = importlib.import_module(f"autoseg.cli.{command}")
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = module.main([str(word) for word in words])
    told = Told(status, out.getvalue(), err.getvalue())
    assert "Traceback" not in told.err, told.err
    assert "--debug" not in told.err, told.err  # the advice with an error that nobody foresaw
    return told


def refusal(command: str, *words: str | Path) -> str:
    """The one line with which a command refuses its input."""
    told = tell(command, *words)
    assert told.status == 2, told
    assert len(told.error) <= LONGEST_LINE, told.error
    return told.error


def everything_in(folder: Path, but: Sequence[Path] = ()) -> dict[Path, tuple[int, int]]:
    """Size and time of all files in a folder but those in other folders."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(path.is_relative_to(other) for other in but)
    }
