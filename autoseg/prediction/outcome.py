"""What became of the cases of a run."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.progress import say
from autoseg.prediction.record import CaseRecord


@dataclass(frozen=True)
class Outcome:
    """What became of every case.

    Attributes:
        predicted: name -> its record.
        skipped: names of cases that were there already, or that another run has predicted.
        refused: name -> what is wrong with the scan.
        failed: name -> what went wrong in spite of a good scan, such as a MemoryError.
    """

    predicted: dict[str, CaseRecord] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Is every case there?"""
        return not (self.refused or self.failed)

    @property
    def is_our_fault(self) -> bool:
        """Is no case there, and not because of the scans alone?"""
        return bool(self.failed) and not (self.predicted or self.skipped)

    def raise_failures(self) -> None:
        """Stop if a case is not there.

        Raises:
            Exception: what went wrong in spite of a good scan.
            DataError: names the first scan that was refused and how many more there are.
        """
        for error in self.failed.values():
            raise error
        if self.refused:
            reason = next(iter(self.refused.values()))
            more = f" (and {len(self.refused) - 1} more)" if len(self.refused) > 1 else ""
            raise DataError(f"{reason}{more}")

    def print_tracebacks(self) -> None:
        """Print where each failure in spite of a good scan came from (standard error)."""
        for error in self.failed.values():
            traceback.print_exception(error)

    def counts(self) -> str:
        """One line that says how many became what."""
        done = f"{len(self.predicted)} predicted, {len(self.skipped)} were there already"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{done}, {len(self.refused)} refused{failed}"

    def missing(self) -> Iterator[tuple[str, str, str]]:
        """What became of it, the case and the reason, of each that is not there."""
        yield from (("refused", name, reason) for name, reason in self.refused.items())
        yield from (("failed", name, in_words(error)) for name, error in self.failed.items())


def in_words(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, MemoryError):
        return "memory ran out; close other programs, or use a machine with more"
    if isinstance(error, AutosegError):
        return str(error)
    return f"{' '.join(str(error).split()) or 'no reason given'} ({type(error).__name__})"


def show(outcome: Outcome) -> None:
    """Tell the user: a table on a terminal, plain lines elsewhere (standard error)."""
    missing = list(outcome.missing())
    if not (missing and sys.stderr.isatty()):
        say(outcome.counts())
        for state, name, reason in missing:
            say(f"{state} {name}: {reason}")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=outcome.counts(), title_justify="left")
    for heading in ("", "case", "reason"):
        table.add_column(heading)
    for row in missing:
        table.add_row(*map(Text, row))  # names of cases may have [brackets]
    Console(stderr=True).print(table)
