"""Archives: writing, reading, damage, and other formats."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.common.errors import AutosegError
from autoseg.models.archive import MANIFEST, Archive, is_archive, open_archive, write_archive
from tests.zips import FILES, WEIGHTS, make_zip, manifest, refusal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Modèle 1.zip"


def test_what_was_written_is_read(path: Path, tmp_path: Path) -> None:
    (tmp_path / "card").write_bytes(FILES["card.md"])
    write_archive(path, {"task": "Lungs"}, FILES | {"card.md": tmp_path / "card"})
    found = open_archive(path)
    assert {name: found.read(name) for name in found.entries} == FILES
    assert found.about == {"format": "autoseg model", "format_version": 1, "task": "Lungs"}
    with pytest.raises(AutosegError, match="nothing is missing"):
        found.read("nothing")


def test_the_same_content_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_archive(path, {}, FILES)
    (tmp_path / "weights").write_bytes(WEIGHTS)
    os.utime(tmp_path / "weights", (0, 1e9))
    turned = dict(reversed(FILES.items())) | {"fold_0/final.safetensors": tmp_path / "weights"}
    write_archive(tmp_path / "again.zip", {}, turned)
    assert path.read_bytes() == (tmp_path / "again.zip").read_bytes()


def test_others_may_unpack_it(path: Path, tmp_path: Path) -> None:
    write_archive(path, {}, FILES)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        file.extractall(tmp_path / "out")
    assert (tmp_path / "out" / "fold_0" / "final.safetensors").read_bytes() == WEIGHTS


def test_one_packed_again_by_another_program_is_read(path: Path) -> None:
    found = open_archive(make_zip(path, FILES, compression=zipfile.ZIP_DEFLATED))
    assert found.read("plan.json") == FILES["plan.json"]


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        (b"{", "JSON"),
        (b"\xff", "UTF-8"),
        (b"[]", "'autoseg model'"),
        (b"{}", "'autoseg model'"),
        (manifest(FILES, format_version=2), "version 2;"),
        (manifest(FILES, format_version="1"), "version '1';"),
        (manifest(FILES, files=[]), "manifest.json: files"),
        (manifest(FILES, files={"plan.json": {}}), "files: plan.json.size"),
        (manifest(FILES, files={"plan.json": {"size": 1, "sha256": "x"}}), "plan.json.sha256"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b"[" * 100_000, "nested"),
        (b"1" * 5000, "JSON"),
    ],
)
def test_another_manifest(path: Path, listed: bytes, named: str) -> None:
    make_zip(path, FILES, listed)
    found = refusal(path)
    assert named in found
    assert "manifest.json" in found or "format" in found


def test_without_manifest(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("plan.json", "{}")
    assert MANIFEST in refusal(path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"text" * 99]
)
def test_not_a_zip_file(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(make_zip(path, FILES).read_bytes()))
    assert "zip file" in refusal(path)


def test_no_file(path: Path) -> None:
    assert refusal(path).startswith(f"{path}: ")


def test_a_change_after_opening_is_detected(path: Path) -> None:
    found = open_archive(make_zip(path, FILES))
    make_zip(path, FILES | {"card.md": b"# Evil\n"})
    with pytest.raises(AutosegError, match=r"card\.md .*SHA-256"):
        found.read("card.md")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_any_damage_is_detected_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("zips") / "a.zip"
    content = bytearray(make_zip(path, FILES).read_bytes())
    place %= len(content)
    if cut:
        del content[place]
    else:
        content[place] ^= change
    path.write_bytes(content)
    try:
        found: Archive | AutosegError = open_archive(path)
    except AutosegError as error:
        found = error
    if isinstance(found, AutosegError):
        assert "\n" not in str(found)
    else:
        assert {name: found.read(name) for name in found.entries} == FILES


def test_archives_are_known_by_their_name(tmp_path: Path) -> None:
    assert is_archive(tmp_path / "a.zip")
    assert is_archive(tmp_path / "A.ZIP")
    assert not is_archive(tmp_path / "a")
    (tmp_path / "folder.zip").mkdir()
    assert not is_archive(tmp_path / "folder.zip")
