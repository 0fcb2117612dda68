"""What is wrong with a data set, found before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autoseg.common.errors import DataError
from autoseg.common.files import write_json
from autoseg.common.progress import counted

if TYPE_CHECKING:
    pass


MOST_NAMED = 10


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong or odd.

    Attributes:
        case: the case's name, or "" where the whole set is meant.
        file: the file, relative to the task's folder where it lies in there, or "".
        kind: a few words that are the same for the same kind of problem.
        severity: an error stops planning; a warning is for the user to judge.
        message: one line saying what was found and what to do.
    """

    case: str
    file: str
    kind: str
    severity: Literal["error", "warning"]
    message: str


@dataclass(frozen=True)
class Verification:
    """All problems of a data set, by severity."""

    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]

    @staticmethod
    def of(problems: Iterable[Problem]) -> Verification:
        """Sort the problems by severity, otherwise keeping their order."""
        found = tuple(problems)
        return Verification(
            errors=tuple(problem for problem in found if problem.severity == "error"),
            warnings=tuple(problem for problem in found if problem.severity == "warning"),
        )

    def raise_errors(self, task: str, advice: str = "") -> None:
        """Stop if there are errors.

        Args:
            task: whose errors they are.
            advice: what to do about them, after the last one.

        Raises:
            DataError: one line with the number of errors and the first ten of them.
        """
        if not self.errors:
            return
        told = [f"{p.case}: {p.message}" if p.case else p.message for p in self.errors]
        more = len(told) - MOST_NAMED
        rest = f"; and {more} more" if more > 0 else ""
        end = f"; {advice}" if advice else ""
        first = "; ".join(told[:MOST_NAMED])
        raise DataError(f"task {task} has {counted(len(told), 'error')}: {first}{rest}{end}")


def errors_by_case(problems: Iterable[Problem]) -> dict[str, tuple[Problem, ...]]:
    """The cases that cannot be used, sorted by name, each with its errors.

    Errors that belong to no case are under "": nothing is mended by leaving cases out.
    """
    found: dict[str, list[Problem]] = {}
    for problem in Verification.of(problems).errors:
        found.setdefault(problem.case, []).append(problem)
    return {case: tuple(found[case]) for case in sorted(found)}


def some(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """The first of the names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def shown(path: Path, folder: Path) -> str:
    """A path as problems show it: relative to the task's folder where it lies in there."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def problems_table(problems: Sequence[Problem]) -> str:
    """The problems as lines of aligned text: severity, case, kind, message."""
    rows = [(p.severity, p.case or "(all)", p.kind, p.message) for p in problems]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return "\n".join(
        "  ".join([*(row[i].ljust(widths[i]) for i in range(3)), row[3]]) for row in rows
    )


def write_verification(path: Path, problems: Iterable[Problem]) -> None:
    """Write the problems as JSON: `{"errors": [...], "warnings": [...]}`."""
    write_json(path, asdict(Verification.of(problems)))
