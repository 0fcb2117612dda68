"""Rotations of scans, random ones for properties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

# Quaternions, long enough to have a direction.
TURNS = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda turn: np.linalg.norm(turn) > 0.1)


def rotation(turn: Sequence[float]) -> NDArray[np.float64]:
    """The rotation matrix of a quaternion."""
    w, x, y, z = np.array(turn) / np.linalg.norm(turn)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
