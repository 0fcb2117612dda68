"""Where classes are in label maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def members(label_map: NDArray[np.integer[Any]], values: Sequence[int]) -> NDArray[np.bool_]:
    """Where `label_map` holds one of `values`: booleans of the same shape."""
    if not values:
        return np.zeros_like(label_map, dtype=bool)
    inside: NDArray[np.bool_] = label_map == values[0]  # in the map's own memory order
    for value in values[1:]:  # np.isin would hold eight bytes a voxel
        inside |= label_map == value
    return inside
