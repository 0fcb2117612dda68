"""The case store: preprocessed cases as compressed arrays from which single patches can be read.

One folder a case, which appears whole or not at all:
`image.b2nd` float32 (channel, x, y, z), `label.b2nd` int16 (x, y, z), `foreground.safetensors` with
up to a few thousand voxels of each class, `case.json`, and the checksums of these four. A cascade
adds `previous.b2nd`, int16 (x, y, z): what its previous stage made of the case.
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

from autoseg.common import arrays
from autoseg.common.arrays import Triple
from autoseg.common.errors import AutosegError
from autoseg.common.files import (
    CHECKSUMS,
    checksum,
    is_as_written,
    read_json,
    replacing,
    temporary_for,
    unfinished_in,
    write_checksums,
    write_json,
)
from autoseg.preprocessing.steps import Prepared

LOCATIONS_PER_CLASS = 5000
BLOCK_BYTES = 128 * 1024
ANNOTATED, PREVIOUS = "annotated", "previous.b2nd"
FILES = ("image.b2nd", "label.b2nd", "foreground.safetensors", "case.json")


@dataclass(frozen=True)
class StoredArray:
    """A compressed array in a case's folder; only what is sliced is decompressed.

    Raises:
        AutosegError: a part cannot be decompressed. (Damage that can be is noticed by
            `CaseStore.is_whole` only.)
    """

    data: Any
    folder: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        dtype: np.dtype[Any] = self.data.dtype
        return dtype

    def __getitem__(self, part: Any) -> NDArray[Any]:
        try:
            values: NDArray[Any] = self.data[part]
        except (OSError, RuntimeError) as error:
            raise _damaged(self.folder, error) from error
        return values


@dataclass(frozen=True)
class StoredCase:
    """An open case.

    Attributes:
        name: the case's.
        image: (channel, x, y, z).
        label: (x, y, z).
        foreground: some voxels of each class that the case has, by the class's number from 1 on.
        annotated: some voxels that are not ignored; None if none of the case's voxels is ignored.
        previous: (x, y, z), the segmentation of a cascade's previous stage; None if it has none.
    """

    name: str
    image: StoredArray
    label: StoredArray
    foreground: dict[int, NDArray[np.int32]]
    annotated: NDArray[np.int32] | None = None
    previous: StoredArray | None = None


@dataclass(frozen=True)
class StoredGrid:
    """The shape of a stored case, and the part of its file's grid (start, stop) that it covers."""

    shape: Triple
    box: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class CaseStore:
    """The preprocessed cases of one plan in one folder.

    `elsewhere` says in messages how to have them in another one.
    """

    folder: Path
    preprocessing_id: str
    elsewhere: str = "choose another --workspace"

    def has(self, name: str, source: Sequence[Sequence[int]]) -> bool:
        """Is the case there, made by this preprocessing from the same files?

        Args:
            name: the case.
            source: size and time of change of each raw file.
        """
        folder = self.folder / name
        try:
            record = read_json(folder / "case.json")
        except AutosegError:
            return False
        return bool(
            (folder / CHECKSUMS).exists()  # older versions kept none
            and isinstance(record, dict)
            and record.get("preprocessing_id") == self.preprocessing_id
            and record.get("source") == [list(pair) for pair in source]
        )

    def is_whole(self, name: str) -> bool:
        """Are the case's files what `write` wrote? All their bytes are read."""
        return is_as_written(self.folder / name, FILES)

    def write(
        self,
        name: str,
        case: Prepared,
        source: Sequence[Sequence[int]],
        members: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Compress a case and put it in place of an older one.

        Args:
            name: the case.
            case: what to store.
            source: as for `has`.
            members: the values in the label that make each class; None: each value is a class.
        """
        assert case.label is not None
        import blosc2
        from safetensors import SafetensorError

        temporary = temporary_for(self.folder / name)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            _compress(blosc2, temporary / "image.b2nd", case.image)
            _compress(blosc2, temporary / "label.b2nd", case.label)
            _save_voxels(temporary / "foreground.safetensors", case.label, members)
            record = {
                "preprocessing_id": self.preprocessing_id,
                "source": [list(pair) for pair in source],
                "shape": list(case.image.shape[1:]),
                "spacing_mm": list(case.spacing_mm),
                "box": [list(pair) for pair in case.box],
            }
            write_json(temporary / "case.json", record)
            write_checksums(temporary, FILES)
            target = self.folder / name
            shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk raises any of them
            raise self._cannot_store(name, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Delete what a killed run left half written; nobody may be writing meanwhile."""
        for folder in unfinished_in(self.folder):
            shutil.rmtree(folder, ignore_errors=True)

    def open(self, name: str) -> StoredCase:
        """Open a case for reading patches."""
        import blosc2
        from safetensors.numpy import load_file

        folder = self.folder / name
        try:
            image = blosc2.open(str(folder / "image.b2nd"), mode="r")
            label = blosc2.open(str(folder / "label.b2nd"), mode="r")
            voxels = load_file(folder / "foreground.safetensors")
            previous = None
            if (folder / PREVIOUS).exists():
                previous = blosc2.open(str(folder / PREVIOUS), mode="r")
        except MemoryError:
            raise
        except Exception as error:  # blosc2 raises many kinds
            raise _damaged(folder, error) from error
        annotated = voxels.pop(ANNOTATED, None)
        return StoredCase(
            name=name,
            image=StoredArray(image, folder),
            label=StoredArray(label, folder),
            foreground={int(key): at for key, at in voxels.items()},
            annotated=annotated,
            previous=None if previous is None else StoredArray(previous, folder),
        )

    def grid_of(self, name: str) -> StoredGrid:
        """Where a case that is there lies on its file's grid."""
        record = read_json(self.folder / name / "case.json")
        x, y, z = record["shape"]
        return StoredGrid((x, y, z), tuple((start, stop) for start, stop in record["box"]))

    def has_previous(self, name: str, source: Sequence[int]) -> bool:
        """Is a previous stage's segmentation of the case there, whole, made from the same file?

        Args:
            name: a case that is there.
            source: size and time of change of the segmentation's file.
        """
        folder = self.folder / name
        try:
            return bool(read_json(folder / "previous.json") == _previous_record(folder, source))
        except (AutosegError, OSError):
            return False

    def write_previous(
        self, name: str, segmentation: NDArray[np.int16], source: Sequence[int]
    ) -> None:
        """Add a previous stage's segmentation (x, y, z) to a case, on the grid of its label."""
        import blosc2

        folder = self.folder / name
        (folder / "previous.json").unlink(missing_ok=True)
        try:
            with replacing(folder / PREVIOUS) as temporary:
                _compress(blosc2, temporary, segmentation)
        except RuntimeError as error:  # of blosc2, for example on a full disk
            raise self._cannot_store(name, error) from error
        write_json(folder / "previous.json", _previous_record(folder, source))

    def _cannot_store(self, name: str, error: Exception) -> AutosegError:
        return AutosegError(
            f"cannot store case {name} in {self.folder}: {error}; make space there, "
            f"or {self.elsewhere}"
        )


def _previous_record(folder: Path, source: Sequence[int]) -> dict[str, Any]:
    return {"source": list(source), "checksum": checksum(folder / PREVIOUS)}


def _damaged(folder: Path, error: Exception) -> AutosegError:
    return AutosegError(
        f"case {folder.name}: {folder} is damaged ({error}); delete that folder and train again"
    )


def _compress(blosc2: Any, path: Path, array: NDArray[Any]) -> None:
    """LZ4 with byte shuffling, in blocks small enough to read a patch without the rest."""
    blosc2.set_nthreads(1)
    blocks = _block_shape(array.shape, array.itemsize)
    chunks = [min(size, 4 * block) for size, block in zip(array.shape, blocks, strict=True)]
    blosc2.asarray(
        np.ascontiguousarray(array),
        urlpath=str(path),
        mode="w",
        chunks=tuple(chunks),
        blocks=blocks,
        cparams={"codec": blosc2.Codec.LZ4, "clevel": 9, "nthreads": 1},
    )


def _block_shape(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """The largest near-cubic block of whole voxels within `BLOCK_BYTES`, never beyond the array."""
    block = [1] * (len(shape) - 3) + [min(32, size) for size in shape[-3:]]
    while int(np.prod(block)) * itemsize > BLOCK_BYTES:
        block[int(np.argmax(block))] //= 2
    return tuple(block)


def _save_voxels(
    path: Path, label: NDArray[np.int16], members: Sequence[Sequence[int]] | None
) -> None:
    """Some voxels of each class and, where others are ignored, of all that are not."""
    from safetensors.numpy import save_file

    if members is None:
        members = [(value,) for value in range(1, int(label.max()) + 1)]
    found = {
        str(number): _spread(arrays.members(label, values))
        for number, values in enumerate(members, start=1)
    }
    if label.min() < 0:
        found[ANNOTATED] = _spread(label >= 0)
    save_file({key: voxels for key, voxels in found.items() if len(voxels)}, path)


def _spread(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Up to `LOCATIONS_PER_CLASS` voxels of a mask, evenly chosen: (n, 3)."""
    at = np.flatnonzero(mask)
    keep = np.linspace(0, max(0, len(at) - 1), min(len(at), LOCATIONS_PER_CLASS)).astype(np.int64)
    voxels = np.stack(np.unravel_index(at[keep], mask.shape), axis=1)
    return np.ascontiguousarray(voxels, dtype=np.int32)


# Plans of one task that preprocess alike share their cases: linked, not made and stored again.

Source = Sequence[Sequence[int]]


def link_from_others(store: CaseStore, plans: Path, name: str, source: Source) -> bool:
    """Bring a case into the store from another plan's, if one has it from the same files.

    A linked case is safe to keep: a store never changes a file, it puts a new one in its place.

    Args:
        store: where the case is missing.
        plans: the folder of the task's plans, each with its store under the name of this one's.
        name: the case.
        source: as for `CaseStore.has`.

    Returns:
        whether the case is there now.
    """
    for folder in sorted(plans.glob(f"*/{store.folder.name}")):
        other = CaseStore(folder, store.preprocessing_id)
        if folder == store.folder or not other.has(name, source) or not other.is_whole(name):
            continue
        if _link(folder / name, store.folder / name):
            return True
    return False


def _link(case: Path, target: Path) -> bool:
    """Link the files of a case, or copy them where the file system knows no links."""
    temporary = temporary_for(target)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for file in (*FILES, CHECKSUMS):
            try:
                os.link(case / file, temporary / file)
            except OSError:
                shutil.copyfile(case / file, temporary / file)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    except OSError:  # it has gone meanwhile, or the disk is full: preprocessing will say so
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True
