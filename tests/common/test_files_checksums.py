from __future__ import annotations

import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.common.files import BYTES_AT_ONCE, CHECKSUMS, checksum
from autoseg.preprocessing.store import CASE_FILES, CaseStore
from tests.making import store_case

DAMAGES = 100
LENGTH = 64


@pytest.fixture
def store(tmp_path: Path) -> CaseStore:
    """A case of noise, in which blosc2 itself notices few damages."""
    store = CaseStore(tmp_path / "Fälle", "id")
    label = np.random.default_rng(0).integers(0, 3, (20, 18, 16))
    store_case(store, "a 1", np.random.default_rng(1).normal(size=(1, *label.shape)), label)
    return store


def test_the_known_checksum_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"123456789")
    assert checksum(tmp_path / "text") == "cbf43926"  # the check value of CRC-32


@pytest.mark.parametrize("size", [0, 1, BYTES_AT_ONCE, BYTES_AT_ONCE + 3])
def test_a_file_read_in_parts(tmp_path: Path, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(content)
    assert int(checksum(tmp_path / "file"), 16) == zlib.crc32(content)


@pytest.mark.parametrize("name", CASE_FILES)
def test_every_damage_is_found(store: CaseStore, name: str) -> None:
    path = store.folder / "a 1" / name
    whole = path.read_bytes()
    rng = np.random.default_rng(len(name))
    for _ in range(DAMAGES):
        at = int(rng.integers(max(1, len(whole) - LENGTH)))
        damaged = whole[:at] + rng.bytes(min(LENGTH, len(whole))) + whole[at + LENGTH :]
        assert damaged != whole
        path.write_bytes(damaged)
        assert not store.is_whole("a 1")
    path.write_bytes(whole)
    assert store.is_whole("a 1")


@pytest.mark.parametrize("name", [*CASE_FILES, CHECKSUMS])
@pytest.mark.parametrize("damage", ["missing", "empty", "one byte more", "not text", "a folder"])
def test_a_case_with_a_part_missing_or_odd_is_not_whole(
    store: CaseStore, name: str, damage: str
) -> None:
    path = store.folder / "a 1" / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        more = {"empty": b"", "one byte more": whole + b"x", "not text": b"\xff\xfe" + whole}
        path.write_bytes(more[damage])
    assert not store.is_whole("a 1")


def test_an_absent_case_is_not_whole(store: CaseStore) -> None:
    assert not store.is_whole("b")


def test_size_and_time_are_looked_at_first(store: CaseStore) -> None:
    path = store.folder / "a 1" / "image.b2nd"
    assert store.is_unchanged("a 1")
    before = path.stat()
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert not store.is_unchanged("a 1")  # by its time
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.is_unchanged("a 1")
    careful = replace(store, verify=True)
    assert not careful.is_unchanged("a 1")
    assert not careful.is_whole("a 1")
    assert not store.is_unchanged("b")
