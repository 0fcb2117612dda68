"""The case store: preprocessed cases as compressed arrays, from which single patches can be read.

Each case has a folder, which is complete or absent: `image.b2nd`, float32 (channel, x, y, z);
`label.b2nd`, int16 (x, y, z); `foreground.safetensors` with up to 5000 voxels of each class;
`case.json`; and the checksums of these four files. A cascade adds `previous.b2nd`, int16 (x, y, z),
the segmentation of the previous stage.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from autoseg.common import arrays, files
from autoseg.common.arrays import Array, ClassMap, Mask, Triple
from autoseg.common.errors import AutosegError
from autoseg.preprocessing.steps import Prepared

LOCATIONS_PER_CLASS = 5000
BLOCK_BYTES = 128 * 1024
ANNOTATED, PREVIOUS = "annotated", "previous.b2nd"
Source = Sequence[Sequence[int]]  # size and modification time of each raw file
Members = Sequence[Sequence[int]]  # the label values of each class
CASE_FILES = ("image.b2nd", "label.b2nd", "foreground.safetensors", "case.json")
STATS = "stats.json"  # size and time of these files


@dataclass(frozen=True)
class CaseStore:
    """The preprocessed cases of one plan, in one folder.

    Attributes:
        folder: with one folder per case.
        preprocessing_id: of the plan.
        elsewhere: advice in messages on how to use another folder.
        verify: read all bytes of stored cases to find damage, also where size and time are right.
    """

    folder: Path
    preprocessing_id: str
    elsewhere: str = "choose another --workspace"
    verify: bool = False

    def has(self, name: str, source: Source) -> bool:
        """Return whether the case was stored by the same preprocessing of the same files.

        Args:
            name: name of the case.
            source: size and modification time of each raw file.
        """
        folder, record = self.folder / name, None
        with suppress(AutosegError):
            record = files.read_json(folder / "case.json")
        if not isinstance(record, dict) or not (folder / files.CHECKSUMS).exists():
            return False  # without checksums: of an older version
        found = record.get("preprocessing_id"), record.get("source")
        return found == (self.preprocessing_id, [list(pair) for pair in source])

    def has_older(self, name: str, source: Source) -> bool:
        """Return whether the case was stored, of files that have changed since."""
        return (self.folder / name / files.CHECKSUMS).exists() and not self.has(name, source)

    def is_unchanged(self, name: str) -> bool:
        """Return whether size and time of the files are those of writing; reads no array."""
        folder = self.folder / name
        try:
            return not self.verify and bool(files.read_json(folder / STATS) == _stats(folder))
        except (AutosegError, OSError):  # older versions stored none
            return False

    def is_whole(self, name: str) -> bool:
        """Return whether the files of the case match their checksums; reads all bytes."""
        return files.is_as_written(self.folder / name, CASE_FILES)

    def write(
        self, name: str, case: Prepared, source: Source, members: Members | None = None
    ) -> None:
        """Compress and store a case, replacing an older version.

        Args:
            name: name of the case.
            case: the preprocessed case.
            source: as for `has`.
            members: the label values of each class; by default each value is a class.
        """
        assert case.label is not None
        record: dict[str, Any] = {"preprocessing_id": self.preprocessing_id}
        record |= {"source": [list(pair) for pair in source], "shape": list(case.image.shape[1:])}
        record |= {"spacing_mm": list(case.spacing_mm), "box": [list(pair) for pair in case.box]}
        try:
            with files.replacing_folder(self.folder / name) as folder:
                _compress(folder / "image.b2nd", case.image)
                _compress(folder / "label.b2nd", case.label)
                _save_voxels(folder / "foreground.safetensors", case.label, members)
                files.write_json(folder / "case.json", record)
                files.write_checksums(folder, CASE_FILES)
                files.write_json(folder / STATS, _stats(folder))
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk raises any of them
            raise self._cannot_store(name, error) from error

    def remove_leftovers(self) -> None:
        """Delete unfinished cases of killed processes; no process may be writing."""
        for folder in files.unfinished_in(self.folder):
            shutil.rmtree(folder, ignore_errors=True)

    def open(self, name: str) -> StoredCase:
        """Open a case for reading patches."""
        folder = self.folder / name
        try:
            names = ["image.b2nd", "label.b2nd", *[PREVIOUS] * (folder / PREVIOUS).exists()]
            opened = [blosc2.open(str(folder / each), mode="r") for each in names]
            voxels = load_file(folder / "foreground.safetensors")
        except MemoryError:
            raise
        except Exception as error:  # blosc2 raises many kinds
            raise _damaged(folder, error) from error
        annotated = voxels.pop(ANNOTATED, None)
        foreground = {int(key): at for key, at in voxels.items()}
        image, label, *previous = (StoredArray(array, folder) for array in opened)
        return StoredCase(name, image, label, foreground, annotated, *previous)

    def grid_of(self, name: str) -> tuple[Triple, tuple[tuple[int, int], ...]]:
        """Return the shape of a stored case, and the box (start, stop) of its turned raw file."""
        record = files.read_json(self.folder / name / "case.json")
        x, y, z = record["shape"]
        return (x, y, z), tuple((start, stop) for start, stop in record["box"])

    def has_previous(self, name: str, source: Sequence[int]) -> bool:
        """Return whether an intact segmentation of the previous stage was stored from this file.

        Args:
            name: name of a stored case.
            source: size and modification time of the file of the segmentation.
        """
        folder = self.folder / name
        with suppress(AutosegError, OSError):
            stored = files.read_json(folder / "previous.json")
            return bool(stored == _previous_record(folder, source))
        return False

    def write_previous(self, name: str, segmentation: ClassMap, source: Sequence[int]) -> None:
        """Add a segmentation of the previous stage (x, y, z), on the grid of the stored label."""
        folder = self.folder / name
        (folder / "previous.json").unlink(missing_ok=True)
        try:
            with files.replacing(folder / PREVIOUS) as temporary:
                _compress(temporary, segmentation)
        except RuntimeError as error:  # raised by blosc2, for example on a full disk
            raise self._cannot_store(name, error) from error
        files.write_json(folder / "previous.json", _previous_record(folder, source))

    def _cannot_store(self, name: str, error: Exception) -> AutosegError:
        return AutosegError(
            f"cannot store case {name} in {self.folder}: {error}; free space, or {self.elsewhere}"
        )


@dataclass(frozen=True)
class StoredArray:
    """A compressed array of a case; slicing decompresses only the blocks that are needed.

    Raises:
        AutosegError: a block cannot be decompressed. Other damage is detected only by
            `CaseStore.is_whole`.
    """

    data: Any
    folder: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        dtype: np.dtype[Any] = self.data.dtype
        return dtype

    def __getitem__(self, part: Any) -> Array:
        try:
            return np.asarray(self.data[part])
        except (OSError, RuntimeError) as error:
            raise _damaged(self.folder, error) from error


@dataclass(frozen=True)
class StoredCase:
    """An open case.

    Attributes:
        name: name of the case.
        image: (channel, x, y, z).
        label: (x, y, z).
        foreground: index of each class that occurs, from 1 -> some of its voxels, (n, 3).
        annotated: some annotated voxels; None if no voxel is ignored.
        previous: (x, y, z), the segmentation of the previous stage of a cascade, if any.
    """

    name: str
    image: StoredArray
    label: StoredArray
    foreground: dict[int, NDArray[np.int32]]
    annotated: NDArray[np.int32] | None = None
    previous: StoredArray | None = None


def _stats(folder: Path) -> dict[str, list[int]]:
    """Size and modification time of the files of a case."""
    stats = {name: (folder / name).stat() for name in CASE_FILES}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in stats.items()}


def _previous_record(folder: Path, source: Sequence[int]) -> dict[str, Any]:
    return {"source": list(source), "checksum": files.checksum(folder / PREVIOUS)}


def _damaged(folder: Path, error: Exception) -> AutosegError:
    return AutosegError(f"{folder} is damaged ({error}); delete that folder and train again")


def _compress(path: Path, array: Array) -> None:
    """Write an array with LZ4 and byte shuffling, in blocks that suit patches."""
    blosc2.set_nthreads(1)
    blocks = _block_shape(array.shape, array.itemsize)
    chunks = [min(size, 4 * block) for size, block in zip(array.shape, blocks, strict=True)]
    how: Any = {"cparams": {"codec": blosc2.Codec.LZ4, "clevel": 9, "nthreads": 1}, "mode": "w"}
    how |= {"chunks": tuple(chunks), "blocks": blocks}
    blosc2.asarray(np.ascontiguousarray(array), urlpath=str(path), **how)


def _block_shape(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return the largest near-cubic block within `BLOCK_BYTES` and the array, for one channel."""
    block = [1] * (len(shape) - 3) + [min(32, size) for size in shape[-3:]]
    while int(np.prod(block)) * itemsize > BLOCK_BYTES:
        block[int(np.argmax(block))] //= 2
    return tuple(block)


def _save_voxels(path: Path, label: ClassMap, members: Members | None) -> None:
    """Save some voxels of each class and, if others are ignored, of all annotated ones."""
    if members is None:
        members = [(value,) for value in range(1, int(label.max()) + 1)]
    boxes, found = arrays.value_boxes(label), {}
    for n, values in enumerate(members, start=1):
        if box := arrays.union_of_boxes(map(boxes.get, values)):
            start = np.array([side.start for side in box], np.int32)
            found[str(n)] = start + _spread(arrays.members(label[box], values))
    if label.min() < 0:
        found[ANNOTATED] = _spread(label >= 0)
    # Not save_file, which makes files that only their owner can read.
    path.write_bytes(save({key: voxels for key, voxels in found.items() if len(voxels)}))


def _spread(mask: Mask) -> NDArray[np.int32]:
    """Return up to `LOCATIONS_PER_CLASS` evenly spaced voxels of a mask, (n, 3)."""
    at = np.flatnonzero(mask)
    keep = np.linspace(0, max(0, len(at) - 1), min(len(at), LOCATIONS_PER_CLASS)).astype(np.int64)
    voxels = np.stack(np.unravel_index(at[keep], mask.shape), axis=1)
    return np.ascontiguousarray(voxels, dtype=np.int32)


def link_from_others(store: CaseStore, plans: Path, name: str, source: Source) -> bool:
    """Link a case from the store of another plan of the task with the same preprocessing, if any.

    Stores replace files but never modify them, so that linked files are safe.

    Args:
        store: lacks the case.
        plans: folder of the plans of the task; their stores have the same name as this one.
        name: name of the case.
        source: as for `CaseStore.has`.

    Returns:
        whether the case was linked.
    """
    folders = sorted(plans.glob(f"*/{store.folder.name}"))
    others = (CaseStore(of, store.preprocessing_id) for of in folders if of != store.folder)
    found = (of.folder / name for of in others if of.has(name, source) and of.is_whole(name))
    return any(_link(case, store.folder / name) for case in found)


def _link(case: Path, target: Path) -> bool:
    """Link the files of a case, or copy them if the file system has no hard links."""
    try:
        with files.replacing_folder(target) as folder:
            for file in (*CASE_FILES, files.CHECKSUMS):
                try:
                    os.link(case / file, folder / file)
                except OSError:
                    shutil.copyfile(case / file, folder / file)
            files.write_json(folder / STATS, _stats(folder))
    except OSError:  # the case was removed, or the disk is full, which preprocessing will report
        return False
    return True
