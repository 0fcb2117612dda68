"""Hostile archives: members that are refused, each in a zip file made for the test."""

from __future__ import annotations

import json
import pickle
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from autoseg.models.archive import MANIFEST
from tests.zips import FILES, make_zip, manifest, refusal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Modèle 1.zip"


@pytest.mark.parametrize(
    "name",
    [
        "/etc/plan.json",
        "../plan.json",
        "fold_0/../../plan.json",
        "./plan.json",
        "a//plan.json",
        "fold_0\\plan.json",
        "..\\plan.json",
        "C:plan.json",
        "C:/plan.json",
        "\\\\server\\plan.json",
        "~/plan.json",
        ".hidden.json",
        "plan.json\n",
        "fold_0/",
    ],
)
def test_a_path_outside_its_folder(path: Path, name: str) -> None:
    make_zip(path, FILES | {name: b"{}"})
    assert f"{name!r}, an unsafe name" in refusal(path)


def test_a_name_cut_by_a_zero_byte(path: Path) -> None:
    make_zip(path, FILES | {"evil.pkl#.json": b"{}"})
    path.write_bytes(path.read_bytes().replace(b"evil.pkl#.json", b"evil.pkl\0.json"))
    assert "unsafe name" in refusal(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR])
def test_a_link(path: Path, kind: int) -> None:
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("plan.json")
        info.create_system = 3
        info.external_attr = (kind | 0o777) << 16
        file.writestr(info, "/etc/passwd")
        file.writestr(MANIFEST, manifest({"plan.json": b"/etc/passwd"}))
    assert "'plan.json', a link" in refusal(path)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "a.pkl", "code.py", "weights", "a.JSON"])
def test_an_unknown_ending(path: Path, name: str) -> None:
    make_zip(path, FILES | {name: b"{}"})
    assert f"{name!r}, which does not end in" in refusal(path)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["plan.json", "fold_0/final.safetensors", "card.md"])
def test_a_pickle_under_another_name(path: Path, name: str, protocol: int) -> None:
    make_zip(path, FILES | {name: pickle.dumps({"a": [1, 2] * 99}, protocol)})
    assert f"{name!r}, whose content" in refusal(path)


@pytest.mark.parametrize("name", ["plan.json", "fold_0/final.safetensors"])
def test_a_torch_file_under_another_name(path: Path, name: str, tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(3)}, tmp_path / "model.pt")
    make_zip(path, FILES | {name: (tmp_path / "model.pt").read_bytes()})
    assert f"{name!r}, whose content" in refusal(path)


def test_another_hash(path: Path) -> None:
    make_zip(path, FILES | {"card.md": b"# CARD\n"}, manifest(FILES))
    assert f"{path / 'card.md'} does not have the SHA-256" in refusal(path)


@pytest.mark.parametrize("content", [b"# Card\n\n", b"# Card", b""])
def test_another_size(path: Path, content: bytes) -> None:
    make_zip(path, FILES | {"card.md": content}, manifest(FILES))
    assert f"'card.md' has {len(content)} bytes, but {MANIFEST} lists 7" in refusal(path)


def test_a_missing_and_an_extra_file(path: Path) -> None:
    make_zip(path, {k: v for k, v in FILES.items() if k != "card.md"}, manifest(FILES))
    assert f"'card.md' is missing, but {MANIFEST}" in refusal(path)
    make_zip(path, FILES | {"more.json": b"{}"}, manifest(FILES))
    assert f"'more.json', which {MANIFEST} does not list" in refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["plan.json", MANIFEST])
def test_a_duplicate_name(path: Path, name: str) -> None:
    make_zip(path, FILES)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"{}")
    assert f"{name!r} twice" in refusal(path)


def test_an_encrypted_file(path: Path) -> None:
    content = bytearray(make_zip(path, FILES).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(path)


def test_another_compression(path: Path) -> None:
    make_zip(path, FILES, compression=zipfile.ZIP_LZMA)
    assert "neither stored nor deflated" in refusal(path)


def test_a_zip_bomb(path: Path) -> None:
    make_zip(path, FILES | {"plan.json": b" " * 10**7}, compression=zipfile.ZIP_DEFLATED)
    assert "'plan.json', which expands from" in refusal(path)


def declare_size(path: Path, name: bytes, size: int, packed: int | None = None) -> None:
    """Declare a false size in the directory of the zip file."""
    content = bytearray(path.read_bytes())
    entry = content.rindex(name) - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    content[entry + 24 : entry + 28] = struct.pack("<I", size)
    if packed is not None:
        content[entry + 20 : entry + 24] = struct.pack("<I", packed)
    path.write_bytes(content)


def test_a_directory_that_declares_more_than_the_file_contains(path: Path) -> None:
    name = b"fold_0/final.safetensors"
    declare_size(make_zip(path, FILES), name, 2**31, 2**31)
    assert "declares" in refusal(path)
    declare_size(make_zip(path, FILES), name, 2**31)
    assert "which expands" in refusal(path)
    declare_size(make_zip(path, FILES), b"plan.json", 2**30, 2**30)
    assert f"a text of {2**30} bytes" in refusal(path)


def test_a_size_that_is_false_in_directory_and_manifest(path: Path) -> None:
    entries = json.loads(manifest(FILES))["files"]
    entries["card.md"]["size"] = 70
    make_zip(path, FILES, manifest(FILES, files=entries))
    declare_size(path, b"card.md", 70)
    assert str(path) in refusal(path)


def test_files_that_share_their_bytes(path: Path) -> None:
    content = bytearray(make_zip(path, FILES | {"more.md": b"# Card\n"}).read_bytes())
    first, second = (content.rindex(name) - 46 for name in (b"card.md", b"more.md"))
    content[second + 42 : second + 46] = content[first + 42 : first + 46]
    path.write_bytes(content)
    assert str(path) in refusal(path)


def test_too_many_files(path: Path) -> None:
    make_zip(path, {f"a{number}.json": b"{}" for number in range(1001)})
    assert "1002 files" in refusal(path)


def test_data_before_the_first_member(path: Path) -> None:
    path.write_bytes(b"#!/bin/sh\n" + make_zip(path, FILES).read_bytes())
    assert "before its first member" in refusal(path)
