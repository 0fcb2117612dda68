"""Patches of regions, of cases with ignored voxels, and of a cascade's cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.augmentation.loader import PatchSampler, Position
from autoseg.plan.augmentation import Sampling
from autoseg.preprocessing.steps import IGNORED, Prepared
from autoseg.preprocessing.store import CaseStore
from tests.making import REGIONS, grid, tiny_plan

PATCH = (3, 3, 3)


def position(epoch: int = 0, batch: int = 0, place: int = 0) -> Position:
    return Position(seed=5, fold=0, epoch=epoch, batch=batch, place=place)


def sampler_of(
    folder: Path,
    label: NDArray[np.int16],
    share: float = 1,
    members: Sequence[Sequence[int]] | None = None,
) -> PatchSampler:
    """One case whose image holds the number of each voxel."""
    image = np.arange(label.size, dtype=np.float32).reshape(1, *label.shape)
    box = tuple((0, size) for size in label.shape)
    store = CaseStore(folder, "id")
    case = Prepared(image, label.astype(np.int16), grid(label.shape), box, (1.0, 1.0, 1.0))
    store.write("a", case, [], members)
    sampling = Sampling(patch_size=PATCH, batch_size=1, foreground_share=share)
    return PatchSampler(store, ["a"], sampling, 1)


def centres(sampler: PatchSampler, count: int) -> list[tuple[int, int, int]]:
    """The voxels that patches are centred on."""
    shape = sampler.store.open("a").label.shape
    found = []
    for epoch in range(count):
        image, _ = sampler.draw(position(epoch), PATCH)
        x, y, z = np.unravel_index(int(image[0, 1, 1, 1]), shape)
        found.append((int(x), int(y), int(z)))
    return found


def test_each_class_of_a_case_is_chosen_as_often_however_small(tmp_path: Path) -> None:
    """600 draws of three classes: each within five standard deviations of 200."""
    label = np.zeros((14, 14, 14), np.int16)
    label[1:8, 1:13, 1:13] = 1
    label[9:13, 9:13, 9:12] = 2
    label[12, 2, 2] = 4
    found = Counter(int(label[at]) for at in centres(sampler_of(tmp_path, label), 600))
    assert set(found) == {1, 2, 4}
    spread = (600 * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(times - 200) < 5 * spread for times in found.values())


def test_each_region_of_a_case_is_chosen_as_often(tmp_path: Path) -> None:
    """Whole, core and enhancing are one inside the other: the innermost voxel lies in all."""
    label = np.zeros((14, 14, 14), np.int16)
    label[1:13, 1:13, 1:13] = 1
    label[6, 6, 6] = 2  # with the next voxel the core
    label[7, 7, 7] = 3  # enhancing
    members = tiny_plan(**REGIONS).classes.members
    sampler = sampler_of(tmp_path, label, members=members)
    found = Counter(int(label[at]) for at in centres(sampler, 600))
    expected = {
        1: 200,
        2: 100,
        3: 300,
    }  # the draws of the core are divided equally between its two voxels
    for part, times in expected.items():
        spread = (600 * (times / 600) * (1 - times / 600)) ** 0.5
        assert abs(found[part] - times) < 5 * spread


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_patch_is_centred_on_an_ignored_voxel(tmp_path: Path, share: float) -> None:
    """Scribbles: of 2744 voxels nobody knows more than three lines."""
    label = np.full((14, 14, 14), IGNORED, np.int16)
    label[3, 3, 1:13] = 0
    label[7, 1:13, 9] = 1
    label[1:13, 11, 4] = 2
    found = Counter(int(label[at]) for at in centres(sampler_of(tmp_path, label, share), 300))
    assert set(found) == ({0, 1, 2} if share == 0 else {1, 2})
    assert min(found.values()) > 60


def test_where_nothing_is_known_any_patch_is_as_good(tmp_path: Path) -> None:
    label = np.full((9, 9, 9), IGNORED, np.int16)
    assert len(set(centres(sampler_of(tmp_path, label), 40))) > 20


@pytest.mark.parametrize("size", [PATCH, (7, 5, 9)])
def test_the_previous_stage_is_cut_out_with_the_label(
    tmp_path: Path, size: tuple[int, int, int]
) -> None:
    label = np.random.default_rng(0).integers(0, 3, (8, 6, 7)).astype(np.int16)
    sampler = sampler_of(tmp_path, label)
    before, _ = sampler.draw(position(), size)
    sampler.store.write_previous("a", (label + 5).astype(np.int16), (0, 0))
    again = PatchSampler(sampler.store, ["a"], sampler.sampling, 1)
    image, labels = again.draw(position(), size)
    assert labels.shape == (2, *size)
    assert labels.dtype == np.int16
    assert np.array_equal(image, before)
    inside = labels[1] > 0
    assert inside.any()
    assert np.array_equal(labels[1][inside], labels[0][inside] + 5)
    assert not labels[0][~inside].any()  # beyond the case
