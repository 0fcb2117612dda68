"""Faults of NIfTI files that ITK reads without a word.

ITK puts zeros for what is cut off from a NIfTI file and for every NaN and infinity in it, 1 for a
spacing that cannot be, and passes over a damaged beginning.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from isal import igzip, isal_zlib

from autoseg.common.errors import DataError, VoxelError
from autoseg.image.endings import ending_of

FLOAT_TYPES = {16: "f4", 64: "f8"}  # NIfTI's code -> NumPy's
BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}
CHUNK = 1 << 24
ISAL_ERROR = cast("type[Exception]", isal_zlib.error)
PACKING_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, ISAL_ERROR)
LONGEST_QUATERNION = 1.001  # squared; as its numbers are rounded

# Where the header holds what is looked at, and how `struct` unpacks it.
HEADER_SIZE, SECOND_SIZE = 348, 540  # of NIfTI-1 and NIfTI-2; the first number in the file
MAGICS = (b"n+1", b"ni1")
MAGIC_AT, SIZE_AT, CODE_AT, SPACING_AT, START_AT, FORMS_AT, PLACE_AT = (
    344,
    40,
    70,
    76,
    108,
    252,
    256,
)


@dataclass(frozen=True)
class Layout:
    """What a header says of the voxels.

    Attributes:
        start: the byte at which they start, unpacked.
        end: the byte at which they end.
        size: along each axis.
        code: NIfTI's number of their type.
        order: `<` or `>`, as `struct` writes the order of bytes.
    """

    start: int
    end: int
    size: tuple[int, ...]
    code: int
    order: str


def check_nifti(path: Path) -> None:
    """Check that a NIfTI file is whole, its header possible, and its voxels finite.

    Whole numbers cost next to nothing (a gzip file ends with the size of its content); floats are
    unpacked and looked at, chunk by chunk. Files of other formats pass.

    Raises:
        DataError: the file is truncated or its header damaged; a VoxelError if it holds NaN or
            infinity.
    """
    if ending_of(path) not in (".nii", ".nii.gz") or not path.is_file():
        return
    layout = layout_of(path)
    if layout.code not in FLOAT_TYPES and has_size(path, layout.end):
        return
    end, bad = _scan(path, layout)
    if end < layout.end:
        raise DataError(f"{path}: cannot be read (its end is missing): copy it anew")
    if bad:
        raise VoxelError(
            f"{path}: {bad} voxels are NaN or infinite; replace them, "
            "for example by the value of air"
        )


def layout_of(path: Path) -> Layout:
    """Read and check the header.

    Raises:
        DataError: it is none, of NIfTI-2, or damaged.
    """
    header = _first_bytes(path)
    order = _byte_order(path, header)
    size = struct.unpack_from(order + "8h", header, SIZE_AT)
    if not 1 <= size[0] <= 7 or min(size[1 : size[0] + 1]) < 1:
        raise _damaged(path, f"sizes {size[0]}: {size[1:]}")
    code, bits = struct.unpack_from(order + "2h", header, CODE_AT)
    if code not in BITS or bits not in (0, BITS[code]):
        raise _damaged(path, f"voxels of type {code} with {bits} bits")
    spacing = struct.unpack_from(order + "8f", header, SPACING_AT)[1 : min(3, size[0]) + 1]
    if not all(math.isfinite(mm) and mm != 0 for mm in spacing):
        raise _damaged(path, f"spacing {spacing}")
    (start,) = struct.unpack_from(order + "f", header, START_AT)
    if not math.isfinite(start) or start < 0:
        raise _damaged(path, f"voxels from byte {start} on")
    _check_place(path, header, order)
    first = max(int(start), HEADER_SIZE)
    axes = size[1 : size[0] + 1]
    return Layout(first, first + math.prod(axes) * BITS[code] // 8, axes, code, order)


def _byte_order(path: Path, header: bytes) -> str:
    if len(header) == HEADER_SIZE:
        for order in "<>":
            (size,) = struct.unpack_from(order + "i", header)
            if size == SECOND_SIZE:
                raise DataError(f"{path}: is NIfTI-2, which ITK does not read; convert to NIfTI-1")
            if size == HEADER_SIZE and header[MAGIC_AT : MAGIC_AT + 3] in MAGICS:
                return order
    raise DataError(f"{path}: no NIfTI file, or its beginning is damaged or missing: copy it anew")


def _check_place(path: Path, header: bytes, order: str) -> None:
    """Quaternion and matrix must be finite, as far as the header says that they count."""
    qform, sform = struct.unpack_from(order + "2h", header, FORMS_AT)
    numbers = struct.unpack_from(order + "18f", header, PLACE_AT)
    quaternion, matrix = numbers[:6], numbers[6:]
    if qform > 0 and not all(map(math.isfinite, quaternion)):
        raise _damaged(path, f"quaternion {quaternion}")
    if qform > 0 and sum(part**2 for part in quaternion[:3]) > LONGEST_QUATERNION:
        raise _damaged(path, f"quaternion {quaternion[:3]}, longer than 1")
    if sform > 0 and not all(map(math.isfinite, matrix)):
        raise _damaged(path, f"matrix {matrix}")


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path}: its header is damaged ({what}): copy it anew")


def _first_bytes(path: Path) -> bytes:
    """The header, as far as it is there."""
    try:
        # not isal, which reads further ahead, and may fail at what comes later
        with gzip.open(path) if is_packed(path) else path.open("rb") as stream:
            return stream.read(HEADER_SIZE)
    except PACKING_ERRORS:
        return b""


def unpacked(path: Path) -> BinaryIO:
    """Open a file, packed by gzip or not, to read what is in it."""
    return cast("BinaryIO", igzip.open(path) if is_packed(path) else path.open("rb"))


def is_packed(path: Path) -> bool:
    """Whether a file begins as gzip does."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def has_size(path: Path, size: int) -> bool:
    """Whether the file is as long as it should be; a packed one notes its length at its end."""
    if not is_packed(path):
        return path.stat().st_size >= size
    with path.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        (noted,) = struct.unpack("<I", stream.read(4))
    return bool(noted == size % 2**32)


def _scan(path: Path, layout: Layout) -> tuple[int, int]:
    """Read the file through: bytes up to where the voxels end, and voxels that are not finite."""
    with unpacked(path) as stream:
        end, bad = 0, 0
        try:
            stream.seek(layout.start)
            while chunk := stream.read(min(CHUNK, layout.end - layout.start - end)):
                end += len(chunk)
                if layout.code in FLOAT_TYPES:
                    dtype = np.dtype(layout.order + FLOAT_TYPES[layout.code])
                    whole = np.frombuffer(chunk, dtype, len(chunk) // dtype.itemsize)
                    bad += int(np.count_nonzero(~np.isfinite(whole)))
            while stream.read(CHUNK):  # to the checksum at the end of a packed file
                pass
        except PACKING_ERRORS:
            end = -1  # what can be read of it is not to be trusted
        return layout.start + end, bad
