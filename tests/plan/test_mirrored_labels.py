from __future__ import annotations

from typing import Any

import pytest

from autoseg.common.errors import PlanError
from tests.making import tiny_plan

LUNGS = {"background": [0], "left": [4], "right": [2], "lesion": [3]}


def test_the_default_keeps_the_id() -> None:
    plan = tiny_plan(labels=LUNGS)
    assert tiny_plan(labels=LUNGS, mirrored_labels=[]).id == plan.id
    turned = tiny_plan(labels=LUNGS, orientation="RAS")
    sided = tiny_plan(labels=LUNGS, orientation="RAS", mirrored_labels=[[4, 2]])
    assert sided.id != turned.id
    assert sided.preprocessing_id == turned.preprocessing_id


def test_the_left_right_axis() -> None:
    found = [tiny_plan(orientation=code).left_right for code in ("RAS", "PLS", "SAR")]
    assert found == [0, 1, 2]
    assert tiny_plan().left_right is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mirrored_labels": [[4, 2]], "orientation": None}, "orientation"),
        ({"mirrored_labels": [[4, 5]]}, "5 is not a value"),
        ({"mirrored_labels": [[4, 0]]}, "0 is not a value"),
        ({"mirrored_labels": [[4, 4]]}, "4 is there twice"),
        ({"mirrored_labels": [[4, 2], [3, 2]]}, "2 is there twice"),
        ({"mirrored_labels": [[4, 2, 3]]}, "mirrored_labels"),
        (
            {
                "labels": {"background": [0], "left": [1], "right": [2], "chest": [1, 3]},
                "regions_class_order": [1, 2, 3],
                "mirrored_labels": [[1, 2]],
            },
            "'chest' would become",
        ),
    ],
)
def test_bad_pairs_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        tiny_plan(**{"labels": LUNGS, "orientation": "RAS"} | changes)
