"""Values of a JSON file that a person wrote: what they are, and how a message shows them."""

from __future__ import annotations

from typing import Any

LONGEST = 80  # characters of a value in a message


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; true and false are none, though Python counts with them."""
    return isinstance(value, int) and not isinstance(value, bool)


def kind_of(value: Any) -> str:
    """What it is in words, if it is no object."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), "a number")


def short(value: Any) -> str:
    """The value as Python writes it, cut off where it is long."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
