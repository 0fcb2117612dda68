from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoseg.common.errors import AutosegError, DataError
from autoseg.dataset.declaration import read_declaration
from tests.dataset.making import MSD, V2, declare

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


@pytest.mark.parametrize("groups", [{"a": "p", "b": "p", "c": 7}, {"p": ["a", "b"], "7": ["c"]}])
def test_groups_are_read_in_both_directions(tmp_path: Path, groups: dict[str, Any]) -> None:
    declared = read_declaration(declare(tmp_path, V2 | {"groups": groups}))
    assert declared.groups == {"a": "p", "b": "p", "c": "7"}


def test_groups_by_a_pattern(tmp_path: Path) -> None:
    fields = V2 | {"groups": {"pattern": r"radiopaedia_\d+_\d+"}}
    declared = read_declaration(declare(tmp_path, fields))
    assert declared.group_pattern == r"radiopaedia_\d+_\d+"
    assert declared.groups == {}
    named = read_declaration(declare(tmp_path, V2 | {"groups": {"pattern": ["a"], "p": ["b"]}}))
    assert named.group_pattern is None
    assert named.groups == {"a": "pattern", "b": "p"}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ([], "holds a list"),
        ({"labels": V2["labels"]}, 'neither "channel_names" nor "modality"'),
        (V2 | {"channel_names": ["CT"]}, '"channel_names" must map'),
        (V2 | {"channel_names": {"1": "CT"}}, '"channel_names" must map'),
        (V2 | {"channel_names": {}}, "a name for each channel"),
        (V2 | {"channel_names": {"0": 3}}, "a name for each channel"),
        ({"channel_names": {"0": "CT"}}, '"labels" must map names to values'),
        (V2 | {"labels": ["background"]}, '"labels" must map names to values'),
        (V2 | {"labels": {"background": 0, "tumour": 1.5}}, "label 'tumour' is 1.5"),
        (V2 | {"labels": {"background": 0, "tumour": True}}, "label 'tumour' is True"),
        (V2 | {"labels": {"background": 0, "tumour": -1}}, "label 'tumour' is -1"),
        (V2 | {"labels": {"background": 0, "tumour": 70000}}, "label 'tumour' is 70000"),
        (V2 | {"labels": {"background": 0, "tumour": []}}, "label 'tumour' is []"),
        (V2 | {"labels": {"background": 0, "tumour": [1, 1]}}, "a list of different ones"),
        (V2 | {"labels": {"background": 0, "a": 1, "b": 1}}, "'a' and 'b' both have the value 1"),
        (V2 | {"labels": {"tumour": 1, "cyst": 2}}, "no label has the value 0"),
        (V2 | {"labels": {"background": 0}}, "nothing to segment"),
        (V2 | {"labels": {"background": 0, "all": [0, 1]}}, "region 'all' covers 0"),
        (V2 | {"labels": {"background": 0, "a": 1, "ignore": 1}}, "one value of its own"),
        (V2 | {"labels": REGIONS}, '"regions_class_order" must list 3'),
        (V2 | {"labels": REGIONS, "regions_class_order": [1, 2]}, "must list 3"),
        (V2 | {"labels": REGIONS, "regions_class_order": [1, 2, 9]}, "must list 3"),
        (V2 | {"groups": ["a"]}, '"groups" must map'),
        (V2 | {"groups": {"p": ["a"], "b": "q"}}, '"groups" must map'),
        (V2 | {"groups": {"p": ["a"], "q": ["a"]}}, "puts the case a under p and q"),
        (V2 | {"groups": {"pattern": "(a"}}, "'(a', which is no regular expression"),
        (V2 | {"licence": 4}, '"licence" must be text'),
        (V2 | {"dataset": []}, '"dataset" must map'),
        (V2 | {"dataset": {"a": {"images": "x", "label": "y"}}}, '"images" must be a list'),
        (V2 | {"dataset": {"a": {"images": ["x"]}}}, '"label" must be a path'),
        (V2 | {"dataset": {"../a": {"images": ["x"], "label": "y"}}}, "cannot name a file"),
        ({key: MSD[key] for key in ("modality", "labels")}, '"training" is missing'),
        (MSD | {"training": {}}, '"training" must be a list'),
        (MSD | {"training": ["a.nii.gz"]}, 'entry 0 of "training"'),
        (MSD | {"labels": {"zero": "background", "1": "a"}}, "the value 'zero'"),
        (MSD | {"labels": {"0": "background", "1": "a", "2": "a"}}, "the name 'a' to 1 and 2"),
    ],
)
def test_a_wrong_field_is_named_on_one_line(tmp_path: Path, fields: Any, told: str) -> None:
    with pytest.raises(DataError) as caught:
        read_declaration(declare(tmp_path, fields))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'dataset.json'}: ")
    assert told in message
    assert "\n" not in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"dataset\.json is missing"):
        read_declaration(tmp_path)
