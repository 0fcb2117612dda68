"""Zips as anybody could make them, with Python's own module."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from autoseg.common.errors import AutosegError
from autoseg.models.archive import MANIFEST, open_archive

HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + b"\0\0\0\0"
FILES = {"plan.json": b'{"a": 1}', "fold_0/final.safetensors": WEIGHTS, "card.md": b"# Card\n"}


def manifest(files: dict[str, bytes], /, **changes: Any) -> bytes:
    entries = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
    }
    about = {"format": "autoseg model", "format_version": 1, "files": entries}
    return json.dumps(about | changes).encode()


def make_zip(
    path: Path,
    files: dict[str, bytes],
    listed: bytes | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A zip of some files, with a manifest that fits them unless another one is given."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in files.items():
            file.writestr(name, content)
        file.writestr(MANIFEST, manifest(files) if listed is None else listed)
    return path


def refusal(path: Path) -> str:
    """What opening says, in one line that begins with the path."""
    with pytest.raises(AutosegError) as error:
        open_archive(path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message
