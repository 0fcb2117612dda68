"""Where classes are in label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def members(label_map: NDArray[np.integer[Any]], values: tuple[int, ...]) -> NDArray[np.bool_]:
    """Where `label_map` holds one of `values`: booleans of the same shape."""
    # In the map's own memory order, or each step would jump across it.
    inside = np.zeros_like(label_map, dtype=bool)
    for value in values:  # np.isin would hold eight bytes a voxel
        inside |= label_map == value
    return inside
