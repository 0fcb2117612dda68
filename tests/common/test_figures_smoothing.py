from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.common.figures import FEWEST_POINTS, MOST_POINTS, smooth


def falling(epochs: int) -> np.ndarray:
    """A learning curve as they are: steep, then flat."""
    return falls_at(np.arange(epochs), epochs)


def falls_at(x: np.ndarray, epochs: int) -> np.ndarray:
    return np.asarray(0.4 + 1.6 * np.exp(-x / epochs * 12))


@pytest.mark.parametrize("epochs", [30, 100, 1000])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_the_curve_beneath_the_noise_is_found(epochs: int, noise: float) -> None:
    noisy = falling(epochs) + np.random.default_rng(0).normal(0, noise, epochs)
    curve = smooth(range(epochs), list(noisy))
    assert curve is not None
    expected = falls_at(curve.x, epochs)
    error = np.sqrt(np.mean((curve.mean - expected) ** 2))
    assert error < 0.6 * noise  # a curve through all points has the noise itself as its error
    inside = (curve.low <= expected) & (expected <= curve.high)
    assert inside.mean() > 0.8


def test_the_band_is_that_of_the_curve_not_of_the_points() -> None:
    values = falling(400) + np.random.default_rng(1).normal(0, 0.1, 400)
    curve = smooth(range(400), list(values))
    assert curve is not None
    width = curve.high - curve.low
    assert 0 < width.mean() < 0.2  # points spread over 0.4
    few = smooth(range(0, 400, 20), list(values[::20]))
    assert few is not None
    assert (few.high - few.low).mean() > 1.5 * width.mean()  # fewer points tell less


def test_a_straight_line_comes_back() -> None:
    curve = smooth(range(1, 21), [2.0 - 0.05 * n for n in range(20)])
    assert curve is not None
    assert curve.mean == pytest.approx(2.0 - 0.05 * (curve.x - 1), abs=0.01)
    assert (curve.x[0], curve.x[-1]) == (1, 20)


@pytest.mark.parametrize("epochs", range(FEWEST_POINTS))
def test_too_few_points_make_no_curve(epochs: int) -> None:
    assert smooth(range(epochs), list(falling(max(1, epochs)))[:epochs]) is None


def test_points_at_one_place_make_no_curve() -> None:
    assert smooth([3] * 20, list(falling(20))) is None


def test_points_that_are_not_there_are_left_out() -> None:
    x, y = range(40), list(falling(40))
    gaps: list[float | None] = [value if n % 3 else None for n, value in enumerate(y)]
    gaps[7] = float("nan")
    there = [n for n in x if n % 3 and n != 7]
    curve, expected = smooth(x, gaps), smooth(there, [y[n] for n in there])
    assert curve is not None
    assert expected is not None
    assert np.array_equal(curve.mean, expected.mean)
    assert smooth(x, [None] * 40) is None


@pytest.mark.parametrize("value", [0.0, 1.5, -3e-9])
def test_constant_values_have_no_band(value: float) -> None:
    curve = smooth(range(30), [value] * 30)
    assert curve is not None
    assert np.all(curve.mean == curve.low)
    assert np.all(curve.mean == curve.high)
    assert curve.mean == pytest.approx(np.full(len(curve.x), value))


def test_the_order_of_points_does_not_matter_and_folds_may_share_epochs() -> None:
    rng = np.random.default_rng(2)
    x = np.repeat(np.arange(50), 3)  # three folds
    y = np.tile(falling(50)[:, None], 3).ravel() + rng.normal(0, 0.05, 150)
    order = rng.permutation(150)
    one, other = smooth(list(x), list(y)), smooth(list(x[order]), list(y[order]))
    assert one is not None
    assert other is not None
    # Within an epoch the folds come in another order: bins differ a little, the curve does not.
    assert other.mean == pytest.approx(one.mean, abs=0.05)
    assert np.abs(one.mean - np.interp(one.x, np.arange(50), falling(50))).max() < 0.15


def test_many_points_cost_no_more_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor

    sizes = []
    fit = GaussianProcessRegressor.fit

    def counted(self: GaussianProcessRegressor, x: np.ndarray, y: np.ndarray) -> object:
        sizes.append(len(x))
        return fit(self, x, y)

    monkeypatch.setattr(GaussianProcessRegressor, "fit", counted)
    for points in (MOST_POINTS, MOST_POINTS + 1, 5000):
        assert smooth(range(points), list(falling(points))) is not None
    assert sizes == [MOST_POINTS] * 3


numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(st.lists(st.none() | numbers, max_size=30))
@settings(deadline=None, max_examples=40)
def test_any_values_give_finite_curves_and_no_warning(values: list[float | None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = smooth(range(len(values)), values)
    if curve is not None:
        for array in (curve.x, curve.mean, curve.low, curve.high):
            assert np.isfinite(array).all()
        assert (curve.low <= curve.mean).all()
        assert (curve.mean <= curve.high).all()


def test_one_value_far_away_makes_no_bump() -> None:
    x = list(range(1, 41))
    y = [9.0, *(0.4 + 0.6 * float(np.exp(-n / 4)) for n in x[1:])]
    curve = smooth(x, y)
    assert curve is not None
    behind = curve.mean[curve.x > 2]
    assert np.diff(behind).max() < 0.01  # the values fall everywhere
