"""The voxels that a store lists for the sampler: of classes, of regions, and of all annotated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoseg.preprocessing import store as module
from autoseg.preprocessing.steps import IGNORED, Prepared
from autoseg.preprocessing.store import CaseStore, StoredCase
from tests.making import REGIONS, grid, tiny_plan

SHAPE = (6, 5, 4)


def stored(folder: Path, label: np.ndarray, members: tuple[tuple[int, ...], ...]) -> StoredCase:
    box = tuple((0, size) for size in SHAPE)
    image = np.zeros((1, *SHAPE), np.float32)
    case = Prepared(image, label.astype(np.int16), grid(SHAPE), box, (1.0, 1.0, 1.0))
    store = CaseStore(folder, "id")
    store.write("a", case, [], members)
    return store.open("a")


def drawn(low: int, high: int) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, SHAPE)


def test_voxels_of_a_region_are_those_of_all_its_parts(tmp_path: Path) -> None:
    label, members = drawn(0, 4), tiny_plan(**REGIONS).classes.members
    found = stored(tmp_path, label, members).foreground
    assert sorted(found) == [1, 2, 3]
    for number, parts in enumerate(members, start=1):
        assert np.array_equal(found[number], np.argwhere(np.isin(label, parts)))


def test_regions_that_a_case_lacks_are_left_out(tmp_path: Path) -> None:
    label = np.zeros(SHAPE, int)
    label[1, 2, 3] = 1
    found = stored(tmp_path, label, tiny_plan(**REGIONS).classes.members).foreground
    assert {number: voxels.tolist() for number, voxels in found.items()} == {1: [[1, 2, 3]]}


def test_annotated_voxels_are_listed_where_others_are_ignored(tmp_path: Path) -> None:
    label = drawn(IGNORED, 3)
    case = stored(tmp_path / "1", label, ((1,), (2,)))
    assert case.annotated is not None
    assert np.array_equal(case.annotated, np.argwhere(label != IGNORED))
    for number, voxels in case.foreground.items():
        assert (label[tuple(voxels.T)] == number).all()
    assert stored(tmp_path / "2", drawn(0, 3), ((1,), (2,))).annotated is None


def test_a_case_of_which_nothing_is_known(tmp_path: Path) -> None:
    case = stored(tmp_path, np.full(SHAPE, IGNORED), ((1,), (2,)))
    assert case.annotated is None
    assert case.foreground == {}


def test_many_voxels_are_thinned_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCATIONS_PER_CLASS", 7)
    label = np.ones(SHAPE, int)
    label[0] = IGNORED
    case = stored(tmp_path, label, ((1,),))
    assert case.annotated is not None
    for voxels in (case.annotated, case.foreground[1]):
        assert len(voxels) == 7
        assert voxels[0].tolist() == [1, 0, 0]
        assert voxels[-1].tolist() == [5, 4, 3]
