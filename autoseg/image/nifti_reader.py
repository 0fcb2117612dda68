"""Voxels of NIfTI files, unpacked straight into the array that they stay in.

ITK says where the grid lies. Its own reading of the voxels takes up to twice the time, does not
compare the checksum of a packed file, and needs a second copy of them.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple
from autoseg.common.errors import DataError
from autoseg.image.endings import ending_of
from autoseg.image.geometry import Geometry, geometry_of
from autoseg.image.headers import PACKED_AT_MOST
from autoseg.image.nifti import PACKING_ERRORS, Layout, has_size, is_packed, layout_of, unpacked

if TYPE_CHECKING:
    import SimpleITK as sitk

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
