"""Smooth displacements against batchgenerators' filtered uniform noise."""

import numpy as np
import pytest
from batchgenerators.augmentations.utils import elastic_deform_coordinates
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.stats import ks_2samp

from autoseg.augmentation.spatial import displacement, smoother


def covariance(matrix):
    return matrix.astype(float) @ matrix.T.astype(float)


@given(st.integers(2, 160), st.floats(0.4, 14))
@settings(deadline=None, max_examples=60)
def test_covariance_along_an_axis_is_that_of_the_filter(size, sigma):
    # A cell of a third of sigma stands for its voxels: what is lost is largest at the ends.
    exact = covariance(gaussian_filter1d(np.eye(size), sigma, axis=0, mode="constant"))
    found = covariance(smoother(size, sigma))
    assert np.abs(found - exact).max() < 0.01 * exact.max()


def test_far_fewer_numbers_are_drawn():
    assert smoother(160, 9.0).shape == (160, 54)


def test_an_axis_of_one_voxel_stays():
    assert np.array_equal(smoother(1, 9.0), [[1]])


@pytest.mark.parametrize("shape", [(12, 10, 14), (16, 12, 1)])
def test_displacements_are_distributed_as_those_of_batchgenerators(shape):
    alpha, sigma, count = 30.0, 2.5, 600
    places = ((0, 0, 0), (6, 5, shape[2] // 2))  # a corner and the middle
    rng = np.random.default_rng(0)
    ours = [displacement(shape, alpha, sigma, rng) for _ in range(count)]
    np.random.seed(0)
    plane = tuple(size for size in shape if size > 1)
    still = np.zeros((1, *plane))
    theirs = [elastic_deform_coordinates(still, alpha, sigma).reshape(shape) for _ in range(count)]
    for place in places:
        one, other = [field[place] for field in ours], [field[place] for field in theirs]
        assert ks_2samp(one, other).pvalue > 0.01
        assert np.std(one) == pytest.approx(np.std(other), rel=0.1)
    spread = np.std(ours), np.std(theirs)
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_the_random_numbers_decide_alone():
    one, other = (displacement((5, 6, 7), 9.0, 2.0, np.random.default_rng(4)) for _ in range(2))
    assert one.dtype == np.float32
    assert np.array_equal(one, other)
