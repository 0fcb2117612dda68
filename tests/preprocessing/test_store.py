from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError

from autoseg.common.errors import AutosegError
from autoseg.preprocessing import store as store_module
from autoseg.preprocessing.steps import IGNORED, Prepared
from autoseg.preprocessing.store import LOCATIONS_PER_CLASS, STATS, CaseStore
from tests.making import grid

SOURCE = [(1234, 1_700_000_000_123_456_789)]
SHAPES = [(1, 1, 1), (5, 7, 9), (33, 1, 64), (40, 35, 33)]


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    return CaseStore(tmp_path / "Fälle mit Lücken", "abc")


def case(shape: tuple[int, int, int], channels: int = 1, seed: int = 0) -> Prepared:
    rng = np.random.default_rng(seed)
    return Prepared(
        image=rng.normal(size=(channels, *shape)).astype(np.float32),
        label=rng.integers(IGNORED, 4, shape).astype(np.int16),
        geometry=grid(shape),
        box=tuple((0, size) for size in shape),
        spacing_mm=(1.0, 1.0, 1.0),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_is_written_is_read_to_the_bit(
    store: CaseStore, shape: tuple[int, int, int], channels: int
) -> None:
    written = case(shape, channels)
    store.write("Müller 1", written, SOURCE)
    read = store.open("Müller 1")
    assert read.image.shape == written.image.shape
    assert read.image[:].dtype == np.float32
    assert read.image[:].tobytes() == written.image.tobytes()
    assert read.label[:].dtype == np.int16
    assert (read.label[:] == written.label).all()


def test_special_values_survive(store: CaseStore) -> None:
    written = case((3, 3, 3))
    written.image.flat[:4] = [-0.0, 1e-45, np.finfo(np.float32).max, np.finfo(np.float32).tiny]
    store.write("a", written, SOURCE)
    assert store.open("a").image[:].tobytes() == written.image.tobytes()


def test_views_in_another_order_are_stored_correctly(store: CaseStore) -> None:
    straight = case((5, 7, 9))
    assert straight.label is not None
    transposed = Prepared(
        straight.image.transpose(0, 3, 2, 1), straight.label.T, grid((9, 7, 5)), (), (1, 1, 1)
    )
    store.write("a", transposed, SOURCE)
    assert (store.open("a").image[:] == transposed.image).all()
    assert (store.open("a").label[:] == transposed.label).all()


def test_patches_equal_slices(store: CaseStore) -> None:
    written = case((40, 35, 33), channels=2)
    assert written.label is not None
    store.write("a", written, SOURCE)
    read = store.open("a")
    rng = np.random.default_rng(0)
    for _ in range(20):
        start = [int(rng.integers(0, size)) for size in (40, 35, 33)]
        stop = [
            int(rng.integers(low + 1, size + 1))
            for low, size in zip(start, (40, 35, 33), strict=True)
        ]
        box = tuple(slice(low, high) for low, high in zip(start, stop, strict=True))
        assert (read.image[(slice(None), *box)] == written.image[(slice(None), *box)]).all()
        assert (read.label[box] == written.label[box]).all()


def test_foreground_lists_every_voxel_of_small_classes(store: CaseStore) -> None:
    written = case((5, 7, 9))
    store.write("a", written, SOURCE)
    found = store.open("a").foreground
    assert sorted(found) == [1, 2, 3]  # neither background nor ignored voxels
    for value, voxels in found.items():
        assert voxels.tolist() == np.argwhere(written.label == value).tolist()


def test_foreground_of_large_classes_is_thinned_evenly(store: CaseStore) -> None:
    written = case((30, 30, 30))
    assert written.label is not None
    written.label[:] = 2
    store.write("a", written, SOURCE)
    (voxels,) = store.open("a").foreground.values()
    assert len(np.unique(voxels, axis=0)) == LOCATIONS_PER_CLASS
    assert voxels[0].tolist() == [0, 0, 0]
    assert voxels[-1].tolist() == [29, 29, 29]
    gaps = np.diff(np.ravel_multi_index(tuple(voxels.T), (30, 30, 30)))
    assert set(gaps.tolist()) == {5, 6}  # 27000 voxels for 5000 places


def test_a_case_without_foreground(store: CaseStore) -> None:
    written = case((4, 4, 4))
    assert written.label is not None
    written.label[:] = IGNORED
    store.write("a", written, SOURCE)
    assert store.open("a").foreground == {}


def test_has_requires_the_same_preprocessing_of_the_same_files(store: CaseStore) -> None:
    assert not store.has("a", SOURCE)
    store.write("a", case((3, 3, 3)), SOURCE)
    assert store.has("a", SOURCE)
    assert store.has("a", [list(pair) for pair in SOURCE])
    assert not store.has("b", SOURCE)
    assert not store.has("a", [(1234, SOURCE[0][1] + 1)])
    assert not store.has("a", [*SOURCE, *SOURCE])
    assert not CaseStore(store.folder, "other").has("a", SOURCE)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_has_does_not_trust_a_damaged_record(store: CaseStore, text: str) -> None:
    store.write("a", case((3, 3, 3)), SOURCE)
    (store.folder / "a" / "case.json").write_text(text)
    assert not store.has("a", SOURCE)


def test_the_same_case_gives_the_same_bytes(store: CaseStore) -> None:
    contents = []
    for _ in range(2):
        store.write("a", case((33, 1, 64)), SOURCE)
        contents.append({p.name: p.read_bytes() for p in (store.folder / "a").iterdir()})
        del contents[-1][STATS]
    assert contents[0] == contents[1]


def test_a_new_version_replaces_the_old_one(store: CaseStore) -> None:
    store.write("a", case((9, 9, 9)), SOURCE)
    later = case((5, 7, 9), seed=1)
    store.write("a", later, SOURCE)
    assert (store.open("a").image[:] == later.image).all()
    assert [path.name for path in store.folder.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["image.b2nd", "label.b2nd", "foreground.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half"])
def test_a_damaged_case_is_named(store: CaseStore, name: str, damage: str) -> None:
    store.write("Fall 7", case((9, 9, 9)), SOURCE)
    path = store.folder / "Fall 7" / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"")
    with pytest.raises(AutosegError, match=r"Fall 7 is damaged"):
        store.open("Fall 7")


@pytest.mark.parametrize("name", ["image", "label"])
def test_damage_within_an_array_is_reported_when_it_is_read(store: CaseStore, name: str) -> None:
    store.write("Fall 7", case((40, 40, 40)), SOURCE)
    path = store.folder / "Fall 7" / f"{name}.b2nd"
    content = path.read_bytes()
    half = len(content) // 2
    path.write_bytes(content[:half] + bytes(400) + content[half + 400 :])
    array = getattr(store.open("Fall 7"), name)
    with pytest.raises(AutosegError, match=r"Fall 7 is damaged"):
        array[:]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while creating the NDArray"),  # the message of blosc2
        SafetensorError("I/O error: No space left on device"),
    ],
)
def test_a_full_disk_leaves_the_old_case_and_no_leftovers(
    store: CaseStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    old = case((5, 7, 9))
    store.write("a", old, SOURCE)

    def fail(path: Path, array: Any) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(store_module, "_compress", fail)
    with pytest.raises(AutosegError, match="cannot store case a"):
        store.write("a", case((5, 7, 9), seed=1), SOURCE)
    assert [path.name for path in store.folder.iterdir()] == ["a"]
    assert (store.open("a").image[:] == old.image).all()


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AutosegError, match="cannot store case a"):
        CaseStore(tmp_path / "file" / "cases", "abc").write("a", case((3, 3, 3)), SOURCE)


def test_leftovers_of_a_killed_run_are_removed(store: CaseStore) -> None:
    store.write("a", case((3, 3, 3)), SOURCE)
    (store.folder / ".tmp-99-b").mkdir()
    (store.folder / ".tmp-99-b" / "image.b2nd").touch()
    store.remove_leftovers()
    assert [path.name for path in store.folder.iterdir()] == ["a"]
