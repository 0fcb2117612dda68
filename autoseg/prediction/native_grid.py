"""Class probabilities on the scan's own grid, some planes and one class at a time.

They are interpolated linearly between the voxels of the network's grid. So they never exceed the
largest of those around, which tells where a class cannot be chosen before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.prediction.sliding_window import Slab
from autoseg.preprocessing.resample import (
    Band,
    apply_bands,
    axis_bands,
    axis_operator,
    most_shrinking_first,
)

PLANES_AT_ONCE = 16

Patch = tuple[slice, slice]  # a part of all planes, along y and z


class Planes(Protocol):
    """Some consecutive planes (x) of a scan's own grid, and the probabilities there.

    Attributes:
        rows: which planes.
        shape: voxels of all of them, (x, y, z).
    """

    rows: slice
    shape: Triple

    def reach(self, index: int, least: float) -> Patch | None:
        """A part (y, z) outside of which a class is nowhere more probable than `least`."""

    def shares(self, index: int, part: Patch) -> NDArray[np.float32]:
        """A class's probabilities in a part of the planes, (x, *part)."""


@dataclass(frozen=True)
class Place:
    """Where the network's grid lies on the scan's own.

    Attributes:
        low_shape: voxels of the network's grid.
        box: start and stop along x, y, z of the part of the scan's grid that it covers.
        size: voxels of the scan's grid.
        outside: the class of all that it does not cover; None for regions, which are not there.
    """

    low_shape: Triple
    box: tuple[tuple[int, int], ...]
    size: Triple
    outside: int | None = 0


def native_planes(slabs: Iterable[Slab], place: Place) -> Iterator[Planes]:
    """All planes of the scan's grid in order, `PLANES_AT_ONCE` at a time.

    Args:
        slabs: consecutive planes of probabilities (classes, planes, y, z) of the network's grid,
            from x = 0 on. They are asked for as late as can be.
        place: where they lie.
    """
    start, stop = place.box[0]
    operator = axis_operator(place.low_shape[0], stop - start, 1)
    held = _Held(iter(slabs))
    for first in range(0, place.size[0], PLANES_AT_ONCE):
        rows = slice(first, min(first + PLANES_AT_ONCE, place.size[0]))
        inside = slice(max(first, start), min(rows.stop, stop))
        if inside.start >= inside.stop:
            yield _Outside(rows, place)
            continue
        mix = operator[inside.start - start : inside.stop - start]
        used = np.flatnonzero(mix.any(axis=0))
        low = held.planes(int(used[0]), int(used[-1]) + 1)
        yield _Interpolated(rows, inside, place, low, mix[:, used[0] : used[-1] + 1])
        del low


class _Held:
    """Those planes of the network's grid that are needed now."""

    def __init__(self, slabs: Iterator[Slab]) -> None:
        self.slabs, self.stop = slabs, 0
        self.parts: list[Slab] = []

    def planes(self, start: int, stop: int) -> NDArray[np.float32]:
        """Planes from `start`, before which none is asked for any more, up to `stop`."""
        self._drop(start)
        while self.stop < stop:
            first, planes = next(self.slabs)
            self.stop = first + planes.shape[1]
            self.parts.append((first, planes))
            self._drop(start)
        if len(self.parts) > 1:
            kept = [planes[:, max(0, start - first) :] for first, planes in self.parts]
            self.parts = [(start, np.concatenate(kept, axis=1))]
        first, planes = self.parts[0]
        return planes[:, start - first : stop - first]

    def _drop(self, start: int) -> None:
        self.parts = [part for part in self.parts if part[0] + part[1].shape[1] > start]


class _Outside:
    """Planes that the network's grid does not reach."""

    def __init__(self, rows: slice, place: Place) -> None:
        self.rows, self.index = rows, place.outside
        self.shape = (rows.stop - rows.start, place.size[1], place.size[2])

    def reach(self, index: int, least: float) -> Patch | None:
        return whole(self.shape) if index == self.index else None

    def shares(self, index: int, part: Patch) -> NDArray[np.float32]:
        shape = (self.shape[0], *(side.stop - side.start for side in part))
        return np.full(shape, index == self.index, np.float32)


class _Interpolated:
    """Planes that are mixed from those of the network's grid, at least in part."""

    def __init__(
        self,
        rows: slice,
        inside: slice,
        place: Place,
        low: NDArray[np.float32],
        mix: NDArray[np.float32],
    ) -> None:
        self.rows, self.low = rows, low
        self.outside = _Outside(rows, place)
        self.shape = self.outside.shape
        self.planes = _moved(inside, -rows.start)
        self.across = (Band(slice(0, len(mix)), slice(0, mix.shape[1]), mix),)
        self.sides = tuple(slice(start, stop) for start, stop in place.box[1:])
        sizes = [side.stop - side.start for side in self.sides]
        self.bands = [
            axis_bands(low_size, size, 1)
            for low_size, size in zip(place.low_shape[1:], sizes, strict=True)
        ]
        self.is_whole = inside == rows and self.sides == whole(self.shape)

    def reach(self, index: int, least: float) -> Patch | None:
        if index == self.outside.index and not self.is_whole:
            return whole(self.shape)
        likely = (self.low[index] > least).any(axis=0)
        if not likely.any():
            return None
        y, z = (
            _reached(bands, np.flatnonzero(likely.any(axis=other)), side.start)
            for bands, other, side in zip(self.bands, (1, 0), self.sides, strict=True)
        )
        return y, z

    def shares(self, index: int, part: Patch) -> NDArray[np.float32]:
        wanted = [_overlap(*pair) for pair in zip(part, self.sides, strict=True)]
        if any(side.start >= side.stop for side in wanted):
            return self.outside.shares(index, part)
        own = [_moved(side, -of.start) for side, of in zip(wanted, self.sides, strict=True)]
        chosen = [_within(*pair) for pair in zip(self.bands, own, strict=True)]
        cut = [_moved(side, -bands[0].rows.start) for side, bands in zip(own, chosen, strict=True)]
        found = self._interpolated(index, chosen)[:, cut[0], cut[1]]
        if self.planes.stop - self.planes.start == self.shape[0] and wanted == list(part):
            return found
        out = self.outside.shares(index, part)
        here = [_moved(side, -of.start) for side, of in zip(wanted, part, strict=True)]
        out[self.planes, here[0], here[1]] = found
        return out

    def _interpolated(self, index: int, bands: Sequence[Sequence[Band]]) -> NDArray[np.float32]:
        """All planes inside, and those bands of y and z."""
        along = [self.across, *bands]
        needed = [slice(axis[0].columns.start, axis[-1].columns.stop) for axis in along]
        volume: NDArray[np.float32] = self.low[index][tuple(needed)]
        shape = [axis[-1].rows.stop - axis[0].rows.start for axis in along]
        for axis in most_shrinking_first(volume.shape, shape):
            volume = apply_bands(along[axis], volume, axis, needed[axis].start)
        return volume


def _reached(bands: Sequence[Band], low: NDArray[np.intp], offset: int) -> slice:
    """The voxels of all bands that take from any of these old voxels, on the scan's grid.

    Where no voxel takes from them, because the scan's grid is the coarser one, it is a band near.
    """
    last = [band for band in bands if band.columns.start <= low[-1]][-1:] or [bands[0]]
    first = [band for band in bands if low[0] < band.columns.stop][:1] or [bands[-1]]
    start = min(first[0].rows.start, last[0].rows.start)
    return slice(start + offset, max(first[0].rows.stop, last[0].rows.stop) + offset)


def _within(bands: Sequence[Band], side: slice) -> list[Band]:
    """The bands that hold any of these new voxels."""
    return [band for band in bands if band.rows.start < side.stop and side.start < band.rows.stop]


def _overlap(one: slice, other: slice) -> slice:
    return slice(max(one.start, other.start), min(one.stop, other.stop))


def _moved(side: slice, by: int) -> slice:
    return slice(side.start + by, side.stop + by)


def whole(shape: Triple) -> Patch:
    """All of the planes of this shape (x, y, z)."""
    return slice(0, shape[1]), slice(0, shape[2])
