"""From untrusted values to a checked `Plan`, with errors in the user's words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autoseg.common.errors import PlanError
from autoseg.common.files import read_json
from autoseg.plan.plan import FORMAT_VERSION, Plan
from autoseg.plan.sections import (
    Part,
)

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


# The JSON Schema of a plan file, for editors and for programs in other languages.

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def plan_schema() -> dict[str, Any]:
    """The schema of what `Plan.save` writes. It knows no checks across keys: `make_plan` does."""
    schema = Plan.model_json_schema(mode="validation")
    schema["description"] = schema["description"].partition("\n\n>>>")[0]  # no Python in it
    written = {"type": "string", "description": "counted anew on reading: for people only"}
    schema["properties"] = {"id": written, **schema["properties"]}
    return {"$schema": DIALECT, **schema}


# Two plans of one recipe: they differ only in how long training takes.
#
# A run that was begun by one of them may go on by the other. Everything else that differs makes
# them plans of different models.


def recipe_id(plan: Plan) -> str:
    """An id that is the same for all plans that differ only in how long training takes.

    That is in `training.epochs`, `training.seconds` and `training.early_stopping_epochs`.
    """
    length = {"epochs": 1, "seconds": None, "early_stopping_epochs": None}
    return plan.model_copy(update={"training": plan.training.model_copy(update=length)}).id


def is_extension(one: Plan, other: Plan) -> bool:
    """Whether two different plans differ in nothing but how long training takes."""
    return one.id != other.id and recipe_id(one) == recipe_id(other)


def differing_keys(one: Plan, other: Plan) -> list[str]:
    """Dotted keys, such as `training.epochs`, of the values that decide a result and differ."""
    values = [p.model_dump(mode="json", exclude={"provenance", "measured"}) for p in (one, other)]
    return list(_differing(values[0], values[1], ""))


def _differing(one: Any, other: Any, key: str) -> list[str]:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [key]
    if one.keys() == other.keys() and list(one) != list(other):
        return [key]  # the order of the labels decides the classes' indices
    start = f"{key}." if key else ""
    names = [*one, *(name for name in other if name not in one)]
    return [
        found
        for name in names
        for found in _differing(one.get(name), other.get(name), f"{start}{name}")
    ]


def load_plan(path: Path | str) -> Plan:
    """Read and check a plan file.

    >>> import autoseg
    >>> plan = autoseg.load_plan("preprocessed/Task004_Hippocampus/default/plan.json")
    >>> plan.task, plan.sampling.batch_size
    ('Task004_Hippocampus', 2)

    Raises:
        PlanError: it is not a plan. The id in it is for people only: it is counted anew.
    """
    return plan_of(read_json(Path(path)), str(path))


def plan_of(values: Any, where: str) -> Plan:
    """The same for a plan file's content; `where` is named in messages."""

    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key != "id"}
    return make_plan(values, where)
