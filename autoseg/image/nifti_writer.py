"""Label maps as NIfTI files on the very grid of another NIfTI file.

ITK turns directions into 32-bit quaternions when it writes NIfTI: an oblique scan's directions come
back changed by up to 1e-7. Copying the fields of the scan's header keeps every bit.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from autoseg.image.nifti import HEADER_SIZE, is_packed

VOXELS_AT = 352
TYPES = {np.dtype(np.uint8): 2, np.dtype(np.uint16): 512}  # NumPy's -> NIfTI's code
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
    struct.pack_into("<2h", header, 70, TYPES[label.dtype], 8 * label.dtype.itemsize)
    struct.pack_into("<2f", header, 108, VOXELS_AT, 1.0)  # where they start, and their slope
    for start, fields in GRID_FIELDS:
        values = struct.unpack_from(order + fields, source, start)
        struct.pack_into("<" + fields, header, start, *values)
    struct.pack_into("4s", header, 344, b"n+1")
    return bytes(header)
