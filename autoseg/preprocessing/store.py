"""The case store: preprocessed cases as compressed arrays from which single patches can be read.

One folder a case, which appears whole or not at all:
`image.b2nd` float32 (channel, x, y, z), `label.b2nd` int16 (x, y, z), `foreground.safetensors` with
up to a few thousand voxels of each class, `case.json`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import AutosegError
from autoseg.files import read_json, write_json
from autoseg.preprocessing.steps import Prepared

LOCATIONS_PER_CLASS = 5000
BLOCK_BYTES = 128 * 1024
LEFTOVER = ".tmp-"


@dataclass(frozen=True)
class StoredCase:
    """An open case; `image` and `label` are compressed and decompress what is sliced."""

    name: str
    image: Any
    label: Any
    foreground: dict[int, NDArray[np.int32]]


@dataclass(frozen=True)
class CaseStore:
    """The preprocessed cases of one plan in one folder."""

    folder: Path
    preprocessing_id: str

    def has(self, name: str, source: Sequence[Sequence[int]]) -> bool:
        """Is the case there, made by this preprocessing from the same files?

        Args:
            name: the case.
            source: size and time of change of each raw file.
        """
        path = self.folder / name / "case.json"
        if not path.is_file():
            return False
        try:
            record = read_json(path)
        except AutosegError:
            return False
        return bool(
            isinstance(record, dict)
            and record.get("preprocessing_id") == self.preprocessing_id
            and record.get("source") == [list(pair) for pair in source]
        )

    def write(self, name: str, case: Prepared, source: Sequence[Sequence[int]]) -> None:
        """Compress a case and put it in place of an older one."""
        assert case.label is not None
        import blosc2
        from safetensors import SafetensorError

        temporary = self.folder / f"{LEFTOVER}{os.getpid()}-{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            _compress(blosc2, temporary / "image.b2nd", case.image)
            _compress(blosc2, temporary / "label.b2nd", case.label)
            _save_foreground(temporary / "foreground.safetensors", case.label)
            record = {
                "preprocessing_id": self.preprocessing_id,
                "source": [list(pair) for pair in source],
                "shape": list(case.image.shape[1:]),
                "spacing_mm": list(case.spacing_mm),
                "box": [list(pair) for pair in case.box],
            }
            write_json(temporary / "case.json", record)
            target = self.folder / name
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk raises any of them
            raise AutosegError(
                f"cannot store case {name} in {self.folder}: {error}; make space or choose "
                "another --workspace"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Delete what a killed run left half written; nobody may be writing meanwhile."""
        for folder in self.folder.glob(f"{LEFTOVER}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def open(self, name: str) -> StoredCase:
        """Open a case for reading patches."""
        import blosc2
        from safetensors.numpy import load_file

        folder = self.folder / name
        try:
            image = blosc2.open(str(folder / "image.b2nd"), mode="r")
            label = blosc2.open(str(folder / "label.b2nd"), mode="r")
            foreground = load_file(folder / "foreground.safetensors")
        except Exception as error:  # blosc2 raises many kinds
            raise AutosegError(
                f"case {name}: {folder} is damaged ({error}); delete that folder and train again"
            ) from error
        return StoredCase(name, image, label, {int(key): at for key, at in foreground.items()})


def _compress(blosc2: Any, path: Path, array: NDArray[Any]) -> None:
    """LZ4HC with byte shuffling, in blocks small enough to read a patch without the rest."""
    blosc2.set_nthreads(1)
    blocks = _block_shape(array.shape, array.itemsize)
    chunks = [min(size, 4 * block) for size, block in zip(array.shape, blocks, strict=True)]
    blosc2.asarray(
        np.ascontiguousarray(array),
        urlpath=str(path),
        mode="w",
        chunks=tuple(chunks),
        blocks=blocks,
        cparams={"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1},
    )


def _block_shape(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """The largest near-cubic block of whole voxels within `BLOCK_BYTES`, never beyond the array."""
    block = [1] * (len(shape) - 3) + [min(32, size) for size in shape[-3:]]
    while int(np.prod(block)) * itemsize > BLOCK_BYTES:
        block[int(np.argmax(block))] //= 2
    return tuple(block)


def _save_foreground(path: Path, label: NDArray[np.int16]) -> None:
    from safetensors.numpy import save_file

    found: dict[str, NDArray[Any]] = {}
    for value in range(1, int(label.max()) + 1):
        at = np.flatnonzero(label == value)
        if len(at):
            keep = np.linspace(0, len(at) - 1, min(len(at), LOCATIONS_PER_CLASS)).astype(np.int64)
            voxels = np.stack(np.unravel_index(at[keep], label.shape), axis=1)
            found[str(value)] = np.ascontiguousarray(voxels, dtype=np.int32)
    save_file(found, path)
