"""Where classes are in label maps."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
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


# Three whole numbers, one for each axis of a volume: a shape, a patch, a stride.

Triple = tuple[int, int, int]  # x, y, z


# The box around what is not zero.

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


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there is none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
