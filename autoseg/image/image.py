"""Scans and label maps, as files and as arrays.

Inside autoseg every array is in x, y, z order, as SimpleITK's own size and spacing are. SimpleITK's
numpy arrays are z, y, x, as files are: only readers and writers turn them round. SimpleITK is
imported when the first file is read, because it takes a while.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import DataError, VoxelError, is_lack_of_memory
from autoseg.image.dicom import is_dicom, read_series
from autoseg.image.formats import ENDINGS, check_header, ending_of, stem_of
from autoseg.image.geometry import Geometry, check_same_grid, geometry_of, sheared
from autoseg.image.label_writer import HIGHEST_LABEL, File, smallest_type
from autoseg.image.nifti import check_nifti, read_nifti

if TYPE_CHECKING:
    import SimpleITK as sitk

SPARE_BYTES = 16 * 2**20  # where these cannot be had, ITK takes whole files for damaged ones


@dataclass(frozen=True)
class Image:
    """One scan and the grid that its voxels lie on.

    Attributes:
        array: array of shape (channel, x, y, z), of float32, or of the file's own small integers
            if the reader was asked for them.
        geometry: its grid.

    >>> import autoseg
    >>> scan = autoseg.read_image("raw/Task004_Hippocampus/imagesTs/hippocampus_040.nii.gz")
    >>> isinstance(scan, autoseg.Image), scan.array.shape == (1, *scan.geometry.size)
    (True, True)
    """

    array: NDArray[Any]
    geometry: Geometry


def files_of(path: Path) -> list[Path]:
    """The files behind a path: all beside a DICOM slice, a header and its data, or itself."""
    if path.is_dir() or (path.exists() and not ending_of(path)):
        return sorted((path if path.is_dir() else path.parent).iterdir())
    if ending_of(path) == ".mhd":
        return sorted(path.parent.glob(f"{stem_of(path)}.*"))
    return [path] if path.exists() else []


def read_image(paths: File | Sequence[File], own_type: bool = False) -> Image:
    """Read one scan; each path is one channel, and all must lie on the same grid.

    A path is a file, a folder with one DICOM series, or a slice of a series, which stands for it.
    A single 4D file is read as its channels.

    >>> import autoseg
    >>> scan = autoseg.read_image("raw/Task004_Hippocampus/imagesTs/hippocampus_040.nii.gz")
    >>> scan.array.shape, scan.array.dtype
    ((1, 36, 52, 37), dtype('float32'))
    >>> scan.geometry.spacing_mm
    (1.0, 1.0, 1.0)

    Args:
        paths: the files, or a single one.
        own_type: leave integers of up to 16 bits as they are, which float32 holds exactly, instead
            of turning them into float32: half the memory, and quicker.

    Raises:
        DataError: a file is missing, unreadable, not three-dimensional, or the channels lie on
            different grids; a VoxelError for NaN or infinity.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise DataError("read_image: no file was given; give one for each channel")
    channels: list[NDArray[Any]] = []
    geometry: Geometry | None = None
    for path in files:
        values, found = _read(path)
        geometry = geometry or found
        check_same_grid(found, path, geometry, files[0].name)
        values = _as_floats(values, path, own_type)
        channels.extend(values)
    assert geometry is not None
    # One channel stays a view: turning a large scan's memory round takes longer than reading it.
    array = channels[0][np.newaxis] if len(channels) == 1 else np.stack(channels)
    return Image(array, geometry)


def _as_floats(values: NDArray[Any], what: Path | str, own_type: bool) -> NDArray[Any]:
    """float32, or small integers as they are; NaN and infinity are refused."""
    if not (own_type and values.dtype.kind in "iu" and values.itemsize <= 2):
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which is told
            values = values.astype(np.float32, copy=False)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise VoxelError(
            f"{what}: {np.count_nonzero(~np.isfinite(values))} voxels are NaN or infinite; "
            "replace them, for example by the value of air"
        )
    return values


def from_array(array: NDArray[Any], spacing_mm: Sequence[float]) -> Image:
    """A scan of an array (x, y, z) or (channel, x, y, z), upright and at the origin.

    Raises:
        DataError: another number of axes, or a spacing that is not three positive numbers; a
            VoxelError for NaN or infinity.
    """
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise DataError(
            f"the array: has the shape {array.shape}; a scan is (x, y, z) or (channel, x, y, z)"
        )
    if len(spacing_mm) != 3 or not all(0 < spacing < np.inf for spacing in spacing_mm):
        raise DataError(
            f"spacing_mm: {tuple(spacing_mm)}; give the distance of voxels in mm along x, y, z"
        )
    values = _as_floats(array if array.ndim == 4 else array[np.newaxis], "the array", own_type=True)
    x, y, z = values.shape[1:]
    dx, dy, dz = (float(spacing) for spacing in spacing_mm)
    upright = tuple(np.eye(3).ravel().tolist())
    return Image(values, Geometry((x, y, z), (dx, dy, dz), (0.0, 0.0, 0.0), upright))


def from_simpleitk(picture: sitk.Image) -> Image:
    """A scan of a SimpleITK image; several components, or a fourth dimension, are channels.

    Raises:
        DataError: not three-dimensional, or sheared; a VoxelError for NaN or infinity.
    """
    values, geometry = _unpack(picture, "the SimpleITK image")
    return Image(_as_floats(values, "the SimpleITK image", own_type=True), geometry)


def read_label(path: File) -> tuple[NDArray[np.integer[Any]], Geometry]:
    """Read a label map with its grid.

    >>> import autoseg
    >>> label, grid = autoseg.read_label(
    ...     "raw/Task004_Hippocampus/labelsTs/hippocampus_040.nii.gz"
    ... )
    >>> label.shape == grid.size, sorted(set(label.ravel().tolist()))
    (True, [0, 1, 2])

    Returns:
        array of shape (x, y, z), of the smallest unsigned integers that hold it, and its grid.

    Raises:
        DataError: as `read_image`; a VoxelError for a value that is not a whole number from 0 to
            65535.
    """
    path = Path(path)
    array, geometry = _read(path)
    if len(array) != 1:
        raise DataError(f"{path}: a label map has one channel, but this one has {len(array)}")
    values = array[0]
    if not np.issubdtype(values.dtype, np.integer):
        if not np.isfinite(values).all():
            raise VoxelError(f"{path}: the label map holds NaN or infinite values")
        whole = np.rint(values)
        if not np.array_equal(whole, values):
            odd = values[whole != values]
            raise VoxelError(
                f"{path}: {odd.size} voxels are not whole numbers, such as {odd.flat[0]:g}, "
                "which is not a label: resample label maps by nearest neighbour"
            )
        values = whole
    if values.min() < 0 or values.max() > HIGHEST_LABEL:
        raise VoxelError(
            f"{path}: labels {values.min():g} to {values.max():g}; allowed: 0 to {HIGHEST_LABEL}"
        )
    values = values.astype(smallest_type(values.max()), copy=False)
    return cast("NDArray[np.integer[Any]]", values), geometry


def read_geometry(path: Path) -> Geometry:
    """Read only the header of an image file."""
    import SimpleITK as sitk

    _must_exist(path)
    if not _is_one_file(path):
        return _read(path)[1]
    check_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return geometry_of(reader, path)


def _read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read a file or a DICOM folder as an array of shape (channel, x, y, z) and its grid."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    _must_exist(path)
    check_header(path)
    try:
        if (found := read_nifti(path)) is not None:
            return found
        check_nifti(path)
        picture = sitk.ReadImage(str(path)) if _is_one_file(path) else read_series(path)
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return _unpack(picture, path)


def _unpack(picture: sitk.Image, what: Path | str) -> tuple[NDArray[Any], Geometry]:
    """An array of shape (channel, x, y, z) and its grid."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(picture)
    if picture.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)  # (z, y, x, channel) -> (channel, z, y, x)
    elif picture.GetDimension() == 3:
        array = array[np.newaxis]
    if array.ndim != 4:
        raise DataError(
            f"{what}: has {picture.GetDimension()} dimensions; a scan has 3 (or 4 with channels)"
        )
    return array.transpose(0, 3, 2, 1), geometry_of(picture, what)


def _is_one_file(path: Path) -> bool:
    """Not a DICOM series."""
    return path.is_file() and bool(ending_of(path))


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_dir() and not ending_of(path) and not is_dicom(path):
        raise DataError(f"{path}: unknown ending; known are {', '.join(ENDINGS)}")


def _unreadable(path: Path, error: RuntimeError) -> DataError | MemoryError:
    if is_lack_of_memory(error) or not _has_memory(SPARE_BYTES):
        return MemoryError(f"to read {path}")
    text = str(error)
    if "orthonormal" in text:
        return sheared(path)
    reason = text.strip().splitlines()[-1].split("ITK ERROR:")[-1].strip()
    reason = re.sub(r"\(0x\w+\): ", ": ", reason)  # where an object lies in memory
    return DataError(f"{path}: cannot be read ({reason}); it may be truncated: copy it anew")


def _has_memory(size: int) -> bool:
    try:
        bytearray(size)
    except MemoryError:
        return False
    return True
