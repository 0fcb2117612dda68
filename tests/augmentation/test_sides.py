"""Labels of the left and the right side are exchanged when their axis is mirrored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.transforms.spatial_transforms import MirrorTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from autoseg.augmentation.on_device import finish, postpone
from autoseg.augmentation.transforms import Augmenter, Sides, flip_label, mirror, seeded
from autoseg.plan.augmentation import Brightness, Contrast, Mirror
from autoseg.preprocessing.steps import IGNORED
from tests.making import tiny_plan

LUNGS = {"background": [0], "left lung": [5], "tumour": [7], "right lung": [2]}
PLAN = tiny_plan(labels=LUNGS, orientation="PLS", mirrored_labels=[[5, 2]])
SIDES = Sides.of(PLAN)
labels = hnp.arrays(np.int16, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(IGNORED, 3))
axes = st.sets(st.integers(0, 2)).map(lambda found: tuple(sorted(found)))


def test_sides_of_a_plan() -> None:
    assert Sides(axis=1, parts=(0, 3, 2, 1)) == SIDES
    assert Sides.of(tiny_plan(labels=LUNGS, orientation="PLS")) is None
    assert Sides.of(tiny_plan()) is None


def test_sides_of_regions() -> None:
    labels = {"background": [0], "lungs": [1, 2], "left lung": [1], "right lung": [2]}
    plan = tiny_plan(
        labels=labels,
        regions_class_order=[1, 1, 2],
        orientation="RAS",
        mirrored_labels=[[1, 2]],
    )
    assert Sides.of(plan) == Sides(axis=0, parts=(0, 2, 1))
    assert plan.exchanged_outputs == (0, 2, 1)


@settings(deadline=None)
@given(labels, axes)
def test_mirroring_and_exchanging_commute(label: NDArray[Any], axes: tuple[int, ...]) -> None:
    assert SIDES is not None
    found = flip_label(label, axes, SIDES)
    if 1 in axes:
        assert np.array_equal(found, np.flip(SIDES.exchange(label), axes))
        assert np.array_equal(found == 1, np.flip(label, axes) == 3)
    else:
        assert np.array_equal(found, np.flip(label, axes))
    assert np.array_equal(flip_label(found, axes, SIDES), label)
    assert np.array_equal(found == IGNORED, np.flip(label == IGNORED, axes))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), axes, st.sampled_from([0.3, 1.0]))
def test_mirroring_draws_as_batchgenerators(
    seed: int, axes: tuple[int, ...], chance: float
) -> None:
    spec = Mirror(axes=axes, probability=chance)
    image = np.random.default_rng(1).random((2, 4, 5, 6)).astype(np.float32)
    label = np.random.default_rng(2).integers(-1, 4, (2, 4, 5, 6)).astype(np.int16)
    with seeded(np.random.default_rng(seed)):
        found = mirror(spec, image.copy(), label.copy(), None)
        after = np.random.random()
    with seeded(np.random.default_rng(seed)):
        expected: dict[str, Any] = {"data": image[None].copy(), "seg": label[None].copy()}
        if axes:
            expected = MirrorTransform(axes, p_per_sample=chance)(**expected)
        assert np.random.random() == after
    assert np.array_equal(found[0], expected["data"][0])
    assert np.array_equal(found[1], expected["seg"][0])


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("stages", [1, 2])
def test_the_image_tells_the_side(on_device: bool, stages: int) -> None:
    """Whatever is drawn, class 1 is on the same side of the mirrored content as before."""
    size = (4, 6, 5)
    label = np.zeros(size, np.int16)
    label[:, :2], label[:, 4:], label[0, 0, 0] = 1, 3, IGNORED
    image = np.where(label == 1, 10.0, np.where(label == 3, 30.0, 0)).astype(np.float32)[None]
    given_labels = label if stages == 1 else np.stack([label, label])
    seen = set()
    for seed in range(12):
        augmenter = Augmenter((Brightness(probability=0), Mirror(axes=(0, 1, 2))), size, SIDES)
        drawn = augmenter.draw(np.random.default_rng(seed))
        if on_device:
            postponed, found = postpone(drawn, image.copy(), given_labels.copy())
            values = finish([postponed], torch.device("cpu")).numpy()[0, 0]
        else:
            out, found = drawn(image.copy(), given_labels.copy())
            values = out[0]
        for one in found.reshape(-1, *size):
            assert (one[:, :2][one[:, :2] != IGNORED] == 1).all()
            assert (one[:, 4:][one[:, 4:] != IGNORED] == 3).all()
        seen.add(float(values[2, 0, 2]))
    assert seen == {10.0, 30.0}  # the image itself is mirrored


def test_later_transforms_draw_the_same() -> None:
    image = np.random.default_rng(0).random((1, 6, 6, 6)).astype(np.float32)
    label = np.ones((6, 6, 6), np.int16)
    specs = (Mirror(), Contrast(probability=1))
    with_sides, without = (
        Augmenter(specs, (6, 6, 6), sides).draw(np.random.default_rng(3))(image.copy(), label)
        for sides in (SIDES, None)
    )
    assert np.array_equal(with_sides[0], without[0])
