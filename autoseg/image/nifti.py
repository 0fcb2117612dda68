"""Faults of NIfTI files that ITK reads without a word.

ITK puts zeros for what is cut off from a NIfTI file and for every NaN and infinity in it, 1 for a
spacing that cannot be, and passes over a damaged beginning.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.common.errors import DataError, VoxelError
from autoseg.image.formats import PACKED_AT_MOST, ending_of
from autoseg.image.geometry import Geometry, geometry_of

if TYPE_CHECKING:
    import SimpleITK as sitk


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


# Voxels of NIfTI files, unpacked straight into the array that they stay in.
#
# ITK says where the grid lies. Its own reading of the voxels takes up to twice the time, does not
# compare the checksum of a packed file, and needs a second copy of them.

# NIfTI's code -> NumPy's type and SimpleITK's name of it.
TYPES = {
    2: ("u1", "sitkUInt8"),
    4: ("i2", "sitkInt16"),
    8: ("i4", "sitkInt32"),
    16: ("f4", "sitkFloat32"),
    64: ("f8", "sitkFloat64"),
    256: ("i1", "sitkInt8"),
    512: ("u2", "sitkUInt16"),
    768: ("u4", "sitkUInt32"),
}
PIECE = 1 << 20


def read_nifti(path: Path) -> tuple[NDArray[Any], Geometry] | None:
    """Read a three-dimensional NIfTI file of plain numbers.

    Returns:
        An array of shape (1, x, y, z), equal to ITK's, and its grid; None for what is left to ITK:
        other files, further dimensions, colours, values that the header scales, and packed files
        of several pieces or with something behind the voxels.

    Raises:
        DataError: the header is damaged, the file is truncated, or its checksum is wrong.
        RuntimeError: of ITK.
    """
    if ending_of(path) not in (".nii", ".nii.gz") or not path.is_file():
        return None
    layout = layout_of(path)
    if layout.code not in TYPES or not has_size(path, layout.end):
        return None
    picture = _information(path)
    if not _is_plain(picture, layout):
        return None
    geometry = geometry_of(picture, path)
    return _voxels(path, layout, geometry.size), geometry


def _information(path: Path) -> sitk.ImageFileReader:
    """What ITK makes of the header."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _is_plain(picture: sitk.ImageFileReader, layout: Layout) -> bool:
    """Whether ITK sees what the header's bytes say, and nothing to compute."""
    import SimpleITK as sitk

    return (
        picture.GetDimension() == 3
        and picture.GetNumberOfComponents() == 1
        and picture.GetPixelID() == getattr(sitk, TYPES[layout.code][1])
        and math.prod(layout.size) == math.prod(picture.GetSize())
        and float(picture.GetMetaData("scl_slope")) in (0.0, 1.0)
        and float(picture.GetMetaData("scl_inter")) == 0.0
    )


def _voxels(path: Path, layout: Layout, size: Triple) -> NDArray[Any]:
    damaged = DataError(
        f"{path}: cannot be read (it is damaged, or its end is missing): copy it anew"
    )
    limit = path.stat().st_size * (PACKED_AT_MOST if is_packed(path) else 1)
    if layout.end > limit:
        raise damaged
    dtype = np.dtype(layout.order + TYPES[layout.code][0])
    array = np.empty(size[::-1], dtype)
    try:
        with unpacked(path) as stream:
            stream.read(layout.start)
            read = _fill(array, stream)
            stream.read(1)  # at its end the checksum is compared
    except PACKING_ERRORS as error:
        raise damaged from error
    if read < array.nbytes:
        raise damaged
    native = array.astype(dtype.newbyteorder(sys.byteorder), copy=False)
    return native.T[np.newaxis]


def _fill(array: NDArray[Any], stream: BinaryIO) -> int:
    """Read into an array, piece by piece: in one go isal takes a quarter longer."""
    memory = array.reshape(-1).view(np.uint8).data
    at = 0
    while at < len(memory) and (count := stream.readinto(memory[at : at + PIECE])):  # type: ignore[attr-defined]
        at += count
    return at


# Label maps as NIfTI files on the very grid of another NIfTI file.
#
# ITK turns directions into 32-bit quaternions when it writes NIfTI: an oblique scan's directions
# come back changed by up to 1e-7. Copying the fields of the scan's header keeps every bit.

VOXELS_AT = 352
TYPES_TO_WRITE = {np.dtype(np.uint8): 2, np.dtype(np.uint16): 512}  # NumPy's -> NIfTI's code
PACKING = 2  # of isal's 0 to 3: half as large again as 6 of gzip, in a twentieth of its time
# Where a header says how its grid lies: pixdim, xyzt_units, and qform and sform with their codes.
GRID_FIELDS = ((76, "8f"), (123, "B"), (252, "2h18f"))


def is_nifti_1(path: Path) -> bool:
    """Whether a file has a header of the first version, in either byte order."""
    size = read_header(path)[:4]
    return HEADER_SIZE in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))


def read_header(path: Path) -> bytes:
    """The 348 bytes of a NIfTI-1 header, in the file's own byte order."""
    with gzip.open(path) if is_packed(path) else path.open("rb") as stream:
        return stream.read(HEADER_SIZE)


def write_on_grid_of(source: Path, label: NDArray[Any], path: Path) -> None:
    """Write a label map (x, y, z) of 8 or 16 bits to `path`, on the grid of the file `source`."""
    header = label_header(read_header(source), label)
    voxels = as_stored(label)
    if not path.name.lower().endswith(".gz"):
        path.write_bytes(header + voxels.tobytes())
        return
    # No time of writing in it: the same label map gives the same bytes.
    with path.open("wb") as raw, igzip.IGzipFile("", "wb", PACKING, raw, mtime=0) as stream:
        stream.write(header)
        stream.write(voxels.data)


def as_stored(label: NDArray[Any]) -> NDArray[Any]:
    """A label map (x, y, z) as the file has it: z, y, x in memory, little-endian.

    Turned plane by plane, which the processor's cache holds, in a fifth of the time.
    """
    dtype = label.dtype.newbyteorder("<")
    if label.T.flags.c_contiguous:
        return label.T.astype(dtype, copy=False)
    turned = np.empty(label.shape[::-1], dtype)
    for y in range(label.shape[1]):
        turned[:, y] = label[:, y].T
    return turned


def label_header(source: bytes, label: NDArray[Any]) -> bytes:
    """The header, little-endian, of a label map that lies where the header `source` says."""
    order = "<" if struct.unpack_from("<i", source)[0] == HEADER_SIZE else ">"
    header = bytearray(VOXELS_AT)
    struct.pack_into("<i", header, 0, HEADER_SIZE)
    struct.pack_into("<8h", header, 40, 3, *label.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, TYPES_TO_WRITE[label.dtype], 8 * label.dtype.itemsize)
    struct.pack_into("<2f", header, 108, VOXELS_AT, 1.0)  # where they start, and their slope
    for start, fields in GRID_FIELDS:
        values = struct.unpack_from(order + fields, source, start)
        struct.pack_into("<" + fields, header, start, *values)
    struct.pack_into("4s", header, 344, b"n+1")
    return bytes(header)
