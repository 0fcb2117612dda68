"""Which patch comes where: the same one at (seed, fold, epoch, batch, position), always."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.plan.plan import Sampling
from autoseg.preprocessing.store import CaseStore, StoredArray, StoredCase

Border = Literal["constant", "nearest"]


@dataclass(frozen=True)
class Position:
    """Where a sample stands in a training run."""

    seed: int
    fold: int
    epoch: int
    batch: int
    place: int  # within the batch

    def rng(self) -> np.random.Generator:
        """The random numbers of this sample, whoever draws them."""
        key = (self.seed, self.fold, self.epoch, self.batch, self.place)
        return np.random.default_rng(np.random.SeedSequence(key))


class PatchSampler:
    """Draws patches from a case store.

    Cases come in a shuffled order that visits each once before any comes again.
    """

    def __init__(
        self, store: CaseStore, cases: Sequence[str], sampling: Sampling, steps_per_epoch: int
    ) -> None:
        self.store = store
        self.cases = sorted(cases)
        self.sampling = sampling
        self.steps_per_epoch = steps_per_epoch
        self._open: dict[str, StoredCase] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # open files cannot travel to a worker

    def draw(
        self, at: Position, size: Triple, border: Border = "constant"
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """The patch at a position, `size` voxels large.

        Where it reaches beyond the case, it is zero, or for the border `nearest` the case's
        nearest voxel.

        Returns:
            image (channel, *size) and label (*size); for a cascade label (2, *size), the second of
            which is the previous stage's segmentation.
        """
        rng = at.rng()
        case = self._case(at)
        centre = self._centre(case, at, rng)
        box = [[c - s // 2, c - s // 2 + s] for c, s in zip(centre, size, strict=True)]
        image, label = _cut(case.image, box, border), _cut(case.label, box, border)
        if case.previous is not None:
            label = np.stack([label, _cut(case.previous, box, border)])
        return image, label

    def name_at(self, at: Position) -> str:
        """The case that the patch at a position comes from."""
        batches = at.epoch * self.steps_per_epoch + at.batch
        round_, index = divmod(batches * self.sampling.batch_size + at.place, len(self.cases))
        key = (at.seed, at.fold, round_)
        order = np.random.default_rng(np.random.SeedSequence(key)).permutation(len(self.cases))
        return self.cases[int(order[index])]

    def _case(self, at: Position) -> StoredCase:
        name = self.name_at(at)
        if name not in self._open:
            self._open[name] = self.store.open(name)
        return self._open[name]

    def _centre(self, case: StoredCase, at: Position, rng: np.random.Generator) -> list[int]:
        """A foreground voxel where the plan wants one, else a random voxel; within the border.

        Foreground is a voxel of a class that is chosen evenly among those of the case. Where voxels
        are ignored, a random voxel is one that is not: a patch of ignored voxels teaches nothing.
        """
        shape, patch = case.label.shape, self.sampling.patch_size
        centre = [_within(rng, n, p) for n, p in zip(shape, patch, strict=True)]
        voxels = case.annotated
        if self._wants_foreground(at, rng) and case.foreground:
            classes = sorted(case.foreground)
            voxels = case.foreground[classes[rng.integers(len(classes))]]
        if voxels is None:
            return centre
        voxel = voxels[rng.integers(len(voxels))]
        return [_nearest_within(int(v), n, p) for v, n, p in zip(voxel, shape, patch, strict=True)]

    def _wants_foreground(self, at: Position, rng: np.random.Generator) -> bool:
        share, size = self.sampling.foreground_share, self.sampling.batch_size
        if self.sampling.foreground_mode == "chance":
            return bool(rng.random() < share)
        return at.place >= round(size * (1 - share))


def _cut(array: StoredArray, box: Sequence[Sequence[int]], border: Border) -> NDArray[Any]:
    """A box of the last three axes, which may reach beyond the array."""
    if border == "constant":
        from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

        padded: NDArray[Any] = crop_and_pad_nd(array, box)
        return padded
    sizes = array.shape[-3:]
    inside = [slice(max(0, start), stop) for start, stop in box]
    beyond = [
        (max(0, -start), max(0, stop - size))
        for (start, stop), size in zip(box, sizes, strict=True)
    ]
    others = len(array.shape) - 3
    cut = array[(*[slice(None)] * others, *inside)]
    return np.pad(cut, [*[(0, 0)] * others, *beyond], mode="edge")


def _within(rng: np.random.Generator, size: int, patch: int) -> int:
    """A random centre whose patch stays inside the axis, or the middle if the axis is shorter."""
    if size <= patch:
        return size // 2
    return int(rng.integers(patch // 2, size - (patch - patch // 2) + 1))


def _nearest_within(voxel: int, size: int, patch: int) -> int:
    """The centre next to `voxel` whose patch stays inside the axis."""
    if size <= patch:
        return size // 2
    return min(max(voxel, patch // 2), size - (patch - patch // 2))
