"""Checksums of files: what a disk or a copy has changed is noticed, whatever reads the file."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

from autoseg.errors import AutosegError
from autoseg.files import read_json, write_json

CHECKSUMS = "checksums.json"
BYTES_AT_ONCE = 1 << 20


def checksum(path: Path) -> str:
    """The CRC-32 of a file's bytes, in hexadecimal."""
    value = 0
    with path.open("rb") as file:
        while part := file.read(BYTES_AT_ONCE):
            value = zlib.crc32(part, value)
    return f"{value:08x}"


def write_checksums(folder: Path, names: Sequence[str]) -> None:
    """Keep the checksums of files of a folder, in the folder."""
    write_json(folder / CHECKSUMS, {name: checksum(folder / name) for name in names})


def is_as_written(folder: Path, names: Sequence[str]) -> bool:
    """Do the files have the checksums that were kept, so that nothing in them has changed?"""
    try:
        kept = read_json(folder / CHECKSUMS)
        return bool(kept == {name: checksum(folder / name) for name in names})
    except (AutosegError, OSError):
        return False
