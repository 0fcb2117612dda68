"""What is drawn for an image that the training device will change: plain numbers and matrices.

The distributions are those of `transforms`, which acts at once. The numbers come in another order
from a sample's generator, so that the samples of the two differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoseg.augmentation.intensity import blurring, nearest_of_coarser
from autoseg.augmentation.spatial import Warp, random_factor
from autoseg.augmentation.spline import Floats
from autoseg.common.arrays import Triple
from autoseg.plan import augmentation as plans
from autoseg.preprocessing.resample import axis_operator

Factors = tuple[float, ...]  # one for each channel
Operators = tuple[Floats, Floats, Floats]  # the matrices (new size, size) of x, y, z


@dataclass(frozen=True)
class Flip:
    """Turn these axes about."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class Noise:
    """Add normal noise."""

    deviation: float
    seed: int


@dataclass(frozen=True)
class Brightness:
    """Multiply each channel."""

    factors: Factors


@dataclass(frozen=True)
class Contrast:
    """Stretch each channel about its mean."""

    factors: Factors
    preserve_range: bool


@dataclass(frozen=True)
class Gamma:
    """Raise each channel, or its negative, to a power within its range."""

    powers: Factors
    invert: bool
    retain_statistics: bool


@dataclass(frozen=True)
class Blur:
    """Apply matrices to the axes of each channel; None: it stays."""

    channels: tuple[Operators | None, ...]


@dataclass(frozen=True)
class CoarseGrid:
    """The nearest voxels of a coarser grid along x, y, z, and the matrices back."""

    nearest: tuple[NDArray[np.intp], ...]
    back: Operators


@dataclass(frozen=True)
class LowResolution:
    """Take each channel through its coarser grid; None: it stays."""

    channels: tuple[CoarseGrid | None, ...]


Change = Warp | Flip | Noise | Brightness | Contrast | Gamma | Blur | LowResolution
Changing = (
    plans.Mirror
    | plans.GaussianNoise
    | plans.GaussianBlur
    | plans.Brightness
    | plans.Contrast
    | plans.LowResolution
    | plans.Gamma
)


def draw_change(
    spec: Changing, channels: int, size: Triple, rng: np.random.Generator
) -> Change | None:
    """Draw what a transform does to one image; None if nothing.

    Args:
        spec: the plan's chances and ranges.
        channels: of the image.
        size: of the patch (x, y, z).
        rng: the sample's random numbers.
    """
    if rng.random() >= spec.probability:
        return None
    match spec:
        case plans.Mirror():
            return Flip(tuple(axis for axis in sorted(set(spec.axes)) if rng.random() < 0.5))
        case plans.GaussianNoise():
            return Noise(rng.uniform(*spec.variance), int(rng.integers(2**63)))
        case plans.Brightness():
            return Brightness(tuple(rng.uniform(*spec.factor) for _ in range(channels)))
        case plans.Contrast():
            return Contrast(_factors(spec.factor, channels, rng), spec.preserve_range)
        case plans.Gamma():
            powers = _factors(spec.gamma, channels, rng)
            return Gamma(powers, spec.invert, spec.retain_statistics)
        case plans.GaussianBlur():
            sigmas = _some(spec.channel_probability, spec.sigma, channels, rng)
            return Blur(tuple(None if s is None else _blur(size, s) for s in sigmas))
        case plans.LowResolution():
            zooms = _some(spec.channel_probability, spec.zoom, channels, rng)
            return LowResolution(tuple(None if z is None else _coarse_grid(size, z) for z in zooms))


def _factors(limits: tuple[float, float], channels: int, rng: np.random.Generator) -> Factors:
    return tuple(random_factor(limits, rng) for _ in range(channels))


def _some(
    chance: float, limits: tuple[float, float], channels: int, rng: np.random.Generator
) -> list[float | None]:
    """A number for each channel that has the luck."""
    return [rng.uniform(*limits) if rng.random() < chance else None for _ in range(channels)]


def _blur(size: Triple, sigma: float) -> Operators:
    return _along_axes(lambda axis: blurring(size[axis], sigma))


def _coarse_grid(size: Triple, zoom: float) -> CoarseGrid:
    nearest = nearest_of_coarser(size, zoom)
    back = _along_axes(lambda axis: axis_operator(len(nearest[axis]), size[axis], 3))
    return CoarseGrid(tuple(nearest), back)


def _along_axes(matrix: Callable[[int], Floats]) -> Operators:
    return matrix(0), matrix(1), matrix(2)
