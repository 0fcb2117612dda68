"""File systems of a test's own: one that is soon full, and folders that nobody can write."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

LARGE = 1 << 28
PAGE = 4096

needs_mounts = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting takes root, on Linux"
)


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory, whose size can be changed."""

    folder: Path

    @property
    def used(self) -> int:
        """Bytes that its files take."""
        facts = os.statvfs(self.folder)
        return (facts.f_blocks - facts.f_bfree) * facts.f_frsize

    def resize(self, size: int) -> None:
        """Let it hold that many bytes, rounded up to whole pages."""
        pages = -(-size // PAGE)
        _mount("-o", f"remount,size={pages * PAGE}", str(self.folder))


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A disk at `folder`, large at first."""
    folder.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={LARGE}", "autoseg-test", str(folder))
    try:
        yield SmallDisk(folder)
    finally:
        _unmount(folder)


@contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Nobody can write into these folders, not even root, whom permissions do not stop."""
    mounted = []
    try:
        for folder in folders:
            _mount("--bind", str(folder), str(folder))
            mounted.append(folder)
            _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        for folder in reversed(mounted):
            _unmount(folder)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    # Lazily: a process that was just killed may still hold a file of it.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
