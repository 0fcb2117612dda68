from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.dataset.declaration import LONGEST, is_whole, kind_of, short


@given(st.integers())
def test_integers_are_whole(value: int) -> None:
    assert is_whole(value)


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, [1], {}])
def test_what_is_not_whole(value: Any) -> None:
    assert not is_whole(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([], "a list"),
        ("a", "text"),
        (None, "null"),
        (1, "a number"),
        (1.5, "a number"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_kinds_in_words(value: Any, kind: str) -> None:
    assert kind_of(value) == kind


def test_short_values_are_shown_whole() -> None:
    assert short(None) == "nothing"
    assert short({"a": [1, "b"]}) == "{'a': [1, 'b']}"
    assert short("a" * (LONGEST - 2)) == f"'{'a' * (LONGEST - 2)}'"


@given(st.text(min_size=LONGEST) | st.lists(st.integers(), min_size=LONGEST))
def test_long_ones_are_cut_off(value: Any) -> None:
    assert len(short(value)) == LONGEST
    assert short(value) == repr(value)[: LONGEST - 3] + "..."
