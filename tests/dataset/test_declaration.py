from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.common.errors import AutosegError, DataError
from autoseg.dataset.declaration import MAX_SHOWN, declaration_of, read_declaration, shown
from tests.dataset.making import MSD, V2, declare

FILE = Path("raw/Task001_A/dataset.json")
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "necrosis": 2}


def test_labels_are_in_order_of_value(tmp_path: Path) -> None:
    labels = {"liver": 2, "spleen": 1, "background": 0, "ignore": 3}
    declared = read_declaration(declare(tmp_path, V2 | {"labels": labels}))
    assert list(declared.labels.items()) == [
        ("background", (0,)),
        ("spleen", (1,)),
        ("liver", (2,)),
    ]
    assert declared.ignore_label == 3


def test_regions_keep_their_order_because_the_class_order_counts_in_it(tmp_path: Path) -> None:
    fields = V2 | {"labels": REGIONS, "regions_class_order": [1, 3, 2]}
    declared = read_declaration(declare(tmp_path, fields))
    assert list(declared.labels) == ["background", "whole", "core", "necrosis"]
    assert declared.labels["whole"] == (1, 2, 3)
    assert declared.regions_class_order == (1, 3, 2)


def test_msd_labels_map_values_to_names(tmp_path: Path) -> None:
    declared = read_declaration(declare(tmp_path, MSD | {"licence": "CC0"}))
    assert declared.labels == {"background": (0,), "tumour": (1,)}
    assert declared.channels == ("MRI",)
    assert declared.licence == "CC0"
    assert declared.listed is not None
    assert declared.listed[0].name == "a"


def test_codes_of_labels(tmp_path: Path) -> None:
    lung, left = ["39607008", "SCT", "Lung"], ["7771000", "SCT", "Left"]
    code = {"type": ["108369006", "SCT", "Neoplasm"], "region": lung, "modifiers": [left]}
    declared = read_declaration(declare(tmp_path, V2 | {"codes": {"tumour": code}}))
    assert declared.codes["tumour"].region == tuple(lung)
    assert declared.codes["tumour"].modifiers == (tuple(left),)
    assert declared.codes["tumour"].category[2] == "Anatomical Structure"


@pytest.mark.parametrize("groups", [{"a": "p", "b": "p", "c": 7}, {"p": ["a", "b"], "7": ["c"]}])
def test_groups_are_read_in_both_directions(tmp_path: Path, groups: dict[str, Any]) -> None:
    declared = read_declaration(declare(tmp_path, V2 | {"groups": groups}))
    assert declared.groups == {"a": "p", "b": "p", "c": "7"}


SIDES = (
    V2
    | {"labels": {"background": 0, "a": 1, "b": 2, "both": [1, 2], "c": 3}}
    | {"regions_class_order": [1, 2, 1, 3]}
)


@pytest.mark.parametrize("pairs", [{}, {"a": "b"}])
def test_labels_of_left_and_right(tmp_path: Path, pairs: dict[str, str]) -> None:
    assert read_declaration(declare(tmp_path, SIDES)).mirrored_labels is None
    found = read_declaration(declare(tmp_path, SIDES | {"mirrored_labels": pairs}))
    assert found.mirrored_labels == pairs


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ({"a": "d"}, "'d'"),
        ({"a": "background"}, "'background'"),
        ({"a": "a"}, "'a'"),
        ({"a": "b", "c": "a"}, "'a'"),
        ({"both": "c"}, "'both'"),
        (["a", "b"], "mirrored_labels"),
        ({"a": 2}, "mirrored_labels"),
    ],
)
def test_bad_labels_of_left_and_right_are_refused_by_name(pairs: Any, named: str) -> None:
    with pytest.raises(DataError, match=named) as refused:
        declaration_of(SIDES | {"mirrored_labels": pairs}, FILE)
    assert "\n" not in str(refused.value)
    assert "mirrored_labels" in str(refused.value)


def test_groups_by_a_pattern(tmp_path: Path) -> None:
    fields = V2 | {"groups": {"pattern": r"radiopaedia_\d+_\d+"}}
    declared = read_declaration(declare(tmp_path, fields))
    assert declared.group_pattern == r"radiopaedia_\d+_\d+"
    assert declared.groups == {}
    named = read_declaration(declare(tmp_path, V2 | {"groups": {"pattern": ["a"], "p": ["b"]}}))
    assert named.group_pattern is None
    assert named.groups == {"a": "pattern", "b": "p"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ([], "[]"),
        ({"labels": V2["labels"]}, '"channel_names"'),
        (V2 | {"channel_names": ["CT"]}, '"channel_names"'),
        (V2 | {"channel_names": {"1": "CT"}}, '"channel_names"'),
        (V2 | {"channel_names": {}}, '"channel_names"'),
        (V2 | {"channel_names": {"0": 3}}, '"channel_names.0": 3'),
        ({"channel_names": {"0": "CT"}}, '"labels"'),
        (V2 | {"labels": None}, '"labels"'),
        (V2 | {"labels": {}}, '"labels"'),
        (V2 | {"labels": ["background"]}, '"labels"'),
        (V2 | {"labels": {"background": 0, "tumour": 1.5}}, '"labels.tumour": 1.5'),
        (V2 | {"labels": {"background": 0, "tumour": True}}, '"labels.tumour": True'),
        (V2 | {"labels": {"background": 0, "tumour": -1}}, '"labels.tumour": -1'),
        (V2 | {"labels": {"background": 0, "tumour": 70000}}, '"labels.tumour": 70000'),
        (V2 | {"labels": {"background": 0, "tumour": []}}, '"labels.tumour": []'),
        (V2 | {"labels": {"background": 0, "tumour": [1, [2]]}}, '"labels.tumour": [1, [2]]'),
        (V2 | {"labels": {"background": 0, "tumour": [1, 1]}}, "'tumour'"),
        (V2 | {"labels": {"background": "0", "tumour": "1"}}, "without quotes"),
        (V2 | {"labels": {"background": 0, "a": 1, "b": 1}}, "'a' and 'b'"),
        (V2 | {"labels": {"background": 0, "a": [1, 2], "b": [2, 1]}}, "'a' and 'b'"),
        (V2 | {"labels": {"tumour": 1, "cyst": 2}}, '"background": 0'),
        (V2 | {"labels": {"ignore": 0, "a": 1, "b": 2}}, '"background": 0'),
        (V2 | {"labels": {"background": 0}}, '"labels"'),
        (V2 | {"labels": {"background": 0, "ignore": 1}}, '"labels"'),
        (V2 | {"labels": {"background": 0, "all": [0, 1]}}, "region 'all'"),
        (V2 | {"labels": {"background": 0, "a": 1, "ignore": 1}}, "label 'ignore'"),
        (V2 | {"labels": {"background": 0, "a": 1, "ignore": [2, 3]}}, "label 'ignore'"),
        (V2 | {"groups": ["a"]}, '"groups"'),
        (V2 | {"groups": {"p": ["a"], "b": "q"}}, '"groups"'),
        (V2 | {"groups": {"p": ["a"], "q": ["a"]}}, "case a to p and q"),
        (V2 | {"groups": {"p": ["a", 1]}}, "\"groups.p\": ['a', 1]"),
        (V2 | {"groups": {"pattern": "(a"}}, "'(a'"),
        (V2 | {"codes": []}, '"codes": []'),
        (V2 | {"codes": {"tumour": {}}}, '"codes.tumour": {}'),
        (V2 | {"codes": {"tumour": {"type": ["1", "SCT"]}}}, "\"codes.tumour.type\": ['1', "),
        (V2 | {"codes": {"tumour": {"type": ["T-1", "SCT", "Lung"]}}}, "'T-1'"),
        (V2 | {"codes": {"nothing": {"type": ["1", "SCT", "Lung"]}}}, "'nothing'"),
        (V2 | {"codes": {"background": {"type": ["1", "SCT", "Lung"]}}}, "'background'"),
        (V2 | {"licence": 4}, '"licence": 4'),
        (V2 | {"description": 4}, '"description": 4'),
        (V2 | {"dataset": []}, '"dataset": []'),
        (V2 | {"dataset": None}, '"dataset": None'),
        (V2 | {"dataset": {"a": {"images": "x", "label": "y"}}}, '"dataset.a.images"'),
        (V2 | {"dataset": {"a": {"images": [], "label": "y"}}}, '"dataset.a.images"'),
        (V2 | {"dataset": {"a": {"images": ["x"]}}}, '"dataset.a"'),
        (V2 | {"dataset": {"../a": {"images": ["x"], "label": "y"}}}, "'../a'"),
        ({key: MSD[key] for key in ("modality", "labels")}, '"training"'),
        (MSD | {"training": {}}, '"training": {}'),
        (MSD | {"training": ["a.nii.gz"]}, "\"training.0\": 'a.nii.gz'"),
        (MSD | {"training": [{"image": "a.nii"}]}, '"training.0"'),
        (MSD | {"labels": {"zero": "background", "1": "a"}}, "'zero'"),
        (MSD | {"labels": {"0": "background", "-1": "a"}}, "'-1'"),
        (MSD | {"labels": {"0": "background", "9" * 5000: "a"}}, "'999"),
        (MSD | {"labels": {"0": "background", "70000": "a"}}, '"labels'),
        (MSD | {"labels": {"0": "background", "1": "a", "2": "a"}}, "1 and 2"),
        (MSD | {"labels": {"0": "a", "00": "b"}}, "'a' and 'b'"),
    ],
)
def test_an_invalid_field_is_named_on_one_line(tmp_path: Path, fields: Any, named: str) -> None:
    with pytest.raises(DataError) as caught:
        read_declaration(declare(tmp_path, fields))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'dataset.json'}: ")
    assert named in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("order", [None, 1, [1], [1, 2, 3, 3], [1, 2, 9], [0, 1, 2], [1, True, 2]])
def test_an_invalid_painting_order_is_refused(order: Any) -> None:
    with pytest.raises(DataError, match=r'"regions_class_order" .* 3 '):
        declaration_of(V2 | {"labels": REGIONS, "regions_class_order": order}, FILE)


def test_without_regions_there_is_no_painting_order() -> None:
    assert declaration_of(V2 | {"regions_class_order": [1]}, FILE).regions_class_order is None


@given(st.sets(st.integers(1, 65535), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_single_values_are_sorted_in_both_dialects(values: set[int], random: Any) -> None:
    pairs = [(f"class {value}", value) for value in [0, *values]]
    random.shuffle(pairs)
    in_order = {f"class {value}": (value,) for value in [0, *sorted(values)]}
    for labels in (dict(pairs), {str(value): name for name, value in pairs}):
        declared = declaration_of(V2 | {"labels": labels}, FILE)
        assert list(declared.labels.items()) == list(in_order.items())
        assert declared.ignore_label is None


def test_regions_keep_the_order_of_the_file_after_the_background() -> None:
    labels = {"whole": [3, 1, 2], "core": [2, 3], "background": 0, "ignore": 4}
    declared = declaration_of(V2 | {"labels": labels, "regions_class_order": [1, 2]}, FILE)
    found = list(declared.labels.items())
    assert found == [("background", (0,)), ("whole", (1, 2, 3)), ("core", (2, 3))]
    assert declared.ignore_label == 4
    assert declared.regions_class_order == (1, 2)


@pytest.mark.parametrize(("count", "kept"), [(20, 20), (True, None), ("20", None), (None, None)])
def test_only_a_whole_number_counts_the_cases(count: Any, kept: int | None) -> None:
    assert declaration_of(V2 | {"numTraining": count}, FILE).case_count == kept


@pytest.mark.parametrize("fields", [{"licence": None, "license": "CC0"}, {"licence": "CC0"}])
def test_both_spellings_of_licence(fields: Any) -> None:
    assert declaration_of(V2 | fields, FILE).licence == "CC0"


@given(st.text(min_size=MAX_SHOWN) | st.lists(st.integers(), min_size=MAX_SHOWN))
def test_long_values_are_truncated(value: Any) -> None:
    assert len(shown(value)) == MAX_SHOWN
    assert shown(value) == repr(value)[: MAX_SHOWN - 3] + "..."


def test_short_values_are_shown_whole() -> None:
    assert shown({"a": [1, "b"]}) == "{'a': [1, 'b']}"
    assert shown("a" * (MAX_SHOWN - 2)) == f"'{'a' * (MAX_SHOWN - 2)}'"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"dataset\.json is missing"):
        read_declaration(tmp_path)
