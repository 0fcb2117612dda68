from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autoseg.common.errors import PlanError
from autoseg.plan.plan import Plan
from tests.making import CASCADE, REGIONS, tiny_plan


def regions(**changes: Any) -> Plan:
    return tiny_plan(**REGIONS | changes)


def test_classes_are_exclusive_without_regions_class_order() -> None:
    found = tiny_plan(labels={"nothing": [0, 9], "organ": [3, 1], "tumour": [2]}).classes
    assert found.names == ("nothing", "organ", "tumour")
    assert found.parts == ((0, 9), (3, 1), (2,))
    assert found.members == ((1,), (2,))
    assert found.painted == (0, 3, 2)
    assert not found.are_regions
    assert found.outputs == 3


def test_regions_consist_of_values() -> None:
    found = regions().classes
    assert found.names == ("background", "whole", "core", "enhancing")
    assert found.parts == ((0,), (1,), (2,), (4,))
    assert found.members == ((1, 2, 3), (2, 3), (3,))
    assert found.painted == (0, 1, 2, 4)
    assert found.are_regions
    assert found.outputs == 3  # the background has none


def test_regions_class_order_makes_regions_even_without_overlap() -> None:
    labels = {"background": [0], "lungs": [1, 2], "infection": [3]}
    assert not tiny_plan(labels=labels).classes.are_regions
    found = tiny_plan(labels=labels, regions_class_order=[2, 3]).classes
    assert found.are_regions
    assert found.painted == (0, 2, 3)
    assert found.members == ((1, 2), (3,))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": {"nothing": [0, 4], "whole": [1, 4], "core": [1]}}, r"labels: .*\b4\b"),
        (
            {"training": {"loss": {"loss": "dice_cross_entropy", "background": True}}},
            r"training\.loss\.background",
        ),
        ({"ignore_label": 4}, "ignore_label is 4"),
    ],
)
def test_invalid_regions(change: dict[str, Any], match: str) -> None:
    order = {} if "labels" not in change else {"regions_class_order": [1, 4]}
    with pytest.raises(PlanError, match=match):
        regions(**change | order)


def test_regions_and_classes_differ_in_the_preprocessing_id() -> None:
    labels = {"background": [0], "lungs": [1, 2], "infection": [3]}
    classes = tiny_plan(labels=labels)
    painted = [tiny_plan(labels=labels, regions_class_order=order) for order in ([2, 3], [1, 3])]
    assert classes.preprocessing_id != painted[0].preprocessing_id
    assert painted[0].preprocessing_id == painted[1].preprocessing_id
    assert painted[0].id != painted[1].id


def test_a_cascade_has_an_input_per_part_of_its_previous_stage() -> None:
    assert tiny_plan(channels=["CT", "PET"]).input_channels == 2
    assert tiny_plan(channels=["CT", "PET"], **CASCADE).input_channels == 4
    assert regions(**CASCADE).input_channels == 4  # one per value: 1, 2 and 4


@pytest.mark.parametrize("kind", ["previous_morphology", "previous_removal"])
def test_only_a_cascade_has_a_previous_stage_to_augment(kind: str) -> None:
    change = {"augmentation": [{"transform": "mirror"}, {"transform": kind}]}
    assert tiny_plan(**change, **CASCADE).augmentation[1].transform == kind
    with pytest.raises(PlanError, match=rf"augmentation\.1: {kind}"):
        tiny_plan(**change)


def test_an_axis_may_keep_its_own_spacing() -> None:
    plan = tiny_plan(target_spacing_mm=[1.5, None, 3.0])
    assert plan.target_spacing_of((9.0, 0.7, 8.0)) == (1.5, 0.7, 3.0)
    spacings = np.array([[9.0, 0.7, 8.0]]).tolist()
    assert tiny_plan(target_spacing_mm=[None] * 3).target_spacing_of(spacings[0]) == (9, 0.7, 8)
