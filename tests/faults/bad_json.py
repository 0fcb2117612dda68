"""JSON that was damaged: every value of a file replaced, and text that is none."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

MOST_PLACES = 40  # of a large file
Keys = tuple[str | int, ...]

LONG = "x" * 10_000
NESTED: Any = [[[[{"a": [{}]}]]]]
INSTEAD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0.5,
    1 << 70,
    1e300,
    "",
    "../x",
    LONG,
    [],
    {},
    NESTED,
    {"": None},
)
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\t",
    "bracket": b"{",
    "trailing": b'{"a": 1} x',
    "twice": b'{"a": 1, "a": 2}',
    "twice-inside": b'[{"a": {"b": 1, "b": 1}}]',
    "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 100_000,
    "closed-brackets": b"[" * 100_000 + b"]" * 100_000,
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "too-large": b'{"a": 1e999}',
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "latin-1": '{"a": "Müller"}'.encode("latin-1"),
    "mark": b'\xef\xbb\xbf{"a": 1',
    "zeros": bytes(1000),
    "pickle": b"\x80\x04\x95.",
    "half-character": b'{"a": "\\ud800"',
}


def places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Where every value lies, those that hold others included."""
    yield keys
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield from places(inner, (*keys, key))


def changed(values: Any, keys: Keys, value: Any) -> Any:
    """A copy with another value at one place."""
    if not keys:
        return value
    copied = copy.deepcopy(values)
    inner = copied
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return copied


def without(values: Any, keys: Keys) -> Any:
    """A copy that lacks one entry."""
    copied = copy.deepcopy(values)
    inner = copied
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return copied


def damaged_json(whole: Any, most: int = MOST_PLACES) -> Iterator[tuple[str, bytes]]:
    """Places with every other value and without, and text that is no JSON, by a name."""
    there = list(places(whole))
    for keys in there if len(there) <= most else Random(0).sample(there, most):
        name = ".".join(map(str, keys)) or "all"
        for number, value in enumerate(INSTEAD):
            yield f"{name}-{number}", json.dumps(changed(whole, keys, value)).encode()
        if keys:
            yield f"{name}-missing", json.dumps(without(whole, keys)).encode()
    yield from TEXTS.items()
