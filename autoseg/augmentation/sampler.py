"""Which patch comes where: the same one at (seed, fold, epoch, batch, position), always."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.planning.plan import Sampling
from autoseg.preprocessing.store import CaseStore, StoredCase

Triple = tuple[int, int, int]


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

    def draw(self, at: Position, size: Triple) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """The patch at a position, `size` voxels large, zero where it reaches beyond the case.

        Returns:
            image (channel, *size) and label (*size).
        """
        from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

        rng = at.rng()
        case = self._case(at)
        centre = self._centre(case, at, rng)
        box = [[c - s // 2, c - s // 2 + s] for c, s in zip(centre, size, strict=True)]
        return crop_and_pad_nd(case.image, box), crop_and_pad_nd(case.label, box)

    def _case(self, at: Position) -> StoredCase:
        batches = at.epoch * self.steps_per_epoch + at.batch
        round_, index = divmod(batches * self.sampling.batch_size + at.place, len(self.cases))
        key = (at.seed, at.fold, round_)
        order = np.random.default_rng(np.random.SeedSequence(key)).permutation(len(self.cases))
        name = self.cases[order[index]]
        if name not in self._open:
            self._open[name] = self.store.open(name)
        return self._open[name]

    def _centre(self, case: StoredCase, at: Position, rng: np.random.Generator) -> list[int]:
        """A foreground voxel where the plan wants one, else a random voxel; within the border."""
        shape, patch = case.label.shape, self.sampling.patch_size
        centre = [_within(rng, n, p) for n, p in zip(shape, patch, strict=True)]
        if self._wants_foreground(at, rng) and case.foreground:
            classes = sorted(case.foreground)
            voxels = case.foreground[classes[rng.integers(len(classes))]]
            voxel = voxels[rng.integers(len(voxels))]
            centre = [
                _nearest_within(int(v), n, p) for v, n, p in zip(voxel, shape, patch, strict=True)
            ]
        return centre

    def _wants_foreground(self, at: Position, rng: np.random.Generator) -> bool:
        share, size = self.sampling.foreground_share, self.sampling.batch_size
        if self.sampling.foreground_mode == "chance":
            return bool(rng.random() < share)
        return at.place >= round(size * (1 - share))


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
