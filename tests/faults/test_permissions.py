"""The permissions of new files follow the umask, and their group is that of a setgid folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from autoseg.common.files import write_json
from autoseg.models.checkpoint import save_checkpoint
from tests.faults.jobs import Undisturbed
from tests.making import tiny_plan, tiny_store

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")

GROUP = 1234


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def assert_modes(root: Path, mask: int) -> int:
    """All files and folders below have the permissions of new ones; returns the files' number."""
    files = [path for path in root.rglob("*") if path.is_file()]
    folders = [path for path in root.rglob("*") if path.is_dir()]
    assert [path for path in files if mode_of(path) != 0o666 & ~mask] == []
    assert [path for path in folders if mode_of(path) != 0o777 & ~mask] == []
    return len(files)


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_new_files_follow_the_umask(tmp_path: Path, mask: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    if os.geteuid() == 0:
        os.chown(shared, -1, GROUP)
        shared.chmod(0o2775)
    with umask(mask):
        write_json(shared / "new" / "a.json", {})
        save_checkpoint(shared / "new" / "b.safetensors", {"x": torch.zeros(2)}, {})
        tiny_store(shared / "cases", tiny_plan(), cases=1)
    assert assert_modes(shared, mask) > 5
    if os.geteuid() == 0:
        assert {path.stat().st_gid for path in shared.rglob("*")} == {GROUP}


def test_a_file_that_is_replaced_gets_the_permissions_of_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.touch(0o600)
    with umask(0o022):
        write_json(path, {})
    assert mode_of(path) == 0o644


def test_the_files_of_every_command_follow_the_umask(undisturbed: Undisturbed) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    for folder in ("preprocessed", "models", "out", "scores", "packed", "exported", "studied"):
        assert assert_modes(undisturbed.root / folder, mask) > 0
