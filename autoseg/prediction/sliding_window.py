"""Class probabilities of a whole scan from overlapping patches, slab by slab.

Patches are taken in the order of their x position. As soon as no later patch can reach a plane, it
is finished and handed on. So memory holds (classes x patch length x Y x Z), never the
(classes x whole volume) array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.common.arrays import Triple
from autoseg.plan.plan import Inference

Network = Callable[[Tensor], Tensor]  # patches (B, channel, *patch) -> (B, classes, *patch)
Slab = tuple[int, NDArray[np.float32]]  # first x plane, probabilities (classes, planes, Y, Z)
GAUSSIAN_SIGMA = 1 / 8  # of the patch, as in nnU-Net
VOXELS_AT_ONCE = 1 << 18  # small patches, such as slices, go through the network together
PLANES_AT_ONCE = 8  # that are handed on


def tile_starts(size: int, patch: int, overlap: int) -> list[int]:
    """Where patches start along one axis: evenly spread, overlapping at least by `overlap`."""
    if size <= patch:
        return [0]
    tiles = math.ceil((size - patch) / (patch - overlap)) + 1
    return [round(index * (size - patch) / (tiles - 1)) for index in range(tiles)]


def count_tiles(shape: Sequence[int], patch: Triple, overlap: Sequence[int]) -> int:
    """How many patches cover a volume."""
    axes = zip(shape, patch, overlap, strict=True)
    return math.prod(len(tile_starts(*axis)) for axis in axes)


def weight_map(patch: Triple, weighting: str) -> Tensor:
    """How much each voxel of a patch counts: shape `patch`, largest 1, nowhere zero."""
    if weighting == "uniform":
        return torch.ones(patch)
    sides = []
    for size in patch:
        offsets = torch.arange(size) - (size - 1) / 2
        sides.append(torch.exp(-0.5 * (offsets / (size * GAUSSIAN_SIGMA)) ** 2))
    weights = reduce(lambda product, side: product[..., None] * side, sides)
    return (weights / weights.max()).clamp_min(1e-4)


def predict_slabs(
    probabilities: Network,
    image: NDArray[np.float32],
    patch: Triple,
    inference: Inference,
    classes: int,
) -> Iterator[Slab]:
    """Slide over a scan and yield its finished planes, in the order of x, a few at a time.

    Args:
        probabilities: maps patches (B, channel, *patch) to (B, classes, *patch) on the CPU. It must
            give the same for the same patches: where all values of a batch are one value (all
            padding, all air), its answer is kept for the next such batch.
        image: the preprocessed scan (channel, x, y, z).
        patch: patch size.
        inference: overlap and weighting.
        classes: how many classes `probabilities` returns.
    """
    shape = image.shape[1:]
    padded, before = _pad_to_patch(image, patch)
    inside = tuple(slice(b, b + n) for b, n in zip(before[1:], shape[1:], strict=True))
    window = _Window(padded, patch, inference, classes)
    for start, planes in window.slabs(_Reused(probabilities)):
        first = max(start, before[0])
        last = min(start + planes.shape[1], before[0] + shape[0])
        if first < last:
            cut = planes[:, first - start : last - start, *inside]
            yield first - before[0], cut


def window_bytes(shape: Sequence[int], patch: Triple, classes: int) -> int:
    """Memory that the sums of a scan (x, y, z) take while patches slide along x."""
    longest = [max(axis) for axis in zip(shape, patch, strict=True)]
    return 4 * (classes + 1) * patch[0] * longest[1] * longest[2]


def _pad_to_patch(
    image: NDArray[np.float32], patch: Triple
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Zeros on both sides of axes shorter than the patch; returns the voxels put before, too."""
    missing = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    before = tuple(m // 2 for m in missing)
    pads = [(0, 0), *((b, m - b) for b, m in zip(before, missing, strict=True))]
    return (np.pad(image, pads) if any(missing) else image), before


class _Reused:
    """A network that is not asked twice in a row about batches of one and the same value."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.known: dict[int, tuple[Tensor, Tensor]] = {}  # size of batch -> values and answer

    def __call__(self, patches: Tensor) -> Tensor:
        """What the network makes of patches (B, channel, *patch)."""
        low, high = patches.flatten(2).aminmax(dim=2)
        if not torch.equal(low, high):
            return self.network(patches)
        # A batch is answered by that of an equal batch, never by that of an equal patch: in a batch
        # of another size the last digits may be others.
        values, answer = self.known.get(len(patches), (None, None))
        if values is None or answer is None or not torch.equal(values, low):
            answer = self.network(patches)
            self.known[len(patches)] = low, answer
        return answer


class _Window:
    """Weighted sums of the patches' answers on those planes that are not finished yet."""

    def __init__(
        self, image: NDArray[np.float32], patch: Triple, inference: Inference, classes: int
    ) -> None:
        axes = zip(image.shape[1:], patch, inference.overlap, strict=True)
        xs, ys, zs = (tile_starts(*axis) for axis in axes)
        self.volume, self.patch = torch.from_numpy(np.ascontiguousarray(image)), patch
        self.weights = weight_map(patch, inference.weighting)
        self.boxes = [(slice(y, y + patch[1]), slice(z, z + patch[2])) for y in ys for z in zs]
        self.at_once = max(1, VOXELS_AT_ONCE // math.prod(patch))
        rows = max(1, self.at_once // len(self.boxes))  # of patches that are answered together
        self.groups = [xs[first : first + rows] for first in range(0, len(xs), rows)]
        length = max(group[-1] - group[0] for group in self.groups) + patch[0]
        self.sums = torch.zeros(classes, length, *image.shape[2:])
        self.totals = torch.zeros(length, *image.shape[2:])

    def slabs(self, network: Network) -> Iterator[Slab]:
        """The finished planes of the whole volume, in order."""
        followers = [group[0] for group in self.groups[1:]]
        for group, follower in zip(self.groups, [*followers, self.volume.shape[1]], strict=True):
            self._add(network, group)
            done = follower - group[0]
            for start in range(0, done, PLANES_AT_ONCE):
                some = slice(start, min(start + PLANES_AT_ONCE, done))
                yield group[0] + start, (self.sums[:, some] / self.totals[some]).numpy()
            _forget(self.sums, done, dim=1)
            _forget(self.totals, done, dim=0)

    def _add(self, network: Network, xs: Sequence[int]) -> None:
        """Add the answers for all patches that start at one of these x."""
        places = [(slice(x, x + self.patch[0]), *box) for x in xs for box in self.boxes]
        for first in range(0, len(places), self.at_once):
            some = places[first : first + self.at_once]
            tiles = torch.stack([self.volume[:, *place] for place in some])
            for (x, y, z), found in zip(some, network(tiles), strict=True):
                here = slice(x.start - xs[0], x.stop - xs[0])
                self.sums[:, here, y, z].addcmul_(found, self.weights)
                self.totals[here, y, z] += self.weights


def _forget(planes: Tensor, count: int, dim: int) -> None:
    """Drop the first planes, move the others up, and empty the end; without a second copy."""
    size = planes.shape[dim]
    for start in range(0, size - count, count):
        length = min(count, size - count - start)
        planes.narrow(dim, start, length).copy_(planes.narrow(dim, start + count, length))
    planes.narrow(dim, size - min(count, size), min(count, size)).zero_()
