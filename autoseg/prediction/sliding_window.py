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

from autoseg.planning.plan import Inference

Triple = tuple[int, int, int]
Slab = tuple[int, NDArray[np.float32]]  # first x plane, probabilities (classes, planes, Y, Z)
GAUSSIAN_SIGMA = 1 / 8  # of the patch, as in nnU-Net
VOXELS_AT_ONCE = 1 << 18  # small patches, such as slices, go through the network together


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
    probabilities: Callable[[Tensor], Tensor],
    image: NDArray[np.float32],
    patch: Triple,
    inference: Inference,
    classes: int,
) -> Iterator[Slab]:
    """Slide over a scan and yield its finished planes, in the order of x.

    Args:
        probabilities: maps patches (B, channel, *patch) to (B, classes, *patch) on the CPU.
        image: the preprocessed scan (channel, x, y, z).
        patch: patch size.
        inference: overlap and weighting.
        classes: how many classes `probabilities` returns.
    """
    shape = image.shape[1:]
    padded, before = _pad_to_patch(image, patch)
    inside = tuple(slice(b, b + n) for b, n in zip(before[1:], shape[1:], strict=True))
    for start, planes in _padded_slabs(probabilities, padded, patch, inference, classes):
        first = max(start, before[0])
        last = min(start + planes.shape[1], before[0] + shape[0])
        if first < last:
            cut = planes[:, first - start : last - start, *inside]
            yield first - before[0], cut


def _pad_to_patch(
    image: NDArray[np.float32], patch: Triple
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Zeros on both sides of axes shorter than the patch; returns the voxels put before, too."""
    missing = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    before = tuple(m // 2 for m in missing)
    pads = [(0, 0), *((b, m - b) for b, m in zip(before, missing, strict=True))]
    return (np.pad(image, pads) if any(missing) else image), before


def _padded_slabs(
    probabilities: Callable[[Tensor], Tensor],
    image: NDArray[np.float32],
    patch: Triple,
    inference: Inference,
    classes: int,
) -> Iterator[Slab]:
    axes = zip(image.shape[1:], patch, inference.overlap, strict=True)
    xs, ys, zs = (tile_starts(*axis) for axis in axes)
    volume = torch.from_numpy(np.ascontiguousarray(image))
    weights = weight_map(patch, inference.weighting)
    sums = torch.zeros(classes, patch[0], *image.shape[2:])
    totals = torch.zeros(patch[0], *image.shape[2:])
    boxes = [(slice(y, y + patch[1]), slice(z, z + patch[2])) for y in ys for z in zs]
    at_once = max(1, VOXELS_AT_ONCE // math.prod(patch))
    for index, x in enumerate(xs):
        for first in range(0, len(boxes), at_once):
            some = boxes[first : first + at_once]
            tiles = torch.stack([volume[:, x : x + patch[0], *box] for box in some])
            for box, found in zip(some, probabilities(tiles), strict=True):
                sums[:, :, *box].addcmul_(found, weights)
                totals[:, *box] += weights
        following = xs[index + 1] if index + 1 < len(xs) else x + patch[0]
        done = following - x
        yield x, (sums[:, :done] / totals[:done]).numpy()
        sums, totals = _forget(sums, done, dim=1), _forget(totals, done, dim=0)


def _forget(planes: Tensor, count: int, dim: int) -> Tensor:
    """Drop the first planes, and add as many empty ones at the end."""
    rolled = planes.roll(-count, dim)
    rolled.narrow(dim, planes.shape[dim] - count, count).zero_()
    return rolled
