"""NIfTI-1 files: checks of what ITK reads silently, fast reading, and writing on a given grid.

ITK replaces missing voxels, NaN and infinity by 0 and an impossible spacing by 1, and ignores a
damaged header.
"""

import gzip
import math
import os
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import numpy as np
from isal import igzip, isal_zlib

from autoseg.common.arrays import Array
from autoseg.common.errors import DataError, VoxelError, raise_if
from autoseg.common.progress import by_axis, note
from autoseg.image.formats import PACKED_AT_MOST, TABLES, TEXT, ending_of
from autoseg.image.geometry import DIRECTION_TOLERANCE, Geometry, geometry_of

if TYPE_CHECKING:
    import SimpleITK as sitk


BITS = {int(code): bits for code, bits in TABLES["nifti_bits"].items()}
FLOATS = (16, 64)  # datatype codes
# Datatype code -> NumPy's type and SimpleITK's pixel type.
TYPES = {int(code): names for code, names in TABLES["nifti_types"].items()}
LABEL_CODES = {np.dtype(np.uint8): 2, np.dtype(np.uint16): 512}  # type of a label map -> code
CHUNK, PIECE = 1 << 24, 1 << 20
PACKING = 2  # isal's level, 0 to 3: files half as large again as gzip's level 6, 20 times faster
PACKING_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error, cast("type[Exception]", isal_zlib.error))
LONGEST = 1.001  # squared; its components are rounded

NIFTI_ENDINGS = (".nii", ".nii.gz", ".hdr")  # .hdr: a header, whose voxels are in .img
DATA_ENDINGS = (".img", ".IMG", ".img.gz")
MILLIMETRES = (0, 2)  # codes of the unit of length; 0: not stated

HEADER = np.dtype(TABLES["nifti_header"])
NIFTI_2_SIZE, VOXELS_AT = 540, 352  # the first integer of a NIfTI-2 file; where voxels start
SFORM_TOLERANCE_MM = 1e-3  # between ITK's grid and the sform, so that rounding changes nothing
MAGICS = (b"n+1", b"ni1")
GRID_FIELDS = ["pixdim", "xyzt_units", "qform_code", "sform_code", "quaternion", "sform"]


class Layout(NamedTuple):
    """How the header describes the voxels.

    Attributes:
        start: offset of the first voxel in the uncompressed file.
        end: offset after the last voxel.
        size: number of voxels along each axis.
        code: NIfTI's datatype code.
        order: byte order, `<` or `>` as in `struct`.
        scale: scl_slope and scl_inter.
    """

    start: int
    end: int
    size: tuple[int, ...]
    code: int
    order: str
    scale: tuple[float, float] = (0.0, 0.0)

    @property
    def is_scaled(self) -> bool:
        """Whether stored values are not intensities; a slope of 0 or NaN means no scaling."""
        return self.scale != (1.0, 0.0) and bool(self.scale[0]) and math.isfinite(self.scale[0])


def check_nifti(path: Path) -> None:
    """Check that a NIfTI file is complete, its header valid, and its voxels finite.

    Integer voxels cost next to nothing (a gzip file ends with the size of its content); floats are
    decompressed and checked chunk by chunk. Files of other formats pass.

    Raises:
        DataError: the file is truncated or its header damaged; a VoxelError if it contains NaN
            or infinity.
    """
    if not is_nifti(path):
        return
    layout = layout_of(path)
    if not layout.is_scaled and layout.scale not in ((0, 0), (1, 0)):  # ITK would add scl_inter
        raise DataError(TEXT("scaled", path=path, scale=layout.scale))
    if layout.code not in FLOATS and has_size(voxel_file(path), layout.end):
        return
    end, bad = _scan(path, layout)
    if end < layout.end:
        raise DataError(f"{path}: cannot be read (its end is missing); copy it again")
    if bad:
        raise VoxelError(f"{path}: {bad} voxels are NaN or infinite; replace them, such as by air")


def is_nifti(path: Path) -> bool:
    """Whether it is a NIfTI file by its name."""
    return ending_of(path) in NIFTI_ENDINGS and path.is_file()


def voxel_file(path: Path) -> Path:
    """The file that holds the voxels: of a .hdr file the .img file beside it.

    Raises:
        DataError: it is missing.
    """
    if ending_of(path) != ".hdr":
        return path
    beside = [path.with_suffix(ending) for ending in DATA_ENDINGS]
    if found := next((file for file in beside if file.is_file()), None):
        return found
    raise DataError(f"{path}: its voxels, {beside[0].name}, are missing; copy them beside it")


def layout_of(path: Path) -> Layout:
    """Read and check the header.

    Raises:
        DataError: it is not a NIfTI-1 header, or it is damaged.
    """

    def damaged_if(wrong: object, what: str) -> None:
        raise_if(wrong, DataError(f"{path}: its header is damaged ({what}); copy it again"))

    header, order = _fields(path)
    count, *size = header["dim"].tolist()
    damaged_if(not 1 <= count <= 7 or min(size[:count]) < 1, f"sizes {count}: {tuple(size)}")
    code, bits = int(header["datatype"]), int(header["bitpix"])
    is_known = code in BITS and bits in (0, BITS[code])
    damaged_if(not is_known, f"voxels of type {code} with {bits} bits")
    spacing = tuple(header["pixdim"].tolist()[1 : min(3, count) + 1])
    damaged_if(not all(math.isfinite(mm) and mm != 0 for mm in spacing), f"spacing {spacing}")
    start = float(header["vox_offset"])
    damaged_if(not math.isfinite(start) or start < 0, f"voxels start at byte {start}")
    if header["qform_code"] > 0:
        quaternion = header["quaternion"].tolist()
        damaged_if(not np.isfinite(quaternion).all(), f"quaternion {quaternion}")
        is_long = sum(part**2 for part in quaternion[:3]) > LONGEST
        damaged_if(is_long, f"quaternion {quaternion[:3]}, longer than 1")
    matrix = header["sform"]
    is_wrong = header["sform_code"] > 0 and not np.isfinite(matrix).all()
    damaged_if(is_wrong, f"matrix {matrix.tolist()}")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    layout = Layout(0, 0, tuple(size[:count]), code, order, (slope, intercept))
    is_wrong = layout.is_scaled and not math.isfinite(intercept)
    damaged_if(is_wrong, f"scl_slope {slope:g}, scl_inter {intercept:g}")
    first = int(start) if ending_of(path) == ".hdr" else max(int(start), HEADER.itemsize)
    return layout._replace(start=first, end=first + math.prod(layout.size) * BITS[code] // 8)


def _fields(path: Path) -> tuple[np.void, str]:
    """The fields of the header, and its byte order.

    Raises:
        DataError: it is not a NIfTI-1 header.
    """
    try:
        header = read_header(path)
    except PACKING_ERRORS:
        header = b""
    for order in "<>" if len(header) == HEADER.itemsize else "":
        fields = np.frombuffer(header, HEADER.newbyteorder(order))[0]
        if fields["sizeof_hdr"] == NIFTI_2_SIZE:
            raise DataError(f"{path}: ITK does not read NIfTI-2; convert it to NIfTI-1")
        if fields["sizeof_hdr"] == HEADER.itemsize and fields["magic"][:3] in MAGICS:
            return fields, order
        if fields["sizeof_hdr"] == HEADER.itemsize and ending_of(path) == ".hdr":
            raise DataError(TEXT("Analyze", path=path))
    raise DataError(f"{path}: not a NIfTI file, or its header is damaged; copy it again")


def unpacked(path: Path) -> BinaryIO:
    """Open a file, compressed by gzip or not, to read its content."""
    return cast("BinaryIO", igzip.open(path) if is_packed(path) else path.open("rb"))


def is_packed(path: Path) -> bool:
    """Whether a file is compressed by gzip."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def has_size(path: Path, size: int) -> bool:
    """Whether the content has this size; a gzip file stores the size at its end."""
    if not is_packed(path):
        return path.stat().st_size >= size
    with path.open("rb") as stream:
        stream.seek(-4, os.SEEK_END)
        (noted,) = struct.unpack("<I", stream.read(4))
    return bool(noted == size % 2**32)


def _scan(path: Path, layout: Layout) -> tuple[int, int]:
    """Read the whole file: where its voxels end, and how many are not finite."""
    with unpacked(voxel_file(path)) as stream:
        end, bad = 0, 0
        try:
            stream.seek(layout.start)
            while chunk := stream.read(min(CHUNK, layout.end - layout.start - end)):
                end += len(chunk)
                if layout.code in FLOATS:
                    dtype = np.dtype(layout.order + TYPES[layout.code][0])
                    whole = np.frombuffer(chunk, dtype, len(chunk) // dtype.itemsize)
                    bad += int(np.count_nonzero(~np.isfinite(whole)))
            while stream.read(CHUNK):  # up to the checksum at the end of a gzip file
                pass
        except PACKING_ERRORS:
            end = -1  # what was read cannot be trusted
        return layout.start + end, bad


def read_nifti(path: Path) -> tuple[Array, Geometry] | None:
    """Read a NIfTI file of unscaled numbers, directly into the array.

    ITK interprets the header only: its own reading of voxels takes up to twice as long, ignores
    the checksum of a gzip file, and needs a second copy.

    Returns:
        An array of shape (channel, x, y, z), equal to ITK's, and its grid; None for what is left to
        ITK: other formats, more dimensions, colours, values that the header scales, and gzip files
        of several members or with data behind the voxels.

    Raises:
        DataError: the header is damaged, the file is truncated, or its checksum is wrong.
        RuntimeError: ITK cannot read the header.
    """
    if not is_nifti(path):
        return None
    layout = layout_of(path)
    if layout.code not in TYPES or not has_size(voxel_file(path), layout.end):
        return None
    reader = itk_header(path, "NiftiImageIO")
    if not _is_plain(reader, layout):
        return None
    geometry = with_sform(path, geometry_of(reader, path))
    return _voxels(path, layout, reader.GetSize()), geometry


def with_sform(path: Path, geometry: Geometry) -> Geometry:
    """The grid of a file, with position and axes from the sform where a NIfTI header has one.

    ITK takes the qform of some files, by their codes; its quaternion is rounded, by up to 4e-4.
    """
    if not is_nifti(path):
        return geometry
    header, _ = _fields(path)
    code = int(header["sform_code"])
    if max(header["qform_code"], code) <= 0:
        note(TEXT("no orientation", path=path, found="qform_code and sform_code are 0"))
    if code <= 0 or header["xyzt_units"] & 7 not in MILLIMETRES:
        return geometry
    matrix = header["sform"].astype(np.float64) * [[-1], [-1], [1]]  # from RAS to LPS
    spacing = np.linalg.norm(matrix[:, :3], axis=0)
    if spacing.min() == 0:
        return geometry
    axes = matrix[:, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > DIRECTION_TOLERANCE:
        note(f"{path}: its sform is sheared; using its qform")
        return geometry
    if np.allclose(spacing, geometry.spacing_mm, rtol=1e-3):
        spacing = np.array(geometry.spacing_mm)
    else:
        own, pixdim = by_axis(spacing, ".4g"), by_axis(geometry.spacing_mm, ".4g")
        note(f"{path}: its sform has a spacing of {own} mm, pixdim {pixdim} mm; using the sform")
    found = Geometry.of(geometry.size, spacing, matrix[:, 3], axes)
    return found if geometry.differences(found, SFORM_TOLERANCE_MM) else geometry


def itk_header(path: Path, format: str = "") -> "sitk.ImageFileReader":
    """The header as ITK reads it, in this format or the one that it finds."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO(format)
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _is_plain(reader: "sitk.ImageFileReader", layout: Layout) -> bool:
    """Whether ITK would return the stored voxels unchanged."""
    import SimpleITK as sitk

    if reader.GetDimension() not in (3, 4) or reader.GetNumberOfComponents() != 1:
        return False
    own_type = reader.GetPixelID() == getattr(sitk, TYPES[layout.code][1]) or layout.scale[1] != 0
    same_size = math.prod(layout.size) == math.prod(reader.GetSize())
    return own_type and same_size and not layout.is_scaled


def _voxels(path: Path, layout: Layout, size: Sequence[int]) -> Array:
    damaged = DataError(f"{path}: cannot be read (is damaged or its end is missing); copy it anew")
    path = voxel_file(path)
    if layout.end > path.stat().st_size * (PACKED_AT_MOST if is_packed(path) else 1):
        raise damaged
    dtype = np.dtype(layout.order + TYPES[layout.code][0])
    array = np.empty(size[::-1], dtype)
    try:
        with unpacked(path) as stream:
            stream.read(layout.start)
            read = _fill(array, stream)
            stream.read(1)  # at the end of the stream its checksum is verified
    except PACKING_ERRORS as error:
        raise damaged from error
    raise_if(read < array.nbytes, damaged)
    native = array.astype(dtype.newbyteorder(sys.byteorder), copy=False)
    return np.moveaxis(native.T, -1, 0) if native.ndim == 4 else native.T[np.newaxis]


def _fill(array: Array, stream: BinaryIO) -> int:
    """Fill an array piece by piece, and return the bytes read; isal is slower in one go."""
    memory = array.reshape(-1).view(np.uint8).data
    at = 0
    while at < len(memory) and (count := stream.readinto(memory[at : at + PIECE])):  # type: ignore[attr-defined]
        at += count
    return at


def is_nifti_1(path: Path) -> bool:
    """Whether a file has a NIfTI-1 header, in either byte order."""
    size = read_header(path)[:4]
    return HEADER.itemsize in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))


def read_header(path: Path) -> bytes:
    """The 348 bytes of a NIfTI-1 header, in the file's own byte order."""
    # Not isal: it reads further ahead, and may fail at damage behind the header.
    with gzip.open(path) if is_packed(path) else path.open("rb") as stream:
        return stream.read(HEADER.itemsize)


def write_on_grid_of(source: Path, label: Array, path: Path) -> None:
    """Write a label map (x, y, z) of 8 or 16 bits to `path`, on the grid of the file `source`.

    ITK converts directions to 32-bit quaternions when it writes NIfTI, which changes an oblique
    scan's directions by up to 1e-7. Copying the fields of the scan's header keeps every bit.
    """
    header = label_header(read_header(source), label)
    voxels = as_stored(label)
    if not path.name.lower().endswith(".gz"):
        path.write_bytes(header + voxels.tobytes())
        return
    # Without a time stamp: the same label map gives the same bytes.
    with path.open("wb") as raw, igzip.IGzipFile("", "wb", PACKING, raw, mtime=0) as stream:
        stream.write(header)
        stream.write(voxels.data)


def as_stored(label: Array) -> Array:
    """A label map (x, y, z) as a file stores it: z, y, x, little-endian.

    Transposed plane by plane, which is five times faster because a plane fits into the cache.
    """
    dtype = label.dtype.newbyteorder("<")
    if label.T.flags.c_contiguous:
        return label.T.astype(dtype, copy=False)
    stored = np.empty(label.shape[::-1], dtype)
    for y in range(label.shape[1]):
        stored[:, y] = label[:, y].T
    return stored


def label_header(source: bytes, label: Array) -> bytes:
    """The little-endian header of a label map on the grid of the header `source`."""
    given = np.frombuffer(source, HEADER)
    if given["sizeof_hdr"] != HEADER.itemsize:
        given = np.frombuffer(source, HEADER.newbyteorder(">"))
    header = np.zeros(1, HEADER)
    header["sizeof_hdr"] = HEADER.itemsize
    header["dim"] = (3, *label.shape, 1, 1, 1, 1)
    header["datatype"], header["bitpix"] = LABEL_CODES[label.dtype], 8 * label.dtype.itemsize
    header["vox_offset"], header["scl_slope"], header["magic"] = VOXELS_AT, 1, b"n+1"
    header[GRID_FIELDS] = given[GRID_FIELDS]
    return header.tobytes().ljust(VOXELS_AT, b"\0")
