from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.common.errors import DataError
from autoseg.dataset.declaration import Labels, read_labels, read_painting_order

FILE = Path("raw/Task001_A/dataset.json")
REGIONS: Labels = {"background": (0,), "whole": (1, 2, 3), "core": (2, 3)}


def refused(labels: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_labels({"labels": labels}, FILE)
    return str(caught.value).removeprefix(f"{FILE}: ")


@given(st.sets(st.integers(1, 65535), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_single_values_are_in_order_in_both_dialects(values: set[int], random: Any) -> None:
    pairs = [(f"class {value}", value) for value in [0, *values]]
    random.shuffle(pairs)
    in_order = {f"class {value}": (value,) for value in [0, *sorted(values)]}
    for labels in (dict(pairs), {str(value): name for name, value in pairs}):
        found, ignore_label = read_labels({"labels": labels}, FILE)
        assert list(found.items()) == list(in_order.items())
        assert ignore_label is None


def test_regions_keep_the_order_of_the_file_behind_the_background() -> None:
    labels = {"whole": [3, 1, 2], "core": [2, 3], "background": 0, "ignore": 4}
    found, ignore_label = read_labels({"labels": labels}, FILE)
    assert list(found.items()) == list(REGIONS.items())
    assert ignore_label == 4


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (None, '"labels" must map names to values, for example {"background": 0, "tumour": 1}; f'),
        ({}, '"labels" must map names to values'),
        ({"a": "b", "0": "background"}, "\"labels\" has the value 'a'; it must be a whole number"),
        ({"0": "background", "-1": "a"}, "\"labels\" has the value '-1'"),
        ({"0": "background", "9" * 5000: "a"}, '"labels" has the value \'999'),
        ({"0": "background", "70000": "a"}, "label 'a' is 70000; it must be a whole number from 0"),
        ({"0": "a", "1": "a"}, "\"labels\" gives the name 'a' to 0 and 1; give each value its own"),
        ({"0": "a", "00": "b"}, "labels 'a' and 'b' both have the value 0; give each its own"),
        ({"background": 0, "a": [1, [2]]}, "label 'a' is [1, [2]]; it must be a whole number"),
        (
            {"background": 0, "a": [1, 2], "b": [2, 1]},
            "labels 'a' and 'b' both have the value 1, 2",
        ),
        ({"background": "0", "tumour": "1"}, '"labels" has its values as text: '),
        ({"ignore": 0, "a": 1, "b": 2}, 'no label has the value 0; declare "background": 0'),
        ({"background": 0, "ignore": 1}, '"labels" has nothing to segment beside the background'),
        ({"background": 0, "a": 1, "ignore": [2, 3]}, "label 'ignore' covers [2, 3]; it needs one"),
        ({"background": 0, "a": [0, 1]}, "region 'a' covers 0, which is the background"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(labels: Any, told: str) -> None:
    assert refused(labels).startswith(told)


def test_without_regions_there_is_no_painting_order() -> None:
    single: Labels = {"background": (0,), "a": (1,)}
    assert read_painting_order({"regions_class_order": [1]}, single, FILE) is None


def test_the_painting_order_of_regions() -> None:
    assert read_painting_order({"regions_class_order": [1, 2]}, REGIONS, FILE) == (1, 2)


@pytest.mark.parametrize("order", [None, 1, [1], [1, 2, 3], [1, 4], [0, 1], [1, True], [1, [2]]])
def test_a_painting_order_that_does_not_fit(order: Any) -> None:
    with pytest.raises(DataError, match="must list 2 declared values, one for each region in the"):
        read_painting_order({"regions_class_order": order}, REGIONS, FILE)
