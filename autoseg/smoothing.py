"""Noisy curves, smoothed by Gaussian-process regression as in Müller et al. 2021, Fig. 5."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST_POINTS = 5  # below it nothing can be told from noise
MOST_POINTS = 100  # a fit takes the cube of this number
DRAWN_POINTS = 200
BAND = 1.959964  # standard deviations on either side hold 95 % of a normal distribution

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A smoothed curve: four arrays of the same length.

    Attributes:
        x: places, rising.
        mean: the curve's expected value.
        low: lower limit of the 95 % confidence band of the curve (not of single points).
        high: its upper limit.
    """

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers


def smooth(x: Sequence[float], y: Sequence[float | None]) -> Curve | None:
    """Smooth the points (x, y); several may share a place, such as the folds of one epoch.

    Points without a finite y are left out. More than `MOST_POINTS` are averaged in bins, so that
    the fit stays below a tenth of a second. None below `FEWEST_POINTS`, or at a single place.
    """
    places, values = _known(x, y)
    if len(values) < FEWEST_POINTS or places[0] == places[-1]:
        return None
    at = np.linspace(places[0], places[-1], DRAWN_POINTS)
    if np.ptp(values) <= 1e-9 * np.abs(values).max():
        flat = np.full(DRAWN_POINTS, values.mean())
        return Curve(at, flat, flat, flat)
    mean, deviation = _regress(_warp(_binned(places), at), _binned(values), _warp(at, at))
    return Curve(at, mean, mean - BAND * deviation, mean + BAND * deviation)


def _known(x: Sequence[float], y: Sequence[float | None]) -> tuple[Numbers, Numbers]:
    """The finite points in order of their places."""
    places = np.asarray(x, float)
    values = np.array([np.nan if value is None else value for value in y], float)
    there = np.isfinite(values)
    order = np.argsort(places[there], kind="stable")
    return places[there][order], values[there][order]


def _binned(values: Numbers) -> Numbers:
    """Means of neighbours, at most `MOST_POINTS`."""
    if len(values) <= MOST_POINTS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MOST_POINTS)])


def _warp(x: Numbers, span: Numbers) -> Numbers:
    """Places from 0 to 1 that lie denser towards the end.

    Learning curves change fastest at their beginning: one length for all of them fits only then.
    """
    share = (x - span[0]) / (span[-1] - span[0])
    warped: Numbers = (np.sqrt(1 + 24 * share) - 1) / 4
    return warped


def _regress(x: Numbers, y: Numbers, at: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation of the curve beneath the noise."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    from threadpoolctl import threadpool_limits

    signal = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(0.3, (0.05, 2.0), nu=2.5)
    kernel = signal + WhiteKernel(0.05, (1e-5, 1.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    # Several threads on matrices this small take longer than one.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        # A curve with hardly any noise, or nothing else, ends at a bound: that is no fault.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x[:, None], y)
        mean, deviation = process.predict(at[:, None], return_std=True)
    noise = process.kernel_.k2.noise_level * np.var(y)
    return mean, np.sqrt(np.maximum(deviation**2 - noise, 0))
