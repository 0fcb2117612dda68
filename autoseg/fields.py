"""Whether what was read from a file has the types that its dataclass declares."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter


def check_fields(made: DataclassInstance) -> None:
    """Check every field, at any depth: Python itself lets a dataclass hold anything.

    Raises:
        ValueError: a field holds another type than it declares, or a number that is not finite.
    """
    from pydantic import ValidationError

    values = json.dumps(asdict(made), allow_nan=False)
    try:
        _adapter(type(made)).validate_json(values, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
