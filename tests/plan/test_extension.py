from __future__ import annotations

from typing import Any

import pytest

from autoseg.plan.reading import differing_keys, is_extension, recipe_id
from tests.making import tiny_plan


@pytest.mark.parametrize(
    ("changes", "keys", "extends"),
    [
        ({}, [], False),
        ({"training": {"epochs": 9}}, ["training.epochs"], True),
        (
            {"training": {"epochs": 9, "seconds": 60.0, "early_stopping_epochs": 3}},
            ["training.epochs", "training.seconds", "training.early_stopping_epochs"],
            True,
        ),
        ({"training": {"steps_per_epoch": 9}}, ["training.steps_per_epoch"], False),
        (
            {"training": {"epochs": 9, "schedule": {"schedule": "polynomial", "exponent": 2.0}}},
            ["training.epochs", "training.schedule.exponent"],
            False,
        ),
        ({"sampling": {"batch_size": 3}}, ["sampling.batch_size"], False),
        ({"measured": {"device": "another"}}, [], False),
    ],
)
def test_what_extends_a_plan(changes: dict[str, Any], keys: list[str], extends: bool) -> None:
    one, other = tiny_plan(), tiny_plan(**changes)
    assert differing_keys(one, other) == keys
    assert is_extension(one, other) == is_extension(other, one) == extends
    assert (recipe_id(one) == recipe_id(other)) == (extends or one.id == other.id)


def test_the_order_of_the_labels_counts() -> None:
    one = tiny_plan()
    turned = one.model_copy(update={"labels": dict(reversed(one.labels.items()))})
    assert differing_keys(one, turned) == ["labels"]
    assert not is_extension(one, turned)
