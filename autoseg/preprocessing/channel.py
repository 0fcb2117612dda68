"""One channel of a scan between preprocessing steps.

Voxel-wise operations are recorded, and applied to a few planes at a time when values are needed. So
a large scan is never in memory as floats of full resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Box, Triple

SLAB_VOXELS = 1 << 20

Operation = Callable[[NDArray[np.float32]], None]


@dataclass(frozen=True)
class Channel:
    """The values of one channel (x, y, z).

    Attributes:
        stored: float32, or integers that float32 represents exactly.
        operations: applied to float32 values in place, one after the other. Each is monotonic: it
            never makes the larger of two values the smaller one.
        layout: of the float32 values. The last digits of sums and of products depend on it. `K`
            keeps that of `stored`, `F` is that of a file, whatever that of `stored` is.
    """

    stored: NDArray[Any]
    operations: tuple[Operation, ...] = ()
    layout: Literal["K", "F"] = "K"

    @property
    def shape(self) -> Triple:
        """Voxels along x, y, z."""
        x, y, z = self.stored.shape
        return x, y, z

    def then(self, operation: Operation) -> Channel:
        """Return this channel with one more operation."""
        return replace(self, operations=(*self.operations, operation))

    def crop(self, box: Box) -> Channel:
        """Return the part of this channel within a box."""
        return replace(self, stored=self.stored[box])

    def slabs(self, axis: int | None = None) -> Iterator[tuple[Box, NDArray[np.float32]]]:
        """Yield a few planes at a time: their box and a new array of their values.

        Args:
            axis: orthogonal to the planes; by default the one that is fastest to read.
        """
        if axis is None:
            axis = 2 if self.layout == "F" else int(np.argmax(self.stored.strides))
        size = self.shape[axis]
        planes = max(1, SLAB_VOXELS * size // self.stored.size)
        for start in range(0, size, planes):
            box = tuple(
                slice(start, start + planes) if i == axis else slice(None) for i in range(3)
            )
            yield box, self._apply(self.stored[box])

    def values(self, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return all values, in `out` or in a new C-contiguous array."""
        out = np.empty(self.shape, np.float32) if out is None else out
        for box, slab in self.slabs():
            out[box] = slab
        return out

    def limits(self) -> tuple[float, float]:
        """Return the smallest and the largest value."""
        low, high = self._apply(np.array([self.stored.min(), self.stored.max()]))
        return float(low), float(high)

    def mean_and_std(self) -> tuple[float, float]:
        """Return mean and standard deviation of all values, in float64."""
        count = self.stored.size
        mean = sum(float(slab.sum(dtype=np.float64)) for _, slab in self.slabs()) / count
        squares = sum(float(np.square(slab - np.float64(mean)).sum()) for _, slab in self.slabs())
        return mean, math.sqrt(squares / count)

    def nonzero(self) -> NDArray[np.bool_]:
        """Return the mask of nonzero values."""
        mask = np.empty_like(self.stored, np.bool_)
        for box, slab in self.slabs():
            mask[box] = slab != 0
        return mask

    def _apply(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        values = stored.astype(np.float32, order=self.layout)
        for operation in self.operations:
            operation(values)
        return values
