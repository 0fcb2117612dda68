"""Faults of NIfTI files that ITK reads without a word.

ITK puts zeros for what is cut off from a NIfTI file, and for every NaN and infinity in it.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoseg.errors import DataError
from autoseg.image import VoxelError, ending_of

FLOAT_TYPES = {"16": "f4", "64": "f8"}  # NIfTI's code -> NumPy's
HEADER_SIZES = (348, 540)  # NIfTI-1, NIfTI-2; the first number in the file
CHUNK = 1 << 24


@dataclass(frozen=True)
class _Layout:
    """Bytes at which the voxels start and end, unpacked, and the NIfTI code of their type."""

    start: int
    end: int
    code: str


def check_nifti(path: Path) -> None:
    """Check that a NIfTI file is whole and that its voxels are finite.

    Whole numbers cost next to nothing (a gzip file ends with the size of its content); floats are
    unpacked and looked at, chunk by chunk. Other files, and what ITK itself refuses, pass.

    Raises:
        DataError: the file is truncated; a VoxelError if it holds NaN or infinity.
    """
    if ending_of(path) not in (".nii", ".nii.gz") or not path.is_file():
        return
    layout = _layout(path)
    if layout is None or (layout.code not in FLOAT_TYPES and _has_size(path, layout.end)):
        return
    end, bad = _scan(path, layout)
    if end < layout.end:
        raise DataError(f"{path}: cannot be read (its end is missing): copy it anew")
    if bad:
        raise VoxelError(
            f"{path}: {bad} voxels are NaN or infinite; replace them, "
            "for example by the value of air"
        )


def _layout(path: Path) -> _Layout | None:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    field = reader.GetMetaData
    size = [int(field(f"dim[{axis}]")) for axis in range(1, int(field("dim[0]")) + 1)]
    start = int(float(field("vox_offset")))
    return _Layout(start, start + math.prod(size) * int(field("bitpix")) // 8, field("datatype"))


def _is_packed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _has_size(path: Path, size: int) -> bool:
    """Whether the file is as long as it should be; a packed one notes its length at its end."""
    if not _is_packed(path):
        return path.stat().st_size >= size
    with path.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        (noted,) = struct.unpack("<I", stream.read(4))
    return bool(noted == size % 2**32)


def _scan(path: Path, layout: _Layout) -> tuple[int, int]:
    """Read the file through: bytes up to where the voxels end, and voxels that are not finite."""
    with gzip.open(path) if _is_packed(path) else path.open("rb") as stream:
        end, bad = 0, 0
        try:
            order = "<" if struct.unpack("<i", stream.read(4))[0] in HEADER_SIZES else ">"
            stream.seek(layout.start)
            end = layout.start
            while chunk := stream.read(min(CHUNK, layout.end - end)):
                end += len(chunk)
                if layout.code in FLOAT_TYPES:
                    dtype = np.dtype(order + FLOAT_TYPES[layout.code])
                    whole = np.frombuffer(chunk, dtype, len(chunk) // dtype.itemsize)
                    bad += int(np.count_nonzero(~np.isfinite(whole)))
        except (EOFError, gzip.BadGzipFile, zlib.error):
            pass  # `end` says how far it could be read
        return end, bad
