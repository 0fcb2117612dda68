"""Resampling by scikit-image in float64, one axis after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize

from autoseg.common.arrays import Triple


def one_axis_after_another(
    volume: NDArray[Any], shape: Triple, orders: Triple
) -> NDArray[np.float64]:
    """The slow reference, not clipped to the range of the volume."""
    result = volume.astype(float)
    for axis in range(3):
        wanted = list(result.shape)
        wanted[axis] = shape[axis]
        result = resize(
            result, wanted, order=orders[axis], mode="edge", anti_aliasing=False, clip=False
        )
    return result
