"""From untrusted values to a checked `Plan`, with errors in the user's words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from autoseg.common.errors import PlanError
from autoseg.planning.part import Part
from autoseg.planning.plan import FORMAT_VERSION, Plan

LISTS_OF_KINDS = (("preprocessing",), ("augmentation",))
KINDS = (("training", "loss"), ("training", "optimizer"), ("training", "schedule"))


def make_plan(values: Any, where: str) -> Plan:
    """Check `values` and make the plan.

    Args:
        values: what a plan file holds, as plain JSON values.
        where: what to call it in an error, for example the file.

    Raises:
        PlanError: the first thing that is wrong, with its key, what was found and what is allowed.
    """
    if not isinstance(values, dict):
        raise PlanError(f"{where} is not a plan: it holds {type(values).__name__}, not an object")
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise PlanError(
            f"{where} has plan format {version}; this autoseg reads format {FORMAT_VERSION}: "
            "plan the task again"
        )
    try:
        return Plan.model_validate_json(json.dumps(values), strict=True)
    except RecursionError:
        raise PlanError(f"{where} is nested too deeply to be a plan") from None
    except ValidationError as error:
        raise PlanError(f"{where}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """The first problem of a plan, in the user's words."""
    place = ".".join(map(str, _without_kind(error.errors()[0]["loc"]))) or "the plan"
    return in_words(error, place, _all_keys())


def in_words(error: ValidationError, key: str, keys: Sequence[str]) -> str:
    """The first problem, which is at `key`, and how many more there are.

    Args:
        error: of pydantic.
        key: the dotted name of what is wrong.
        keys: all that a user may have meant by an unknown one.
    """
    problems = error.errors(include_url=False)
    first = problems[0]
    if first["type"] == "extra_forbidden":
        text = f"unknown key {key!r}{_nearest(key, keys)}"
    elif first["type"] == "missing":
        text = f"{key} is missing"
    elif first["type"] == "value_error":
        text = f"{key}: {first['ctx']['error']}" if first["loc"] else str(first["ctx"]["error"])
    else:
        found = repr(first["input"])
        found = found if len(found) < 60 else f"{found[:57]}..."
        text = f"{key} is {found}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return text + more


def _without_kind(path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Pydantic puts the kind of a step into the path, third; the user did not write it there."""
    return path[:2] + path[3:] if path[:1] in LISTS_OF_KINDS or path[:2] in KINDS else path


def _nearest(key: str, keys: Sequence[str]) -> str:
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], keys, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _parts() -> list[type[Part]]:
    """Every kind of part, however deep below `Part`."""
    found, waiting = [], [Part]
    while waiting:
        kinds = waiting.pop().__subclasses__()
        found += kinds
        waiting += kinds
    return found


def _all_keys() -> list[str]:
    return sorted({key for part in _parts() for key in part.model_fields})
