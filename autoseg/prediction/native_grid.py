"""From slabs of probabilities to a label map on the scan's own grid.

Probabilities are interpolated linearly and compared class by class, a few planes at a time. Of
classes the most probable wins; regions are painted in order wherever they are more probable than
not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.prediction.sliding_window import Slab
from autoseg.preprocessing.resample import Shape3, apply_operators, axis_operator

PLANES_AT_ONCE = 16


def segment(
    slabs: Iterable[Slab],
    low_shape: Shape3,
    native_shape: Shape3,
    dtype: Any = np.uint8,
    regions: bool = False,
) -> NDArray[Any]:
    """The class of every voxel of the native grid.

    Args:
        slabs: consecutive planes of probabilities (classes, planes, y, z), from x = 0 on.
        low_shape: the whole shape that the slabs make up.
        native_shape: the shape to return.
        dtype: an unsigned integer type that can hold the number of classes.
        regions: the probabilities are those of regions that may overlap.

    Returns:
        shape `native_shape`. Of classes the index of the most probable one; ties go to the smaller
        index. Of regions 1 + the index of the last one above 0.5, or 0 where none is.
    """
    out = np.zeros(native_shape, dtype)
    if low_shape == native_shape:
        for start, planes in slabs:
            _choose(planes, out[start : start + planes.shape[1]], regions)
        return out
    operator = axis_operator(low_shape[0], native_shape[0], 1)
    for rows, first, planes in _sources(slabs, operator):
        shape = (planes.shape[1], native_shape[1], native_shape[2])
        mix = operator[rows, first : first + planes.shape[1]]
        _choose(_widened(planes, mix, shape), out[rows], regions)
    return out


def _widened(
    planes: NDArray[np.float32], mix: NDArray[np.float32], shape: Shape3
) -> Iterator[NDArray[np.float32]]:
    """Each class's probabilities on some native planes, one class at a time."""
    for plane in planes:
        wide = apply_operators(plane, shape, (1, 1, 1))
        yield (mix @ wide.reshape(len(wide), -1)).reshape(len(mix), *shape[1:])


def _choose(shares: Iterable[NDArray[np.float32]], out: NDArray[Any], regions: bool) -> None:
    """Write the chosen class of every voxel into `out`, which is 0 so far."""
    best = np.full(out.shape, 0.5 if regions else -np.inf, np.float32)
    for index, share in enumerate(shares, start=int(regions)):
        wins = share > best
        out[wins] = index
        if not regions:
            best[wins] = share[wins]


def _sources(
    slabs: Iterable[Slab], operator: NDArray[np.float32]
) -> Iterator[tuple[slice, int, NDArray[np.float32]]]:
    """For a few native planes at a time: which, and the low planes that they are mixed from."""
    used = [np.flatnonzero(np.abs(row) > 1e-7) for row in operator]
    needs = [(int(columns[0]), int(columns[-1]) + 1) for columns in used]
    row, held_from, held = 0, 0, None
    for start, planes in slabs:
        held = planes if held is None else np.concatenate([held, planes], axis=1)
        available = start + planes.shape[1]
        while row < len(needs) and needs[row][1] <= available:
            stop = row + 1
            while stop < len(needs) and needs[stop][1] <= available and stop - row < PLANES_AT_ONCE:
                stop += 1
            first = min(low for low, _ in needs[row:stop])
            last = max(high for _, high in needs[row:stop])
            yield slice(row, stop), first, held[:, first - held_from : last - held_from]
            row = stop
        if row < len(needs):
            # The next plane that is needed may lie beyond this slab, where planes are skipped.
            keep = min(available, *(low for low, _ in needs[row:]))
            held, held_from = held[:, keep - held_from :], keep
