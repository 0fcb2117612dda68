"""Patch sampling: (seed, fold, epoch, batch, place) alone determines the patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.plan.plan import Sampling
from autoseg.preprocessing.store import CaseStore, StoredArray, StoredCase

Border = Literal["constant", "nearest"]

OPEN_BYTES = 128 << 20  # of open cases in one process
CASE_BYTES = 1 << 20  # of an open case without the voxels of its classes


@dataclass(frozen=True)
class Position:
    """The position of a sample in a training run."""

    seed: int
    fold: int
    epoch: int
    batch: int
    place: int  # index in the batch

    def rng(self) -> np.random.Generator:
        """Return a new random generator that depends on the position only."""
        key = (self.seed, self.fold, self.epoch, self.batch, self.place)
        return np.random.default_rng(np.random.SeedSequence(key))


class PatchSampler:
    """Draws patches from a case store.

    Cases are visited in a shuffled order, each once before any is visited again.
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
        return self.__dict__ | {"_open": {}}  # open files cannot be sent to a worker process

    def draw(
        self, at: Position, size: Triple, border: Border = "constant"
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Return the patch at a position, with `size` voxels.

        Beyond the case it is padded with zeros, or with the nearest voxel of the case if `border`
        is "nearest".

        Returns:
            image (channel, *size) and label (*size); for a cascade label (2, *size), where the
            second one is the segmentation of the previous stage.
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
        """Return the case that the patch at a position is drawn from."""
        batches = at.epoch * self.steps_per_epoch + at.batch
        round_, index = divmod(batches * self.sampling.batch_size + at.place, len(self.cases))
        key = (at.seed, at.fold, round_)
        return self.cases[int(_permutation(key, len(self.cases))[index])]

    def _case(self, at: Position) -> StoredCase:
        """Return the open case; those used longest ago are closed beyond `OPEN_BYTES`."""
        name = self.name_at(at)
        case = self._open.pop(name, None) or self.store.open(name)
        self._open[name] = case  # last, as the one used most recently
        while len(self._open) > 1 and sum(map(_bytes_of, self._open.values())) > OPEN_BYTES:
            del self._open[next(iter(self._open))]
        return case

    def _centre(self, case: StoredCase, at: Position, rng: np.random.Generator) -> list[int]:
        """Return a foreground voxel if the plan requires one, else a random voxel.

        A foreground voxel belongs to a class that is drawn uniformly from the classes of the case.
        If the case has an ignore label, random voxels are drawn from the annotated ones. The patch
        around the voxel is shifted to lie within the case.
        """
        shape, patch = case.label.shape, self.sampling.patch_size
        centre = [_random_centre(rng, n, p) for n, p in zip(shape, patch, strict=True)]
        voxels = case.annotated
        if self._requires_foreground(at, rng) and case.foreground:
            classes = sorted(case.foreground)
            voxels = case.foreground[classes[rng.integers(len(classes))]]
        if voxels is None:
            return centre
        voxel = voxels[rng.integers(len(voxels))]
        return [_shifted_inside(int(v), n, p) for v, n, p in zip(voxel, shape, patch, strict=True)]

    def _requires_foreground(self, at: Position, rng: np.random.Generator) -> bool:
        share, size = self.sampling.foreground_share, self.sampling.batch_size
        if self.sampling.foreground_mode == "chance":
            return bool(rng.random() < share)
        return at.place >= round(size * (1 - share))


def _bytes_of(case: StoredCase) -> int:
    return CASE_BYTES + sum(voxels.nbytes for voxels in case.foreground.values())


@lru_cache(maxsize=8)
def _permutation(key: tuple[int, ...], count: int) -> NDArray[np.int64]:
    return np.random.default_rng(np.random.SeedSequence(key)).permutation(count)


def _cut(array: StoredArray, box: Sequence[Sequence[int]], border: Border) -> NDArray[Any]:
    """Cut a box of the last three axes, padded where it exceeds the array."""
    mode = "edge" if border == "nearest" else "constant"
    return np.asarray(crop_and_pad_nd(array, box, pad_mode=mode))


def _random_centre(rng: np.random.Generator, size: int, patch: int) -> int:
    """Return a random centre whose patch lies within the axis, or the middle of a shorter axis."""
    if size <= patch:
        return size // 2
    return int(rng.integers(patch // 2, size - (patch - patch // 2) + 1))


def _shifted_inside(voxel: int, size: int, patch: int) -> int:
    """Return the centre nearest to `voxel` whose patch lies within the axis."""
    if size <= patch:
        return size // 2
    return min(max(voxel, patch // 2), size - (patch - patch // 2))
