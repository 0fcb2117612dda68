"""Corruption of a cascade's previous segmentation, against scikit-image and SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.morphology import ball, closing, dilation, erosion, opening

from autoseg.augmentation.transforms import (
    Augmenter,
    Operator,
    closed,
    corrupt_previous,
    dilated,
    eroded,
    opened,
)
from autoseg.plan.augmentation import (
    Mirror,
    PreviousMorphology,
    PreviousRemoval,
    Spatial,
    Transform,
)

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
ALWAYS = {"probability": 1.0}


def random_parts(shape: tuple[int, int, int], seed: int, parts: int = 3) -> NDArray[np.int16]:
    coarse = np.random.default_rng(seed).integers(0, parts + 1, [(n + 1) // 2 for n in shape])
    fine = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    return fine[: shape[0], : shape[1], : shape[2]].astype(np.int16)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(dilated, dilation), (eroded, erosion), (opened, opening), (closed, closing)],
)
@given(SHAPES, st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_operators_equal_those_of_scikit_image(
    ours: Operator, theirs: Any, shape: tuple[int, int, int], radius: int, seed: int
) -> None:
    mask = random_parts(shape, seed, parts=1) > 0
    assert np.array_equal(ours(mask, radius), theirs(mask, ball(radius)))


@given(SHAPES, st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_a_modified_class_replaces_the_others(shape: tuple[int, int, int], seed: int) -> None:
    before = random_parts(shape, seed)
    kept = before.copy()
    spec = PreviousMorphology(radius=(1, 3), **ALWAYS)
    after = corrupt_previous(before, spec, rng(seed))
    assert np.array_equal(before, kept)  # the input is not modified
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    assert set(np.unique(after)) <= {0, *np.unique(before)}


def test_the_last_class_to_grow_replaces_the_others() -> None:
    before = np.zeros((9, 1, 1), np.int16)
    before[3], before[5] = 1, 2
    found = {
        tuple(corrupt_previous(before, PreviousMorphology(radius=(1, 1), **ALWAYS), rng(s)).ravel())
        for s in range(60)
    }
    assert (0, 0, 1, 1, 1, 2, 2, 0, 0) in found  # both grew, the first one last
    assert (0, 0, 1, 1, 2, 2, 2, 0, 0) in found
    assert (0, 0, 0, 0, 0, 0, 0, 0, 0) in found  # both were eroded away
    assert tuple(before.ravel()) in found  # closed or opened by too small a ball


def test_radii_are_those_of_the_plan() -> None:
    before = np.zeros((21, 1, 1), np.int16)
    before[10] = 1
    spec = PreviousMorphology(radius=(2, 4), **ALWAYS)
    sizes = {int((corrupt_previous(before, spec, rng(seed)) > 0).sum()) for seed in range(200)}
    assert sizes == {0, 1, 5, 7, 9}


@given(SHAPES, st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_one_component_of_each_class_is_removed(
    shape: tuple[int, int, int], share: float, seed: int
) -> None:
    before = random_parts(shape, seed)
    spec = PreviousRemoval(largest_share=share, **ALWAYS)
    after = corrupt_previous(before, spec, rng(seed))
    assert np.array_equal(after[after > 0], before[after > 0])
    for part in np.unique(before[before > 0]):
        labelled, _ = scipy.ndimage.label(before == part, np.ones((3, 3, 3)))
        sizes = np.bincount(labelled.ravel())[1:]
        removed = {int(at) for at in np.unique(labelled[(before == part) & (after == 0)])}
        assert len(removed) == bool((sizes < share * before.size).any())
        for at in removed:
            assert sizes[at - 1] < share * before.size
            assert not after[labelled == at].any()


@pytest.mark.parametrize("kind", [PreviousMorphology, PreviousRemoval])
def test_each_is_applied_with_its_probability(kind: Any) -> None:
    before = random_parts((6, 6, 6), 0)
    for probability, low, high in ((0.0, 0, 0), (0.4, 0.25, 0.55), (1.0, 0.9, 1)):
        spec = kind(probability=probability)
        changed = [
            not np.array_equal(corrupt_previous(before, spec, rng(seed)), before)
            for seed in range(100)
        ]
        assert low <= np.mean(changed) <= high


@pytest.mark.parametrize("kind", [PreviousMorphology, PreviousRemoval])
def test_empty_and_full_segmentations(kind: Any) -> None:
    empty = np.zeros((4, 5, 1), np.int16)
    for seed in range(20):
        assert not corrupt_previous(empty, kind(**ALWAYS), rng(seed)).any()
        full = corrupt_previous(empty + 2, kind(**ALWAYS), rng(seed))
        assert np.array_equal(full, empty + 2)  # the outside of the patch is unknown


def test_label_and_previous_stage_are_rotated_and_mirrored_together() -> None:
    turn = Spatial(rotation_probability=1.0, scaling_probability=1.0, elastic_probability=0.5)
    specs: list[Transform] = [turn, Mirror()]
    augmenter = Augmenter(specs, (8, 8, 8))
    for seed in range(3):
        drawn = augmenter.draw(rng(seed))
        label = random_parts(drawn.box_size, seed)
        image = np.zeros((1, *drawn.box_size), np.float32)
        _, labels = drawn(image, np.stack([label, label]))
        assert labels.shape == (2, 8, 8, 8)
        assert labels.dtype == np.int16
        assert np.array_equal(labels[0], labels[1])


def test_only_the_previous_stage_is_corrupted() -> None:
    specs: list[Transform] = [
        PreviousMorphology(radius=(1, 2), **ALWAYS),
        PreviousRemoval(**ALWAYS),
    ]
    label = random_parts((8, 8, 8), 0)
    image = rng().normal(size=(1, 8, 8, 8)).astype(np.float32)
    drawn = Augmenter(specs, (8, 8, 8)).draw(rng(1))
    found, labels = drawn(image.copy(), np.stack([label, label]))
    assert np.array_equal(found, image)
    assert np.array_equal(labels[0], label)
    assert not np.array_equal(labels[1], label)
    again = Augmenter(specs, (8, 8, 8)).draw(rng(1))(image.copy(), np.stack([label, label]))[1]
    assert np.array_equal(again, labels)
