"""Read a plan from JSON, describe its first error, and compare plans."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autoseg.common.errors import PlanError
from autoseg.common.files import read_json
from autoseg.plan.plan import FORMAT_VERSION, Plan
from autoseg.plan.sections import FIELDS

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
LISTS_OF_KINDS = (("preprocessing",), ("augmentation",))
KINDS = (("training", "loss"), ("training", "optimizer"), ("training", "schedule"))


def load_plan(path: Path | str) -> Plan:
    """Read and validate a plan file.

    >>> import autoseg
    >>> plan = autoseg.load_plan("preprocessed/Task004_Hippocampus/default/plan.json")
    >>> plan.task, plan.sampling.batch_size
    ('Task004_Hippocampus', 2)

    Raises:
        PlanError: the file is not a valid plan. The id in the file is ignored and recomputed.
    """
    return parse_plan(read_json(Path(path)), str(path))


def parse_plan(values: Any, where: str) -> Plan:
    """Like `load_plan`, for the content of a plan file; `where` is named in errors."""
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key != "id"}
    return make_plan(values, where)


def make_plan(values: Any, where: str) -> Plan:
    """Validate `values` and make the plan.

    Args:
        values: the content of a plan file without its id, as plain JSON values.
        where: the source of the values, named in errors, for example the file.

    Raises:
        PlanError: the first error, with its key, the value found, and the valid values.
    """
    if not isinstance(values, dict):
        raise PlanError(f"{where} is not a plan: it holds {type(values).__name__}, not an object")
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise PlanError(f"{where} has format {version}, not {FORMAT_VERSION}; plan the task again")
    try:
        return Plan.model_validate_json(json.dumps(values), strict=True)
    except RecursionError:
        raise PlanError(f"{where} is nested too deeply to be a plan") from None
    except ValidationError as error:
        key = ".".join(map(str, _without_kind(error.errors()[0]["loc"]))) or "the plan"
        raise PlanError(f"{where}: {describe_error(error, key, _all_keys())}") from None


def describe_error(error: ValidationError, key: str, keys: Sequence[str]) -> str:
    """Describe the first error in one line, and count the others.

    Args:
        error: raised by pydantic.
        key: the dotted key of the first error.
        keys: the known keys, one of which is suggested for an unknown key.
    """
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key.rsplit(".", 1)[-1], keys, n=1)
        text = f"unknown key {key!r}" + "".join(f"; did you mean {name!r}?" for name in close)
    elif first["type"] == "missing":
        text = f"{key} is missing"
    elif first["type"] == "value_error":
        text = f"{key}: {first['ctx']['error']}" if first["loc"] else str(first["ctx"]["error"])
    else:
        found = repr(first["input"])
        found = found if len(found) < 60 else f"{found[:57]}..."
        text = f"{key} is {found}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return text + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _without_kind(path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Remove the kind of a step, loss, ..., which pydantic inserts as the third entry."""
    return path[:2] + path[3:] if path[:1] in LISTS_OF_KINDS or path[:2] in KINDS else path


@cache
def _all_keys() -> list[str]:
    """The keys of all sections."""
    schema = Plan.model_json_schema()
    return sorted(
        {key for part in (schema, *schema["$defs"].values()) for key in part["properties"]}
    )


def plan_schema() -> dict[str, Any]:
    """The JSON Schema of a plan file, for editors and programs in other languages.

    It does not cover checks across keys; `make_plan` does.
    """
    schema = Plan.model_json_schema()
    for name, fields in FIELDS.items():
        properties = (schema if name == "Plan" else schema["$defs"][name])["properties"]
        for key, words in fields.items():
            properties[key] = dict(sorted((properties[key] | words).items()))
    schema["description"] = schema["description"].partition("\n\n>>>")[0]  # without the doctest
    id_schema = {"type": "string", "description": "informative; recomputed when a plan is read"}
    schema["properties"] = {"id": id_schema, **schema["properties"]}
    return {"$schema": SCHEMA_DIALECT, **schema}


# A training run may be continued with a plan that differs only in the length of the training.
# Any other difference makes it the plan of another model.


def recipe_id(plan: Plan) -> str:
    """An id shared by all plans that differ only in the length of the training.

    That is `training.epochs`, `training.seconds` and `training.early_stopping_epochs`.
    """
    length = {"epochs": 1, "seconds": None, "early_stopping_epochs": None}
    return plan.model_copy(update={"training": plan.training.model_copy(update=length)}).id


def is_extension(one: Plan, other: Plan) -> bool:
    """Whether two different plans differ only in the length of the training."""
    return one.id != other.id and recipe_id(one) == recipe_id(other)


def differing_keys(one: Plan, other: Plan) -> list[str]:
    """Dotted keys, such as `training.epochs`, of the values that differ and affect a result."""
    values = [p.model_dump(mode="json", exclude={"provenance", "measured"}) for p in (one, other)]
    return list(_differing(values[0], values[1], ""))


def _differing(one: Any, other: Any, key: str) -> list[str]:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [key]
    if one.keys() == other.keys() and list(one) != list(other):
        return [key]  # the order of the labels decides the class indices
    start = f"{key}." if key else ""
    return [
        found
        for name in {**one, **other}
        for found in _differing(one.get(name), other.get(name), f"{start}{name}")
    ]
