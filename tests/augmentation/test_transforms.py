import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.augmentation.transforms import Augmenter, seeded
from autoseg.planning.transforms import (
    Brightness,
    Contrast,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    LowResolution,
    Mirror,
    Spatial,
)

STILL = ((0, 0), (0, 0), (0, 0))
INTENSITY = [
    GaussianNoise(probability=1),
    GaussianBlur(probability=1, channel_probability=1),
    Brightness(probability=1),
    Contrast(probability=1),
    Contrast(probability=1, preserve_range=False),
    LowResolution(probability=1, channel_probability=1, zoom=(0.3, 0.6)),
    Gamma(probability=1),
    Gamma(probability=1, invert=True, retain_statistics=False),
]
SPATIAL = [
    Mirror(),
    Spatial(rotation_probability=1, scaling_probability=1),
    Spatial(elastic_probability=1, image_order=1),
    Spatial(rotation_probability=1, label_order=1, border="nearest"),
]


def rng(seed=0):
    return np.random.default_rng(seed)


def sample(size: Sequence[int], channels: int = 2, seed: int = 0) -> Any:
    x, y, z = size
    label = rng(seed).integers(-1, 3, (x, y, z)).astype(np.int16)
    image = label + rng(seed).normal(0, 0.3, (channels, x, y, z))
    return image.astype(np.float32), label


def turning(axis: int, low: float, high: float, **others: Any) -> Spatial:
    degrees = [(low, high) if other == axis else (0.0, 0.0) for other in range(3)]
    values = {"scaling_probability": 0, "image_order": 1, "rotation_probability": 1} | others
    return Spatial.model_validate({"rotation_degrees": degrees} | values)


def middle(array, size):
    starts = [(n - p) // 2 for n, p in zip(array.shape[-3:], size, strict=True)]
    boxes = tuple(slice(s, s + p) for s, p in zip(starts, size, strict=True))
    return array[(..., *boxes)]


@pytest.mark.parametrize("patch", [(8, 10, 6), (7, 5, 9), (8, 8, 1), (1, 9, 8), (8, 1, 8)])
@pytest.mark.parametrize("spec", INTENSITY + SPATIAL, ids=lambda spec: spec.transform)
def test_every_transform_keeps_the_patch_shape_and_the_labels(spec, patch):
    augmenter = Augmenter((spec,), patch)
    for seed in range(4):
        drawn, drawn_label = sample(augmenter.draw_size, seed=seed)
        image, label = augmenter(drawn, drawn_label, rng(seed))
        assert image.shape == (2, *patch)
        assert label.shape == patch
        assert image.dtype == np.float32
        assert label.dtype == np.int16
        assert image.flags.c_contiguous
        assert label.flags.c_contiguous
        assert np.isfinite(image).all()
        assert set(np.unique(label)) <= {-1, 0, 1, 2}


@pytest.mark.parametrize("spec", INTENSITY, ids=lambda spec: spec.transform)
def test_intensity_transforms_change_the_image_alone(spec):
    image, label = sample((8, 8, 8))
    before = image.copy()
    changed, same = Augmenter((spec,), (8, 8, 8))(image, label, rng())
    assert np.array_equal(same, label)
    assert not np.array_equal(changed, before)
    assert np.array_equal(image, before)  # the drawn patch is not written to


@pytest.mark.parametrize("spec", INTENSITY + SPATIAL, ids=lambda spec: spec.transform)
def test_the_given_random_numbers_decide_alone(spec):
    augmenter = Augmenter((spec,), (8, 8, 8))
    image, label = sample(augmenter.draw_size)
    results = []
    for number in range(2):
        np.random.seed(number)
        random.seed(number)
        results.append(augmenter(image, label, rng(3)))
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("key", ["gaussian_noise", "spatial"])
def test_a_probability_of_zero_changes_nothing(key):
    still = {"rotation_probability": 0, "scaling_probability": 0}
    spec = GaussianNoise(probability=0) if key == "gaussian_noise" else Spatial(**still)
    image, label = sample((6, 7, 8))
    augmenter = Augmenter((spec,), (6, 7, 8))
    assert augmenter.draw_size == (6, 7, 8)
    changed, same = augmenter(image, label, rng())
    assert np.array_equal(changed, image)
    assert np.array_equal(same, label)


def test_seeded_puts_the_global_generators_back_even_after_an_error():
    before, before_python = np.random.get_state(legacy=False)["state"]["key"], random.getstate()
    with pytest.raises(KeyError), seeded(rng()):  # noqa: PT012
        np.random.random(5)
        random.random()
        raise KeyError
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], before)
    assert random.getstate() == before_python


def test_seeded_gives_the_same_numbers_again():
    drawn = []
    for _ in range(2):
        with seeded(rng(5)):
            drawn.append((np.random.random(), random.random()))
    assert drawn[0] == drawn[1]
    with seeded(rng(6)):
        assert drawn[0] != (np.random.random(), random.random())


patches = st.tuples(*[st.integers(2, 16)] * 3)


@given(patches, st.integers(0, 2), st.floats(0, 180), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_turned_patch_of_a_large_volume_shows_no_border(patch, axis, degrees, seed):
    spec = turning(axis, degrees, degrees, scaling_probability=1, scaling=(0.7, 1.4))
    augmenter = Augmenter((spec,), patch)
    ones = np.ones((1, *augmenter.draw_size), np.float32)
    image, label = augmenter(ones, ones[0].astype(np.int16), rng(seed))
    assert image.min() > 0.999
    assert label.min() == 1


def test_turned_about_all_axes_it_shows_next_to_none():
    spec = Spatial(rotation_probability=1, scaling_probability=0, image_order=1)
    augmenter = Augmenter((spec,), (24, 24, 24))
    ones = np.ones((1, *augmenter.draw_size), np.float32)
    images = [augmenter(ones, ones[0].astype(np.int16), rng(seed))[0] for seed in range(20)]
    assert np.mean(np.stack(images) < 0.999) < 0.01


@given(patches)
@settings(deadline=None, max_examples=40)
def test_the_margin_is_even_and_no_larger_than_the_diagonal(patch):
    spec = Spatial(rotation_degrees=((-180, 180),) * 3, scaling_probability=0)
    drawn = np.array(Augmenter((spec,), patch).draw_size)
    assert (drawn >= patch).all()
    assert not ((drawn - patch) % 2).any()
    assert (drawn < np.linalg.norm(patch) + 2).all()


def test_the_margin_of_a_long_patch_is_exact():
    augmenter = Augmenter((turning(2, -180, 180),), (640, 265, 8))  # its diagonal is 692.7 voxels
    assert augmenter.draw_size == (694, 693, 8)


@given(patches)
@settings(deadline=None, max_examples=40)
def test_a_turn_by_nothing_gives_the_middle_voxel_by_voxel(patch):
    augmenter = Augmenter((turning(0, 0, 30),), patch)  # the margin of a real turn ...
    none = Augmenter((turning(0, 0, 0),), patch)  # ... and a turn by 0 degrees
    image, label = sample(augmenter.draw_size)
    turned_image, turned_label = none(image, label, rng())
    assert np.allclose(turned_image, middle(image, patch), atol=1e-6)
    assert np.array_equal(turned_label, middle(label, patch))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("flat", [False, True])
def test_a_turn_goes_about_the_named_axis(axis, flat):
    x, y, z = (1 if flat and other == axis else 9 for other in range(3))
    image, label = sample((x, y, z))
    augmenter = Augmenter((turning(axis, 90, 90),), (x, y, z))
    turned_image, turned_label = augmenter(image, label, rng())
    first, second = (other for other in range(3) if other != axis)
    ways = [np.rot90(label, k, (first, second)) for k in (1, -1)]
    found = [np.array_equal(turned_label, way) for way in ways]
    assert found.count(True) == 1
    expected = np.rot90(image, 1 if found[0] else -1, (1 + first, 1 + second))
    assert np.allclose(turned_image, expected, atol=1e-5)


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_nothing_leaves_the_plane_of_a_flat_patch(flat):
    x, y, z = (1 if axis == flat else 8 for axis in range(3))
    spec = Spatial(
        rotation_probability=1,
        scaling_probability=1,
        elastic_probability=1,
        elastic_alpha=(0, 200),
        image_order=1,
    )
    augmenter = Augmenter((spec,), (x, y, z))
    assert augmenter.draw_size[flat] == 1
    ones = np.ones((2, *augmenter.draw_size), np.float32)
    for seed in range(10):
        image, label = augmenter(ones, ones[0].astype(np.int16), rng(seed))
        assert image.shape == (2, x, y, z)
        assert image.min() > 0.999
        assert label.min() == 1


def test_the_border_is_zero_or_the_nearest_voxel():
    for border, low in (("constant", 0), ("nearest", 1)):
        spec = turning(2, 45, 45, border=border)
        ones = np.ones((1, 8, 8, 8), np.float32)  # drawn without the margin, as from a small case
        image, label = Augmenter((spec,), (8, 8, 8))(ones, ones[0].astype(np.int16), rng())
        assert image.min() == pytest.approx(low)
        assert label.min() == low


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 2), (0, 1, 2), ()])
def test_mirrors_only_the_named_axes_image_and_label_alike(axes):
    image, label = sample((4, 5, 6))
    augmenter = Augmenter((Mirror(axes=axes),), (4, 5, 6))
    flips = [tuple(axis for axis in axes if bits >> axis & 1) for bits in range(8)]
    expected = {np.flip(label, flip).tobytes(): flip for flip in flips}
    found = set()
    for seed in range(60):
        mirrored, mirrored_label = augmenter(image, label, rng(seed))
        flip = expected[mirrored_label.tobytes()]
        assert np.array_equal(mirrored, np.flip(image, tuple(1 + axis for axis in flip)))
        found.add(flip)
    assert len(found) == 2 ** len(axes)


def test_transforms_come_in_the_order_of_the_plan():
    noise = GaussianNoise(probability=1, variance=(0.1, 0.1))
    louder = Brightness(probability=1, factor=(100, 100))
    zeros = np.zeros((1, 12, 12, 12), np.float32)
    for steps, spread in (((noise, louder), 10), ((louder, noise), 0.1)):
        image, _ = Augmenter(steps, (12, 12, 12))(zeros, zeros[0].astype(np.int16), rng())
        assert image.std() == pytest.approx(spread, rel=0.1)
