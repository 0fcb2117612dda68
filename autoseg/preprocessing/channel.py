"""One channel of a scan on its way through the steps.

A step that changes each voxel by itself is only noted; it is done a few planes at a time when the
values are needed. So a large scan never stands in memory as floats of full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Box, Triple

SLAB_VOXELS = 1 << 20

Change = Callable[[NDArray[np.float32]], None]


@dataclass(frozen=True)
class Channel:
    """The values of one channel (x, y, z).

    Attributes:
        stored: float32, or whole numbers that float32 holds exactly.
        changes: done in place to float32 values, one after the other. Each one keeps the order of
            the values: a larger one never becomes the smaller one.
    """

    stored: NDArray[Any]
    changes: tuple[Change, ...] = ()

    @property
    def shape(self) -> Triple:
        """Voxels along x, y, z."""
        x, y, z = self.stored.shape
        return x, y, z

    def then(self, change: Change) -> Channel:
        """This channel with one more change."""
        return replace(self, changes=(*self.changes, change))

    def cut(self, box: Box) -> Channel:
        """The part of this channel within a box."""
        return replace(self, stored=self.stored[box])

    def slabs(self, axis: int | None = None) -> Iterator[tuple[Box, NDArray[np.float32]]]:
        """Where a few planes lie and a fresh array of their values, through the whole channel.

        Args:
            axis: across the planes; None takes the one that is quickest to read.
        """
        if axis is None:
            axis = int(np.argmax(self.stored.strides))
        size = self.shape[axis]
        planes = max(1, SLAB_VOXELS * size // self.stored.size)
        for start in range(0, size, planes):
            where = _planes(axis, start, start + planes)
            yield where, self._changed(self.stored[where])

    def values(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """All values, in `out` or in a new array of C order."""
        out = np.empty(self.shape, np.float32) if out is None else out
        for where, slab in self.slabs():
            out[where] = slab
        return out

    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        ends = np.array([self.stored.min(), self.stored.max()])
        low, high = self._changed(ends)
        return float(low), float(high)

    def mean_and_std(self) -> tuple[float, float]:
        """Mean and standard deviation of all values, in float64."""
        count = self.stored.size
        mean = sum(float(slab.sum(dtype=np.float64)) for _, slab in self.slabs()) / count
        squares = sum(float(np.square(slab - np.float64(mean)).sum()) for _, slab in self.slabs())
        return mean, math.sqrt(squares / count)

    def nonzero(self) -> NDArray[np.bool_]:
        """Where the values are not zero."""
        found = np.empty_like(self.stored, np.bool_)
        for where, slab in self.slabs():
            found[where] = slab != 0
        return found

    def _changed(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        values = stored.astype(np.float32)
        for change in self.changes:
            change(values)
        return values


def _planes(axis: int, start: int, stop: int) -> Box:
    x, y, z = (slice(start, stop) if at == axis else slice(None) for at in range(3))
    return x, y, z
