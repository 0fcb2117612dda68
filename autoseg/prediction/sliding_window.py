"""Class probabilities, or logits, of a whole scan from overlapping patches, slab by slab.

Patches are processed in the order of their x position. A plane is finished, and yielded, as soon as
no later patch can reach it. So memory holds sums of shape (class, patch length, y, z), never the
probabilities of the whole scan.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from autoseg.common.arrays import Floats, Triple
from autoseg.image.geometry import Turn
from autoseg.plan.sections import Inference

CPU = torch.device("cpu")
Network = Callable[[Tensor], Tensor]  # patches (B, channel, *patch) -> (B, class, *patch)
GAUSSIAN_SIGMA = 1 / 8  # of the patch size, as in nnU-Net
VOXELS_AT_ONCE = 1 << 18  # small patches, such as 2D slices, are batched up to this size
VALUES_AT_ONCE = 1 << 25  # on a card, of all classes


@dataclass(frozen=True)
class Slab:
    """Finished planes of a scan; they are valid until the next slab is taken.

    Attributes:
        first: the first plane.
        sums: of the weighted probabilities, (fold x class, planes, y, z).
        totals: of the weights, (planes, y, z).
        folds: whose means are averaged.
    """

    first: int
    sums: Tensor
    totals: Tensor
    folds: int = 1

    @property
    def stop(self) -> int:
        """Behind the last plane."""
        return self.first + self.sums.shape[1]

    def empty(self, planes: int) -> Tensor:
        """Memory for the mean of some planes, (class, planes, y, z)."""
        maps, _, *plane = self.sums.shape
        return self.sums.new_empty((maps // self.folds, planes, *plane), dtype=torch.float32)

    def mean(self, start: int, stop: int, out: Tensor) -> None:
        """Write the weighted mean of some planes, (class, planes, y, z)."""
        some = slice(start - self.first, stop - self.first)
        if self.folds == 1 and self.sums.dtype is torch.float32:
            torch.div(self.sums[:, some], self.totals[some], out=out)
            return
        total, *others = (self.sums[:, some] / self.totals[some]).chunk(self.folds)
        for other in others:  # one after the other, as float16 rounds each sum
            total = total + other
        out.copy_(total / self.folds)


def predict_slabs(
    probabilities: Network,
    image: Floats,
    patch: Triple,
    inference: Inference,
    classes: int,
    folds: int = 0,
    z_before_y: bool = False,
    device: torch.device = CPU,
) -> Iterator[Slab]:
    """Slide over a scan and yield its finished planes in the order of x.

    Args:
        probabilities: maps patches (B, channel, *patch) to (B, class, *patch). It must be
            deterministic: the result of a batch of constant patches (padding, air) is reused for
            the next equal batch.
        image: the preprocessed scan (channel, x, y, z).
        patch: patch size.
        inference: overlap and weighting.
        classes: number of classes.
        folds: if not 0, sums are rounded to float16, as in nnU-Net: the network returns (B, fold x
            class, *patch), and folds are averaged after the patches.
        z_before_y: the order of the patches that start at the same x.
        device: that holds the scan and the sums.
    """
    padded, before = _pad_to_patch(image, patch)
    inside = tuple(slice(b, b + n) for b, n in zip(before[1:], image.shape[2:], strict=True))
    on_host = torch.from_numpy(np.ascontiguousarray(padded))
    volume, weights = on_host.to(device), weight_map(patch, inference.weighting).to(device)
    on_card = VALUES_AT_ONCE // classes if device.type == "cuda" else 0
    batch = max(1, max(VOXELS_AT_ONCE, on_card) // math.prod(patch))
    groups, boxes = _tiles(padded.shape[1:], patch, inference, z_before_y, batch)
    length = max(group[-1] - group[0] for group in groups) + patch[0]
    kind = torch.float16 if folds else torch.float32
    plane, where = padded.shape[2:], cast("Any", {"dtype": kind, "device": device})
    sums = torch.zeros((folds or 1) * classes, length, *plane, **where)  # (map, length, y, z)
    totals = torch.zeros(length, *plane, **where)  # of the weights
    network = _reusing(probabilities)
    following = [*(group[0] for group in groups[1:]), padded.shape[1]]
    for group, next_start in zip(groups, following, strict=True):
        places = [(slice(x, x + patch[0]), *box) for x in group for box in boxes]
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            patches = known = torch.stack([on_host[:, *place] for place in some])
            if volume is not on_host:
                patches = torch.stack([volume[:, *place] for place in some])
            for (x, y, z), found in zip(some, network(patches, known).to(device), strict=True):
                rows = slice(x.start - group[0], x.stop - group[0])
                if kind is torch.float16:
                    sums[:, rows, y, z] += found * weights
                else:
                    sums[:, rows, y, z].addcmul_(found, weights)
                totals[rows, y, z] += weights
        first, last = max(group[0], before[0]), min(next_start, before[0] + image.shape[1])
        if first < last:  # otherwise all of it is padding
            finished = (slice(first - group[0], last - group[0]), *inside)
            yield Slab(first - before[0], sums[:, *finished], totals[finished], folds or 1)
        _shift_out(sums, next_start - group[0], dim=1)
        _shift_out(totals, next_start - group[0], dim=0)


def _tiles(
    shape: Sequence[int], patch: Triple, inference: Inference, z_before_y: bool, batch: int
) -> tuple[list[list[int]], list[tuple[slice, slice]]]:
    """Groups of starts along x, which share batches, and the boxes (y, z) at each of them."""
    axes = zip(shape, patch, inference.overlap, strict=True)
    xs, ys, zs = (tile_starts(*axis, inference.tile_step) for axis in axes)
    corners = [(y, z) for z in zs for y in ys] if z_before_y else [(y, z) for y in ys for z in zs]
    boxes = [(slice(y, y + patch[1]), slice(z, z + patch[2])) for y, z in corners]
    rows = max(1, batch // len(boxes))
    return [xs[first : first + rows] for first in range(0, len(xs), rows)], boxes


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
    """Weight of each voxel of a patch: shape `patch`, nowhere zero.

    NnU-Net's Gaussian lies around the middle voxel, is cut off at 4 sigma, has a maximum of 10, and
    is rounded to float16.
    """
    if weighting == "uniform":
        return torch.ones(patch)
    is_nnunet, sides = weighting == "nnunet", []
    for size in patch:
        middle = size // 2 if is_nnunet else (size - 1) / 2
        kind = torch.float64 if is_nnunet else torch.float32
        offsets = torch.arange(size, dtype=kind) - middle
        sides.append(torch.exp(-0.5 * (offsets / (size * GAUSSIAN_SIGMA)) ** 2))
        if is_nnunet:
            sides[-1][offsets.abs() > int(4 * size * GAUSSIAN_SIGMA + 0.5)] = 0
    weights = reduce(lambda product, side: product[..., None] * side, sides)
    if not is_nnunet:
        return (weights / weights.max()).clamp_min(1e-4)
    rounded = (10 * weights).half().float()
    return rounded.masked_fill(rounded == 0, float(rounded[rounded > 0].min()))


def window_bytes(shape: Sequence[int], patch: Triple, classes: int) -> int:
    """Memory of the weighted sums while patches slide along x of a scan (x, y, z)."""
    longest = [max(axis) for axis in zip(shape, patch, strict=True)]
    return 4 * (classes + 1) * patch[0] * longest[1] * longest[2]


def _pad_to_patch(image: Floats, patch: Triple) -> tuple[Floats, tuple[int, ...]]:
    """Pad axes shorter than the patch with zeros on both sides; also return the padding before."""
    missing = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    before = tuple(m // 2 for m in missing)
    pads = [(0, 0), *((b, m - b) for b, m in zip(before, missing, strict=True))]
    return (np.pad(image, pads) if any(missing) else image), before


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


def _reusing(network: Network) -> Callable[[Tensor, Tensor], Tensor]:
    """A network of patches, which are also on the host, that runs once for constant patches."""
    kept: dict[int, tuple[Tensor, Tensor]] = {}  # batch size -> values and result

    def run(patches: Tensor, on_host: Tensor) -> Tensor:
        low, high = on_host.flatten(2).aminmax(dim=2)
        if not torch.equal(low, high):
            return network(patches)
        # Only an equal batch is reused, never an equal patch: the last digits may depend on the
        # batch size.
        if len(low) not in kept or not torch.equal(kept[len(low)][0], low):
            kept[len(low)] = low, network(patches)
        return kept[len(low)][1]

    return run
