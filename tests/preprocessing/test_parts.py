"""What a label map with regions becomes: the index of each value, however many regions share it."""

from __future__ import annotations

import numpy as np

from autoseg.image.image import Image
from autoseg.preprocessing.resample import resample_label, resampled_shape
from autoseg.preprocessing.steps import IGNORED, prepare, to_classes
from tests.making import REGIONS, grid, tiny_plan


def test_every_value_of_a_region_keeps_an_index_of_its_own() -> None:
    plan = tiny_plan(**REGIONS, ignore_label=7)
    label = np.array([[[0, 1, 2, 4, 7]]], np.uint8)
    assert to_classes(plan, label).tolist() == [[[0, 1, 2, 3, IGNORED]]]


def test_without_regions_all_values_of_a_class_have_one_index() -> None:
    plan = tiny_plan(labels={"background": [0], "organ": [4, 1], "tumour": [2]})
    assert to_classes(plan, np.array([[[0, 1, 2, 4]]])).tolist() == [[[0, 1, 2, 1]]]


def test_values_not_regions_are_resampled() -> None:
    """Of three values a voxel mixes, the most frequent wins; the union of two would win over it."""
    plan = tiny_plan(
        **REGIONS, preprocessing=[{"step": "resample"}], target_spacing_mm=[1.7, 1.4, None]
    )
    label = np.random.default_rng(0).choice(np.array([0, 1, 2, 4], np.uint8), (12, 11, 5))
    prepared = prepare(plan, Image(label[None].astype(np.float32), grid(label.shape)), label)
    shape = resampled_shape(label.shape, (1, 1, 1), (1.7, 1.4, 1), "nearest")
    assert shape[2] == 5
    indices = np.searchsorted([0, 1, 2, 4], label)
    assert prepared.label is not None
    assert np.array_equal(prepared.label, resample_label(indices, shape, (1, 1, 1)))
    assert prepared.spacing_mm == (1.7, 1.4, 1.0)
