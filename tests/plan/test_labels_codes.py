"""Codes of classes: the table against pydicom's dictionary, and how names are read."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from pydicom.sr._concepts_dict import concepts

from autoseg.common.errors import PlanError
from autoseg.plan import labels as codes
from autoseg.plan.labels import (
    LESIONS,
    ORGANS,
    PAIRED,
    PRIVATE_SCHEME,
    SIDES,
    SPELLINGS,
    SegmentCode,
    codes_of,
)
from tests.making import tiny_plan


def found(name: str, task: str = "") -> SegmentCode:
    return codes_of({name: (1,)}, {}, task)[name]


def test_every_code_is_one_of_dicom_s() -> None:
    """pydicom generates its dictionary from the DICOM standard."""
    words: dict[str, Any] = concepts["SCT"]
    known = {(code, of[0]) for codes in words.values() for code, of in codes.items()}
    kinds = [[code, text] for code, _, text in (codes.TISSUE, codes.ORGAN, codes.ABNORMAL)]
    used = [*ORGANS.values(), *LESIONS.values(), *SIDES.values(), *kinds]
    assert [each for each in used if tuple(each) not in known] == []


def test_the_table_is_consistent() -> None:
    words = {word for name in (*ORGANS, *LESIONS, *SIDES) for word in name.split()}
    assert set(PAIRED) <= ORGANS.keys()
    assert {word for text in SPELLINGS.values() for word in text.split()} <= words
    assert not SPELLINGS.keys() & words
    for name, (code, _) in ORGANS.items():
        assert found(name).type[0] == code


@pytest.mark.parametrize(
    ("name", "type", "modifiers", "region"),
    [
        ("liver", "Liver", [], None),
        ("left lung", "Lung", ["Left"], None),
        ("Lung_R", "Lung", ["Right"], None),
        ("lungs", "Lung", ["Bilateral"], None),
        ("LeftParotid", "Parotid gland", ["Left"], None),
        ("parotid_gland_right", "Parotid gland", ["Right"], None),
        ("SpinalCord", "Spinal cord", [], None),
        ("brain stem", "Brain Stem", [], None),
        ("oesophagus", "Esophagus", [], None),
        ("left_atrium", "Left atrium", [], None),
        ("tumour", "Neoplasm", [], None),
        ("kidney tumors", "Neoplasm", [], "Kidney"),
        ("left_kidney_cyst", "Cyst", ["Left"], "Kidney"),
        ("infection", "Lesion", [], None),
        ("hippocampus anterior", "Hippocampus", ["Anterior"], None),
    ],
)
def test_names_are_read_word_by_word(
    name: str, type: str, modifiers: list[str], region: str | None
) -> None:
    code = found(name)
    assert code.type[1:] == ("SCT", type)
    assert [each[2] for each in code.modifiers] == modifiers
    assert (code.region and code.region[2]) == region
    is_lesion = [code.type[0], code.type[2]] in LESIONS.values()
    assert (code.category == codes.ABNORMAL) == is_lesion


@pytest.mark.parametrize(
    "name",
    ["tumour core", "L4", "upper lobe of left lung", "left right lung", "Anterior", "肺", "_"],
)
def test_other_names_get_a_private_code_that_depends_on_the_name_alone(name: str) -> None:
    code = found(name)
    assert code.is_private
    assert code.type[1:] == (PRIVATE_SCHEME, name)
    assert code == found(name, "Task002_Other")
    assert code.type[0] != found(f"{name} 2").type[0]


def test_a_task_gives_the_organ_to_classes_that_name_only_a_side() -> None:
    assert found("Anterior", "Task004_Hippocampus").type[2] == "Hippocampus"
    assert found("tumour", "Task003_Liver").region is None  # may be elsewhere
    assert found("Anterior", "Task001_Tiny").is_private


def test_declared_codes_come_first() -> None:
    mine = SegmentCode(type=("1", "99MINE", "My lung"))
    assert codes_of({"lung": (1,), "liver": (2,)}, {"lung": mine})["lung"] == mine


@pytest.mark.parametrize(
    "type", [("", "SCT", "a"), ("1", "", "a"), ("1", "SCT", ""), ("1", "S" * 17, "a"), ("1", "a")]
)
def test_codes_that_dicom_does_not_allow(type: Any) -> None:
    with pytest.raises(ValidationError):
        SegmentCode(type=type)


def test_codes_do_not_change_the_id_of_a_plan() -> None:
    given = {"organ": {"type": ["10200004", "SCT", "Liver"]}}
    plan = tiny_plan(codes=given)
    assert plan.id == tiny_plan().id
    assert plan.codes["organ"].category == codes.ORGAN
    with pytest.raises(PlanError, match="'liver'"):
        tiny_plan(codes={"liver": given["organ"]})
