"""What is made once for all processes of pytest-xdist."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], str]
) -> tuple[Path, str]:
    """A folder that is filled by the first process that needs it, and what `make` says of it."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, told = base / name, base / f"{name}.txt"
    with FileLock(base / f"{name}.lock"):
        if not told.exists():
            folder.mkdir()
            told.write_text(make(folder), encoding="utf-8")
        return folder, told.read_text(encoding="utf-8")
