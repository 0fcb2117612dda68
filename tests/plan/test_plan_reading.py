from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from write_schema import plan_schema

from autoseg.common.errors import PlanError
from autoseg.common.files import to_json
from autoseg.plan.plan import Plan, differing_keys, is_extension, make_plan, recipe_id
from autoseg.planner.overrides import merge
from tests.making import TINY, tiny_plan
from tests.plan.test_plan import full_plan

CLIP = {"step": "clip"}
SCHEMA = Path(__file__).parents[2] / "plans" / "schema.json"


def error_of(change: dict[str, Any]) -> str:
    """The message for a valid plan with this change."""
    with pytest.raises(PlanError) as caught:
        make_plan(merge(TINY, change), "plan.json")
    message = str(caught.value)
    assert message.startswith("plan.json: ")
    assert "\n" not in message
    return message.removeprefix("plan.json: ")


@pytest.mark.parametrize(
    ("change", "key", "parts"),
    [
        ({"sampling": {"patch_size": [8, 9, 8]}}, "sampling.patch_size is 9", ["y", "8 or 10"]),
        ({"sampling": {"patch_size": [8, 8, 1]}}, "sampling.patch_size is 1", ["z", "2"]),
        ({"inference": {"overlap": [4, 8, 4]}}, "inference.overlap is 8", ["y", "0 to 7"]),
        (
            {"inference": {"overlap": [4, 4, -1]}},
            "inference.overlap is -1",
            ["z", "0 to 7", "[4, 4, 4]"],
        ),
        (
            {"sampling": {"patch_size": [2, 2, 2]}, "inference": {"overlap": [0, 0, 0]}},
            "",
            ["instance", "sampling.patch_size"],
        ),
        (
            {"inference": {"mirror_axes": [0, 2]}, "augmentation": [{"transform": "gamma"}]},
            "inference.mirror_axes has [0, 2]",
            ["mirror", "augmentation"],
        ),
        (
            {"preprocessing": [{"step": "crop_to_nonzero"}, {"step": "z_score", "channel": 1}]},
            "preprocessing.1.channel is 1",
            ["1 channel"],
        ),
        (
            {"preprocessing": [{"step": "resample"}, {"step": "crop_to_nonzero"}]},
            "preprocessing",
            ["crop_to_nonzero", "resample"],
        ),
        ({"labels": {"organ": [1], "background": [0]}}, "labels", ["background", "0"]),
        ({"labels": {}}, "labels", ["background", "0"]),
        ({"labels": {"background": [0]}}, "labels", ["background"]),
        (
            {"labels": {"background": [0], "a": [1, 2], "b": [2]}},
            "labels",
            ["'a'", "'b'", "2", "regions_class_order"],
        ),
        ({"labels": {"background": [0], "a": [1, 1]}}, "labels", ["'a'", "1"]),
        ({"regions_class_order": [1]}, "regions_class_order has 1", ["2"]),
        ({"regions_class_order": [1, 3]}, "regions_class_order", ["3"]),
        ({"regions_class_order": [0, 1]}, "regions_class_order", ["0"]),
        (
            {"configuration": "3d_cascade_fullres"},
            "previous_stage is None",
            ["3d_cascade_fullres"],
        ),
        (
            {"previous_stage": "default-3d_lowres"},
            "previous_stage is 'default-3d_lowres'",
            ["3d_fullres"],
        ),
        ({"configuration": "4d"}, "configuration is '4d'", ["'2d', '3d_lowres', '3d_fullres'"]),
        ({"ignore_label": 2}, "ignore_label is 2", ["labels"]),
        ({"shares": [{"label": 7, "container": [1]}]}, "shares", ["7"]),
        ({"shares": [{"label": 2, "container": [1, 8]}]}, "shares", ["8"]),
        ({"shares": [{"label": 2, "container": [1, 2]}]}, "shares", ["2", "container"]),
        (
            {"preprocessing": [CLIP | {"window": [250, -1250]}]},
            "preprocessing.0.window",
            ["[250.0, -1250.0]", "[low, high]"],
        ),
        (
            {"preprocessing": [CLIP | {"window": [5, 5]}]},
            "preprocessing.0",
            ["[5.0, 5.0]", "[low, high]"],
        ),
        (
            {"augmentation": [{"transform": "gamma", "gamma": [1.5, 0.7]}]},
            "augmentation.0.gamma",
            ["[1.5, 0.7]", "[low, high]"],
        ),
        (
            {"augmentation": [{"transform": "gamma", "gamma": [0.5, 0.7]}]},
            "augmentation.0.gamma",
            ["[0.5, 0.7]", "1"],
        ),
        (
            {"augmentation": [{"transform": "spatial", "scaling": [-1, 1.2]}]},
            "augmentation.0.scaling.0 is -1",
            ["0"],
        ),
        (
            {"augmentation": [{"transform": "gaussian_noise", "variance": [-0.1, 0.1]}]},
            "augmentation.0.variance.0 is -0.1",
            ["0"],
        ),
        ({"target_spacing_mm": [1, -0.5, 1]}, "target_spacing_mm.1 is -0.5", ["0"]),
        ({"target_spacing_mm": [1, 0, 1]}, "target_spacing_mm.1 is 0", ["0"]),
        ({"target_spacing_mm": [1, 1, math.nan]}, "target_spacing_mm.2 is nan", ["finite"]),
        (
            {"training": {"optimizer": {"optimizer": "adam", "learning_rate": math.inf}}},
            "training.optimizer.learning_rate is inf",
            ["finite"],
        ),
        (
            {"training": {"optimizer": {"optimizer": "adam", "momentum": 0.9}}},
            "unknown key 'training.optimizer.momentum'",
            ["'momentum'"],
        ),
        ({"sampling": {"batchsize": 2}}, "unknown key 'sampling.batchsize'", ["'batch_size'"]),
        (
            {"augmentation": [{"transform": "gamma", "gama": [1, 2]}]},
            "unknown key 'augmentation.0.gama'",
            ["'gamma'"],
        ),
        ({"qqqqqq": 1}, "unknown key 'qqqqqq'", []),
        ({"sampling": {"batch_size": "2"}}, "sampling.batch_size is '2'", ["integer"]),
        ({"sampling": {"batch_size": 2.5}}, "sampling.batch_size is 2.5", ["integer"]),
        ({"sampling": {"batch_size": True}}, "sampling.batch_size is True", ["integer"]),
        (
            {"training": {"keep": "first"}},
            "training.keep is 'first'",
            ["'last'", "'best_training_loss'"],
        ),
        ({"training": {"seed": 2**32}}, "training.seed is 4294967296", ["4294967296"]),
        ({"labels": {"background": [0], "organ": [65536]}}, "labels.organ.0 is 65536", ["65536"]),
        ({"labels": {"background": [0], "clip": [-1]}}, "labels.clip.0 is -1", ["0"]),
        ({"network": {"features": [2]}}, "network", ["features"]),
        ({"network": {"features": [2, 4, 8]}}, "network: strides has 2", ["3", "features"]),
        ({"network": {"blocks_decoder": [1, 1]}}, "network: blocks_decoder has 2", ["1"]),
        ({"network": {"strides": [[2, 2, 2], [2, 2, 2]]}}, "network", ["1, 1, 1"]),
    ],
)
def test_one_line_names_the_key_and_the_valid_values(
    change: dict[str, Any], key: str, parts: list[str]
) -> None:
    message = error_of(change)
    assert message.startswith(key)
    for part in parts:
        assert part in message.removeprefix(key)


def test_an_unknown_step_is_reported_with_the_known_ones() -> None:
    message = error_of({"preprocessing": [{"step": "cut"}]})
    assert message.startswith("preprocessing.0 is {'step': 'cut'}")
    assert "'crop_to_nonzero', 'clip', 'rescale', 'resample', 'z_score'" in message


def test_further_errors_are_counted() -> None:
    assert error_of({"channels": [], "ignore_label": -1}).endswith("(and 1 more)")


def test_a_missing_key_is_named() -> None:
    values = copy.deepcopy(TINY)
    del values["sampling"]["patch_size"]
    with pytest.raises(PlanError, match=r"^p: sampling\.patch_size"):
        make_plan(values, "p")


@pytest.mark.parametrize("values", [[], None, "plan", 3])
def test_other_json_is_not_a_plan(values: Any) -> None:
    with pytest.raises(PlanError, match=rf"^x .*{type(values).__name__}"):
        make_plan(values, "x")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_formats_are_refused(version: Any) -> None:
    with pytest.raises(PlanError, match=rf"^x .*format {version}, not 1"):
        make_plan(TINY | {"format_version": version}, "x")


def test_deep_nesting_is_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PlanError, match=r"^x is nested"):
        make_plan(TINY | {"measured": {"deep": deep}}, "x")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", ".hidden", "a b", "a\n"])
def test_a_name_must_be_a_plain_folder(name: str) -> None:
    assert "name" in error_of({"name": name})


@pytest.mark.parametrize("name", ["default", "5m", "größer", "v1.2-b_3"])
def test_valid_names(name: str) -> None:
    assert make_plan(TINY | {"name": name}, "x").name == name


# --- any change of a value: a plan, or a PlanError in one line ---

VALID = full_plan(shares=[{"label": 2, "container": [1]}]).model_dump(mode="json")


def all_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, entry in entries:
        found.append((*path, key))
        if isinstance(entry, dict | list):
            found += all_paths(entry, (*path, key))
    return found


BAD: list[Any] = [-1, 0, 1, 3, 10**30, -(10**30), 1e308, -0.5, math.nan, math.inf, True, None]
BAD += ["", "adam", "\ud800", [], [0], [[1, 1, 1]], [3, 2], {}, {"step": "clip"}, {"a": {}}]


def plan_or_message(values: Any) -> Plan | str:
    try:
        return make_plan(values, "changed")
    except PlanError as error:
        return str(error)


@given(st.sampled_from(all_paths(VALID)), st.sampled_from([*BAD, "delete"]))
@settings(deadline=None, max_examples=500)
def test_any_change_gives_a_plan_or_a_plan_error(path: tuple[Any, ...], value: Any) -> None:
    values = copy.deepcopy(VALID)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if value == "delete":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    result = plan_or_message(values)
    if isinstance(result, Plan):
        assert len(result.id) == 12
        assert make_plan(result.model_dump(mode="json"), "again") == result
    else:
        assert result.startswith("changed")
        assert "\n" not in result


# --- comparison of plans ---


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
    reordered = one.model_copy(update={"labels": dict(reversed(one.labels.items()))})
    assert differing_keys(one, reordered) == ["labels"]
    assert not is_extension(one, reordered)


# --- JSON Schema ---


def test_the_schema_file_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == to_json(plan_schema()), (
        "the plan has changed; run scripts/write_schema.py"
    )


def test_the_schema_is_deterministic() -> None:
    assert to_json(plan_schema()) == to_json(plan_schema())


def test_the_schema_describes_a_plan_without_python() -> None:
    schema = plan_schema()
    assert schema["description"].startswith("Everything that changes a result")
    assert ">>>" not in to_json(schema)


def check(value: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    """A subset of JSON Schema: objects, their keys, lists, unions and constants."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "discriminator" in schema:
        field = schema["discriminator"]["propertyName"]
        schema = definitions[schema["discriminator"]["mapping"][value[field]].rpartition("/")[2]]
    if isinstance(value, dict) and "properties" in schema:
        assert schema["additionalProperties"] is False
        assert set(schema.get("required", ())) <= value.keys() <= schema["properties"].keys()
        for key, entry in value.items():
            check(entry, schema["properties"][key], definitions)
    if isinstance(value, list) and "items" in schema:
        for entry in value:
            check(entry, schema["items"], definitions)
    if "enum" in schema:
        assert value in schema["enum"]
    if "pattern" in schema:
        assert re.search(schema["pattern"], value)


def test_a_saved_plan_matches_the_schema(tmp_path: Path) -> None:
    full_plan().save(tmp_path / "plan.json")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    saved = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    check(saved, schema, schema["$defs"])
    assert saved.keys() == schema["properties"].keys()
