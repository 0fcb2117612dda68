"""Smooth random displacements for elastic deformation, drawn where they are smooth: coarsely."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from autoseg.augmentation.spline import Floats, along

CELLS_PER_SIGMA = 3


def displacement(
    shape: Sequence[int], alpha: float, sigma: float, rng: np.random.Generator
) -> Floats:
    """One component of a displacement field, in voxels: batchgenerators' in distribution.

    There each voxel is a uniform number in [-1, 1], smoothed by a Gaussian and multiplied by alpha
    (Simard et al. 2003). So many of them meet in each displacement that it is normal; only the
    covariance counts, and that is the same, to 1 % of the variance, for normal noise in cells of a
    third of sigma.

    Args:
        shape: (x, y, z).
        alpha: the factor.
        sigma: of the Gaussian, in voxels.
        rng: the random numbers.
    """
    smoothers = [smoother(size, sigma) for size in shape]
    cells = [smooth.shape[1] for smooth in smoothers]
    field = rng.standard_normal(cells, dtype=np.float32)
    field *= alpha / np.sqrt(3)  # the standard deviation of uniform numbers in [-1, 1]
    for axis, smooth in enumerate(smoothers):
        field = along(smooth, field, axis)
    return field


def smoother(size: int, sigma: float) -> Floats:
    """The matrix (size, cells) from noise in the cells of an axis to Gaussian-filtered voxels.

    Beyond the axis there is no noise, as for `scipy.ndimage.gaussian_filter(mode="constant")`. An
    axis of a single voxel is left as it is.
    """
    if size == 1:
        return np.ones((1, 1), np.float32)
    cells = min(size, ceil(CELLS_PER_SIGMA * size / sigma))
    width = size / cells  # in voxels
    middle = (np.arange(cells) + 0.5) * width - 0.5
    reach = int(4 * sigma + 0.5)
    total = _bell(np.arange(-reach, reach + 1.0), sigma).sum()
    kernel = _bell(np.arange(size)[:, None] - middle, sigma) / total
    return np.asarray(np.sqrt(width) * kernel, np.float32)


def _bell(distance: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    bell: NDArray[np.float64] = np.exp(-0.5 * (distance / sigma) ** 2)
    return bell
