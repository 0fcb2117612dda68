from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.common.errors import PlanError
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Adam, Sgd, TverskyCrossEntropy
from autoseg.planner.overrides import Layer, complete, merge, read_layer, set_layer, stack
from tests.making import TINY

STEPS = [
    {"step": "clip", "window": [-100, 100]},
    {"step": "z_score"},
]
RULES = complete(merge(TINY, {"preprocessing": STEPS}), "the rules")
EVIDENCE = {
    "sampling.batch_size": ("batch size of the data", "6 cases"),
    "training.loss.batch_dice": ("batch dice of the data", "small"),
}


def stacked(*values: dict[str, Any]) -> Plan:
    layers = [Layer(f"layer {number}", value) for number, value in enumerate(values)]
    return stack(RULES, EVIDENCE, layers, "default")


def set_values(*texts: str, base: dict[str, Any] = RULES) -> dict[str, Any]:
    return set_layer(texts, base).values


def test_higher_layers_override_lower_ones() -> None:
    plan = stacked(
        {"sampling": {"batch_size": 3}, "training": {"epochs": 4}},
        {"sampling": {"batch_size": 5}},
    )
    assert (plan.sampling.batch_size, plan.training.epochs) == (5, 4)
    assert plan.sampling.patch_size == (8, 8, 8)


def test_provenance_has_the_last_source_and_the_value_of_the_rules() -> None:
    plan = stacked({"sampling": {"batch_size": 3}}, {"sampling": {"batch_size": 5}})
    found = plan.provenance["sampling.batch_size"]
    assert (found.source, found.rule_value) == ("layer 1", 2)
    assert plan.provenance["training.loss.batch_dice"].source == "rule: batch dice of the data"
    assert plan.provenance["training.loss.batch_dice"].evidence == "small"


def test_replacing_a_section_replaces_the_provenance_of_its_keys() -> None:
    plan = stacked({"preprocessing": []}, {"training": {"loss": {"batch_dice": True}}})
    assert plan.provenance["preprocessing"].rule_value == RULES["preprocessing"]
    assert plan.provenance["training.loss.batch_dice"].source == "layer 1"


def test_another_kind_replaces_all_values_of_the_old_one() -> None:
    plan = stacked(
        {"training": {"optimizer": {"momentum": 0.5}}},
        {"training": {"optimizer": {"optimizer": "adam"}}},
    )
    assert plan.training.optimizer == Adam()
    assert "training.optimizer.momentum" not in plan.provenance
    plan = stacked({"training": {"loss": {"loss": "tversky_cross_entropy", "alpha": 0.3}}})
    assert plan.training.loss == TverskyCrossEntropy(alpha=0.3)
    assert "training.loss.batch_dice" not in plan.provenance


def test_the_same_kind_is_merged() -> None:
    plan = stacked(
        {"training": {"optimizer": {"momentum": 0.5}}},
        {"training": {"optimizer": {"optimizer": "sgd", "learning_rate": 1}}},
    )
    assert plan.training.optimizer == Sgd(momentum=0.5, learning_rate=1.0)


def test_fewer_features_leave_out_the_deeper_stages() -> None:
    deep = {
        "features": [2, 4, 8],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 1]],
        "kernels": [[3, 3, 3], [3, 3, 3], [3, 3, 1]],
        "blocks_encoder": [1, 2, 3],
        "blocks_decoder": [2, 1],
    }
    plan = stacked({"network": deep}, {"network": {"features": [6, 8]}})
    assert plan.network.features == (6, 8)
    assert plan.network.strides == ((1, 1, 1), (2, 2, 2))
    assert plan.network.kernels == ((3, 3, 3), (3, 3, 3))
    assert (plan.network.blocks_encoder, plan.network.blocks_decoder) == ((1, 2), (2,))
    found = plan.provenance["network.strides"]
    assert (found.source, found.rule_value) == ("layer 1", TINY["network"]["strides"])


@pytest.mark.parametrize(
    "network",
    [{"features": [2, 4, 8]}, {"features": [2, 4], "strides": [[1, 1, 1]]}],
)
def test_stages_that_are_not_there_are_named(network: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="network: strides has"):
        stacked({"network": network})


def test_labels_are_replaced_as_a_whole() -> None:
    plan = stacked({"labels": {"background": [0], "both": [1, 2]}})
    assert plan.labels == {"background": (0,), "both": (1, 2)}
    assert plan.provenance["labels"].rule_value == RULES["labels"]


@pytest.mark.parametrize("key", ["name", "provenance"])
def test_keys_that_no_layer_can_set(key: str) -> None:
    with pytest.raises(PlanError, match=f"^layer 0: {key} "):
        stacked({key: "x"})


def test_errors_name_the_layers_and_the_key() -> None:
    with pytest.raises(PlanError, match=r"the rules \+ layer 0: unknown key 'sampling.batch'"):
        stacked({"sampling": {"batch": 1}})


@pytest.mark.parametrize(
    "values",
    [
        {"sampling.batch_size": 4},
        {"sampling.batch_size.x": 4},
        {"sampling": 5},
        {"sampling": {"batch_size": {"x": {}}}},
        {"training": []},
        {"augmentation": {"0": {"transform": "mirror"}}},
        {"labels": None},
        {"labels": {"": {}}},
        {"": 1},
    ],
)
def test_invalid_values_are_a_plan_error(values: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"^the rules \+ layer 0"):
        stacked(values)


def test_an_empty_object_changes_nothing() -> None:
    plan = stacked({"training": {}, "sampling": {}})
    assert plan == stacked()
    assert plan.provenance["sampling.batch_size"].source == "rule: batch size of the data"


json_values = st.recursive(
    st.integers() | st.text(max_size=3) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from("abc"), json_values)


@given(objects, objects)
def test_merge_keeps_its_inputs_and_prefers_the_upper_one(
    below: dict[str, Any], above: dict[str, Any]
) -> None:
    before = repr((below, above))
    merged = merge(below, above)
    assert repr((below, above)) == before
    assert merged.keys() == below.keys() | above.keys()
    assert merge(merged, above) == merged
    assert merge(below, {}) == below
    assert merge({}, above) == above


# --- files ---


def test_json5_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "Änderung (1).json5"
    text = "// comment\n{sampling: {batch_size: 4,}, /* and */ training: {keep: 'last'}}"
    path.write_text(text, encoding="utf-8")
    assert read_layer(path, "mine") == Layer(
        "mine", {"sampling": {"batch_size": 4}, "training": {"keep": "last"}}
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{a: 1, a: 2}", "JSON5: .*a"),
        ("{a: 1", "JSON5"),
        ("", "JSON5"),
        ("[" * 5000, "nested"),
        ("[1]", "list"),
        ("null", "NoneType"),
    ],
)
def test_invalid_files(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "o.json5"
    path.write_text(text)
    with pytest.raises(PlanError, match=rf"o\.json5 .*{part}"):
        read_layer(path, "o")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"gone\.json5"):
        read_layer(tmp_path / "gone.json5", "o")
    with pytest.raises(PlanError, match=tmp_path.name):
        read_layer(tmp_path, "o")
    (tmp_path / "latin.json5").write_bytes(b"{a: '\xe4'}")
    with pytest.raises(PlanError, match=r"latin\.json5"):
        read_layer(tmp_path / "latin.json5", "o")


# --- key=value ---


def test_set_values() -> None:
    assert set_values("sampling.batch_size=4", "training.precision=bfloat16") == {
        "sampling": {"batch_size": 4},
        "training": {"precision": "bfloat16"},
    }
    assert set_values("training.seconds=null") == {"training": {"seconds": None}}
    assert set_values("network.features=[4, 8,]") == {"network": {"features": [4, 8]}}
    assert set_values("a.b=x=y") == {"a": {"b": "x=y"}}
    assert set_values() == {}


def test_set_an_entry_of_a_list() -> None:
    assert set_values("preprocessing.0.window=[-1000,400]")["preprocessing"] == [
        RULES["preprocessing"][0] | {"window": [-1000, 400]},
        RULES["preprocessing"][1],
    ]
    strides = set_values("network.strides.1.2=1")["network"]["strides"]
    assert strides == [[1, 1, 1], [2, 2, 1]]


def test_several_entries_of_a_list() -> None:
    found = set_values("preprocessing.0.window=[0,1]", "preprocessing.1.nonzero=true")
    assert found["preprocessing"][0]["window"] == [0, 1]
    assert found["preprocessing"][1]["nonzero"] is True
    assert RULES["preprocessing"][1]["nonzero"] is False


def test_another_kind_of_entry_replaces_it() -> None:
    found = set_values("preprocessing.0={step: 'z_score', nonzero: true}")
    assert found["preprocessing"][0] == {"step": "z_score", "nonzero": True}
    assert stacked(found).preprocessing[0].step == "z_score"


def test_set_one_label() -> None:
    plan = stacked(set_values("labels.organ=[1, 3]", "labels.new one=[4]"))
    assert plan.labels == {"background": (0,), "organ": (1, 3), "tumour": (2,), "new one": (4,)}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sampling.batch_size", ["key=value", "sampling.batch_size=4"]),
        ("=4", ["key=value"]),
        ("", ["key=value"]),
        ("preprocessing.2.window=1", ["'2'", "0 to 1"]),
        ("preprocessing.-1.window=1", ["'-1'", "0 to 1"]),
        ("preprocessing.clip.window=1", ["'clip'", "0 to 1"]),
        ("preprocessing.².window=1", ["'²'", "0 to 1"]),
        ("shares.0.label=1", ["'0'", "empty"]),
    ],
)
def test_invalid_settings(text: str, parts: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        set_values(text)
    message = str(caught.value)
    assert message.startswith(f"--set {text}: ")
    assert all(part in message.removeprefix(f"--set {text}: ") for part in parts)


def test_the_option_of_an_invalid_setting_is_named() -> None:
    with pytest.raises(PlanError, match=r"^--slurm list\.3=1: .*'3'"):
        set_layer(["list.3=1"], {"list": [1, 2]}, "--slurm")


@given(st.text(max_size=12), st.sampled_from(["sampling.batch_size", "preprocessing.0", "labels"]))
def test_any_text_is_a_value_or_a_plan_error(text: str, key: str) -> None:
    try:
        plan = stacked(set_values(f"{key}={text}"))
    except PlanError:
        return
    assert isinstance(plan, Plan)
