"""Noise, blur and low resolution, in less time than batchgenerators takes.

The same draws from the same distributions, and given the same draws the same image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from autoseg.augmentation.spline import along
from autoseg.plan.augmentation import GaussianBlur, GaussianNoise, LowResolution
from autoseg.preprocessing.resample import apply_operators, axis_operator

Image = NDArray[np.float32]  # (channel, x, y, z)


def add_noise(spec: GaussianNoise, image: Image, rng: np.random.Generator) -> Image:
    """Gaussian noise; what the plan calls its variance is, as in batchgenerators, its deviation."""
    if rng.random() >= spec.probability:
        return image
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= rng.uniform(*spec.variance)
    noise += image
    return noise


def blur(spec: GaussianBlur, image: Image, rng: np.random.Generator) -> Image:
    """A Gaussian blur of each channel with a chance and a sigma of its own."""
    if rng.random() >= spec.probability:
        return image
    channels = []
    for channel in image:
        if rng.random() < spec.channel_probability:
            sigma = rng.uniform(*spec.sigma)
            for axis, size in enumerate(channel.shape):
                channel = along(blurring(size, sigma), channel, axis)
        channels.append(channel)
    return np.stack(channels)


def blurring(size: int, sigma: float) -> NDArray[np.float32]:
    """The matrix that `scipy.ndimage.gaussian_filter` applies to an axis."""
    return np.asarray(ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0), np.float32)


def lower_resolution(spec: LowResolution, image: Image, rng: np.random.Generator) -> Image:
    """A scan of lower resolution: the nearest voxels of a coarser grid, and splines back."""
    if rng.random() >= spec.probability:
        return image
    channels = []
    for channel in image:
        if rng.random() < spec.channel_probability:
            channel = through_coarser_grid(channel, rng.uniform(*spec.zoom))
        channels.append(channel)
    return np.stack(channels)


def nearest_of_coarser(shape: Sequence[int], zoom: float) -> list[NDArray[np.intp]]:
    """Along each axis the voxels next to those of a grid of `zoom` times as many."""
    coarse = [max(1, round(size * zoom)) for size in shape]
    return [
        axis_operator(size, small, 0).argmax(axis=1)
        for size, small in zip(shape, coarse, strict=True)
    ]


def through_coarser_grid(channel: NDArray[np.float32], zoom: float) -> NDArray[np.float32]:
    """A channel (x, y, z) resampled to `zoom` times as many voxels along each axis and back.

    What scikit-image's `resize` does with order 0 on the way there and order 3 on the way back. An
    axis of a single voxel stays.
    """
    x, y, z = channel.shape
    small = channel[np.ix_(*nearest_of_coarser(channel.shape, zoom))]
    values = apply_operators(small, (x, y, z), (3, 3, 3))
    return np.clip(values, small.min(), small.max(), out=values)
