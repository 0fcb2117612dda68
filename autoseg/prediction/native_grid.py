"""Class probabilities on the scan's own grid, some planes and one class at a time.

They are interpolated linearly between the voxels of the network's grid. So they never exceed the
largest of those around, which tells where a class cannot be chosen before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.common.files import cannot_write, replacing
from autoseg.plan.labels import Classes
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


# Probabilities as a file: float16, compressed, written some planes at a time.
#
# The file is one Blosc2 array (class, x, y, z) on the scan's own grid; its classes are in the
# order of the plan's labels, without the background where they are regions. Slicing it reads no
# more than is needed:
#
# import blosc2 probabilities = blosc2.open("case.probabilities.b2nd", mode="r") tumour =
# probabilities[2] # a NumPy array (x, y, z) names = probabilities.vlmeta["classes"]

ENDING = ".probabilities.b2nd"


class ProbabilityFile:
    """An array (class, x, y, z) on disk that is filled by planes across one axis.

    Args:
        path: for messages.
        array: the open Blosc2 array.
        axis: 0, 1 or 2: what `write` calls x is that axis of the file, and the other way round.
    """

    def __init__(self, path: Path, array: Any, axis: int) -> None:
        self.path, self.array, self.axis = path, array, axis

    def write(self, index: int, rows: slice, shares: NDArray[np.float32]) -> None:
        """Fill some planes of a class.

        Raises:
            AutosegError: the disk is full.
        """
        where: list[Any] = [index, slice(None), slice(None), slice(None)]
        where[1 + self.axis] = rows
        turned = shares.astype(np.float16).swapaxes(0, self.axis)
        with _told(self.path):
            self.array[tuple(where)] = np.ascontiguousarray(turned)


@contextmanager
def probability_file(
    path: Path, names: Sequence[str], size: Triple, axis: int = 0
) -> Iterator[ProbabilityFile]:
    """A file to fill within the block; it appears when the block ends, whole or not at all.

    Args:
        path: the file.
        names: of the classes.
        size: voxels along x, y, z.
        axis: across which planes are written, `PLANES_AT_ONCE` at a time.

    Raises:
        AutosegError: it cannot be written.
    """
    import blosc2

    chunk = list(size)
    chunk[axis] = min(PLANES_AT_ONCE, size[axis])  # so that each chunk is compressed once
    with replacing(path) as temporary:
        with _told(path):
            array = blosc2.zeros(
                (len(names), *size),
                dtype=np.float16,
                urlpath=str(temporary),
                mode="w",
                chunks=(1, *chunk),
                cparams={"codec": blosc2.Codec.ZSTD, "clevel": 1, "nthreads": 1},
            )
            array.vlmeta["classes"] = list(names)
        yield ProbabilityFile(path, array, axis)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Blosc2 raises RuntimeErrors: say which file, and what to do."""
    try:
        yield
    except RuntimeError as error:
        raise cannot_write(path, error) from error


# From probabilities on the scan's grid to a label map, some planes at a time.
#
# Of classes the most probable wins, and the first of those that tie; regions are painted in order
# wherever they are more probable than not.

LabelMap = NDArray[np.unsignedinteger]


def label_map(
    planes: Iterable[Planes], classes: Classes, size: Triple, saved: ProbabilityFile | None = None
) -> LabelMap:
    """The label values (x, y, z) of a whole grid; 0 is the background.

    Args:
        planes: all planes of the grid.
        classes: what the probabilities are of, and the value that each class paints.
        size: voxels of the grid.
        saved: where to put the probabilities too.
    """
    out: LabelMap = np.zeros(size, np.uint8 if max(classes.painted) < 256 else np.uint16)
    for some in planes:
        if classes.are_regions:
            _paint_regions(some, classes.painted[1:], out[some.rows])
        else:
            _paint_classes(some, classes.painted, out[some.rows])
        if saved is not None:
            for index in range(classes.outputs):
                saved.write(index, some.rows, some.shares(index, whole(some.shape)))
    return out


def _paint_classes(planes: Planes, values: tuple[int, ...], out: LabelMap) -> None:
    # The winner has at least 1 / classes of a sum of one: who has less than half of that anywhere
    # cannot win there.
    least = 0.5 / len(values)
    reached = {index: planes.reach(index, least) for index in range(1, len(values))}
    parts = {index: part for index, part in reached.items() if part is not None}
    if not parts:
        return
    hull = around(list(parts.values()))
    best = planes.shares(0, hull)
    for index, part in parts.items():
        shares = planes.shares(index, part)
        rival = best[:, *_inside(part, hull)]
        np.copyto(out[:, *part], values[index], where=shares > rival)
        np.maximum(shares, rival, out=rival)


def _paint_regions(planes: Planes, values: tuple[int, ...], out: LabelMap) -> None:
    for index, value in enumerate(values):
        if (part := planes.reach(index, 0.5)) is not None:
            np.copyto(out[:, *part], value, where=planes.shares(index, part) > 0.5)


def around(parts: list[Patch]) -> Patch:
    """The smallest part that holds all of these."""
    ys, zs = zip(*parts, strict=True)
    y, z = (slice(min(s.start for s in side), max(s.stop for s in side)) for side in (ys, zs))
    return y, z


def _inside(part: Patch, hull: Patch) -> Patch:
    (y, z), (first_y, first_z) = part, (hull[0].start, hull[1].start)
    return slice(y.start - first_y, y.stop - first_y), slice(z.start - first_z, z.stop - first_z)
