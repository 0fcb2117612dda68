"""The box around what is not zero."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]


def box_of_content(array: NDArray[Any]) -> Box | None:
    """The box around all voxels of (channel, x, y, z) that are not zero in every channel.

    Planes are looked at in the order of a file's memory, and only until the box is known: most CTs
    fill their grid.

    Returns:
        Slices along x, y, z; None if all is zero.
    """
    planes = array.transpose(3, 0, 2, 1)  # z, then channel, y, x
    length = len(planes)
    first = next((z for z in range(length) if planes[z].any()), None)
    if first is None:
        return None
    last = next(z for z in reversed(range(length)) if planes[z].any())
    hits_y, hits_x = (np.zeros(size, np.bool_) for size in planes.shape[2:])
    for z in (first, last, *range(first + 1, last)):
        if _reaches_ends(hits_y) and _reaches_ends(hits_x):
            break
        for rows in planes[z]:
            hits_y |= rows.any(axis=1)
            hits_x |= rows.any(axis=0)
    return _between(hits_x), _between(hits_y), slice(first, last + 1)


def _reaches_ends(hits: NDArray[np.bool_]) -> bool:
    return bool(hits[0] and hits[-1])


def _between(hits: NDArray[np.bool_]) -> slice:
    """From the first hit to the last."""
    places = np.flatnonzero(hits)
    return slice(int(places[0]), int(places[-1]) + 1)
