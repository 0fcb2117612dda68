"""Questions about label maps and masks: class members, bounding boxes, components, counts.

Also small products of matrices, in threads.
"""

import os
import statistics
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from threadpoolctl import ThreadpoolController

from autoseg.common.parallel import cores

Triple = tuple[int, int, int]  # one integer for each of x, y, z: a shape, a patch size, a stride
Box = tuple[slice, ...]  # one slice for each axis
Mask = NDArray[np.bool_]
Array = NDArray[Any]
ClassMap = NDArray[np.int16]  # indices of parts, see `plan.labels.Classes`
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
LabelMap = NDArray[np.integer[Any]]

CHUNK = 1 << 20  # voxels
FEW = 3  # values that are compared one after the other
TINY = 1e-20  # weights below it do not change a weighted sum of float32


def members(label_map: LabelMap, values: Sequence[int]) -> Mask:
    """Where `label_map` holds one of `values`, as a mask in the same memory order."""
    if not values:
        return np.zeros_like(label_map, dtype=bool)
    if len(values) > FEW and label_map.itemsize <= 2:
        limits = np.iinfo(label_map.dtype)
        table = np.zeros(1 << limits.bits, bool)
        table[np.array([v for v in values if limits.min <= v <= limits.max], int)] = True
        return np.asarray(table[label_map.view(f"{label_map.dtype.byteorder}u{limits.bits // 8}")])
    inside: Mask = label_map == values[0]
    for value in values[1:]:  # np.isin would need eight bytes per voxel
        inside |= label_map == value
    return inside


def bounding_box(array: Array) -> Box | None:
    """The smallest box that contains all nonzero elements, or None if there are none.

    Planes are scanned in memory order, and only until the box is known: most CTs fill their grid.
    """
    axes = np.argsort(np.abs(array.strides))[::-1]
    planes = array.transpose(axes)
    if (first := next((i for i, plane in enumerate(planes) if plane.any()), None)) is None:
        return None
    last = next(i for i in reversed(range(len(planes))) if planes[i].any())
    inner = [np.zeros(size, np.bool_) for size in planes.shape[1:]]
    for i in (first, last, *range(first + 1, last)):
        if all(occupied[0] and occupied[-1] for occupied in inner):
            break
        for axis, occupied in enumerate(inner):
            others = tuple(other for other in range(len(inner)) if other != axis)
            occupied |= planes[i].any(axis=others)
    spans = [slice(first, last + 1)]
    for occupied in inner:
        indices = np.flatnonzero(occupied)
        spans.append(slice(int(indices[0]), int(indices[-1]) + 1))
    return tuple(spans[i] for i in np.argsort(axes))


def value_boxes(label_map: LabelMap) -> dict[int, Box]:
    """Each value above zero of a label map (x, y, z) -> the smallest box that contains it.

    One pass over the labelled part, however many values there are.
    """
    around = bounding_box(label_map) or (slice(0, 1),) * 3
    part = label_map[around]
    axes = np.argsort([-abs(step) for step in part.strides], kind="stable")  # as in memory
    places = [*zip(np.argsort(axes), (side.start for side in around), strict=True)]
    return {
        value: tuple(slice(o + box[axis].start, o + box[axis].stop) for axis, o in places)
        for value, box in enumerate(find_objects(part.transpose(axes)), start=1)
        if box
    }


def fill_holes(mask: Mask) -> Mask:
    """A mask with its holes: the other voxels with no path, by faces, to the edge of the volume."""
    outside = cc3d.connected_components((~mask).view(np.uint8), connectivity=6)
    edges = [outside.take((0, -1), axis) for axis in range(3)]
    is_hole = np.ones(int(outside.max()) + 1, np.bool_)
    for edge in edges:
        is_hole[np.unique(edge)] = False
    is_hole[0] = True  # the mask itself
    return np.asarray(is_hole[outside])


def union_of_boxes(boxes: Iterable[Box | None]) -> Box | None:
    """The smallest box that contains all boxes; None stands for an empty box."""
    if not (nonempty := [box for box in boxes if box is not None]):
        return None
    axes = zip(*nonempty, strict=True)
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in axes)


def centre_of(mask: Mask, box: Box) -> NDArray[np.float64]:
    """The centre of a mask in voxels of its volume (x, y, z).

    Unlike `scipy.ndimage.center_of_mass` without float64 copies of the mask.

    Args:
        mask: not empty; cut from the volume.
        box: where it was cut from.
    """
    along = [mask.sum(tuple({0, 1, 2} - {axis})) for axis in range(3)]
    means = [counts @ np.arange(len(counts)) / counts.sum() for counts in along]
    return np.add([side.start for side in box], means)


def connected_components(mask: Mask) -> tuple[NDArray[np.integer[Any]], int]:
    """Number the connected components of a mask (x, y, z) from 1, and count them.

    Voxels that share a face, an edge or a corner are connected (26 neighbours).
    """
    # As bytes: cc3d 4.1.1 allocates too little for thin Boolean masks and raises "maximum length
    # exception".
    flags = mask.view(np.uint8)
    components, count = cc3d.connected_components(flags, connectivity=26, return_N=True)
    return components, int(count)


def count_values(values: LabelMap, length: int, mask: Mask | None = None) -> NDArray[np.int64]:
    """How often each integer from 0 to `length` - 1 occurs in an array, or within a mask of it.

    Counts chunk by chunk, because `np.bincount` copies its input to 64-bit integers.

    Args:
        values: integers from 0 to `length` - 1.
        length: of the result.
        mask: has the shape and the memory order of `values`.
    """
    flat = values.ravel(order="K")
    flags = None if mask is None else mask.ravel(order="K")
    counts = np.zeros(length, np.int64)
    for start in range(0, flat.size, CHUNK):
        chunk = flat[start : start + CHUNK]
        if flags is not None:
            chunk = chunk[flags[start : start + CHUNK]]
        counts += np.bincount(chunk, minlength=length)
    return counts


def count_labels(label_map: LabelMap) -> dict[int, int]:
    """Number of voxels of each label value that occurs in a label map."""
    flat = label_map.ravel(order="K")
    counts = np.zeros(int(label_map.max()) + 1, np.int64)
    for start in range(0, flat.size, CHUNK):
        chunk = flat[start : start + CHUNK]
        foreground = _without_background(chunk)
        counts += np.bincount(foreground, minlength=len(counts))
        counts[0] += chunk.size - foreground.size
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _without_background(flat: LabelMap) -> LabelMap:
    """Drop most zeros, eight bytes at a time; counting the rest is much faster."""
    words = flat[: flat.nbytes // 8 * 8 // flat.itemsize].view(np.uint64)
    rest = flat[words.nbytes // flat.itemsize :]
    return np.concatenate([words[words != 0].view(flat.dtype), rest])


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def without_tiny(weights: Floats) -> Floats:
    """Set weights below `TINY` to zero, in place.

    The weights of a cubic spline decay exponentially with the distance, down to denormal numbers,
    with which processors of Intel multiply ten times more slowly.
    """
    weights[np.abs(weights) < TINY] = 0
    return weights


class _OneBlasThread:
    """Within the block, a product of matrices has one thread; blocks may overlap in time."""

    def __init__(self) -> None:
        self.lock, self.users, self.threads = threading.Lock(), 0, 1
        self.pools: Any = None
        self.limiter: Any = None

    def __enter__(self) -> int:
        """Limit the threads; the number of those that a product would have had."""
        with self.lock:
            if self.users == 0:
                self.pools = self.pools or ThreadpoolController().select(user_api="blas")
                found = (pool.num_threads for pool in self.pools.lib_controllers)
                self.threads = max(found, default=1)
                self.limiter = self.pools.limit(limits=1)
            self.users += 1
            return self.threads

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.limiter.restore_original_limits()


@lru_cache(maxsize=1)
def _slab_threads(process: int) -> ThreadPoolExecutor:
    """Threads of this process: a fork does not have those of its parent."""
    return ThreadPoolExecutor(cores(), "slabs")


ONE_BLAS_THREAD = _OneBlasThread()


def in_slabs(function: Callable[[slice], None], length: int, least: int = 1) -> None:
    """Call a function of small matrix products with slices that cover `length` items, in threads.

    BLAS itself waits for the slowest of its threads in each product. Beside other work, a small
    product then takes as long as the system lets another process run.

    Args:
        function: writes the results of a slice.
        length: number of items.
        least: items that are worth a thread.
    """
    with ONE_BLAS_THREAD as threads:
        count = max(1, min(threads, length // least))
        ends = pairwise(n * length // count for n in range(count + 1))
        first, *others = (slice(start, stop) for start, stop in ends)
        coming = [_slab_threads(os.getpid()).submit(function, slab) for slab in others]
        function(first)
        for each in coming:
            each.result()
