"""Problems of a data set, found before training."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from autoseg.common.errors import DataError
from autoseg.common.files import printable, read_json, texts_in, write_json
from autoseg.common.progress import counted

MOST_NAMED = 10
KINDS: dict[str, Any] = read_json(Path(__file__).with_name("problems.json"))  # -> severity, text
TEXT = texts_in(Path(__file__).with_name("messages.json"))


@dataclass(frozen=True)
class Problem:
    """An error or a warning about a data set.

    Attributes:
        case: name of the case, or "" for the data set as a whole.
        file: path of the file, relative to the task folder if it lies inside, or "".
        kind: short identifier, the same for problems of the same kind.
        severity: an error stops planning; a warning is for the user to judge.
        message: one line with what was found and what to do.
    """

    case: str
    file: str
    kind: str
    severity: Literal["error", "warning"]
    message: str

    @staticmethod
    def of(kind: str, case: str = "", file: str = "", **found: Any) -> "Problem":
        """A problem of `problems.json`; what follows a comma in the kind selects the message."""
        severity, text = KINDS[kind]
        message = text.format(file=file, **found)
        return Problem(case, file, kind.partition(",")[0], severity, message)


def errors_in(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems that are errors; the others are warnings."""
    return [problem for problem in problems if problem.severity == "error"]


def raise_errors(
    problems: Iterable[Problem], task: str, advice: str = "", listed: bool = False
) -> None:
    """Raise an exception if there are errors.

    Args:
        problems: errors and warnings.
        task: name of the task.
        advice: what to do about the errors; ends the message.
        listed: several errors are printed already.

    Raises:
        DataError: one line with the number of errors and the first of them.
    """
    messages = [f"{p.case}: {p.message}" if p.case else p.message for p in errors_in(problems)]
    if not messages:
        return
    shown = messages[:MOST_NAMED]
    if listed and len(messages) > 1:
        shown = ["listed above and in verification.json"]
    elif len(messages) > MOST_NAMED:
        shown.append(f"and {len(messages) - MOST_NAMED} more")
    if advice:
        shown.append(advice)
    raise DataError(f"task {task} has {counted(len(messages), 'error')}: {'; '.join(shown)}")


def errors_by_case(problems: Iterable[Problem]) -> dict[str, tuple[Problem, ...]]:
    """Return the errors of each case that has any, sorted by case name.

    Errors of the data set as a whole are under "": skipping cases does not solve them.
    """
    found: dict[str, list[Problem]] = {}
    for problem in errors_in(problems):
        found.setdefault(problem.case, []).append(problem)
    return {case: tuple(found[case]) for case in sorted(found)}


def join_names(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Join the first names and append the number of remaining ones."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def shown_path(path: Path, folder: Path) -> str:
    """Return `path` relative to the task folder if it lies inside."""
    inside = path.is_relative_to(folder)
    return printable(path.relative_to(folder).as_posix() if inside else str(path))


def problems_table(problems: Sequence[Problem]) -> str:
    """Format problems as lines of aligned text: severity, cases, kind, message."""
    cases: dict[tuple[str, str, str], dict[str, None]] = {}
    for p in problems:
        cases.setdefault((p.severity, p.kind, p.message), {})[p.case or "(all)"] = None
    rows = [(key[0], join_names([*names], 3), *key[1:]) for key, names in cases.items()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = ([*(row[i].ljust(widths[i]) for i in range(3)), row[3]] for row in rows)
    return "\n".join(map("  ".join, lines))


def write_verification(path: Path, problems: Iterable[Problem]) -> None:
    """Write problems as JSON: `{"errors": [...], "warnings": [...]}`."""
    content: dict[str, list[dict[str, str]]] = {"errors": [], "warnings": []}
    for problem in problems:
        content[f"{problem.severity}s"].append(asdict(problem))
    write_json(path, content)
