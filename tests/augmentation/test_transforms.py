import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from batchgenerators.augmentations.noise_augmentations import augment_gaussian_noise
from batchgenerators.augmentations.resample_augmentations import augment_linear_downsampling_scipy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest, kurtosis, skew

from autoseg.augmentation.transforms import (
    Augmenter,
    add_noise,
    blur,
    lower_resolution,
    seeded,
    through_coarser_grid,
)
from autoseg.plan.augmentation import (
    Brightness,
    Contrast,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    LowResolution,
    Mirror,
    Spatial,
)

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
    Spatial(elastic_probability=1, elastic_sigma=(2, 3), image_order=1),
    Spatial(rotation_probability=1, label_order=1, border="nearest"),
]


def rng(seed=0):
    return np.random.default_rng(seed)


def sample(size: Sequence[int], channels: int = 2, seed: int = 0) -> Any:
    x, y, z = size
    label = rng(seed).integers(-1, 3, (x, y, z)).astype(np.int16)
    image = label + rng(seed).normal(0, 0.3, (channels, x, y, z))
    return image.astype(np.float32), label


def augment(augmenter: Augmenter, seed: int = 0, channels: int = 2) -> Any:
    """Draw, read what is needed, and make a sample."""
    drawn = augmenter.draw(rng(seed))
    return drawn(*sample(drawn.box_size, channels, seed))


@pytest.mark.parametrize("patch", [(8, 10, 6), (7, 5, 9), (8, 8, 1), (1, 9, 8), (8, 1, 8)])
@pytest.mark.parametrize("spec", INTENSITY + SPATIAL, ids=lambda spec: spec.transform)
def test_every_transform_keeps_the_patch_shape_and_the_labels(spec, patch):
    augmenter = Augmenter((spec,), patch)
    for seed in range(4):
        image, label = augment(augmenter, seed)
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
    changed, same = augment(Augmenter((spec,), (8, 8, 8)))
    assert np.array_equal(same, label)
    assert not np.array_equal(changed, image)


@pytest.mark.parametrize("spec", INTENSITY + SPATIAL, ids=lambda spec: spec.transform)
def test_the_given_random_numbers_decide_alone(spec):
    augmenter = Augmenter((spec,), (8, 8, 8))
    results = []
    for number in range(2):
        np.random.seed(number)
        random.seed(number)
        results.append(augment(augmenter, 3))
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


def without_chance(spec: Any) -> Any:
    keys = [key for key in type(spec).model_fields if key.endswith("probability")]
    return spec.model_copy(update=dict.fromkeys(keys, 0.0))


@pytest.mark.parametrize("spec", INTENSITY + SPATIAL, ids=lambda spec: spec.transform)
def test_a_probability_of_zero_changes_nothing(spec):
    augmenter = Augmenter((without_chance(spec),), (6, 7, 8))
    assert augmenter.draw(rng()).box_size == (6, 7, 8)
    image, label = sample((6, 7, 8))
    changed, same = augment(augmenter)
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


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 2), (0, 1, 2), ()])
def test_mirrors_only_the_named_axes_image_and_label_alike(axes):
    augmenter = Augmenter((Mirror(axes=axes),), (4, 5, 6))
    image, label = sample((4, 5, 6))
    flips = [tuple(axis for axis in axes if bits >> axis & 1) for bits in range(8)]
    expected = {np.flip(label, flip).tobytes(): flip for flip in flips}
    found = set()
    for seed in range(60):
        mirrored, mirrored_label = augmenter.draw(rng(seed))(image.copy(), label.copy())
        flip = expected[mirrored_label.tobytes()]
        assert np.array_equal(mirrored, np.flip(image, tuple(1 + axis for axis in flip)))
        found.add(flip)
    assert len(found) == 2 ** len(axes)


def test_transforms_come_in_the_order_of_the_plan():
    noise = GaussianNoise(probability=1, variance=(0.1, 0.1))
    louder = Brightness(probability=1, factor=(100, 100))
    for steps, spread in (((noise, louder), 10), ((louder, noise), 0.1)):
        zeros = np.zeros((1, 12, 12, 12), np.float32)
        drawn = Augmenter(steps, (12, 12, 12)).draw(rng())
        image, _ = drawn(zeros, zeros[0].astype(np.int16))
        assert image.std() == pytest.approx(spread, rel=0.1)


def test_more_is_read_only_where_a_patch_is_warped():
    turning = Spatial(rotation_probability=0.5, scaling_probability=0, border="nearest")
    augmenter = Augmenter((Brightness(), turning), (8, 8, 8))
    kinds = {(a.box_size == (8, 8, 8), a.border) for a in map(augmenter.draw, map(rng, range(40)))}
    assert kinds == {(True, "constant"), (False, "nearest")}


def test_one_warp_after_another_reads_what_both_need():
    larger = Spatial(rotation_probability=0, scaling_probability=1, scaling=(1.5, 1.5))
    twice = Augmenter((larger, larger), (8, 8, 8)).draw(rng()).box_size
    assert twice[0] > Augmenter((larger,), (8, 8, 8)).draw(rng()).box_size[0]
    fives = np.full((1, *twice), 5, np.float32)
    image, _ = Augmenter((larger, larger), (8, 8, 8)).draw(rng())(fives, fives[0].astype(np.int16))
    assert np.allclose(image, 5, atol=1e-4)


@pytest.mark.parametrize("spec", SPATIAL, ids=lambda spec: spec.transform)
def test_several_labels_are_moved_alike(spec):
    drawn = Augmenter((spec,), (7, 8, 6)).draw(rng(1))
    image, label = sample(drawn.box_size)
    _, labels = drawn(image, np.stack([label, label]))
    assert labels.shape == (2, 7, 8, 6)
    assert labels.flags.c_contiguous
    assert np.array_equal(labels[0], labels[1])


# Noise, blur and low resolution, against batchgenerators.

SHAPES = st.tuples(st.integers(1, 14), st.integers(2, 14), st.integers(1, 14))


def image(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(SHAPES, st.floats(0.3, 2.0))
@settings(deadline=None, max_examples=40)
def test_blur_equals_gaussian_filter(shape, sigma):
    before = image((2, *shape))
    spec = GaussianBlur(probability=1, channel_probability=1, sigma=(sigma, sigma))
    found = blur(spec, before.copy(), np.random.default_rng(0))
    expected = np.stack([gaussian_filter(channel.astype(float), sigma) for channel in before])
    assert np.allclose(found, expected, atol=1e-5)


@given(SHAPES, st.floats(0.25, 1.0))
@settings(deadline=None, max_examples=40)
def test_low_resolution_equals_batchgenerators(shape, zoom):
    assume(all(size == 1 or round(size * zoom) > 0 for size in shape))  # it fails on nothing left
    before = image(shape)
    expected = augment_linear_downsampling_scipy(
        before[None].copy(),
        (zoom, zoom),
        order_downsample=0,
        order_upsample=3,
        ignore_axes=[axis for axis in range(3) if shape[axis] == 1],
    )[0]
    found = through_coarser_grid(before, zoom)
    assert np.allclose(found, expected, atol=2e-5)


def test_noise_is_normal_with_the_deviation_that_batchgenerators_takes():
    spec = GaussianNoise(probability=1, variance=(0.05, 0.05))
    added = add_noise(spec, np.zeros((1, 40, 40, 40), np.float32), np.random.default_rng(0))
    np.random.seed(0)
    theirs = augment_gaussian_noise(np.zeros((1, 40, 40, 40)), (0.05, 0.05))
    assert added.std() == pytest.approx(theirs.std(), rel=0.02)
    assert abs(added.mean()) < 0.001
    assert abs(skew(added, None)) < 0.05
    assert abs(kurtosis(added, None)) < 0.05


def spreads(function, spec, count=300):
    zeros = np.zeros((1, 12, 12, 12), np.float32)
    return np.array(
        [function(spec, zeros, np.random.default_rng(seed)).std() for seed in range(count)]
    )


def test_the_deviation_of_noise_is_drawn_evenly():
    found = spreads(add_noise, GaussianNoise(probability=1, variance=(0.1, 0.3)))
    assert kstest(found, "uniform", (0.1, 0.2)).pvalue > 0.01


def test_noise_comes_with_its_chance():
    found = spreads(add_noise, GaussianNoise(probability=0.3, variance=(0.1, 0.3)))
    assert 0.22 < (found > 0).mean() < 0.38


@pytest.mark.parametrize(
    ("function", "kind"), [(blur, GaussianBlur), (lower_resolution, LowResolution)]
)
def test_each_channel_has_a_chance_of_its_own(function, kind):
    values = {"zoom": (0.4, 0.5)} if kind is LowResolution else {}
    spec = kind(probability=0.5, channel_probability=0.4, **values)
    before = image((2, 6, 6, 6))
    changed = []
    for seed in range(300):
        after = function(spec, before.copy(), np.random.default_rng(seed))
        changed.append([not np.array_equal(a, b) for a, b in zip(after, before, strict=True)])
    shares = np.array(changed)
    assert np.all(np.abs(shares.mean(axis=0) - 0.2) < 0.07)
    assert abs(shares.all(axis=1).mean() - 0.08) < 0.05  # 0.5 * 0.4 * 0.4
