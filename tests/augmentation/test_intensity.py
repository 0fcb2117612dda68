"""Noise, blur and low resolution against batchgenerators' own functions."""

import numpy as np
import pytest
from batchgenerators.augmentations.noise_augmentations import augment_gaussian_noise
from batchgenerators.augmentations.resample_augmentations import augment_linear_downsampling_scipy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest, kurtosis, skew

from autoseg.augmentation.transforms import add_noise, blur, lower_resolution, through_coarser_grid
from autoseg.plan.augmentation import GaussianBlur, GaussianNoise, LowResolution

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
