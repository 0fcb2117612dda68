"""Ids of plans do not change between versions, as models, cases and results record them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field
from write_schema import plan_schema

from autoseg.plan.plan import load_plan
from autoseg.plan.sections import FOR_ID, Section, since
from tests.making import tiny_plan
from tests.plan.test_plan import full_plan

DATA = Path(__file__).parents[1] / "data"
PLAN = DATA / "plan_0.1.0.json"  # written by 0.1.0; has every section
KEYS = DATA / "plan_keys_0.1.0.json"  # section -> its keys in version 0.1.0
WITHOUT_ID = {"Colour", "Evaluation", "Merged", "Provenance", "Tolerance"}
ADVICE = "ids of existing plans would change; mark the key with autoseg.plan.sections.since"


def test_a_plan_of_the_first_release_keeps_its_id_and_its_cases() -> None:
    plan = load_plan(PLAN)
    written = json.loads(PLAN.read_text(encoding="utf-8"))
    assert (plan.id, written["id"]) == ("2ad216406985", "2ad216406985"), ADVICE
    assert plan.preprocessing_id == "581e3dc983da", ADVICE


def test_ids_of_plans_made_in_tests() -> None:
    assert (tiny_plan().id, full_plan().id) == ("17acb83f175e", "04b5fdf822e8"), ADVICE
    assert full_plan().preprocessing_id == "7d472b228ef3", ADVICE


def test_a_plan_of_the_first_release_is_written_as_it_was() -> None:
    written = json.loads(PLAN.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(load_plan(PLAN).to_json()))
    assert without_later_keys(now, written) == written


def without_later_keys(now: Any, before: Any) -> Any:
    if isinstance(now, dict) and isinstance(before, dict):
        return {key: without_later_keys(now[key], before[key]) for key in now if key in before}
    if isinstance(now, list) and isinstance(before, list):
        return [without_later_keys(*pair) for pair in zip(now, before, strict=True)]
    return now


def test_every_later_key_is_marked() -> None:
    before: dict[str, list[str]] = json.loads(KEYS.read_text(encoding="utf-8"))
    schema = plan_schema()
    now = {"Plan": schema, **schema["$defs"]}
    for section, keys in before.items():
        properties = now[section]["properties"]
        assert not set(keys) - properties.keys(), f"{section}: plan files of 0.1.0 cannot be read"
        later = properties.keys() - set(keys) - {"id"}
        if section not in WITHOUT_ID:
            assert [key for key in later if "since" not in properties[key]] == [], ADVICE


class Inner(Section):
    size: int = 3


class LaterInner(Inner):
    way: str = Field("old", json_schema_extra=since("0.2.0"))


class Outer(Section):
    name: str = "a"
    inner: Inner = Inner()


class LaterOuter(Section):
    name: str = "a"
    inner: LaterInner = LaterInner()
    more: LaterInner | None = Field(None, json_schema_extra=since("0.3.0"))


def for_id(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json", context=FOR_ID)


def test_a_later_key_at_its_default_is_not_part_of_the_id() -> None:
    assert for_id(LaterOuter()) == for_id(Outer()) == {"name": "a", "inner": {"size": 3}}


def test_a_later_key_with_another_value_is_part_of_the_id() -> None:
    assert for_id(LaterOuter(inner=LaterInner(way="new")))["inner"] == {"size": 3, "way": "new"}
    assert for_id(LaterOuter(more=LaterInner()))["more"] == {"size": 3}


def test_a_file_has_later_keys() -> None:
    assert LaterOuter().model_dump(mode="json") == {
        "name": "a",
        "inner": {"size": 3, "way": "old"},
        "more": None,
    }
