"""Interpolation against scipy's map_coordinates in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from autoseg.augmentation import spline

ORDERS = st.sampled_from([1, 3])
SIZES = st.integers(14, 22)


def coefficients(volume, order):
    for axis, size in enumerate(volume.shape):
        volume = spline.along(spline.prefilter(size, order), volume, axis)
    return volume


def test_operators_hold_no_denormal_numbers():
    positions = np.linspace(8, 150, 160)
    for operator in (spline.prefilter(160, 3), spline.line_operator(positions, 160, 3)):
        assert np.abs(operator[operator != 0]).min() >= 1e-20
        assert (operator == 0).any()


@given(st.tuples(SIZES, SIZES, SIZES), ORDERS, st.integers(1, 300), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_scattered_points_equal_scipy(size, order, count, seed):
    rng = np.random.default_rng(seed)
    volume = rng.normal(size=size).astype(np.float32)
    reach = spline.REACH[order]
    points = np.stack([rng.uniform(reach, n - 1 - reach, count) for n in size]).astype(np.float32)
    expected = ndimage.map_coordinates(volume.astype(float), points.astype(float), order=order)
    found = spline.at_points(coefficients(volume, order), points, order)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=5e-5)


@given(ORDERS, st.integers(1, 2), st.integers(1, 9), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_rows_at_points_equal_scipy_row_by_row(order, axes, row, seed):
    rng = np.random.default_rng(seed)
    size, reach = (15, 17)[:axes], spline.REACH[order]
    table = rng.normal(size=(*size, row)).astype(np.float32)
    points = np.stack([rng.uniform(reach, n - 1 - reach, 40) for n in size]).astype(np.float32)
    found = spline.rows_at_points(table, points, order)
    for number in range(row):
        expected = ndimage.map_coordinates(
            table[..., number].astype(float), points.astype(float), order=order, prefilter=False
        )
        assert np.allclose(found[:, number], expected, atol=2e-5)


def test_many_points_are_done_in_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(16, 16, 16)).astype(np.float32)
    points = rng.uniform(6, 9, (3, 1000)).astype(np.float32)
    whole = spline.at_points(volume, points, 3)
    monkeypatch.setattr(spline, "FLOATS_AT_ONCE", 1)
    assert np.array_equal(spline.at_points(volume, points, 3), whole)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("size", [14, 31])
def test_an_axis_equals_scipy(order, size):
    rng = np.random.default_rng(size)
    values = rng.normal(size=size)
    reach = spline.REACH[order]
    places = rng.uniform(reach, size - 1 - reach, 50)
    expected = ndimage.map_coordinates(values, places[None], order=order)
    found = spline.line_operator(places, size, order) @ values
    assert np.allclose(found, expected, atol=1e-5)


@given(st.tuples(*[st.integers(1, 7)] * 3), st.integers(0, 2))
@settings(deadline=None, max_examples=30)
def test_a_matrix_is_applied_along_one_axis(size, axis):
    rng = np.random.default_rng(0)
    volume = rng.normal(size=size).astype(np.float32)
    operator = rng.normal(size=(4, size[axis])).astype(np.float32)
    expected = np.moveaxis(np.tensordot(operator, volume, (1, axis)), 0, axis)
    assert np.allclose(spline.along(operator, volume, axis), expected, atol=1e-5)
    turned = np.asfortranarray(volume)
    assert np.allclose(spline.along(operator, turned, axis), expected, atol=1e-5)
