"""Class probabilities, or logits, of a whole scan from overlapping patches, slab by slab.

Patches are processed in the order of their x position. A plane is finished, and yielded, as soon as
no later patch can reach it. So memory holds sums of shape (class, patch length, y, z), never the
probabilities of the whole scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.common.arrays import Triple
from autoseg.image.geometry import Turn
from autoseg.plan.sections import Inference

Network = Callable[[Tensor], Tensor]  # patches (B, channel, *patch) -> (B, class, *patch)
Slab = tuple[int, NDArray[np.float32]]  # first x plane, probabilities (class, planes, y, z)
GAUSSIAN_SIGMA = 1 / 8  # of the patch size, as in nnU-Net
VOXELS_AT_ONCE = 1 << 18  # small patches, such as 2D slices, are batched up to this size
PLANES_AT_ONCE = 8  # planes of a yielded slab


@dataclass(frozen=True)
class Float16Sums:
    """How sums of logits are rounded to float16, as in nnU-Net.

    Attributes:
        folds: the network returns (B, fold x class, *patch); folds are averaged after the patches.
        z_before_y: the order of the patches that start at the same x.
    """

    folds: int
    z_before_y: bool


def predict_slabs(
    probabilities: Network,
    image: NDArray[np.float32],
    patch: Triple,
    inference: Inference,
    classes: int,
    float16: Float16Sums | None = None,
) -> Iterator[Slab]:
    """Slide over a scan and yield its finished planes in the order of x, a few at a time.

    Args:
        probabilities: maps patches (B, channel, *patch) to (B, class, *patch) on the CPU. It must
            be deterministic: the result of a batch of constant patches (padding, air) is reused
            for the next equal batch.
        image: the preprocessed scan (channel, x, y, z).
        patch: patch size.
        inference: overlap and weighting.
        classes: number of classes.
        float16: for sums in float16.
    """
    shape = image.shape[1:]
    padded, before = _pad_to_patch(image, patch)
    inside = tuple(slice(b, b + n) for b, n in zip(before[1:], shape[1:], strict=True))
    window = _Window(padded, patch, inference, classes, float16)
    for start, planes in window.slabs(_ConstantBatchCache(probabilities)):
        first = max(start, before[0])
        last = min(start + planes.shape[1], before[0] + shape[0])
        if first < last:  # otherwise all of it is padding
            yield first - before[0], planes[:, first - start : last - start, *inside]


def tile_starts(size: int, patch: int, overlap: int, step: float | None = None) -> list[int]:
    """Start of each patch along one axis: evenly spread, overlapping at least by `overlap`.

    With `step`, they are at most this share of the patch apart, rounded as in nnU-Net.
    """
    if size <= patch:
        return [0]
    if step is not None:
        count = math.ceil((size - patch) / (patch * step))
        return [round((size - patch) / count * index) for index in range(count + 1)]
    tiles = math.ceil((size - patch) / (patch - overlap)) + 1
    return [round(index * (size - patch) / (tiles - 1)) for index in range(tiles)]


def count_tiles(shape: Sequence[int], patch: Triple, overlap: Sequence[int]) -> int:
    """Number of patches that cover a volume."""
    axes = zip(shape, patch, overlap, strict=True)
    return math.prod(len(tile_starts(*axis)) for axis in axes)


def weight_map(patch: Triple, weighting: str) -> Tensor:
    """Weight of each voxel of a patch: shape `patch`, nowhere zero."""
    if weighting == "uniform":
        return torch.ones(patch)
    if weighting == "nnunet":
        return _weights_of_nnunet(patch)
    sides = []
    for size in patch:
        offsets = torch.arange(size) - (size - 1) / 2
        sides.append(torch.exp(-0.5 * (offsets / (size * GAUSSIAN_SIGMA)) ** 2))
    weights = reduce(lambda product, side: product[..., None] * side, sides)
    return (weights / weights.max()).clamp_min(1e-4)


def _weights_of_nnunet(patch: Triple) -> Tensor:
    """A Gaussian around the middle voxel, cut off at 4 sigma, with a maximum of 10, in float16."""
    sides = []
    for size in patch:
        offsets = torch.arange(size, dtype=torch.float64) - size // 2
        side = torch.exp(-0.5 * (offsets / (size * GAUSSIAN_SIGMA)) ** 2)
        reach = int(4 * size * GAUSSIAN_SIGMA + 0.5)
        sides.append(side.masked_fill(offsets.abs() > reach, 0.0))
    weights = 10 * reduce(lambda product, side: product[..., None] * side, sides)
    rounded = weights.half().float()
    return rounded.masked_fill(rounded == 0, float(rounded[rounded > 0].min()))


def window_bytes(shape: Sequence[int], patch: Triple, classes: int) -> int:
    """Memory of the weighted sums while patches slide along x of a scan (x, y, z)."""
    longest = [max(axis) for axis in zip(shape, patch, strict=True)]
    return 4 * (classes + 1) * patch[0] * longest[1] * longest[2]


def _pad_to_patch(
    image: NDArray[np.float32], patch: Triple
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Pad axes shorter than the patch with zeros on both sides; also return the padding before."""
    missing = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    before = tuple(m // 2 for m in missing)
    pads = [(0, 0), *((b, m - b) for b, m in zip(before, missing, strict=True))]
    return (np.pad(image, pads) if any(missing) else image), before


class _Window:
    """Weighted sums of the patches' probabilities in the planes that are not finished yet."""

    def __init__(
        self,
        image: NDArray[np.float32],
        patch: Triple,
        inference: Inference,
        classes: int,
        float16: Float16Sums | None,
    ) -> None:
        axes = zip(image.shape[1:], patch, inference.overlap, strict=True)
        xs, ys, zs = (tile_starts(*axis, inference.tile_step) for axis in axes)
        self.volume, self.patch = torch.from_numpy(np.ascontiguousarray(image)), patch
        self.weights = weight_map(patch, inference.weighting)  # (*patch)
        corners = [(y, z) for y in ys for z in zs]
        if float16 is not None and float16.z_before_y:
            corners = [(y, z) for z in zs for y in ys]
        self.boxes = [(slice(y, y + patch[1]), slice(z, z + patch[2])) for y, z in corners]
        self.batch = max(1, VOXELS_AT_ONCE // math.prod(patch))
        rows = max(1, self.batch // len(self.boxes))  # x positions that share a batch
        self.groups = [xs[first : first + rows] for first in range(0, len(xs), rows)]
        length = max(group[-1] - group[0] for group in self.groups) + patch[0]
        self.folds, kind = (float16.folds, torch.float16) if float16 else (1, torch.float32)
        maps = self.folds * classes
        self.sums = torch.zeros(maps, length, *image.shape[2:], dtype=kind)  # (map, length, y, z)
        self.totals = torch.zeros(length, *image.shape[2:], dtype=kind)  # of the weights

    def slabs(self, network: Network) -> Iterator[Slab]:
        """The finished planes of the whole volume, in order."""
        following = [*(group[0] for group in self.groups[1:]), self.volume.shape[1]]
        for group, next_start in zip(self.groups, following, strict=True):
            self._add(network, group)
            finished = next_start - group[0]
            for start in range(0, finished, PLANES_AT_ONCE):
                some = slice(start, min(start + PLANES_AT_ONCE, finished))
                yield group[0] + start, self._mean(some)
            _shift_out(self.sums, finished, dim=1)
            _shift_out(self.totals, finished, dim=0)

    def _mean(self, some: slice) -> NDArray[np.float32]:
        """The weighted mean in some planes, (class, planes, y, z)."""
        found = self.sums[:, some] / self.totals[some]
        total, *others = found.chunk(self.folds)
        for other in others:  # one after the other, as float16 rounds each sum
            total = total + other
        return (total / self.folds).float().numpy()

    def _add(self, network: Network, xs: Sequence[int]) -> None:
        """Add the probabilities of all patches that start at one of these x."""
        places = [(slice(x, x + self.patch[0]), *box) for x in xs for box in self.boxes]
        for first in range(0, len(places), self.batch):
            some = places[first : first + self.batch]
            patches = torch.stack([self.volume[:, *place] for place in some])
            for (x, y, z), found in zip(some, network(patches), strict=True):
                rows = slice(x.start - xs[0], x.stop - xs[0])
                if self.sums.dtype is torch.float16:
                    self.sums[:, rows, y, z] += found * self.weights
                else:
                    self.sums[:, rows, y, z].addcmul_(found, self.weights)
                self.totals[rows, y, z] += self.weights


def turned(patches: Tensor, turn: Turn) -> Tensor:
    """Turn the last three axes of patches; without flips, the result is a view."""
    found = patches.permute(0, 1, *(2 + axis for axis in turn.axes))
    flips = [2 + axis for axis, flip in enumerate(turn.flips) if flip]
    return found.flip(flips) if flips else found


def _shift_out(planes: Tensor, count: int, dim: int) -> None:
    """Drop the first planes, move the others up and zero the end, without a second copy."""
    size = planes.shape[dim]
    for start in range(0, size - count, count):
        length = min(count, size - count - start)
        planes.narrow(dim, start, length).copy_(planes.narrow(dim, start + count, length))
    planes.narrow(dim, size - min(count, size), min(count, size)).zero_()


class _ConstantBatchCache:
    """A network that does not run twice in a row for a batch whose patches are constant."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.known: dict[int, tuple[Tensor, Tensor]] = {}  # batch size -> values and result

    def __call__(self, patches: Tensor) -> Tensor:
        """The network's result for patches (B, channel, *patch)."""
        low, high = patches.flatten(2).aminmax(dim=2)
        if not torch.equal(low, high):
            return self.network(patches)
        # Only an equal batch is reused, never an equal patch: the last digits may depend on the
        # batch size.
        values, result = self.known.get(len(patches), (None, None))
        if values is None or result is None or not torch.equal(values, low):
            result = self.network(patches)
            self.known[len(patches)] = low, result
        return result
