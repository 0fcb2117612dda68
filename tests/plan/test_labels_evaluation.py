from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoseg.common.errors import PlanError
from autoseg.common.files import read_json
from autoseg.plan.labels import Evaluation, class_of
from autoseg.plan.plan import load_plan
from autoseg.planner.overrides import find_reference
from tests.making import REGIONS, tiny_plan

LUNGS = {"left": (1,), "right": (2,), "infection": (3,)}


def test_the_default_tolerance_is_one_millimetre() -> None:
    assert Evaluation().tolerance_of(LUNGS) == {"left": 1.0, "right": 1.0, "infection": 1.0}
    assert Evaluation().rows(LUNGS) == {}


def test_tolerances_by_label() -> None:
    found = Evaluation.model_validate(
        {"tolerance_mm": 2, "tolerances": [{"labels": [1], "mm": 0.5}, {"labels": [3], "mm": 3}]}
    )
    assert found.tolerance_of(LUNGS) == {"left": 0.5, "right": 2.0, "infection": 3.0}
    assert found.tolerance_of({"all": (1, 2, 3)}) == {"all": 3.0}


def test_merged_rows() -> None:
    found = Evaluation.model_validate({"merged": [{"name": "lungs", "labels": [1, 2]}]})
    assert found.rows(LUNGS) == {"lungs": ("left", "right")}
    assert found.rows({"infection": (3,)}) == {}
    assert found.rows({"one class": (1, 2)}) == {}


def test_colours_by_label() -> None:
    blue, red = {"labels": [1, 2], "colour": "#0072B2"}, {"labels": [3], "colour": "#d55e00"}
    lungs = {"merged": [{"name": "lungs", "labels": [1, 2]}]}
    found = Evaluation.model_validate({"colours": [blue, red], **lungs})
    assert found.colours_of(LUNGS) == {
        **{"left": "#0072B2", "right": "#0072B2", "infection": "#d55e00"},
        "lungs": "#0072B2",
    }
    half = Evaluation.model_validate(
        {"colours": [red, {"labels": [1], "colour": "#000000"}]} | lungs
    )
    assert half.colours_of(LUNGS) == {"left": "#000000", "infection": "#d55e00"}
    assert Evaluation().colours_of(LUNGS) == {}


def test_a_value_belongs_to_its_smallest_region() -> None:
    regions = {"whole": (1, 2, 4), "core": (2, 4), "enhancing": (4,)}
    assert [class_of(value, regions) for value in (1, 2, 4, 5)] == [
        "whole",
        "core",
        "enhancing",
        None,
    ]


@pytest.mark.parametrize(
    ("evaluation", "match"),
    [
        ({"tolerances": [{"labels": [9], "mm": 1}]}, "evaluation.tolerances: label 9"),
        ({"merged": [{"name": "both", "labels": [1, 7]}]}, "evaluation.merged: label 7"),
        ({"merged": [{"name": "organ", "labels": [1, 2]}]}, "evaluation.merged: .*'organ'"),
        ({"merged": [{"name": "both", "labels": [1]}]}, "merged"),
        ({"colours": [{"labels": [9], "colour": "#000000"}]}, "evaluation.colours: label 9"),
        ({"colours": [{"labels": [1], "colour": "red"}]}, "colour"),
        ({"tolerance_mm": 0}, "tolerance_mm"),
    ],
)
def test_invalid_evaluation(evaluation: dict[str, Any], match: str) -> None:
    with pytest.raises(PlanError, match=match):
        tiny_plan(evaluation=evaluation)


def test_the_evaluation_is_not_part_of_the_id() -> None:
    """A trained model still matches its plan if the evaluation is changed."""
    assert tiny_plan(evaluation={"tolerance_mm": 7}).id == tiny_plan().id
    assert tiny_plan(**REGIONS, evaluation={"tolerances": [{"labels": [4], "mm": 2}]}).id


def test_plans_without_evaluation_are_read(tmp_path: Path) -> None:
    plan = tiny_plan()
    plan.save(tmp_path / "plan.json")
    values = read_json(tmp_path / "plan.json")
    del values["evaluation"]
    (tmp_path / "plan.json").write_text(json.dumps(values))
    assert load_plan(tmp_path / "plan.json") == plan


def test_the_published_tolerances() -> None:
    reference = find_reference("Task001_COVID", None)
    assert reference is not None
    found = Evaluation.model_validate(reference.layers[0].values["evaluation"])
    assert found.tolerance_of(LUNGS) == {"left": 1.0, "right": 1.0, "infection": 3.0}
    assert found.rows(LUNGS) == {"lungs": ("left", "right")}
