"""Scans and label maps, as files and as arrays.

Inside autoseg every array is in x, y, z order, as SimpleITK's own size and spacing are. SimpleITK's
numpy arrays are z, y, x, as files are: only readers and writers turn them round. SimpleITK is
imported when the first file is read, because it takes a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import DataError
from autoseg.files import replacing
from autoseg.image.dicom import is_dicom, read_series
from autoseg.image.endings import ENDINGS as ENDINGS
from autoseg.image.endings import ending_of as ending_of
from autoseg.image.endings import stem_of as stem_of
from autoseg.image.geometry import Geometry as Geometry
from autoseg.image.geometry import geometry_of, sheared
from autoseg.image.headers import check_header
from autoseg.image.nifti_writer import is_nifti_1, write_on_grid_of
from autoseg.image.nrrd import copy_grid

if TYPE_CHECKING:
    import SimpleITK as sitk


class VoxelError(DataError):
    """A file that can be read holds values that a scan or a label map cannot have."""


@dataclass(frozen=True)
class Image:
    """One scan: `array` of shape (channel, x, y, z) and its grid.

    The values are float32, or in their file's own small integers if the reader was asked for them.
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


def read_image(paths: Sequence[Path], own_type: bool = False) -> Image:
    """Read one scan; each path is one channel, and all must lie on the same grid.

    A path is a file, a folder with one DICOM series, or a slice of a series, which stands for it.
    A single 4D file is read as its channels.

    Args:
        paths: the files.
        own_type: leave integers of up to 16 bits as they are, which float32 holds exactly, instead
            of turning them into float32: half the memory, and quicker.

    Raises:
        DataError: a file is missing, unreadable, not three-dimensional, or the channels lie on
            different grids; a VoxelError for NaN or infinity.
    """
    channels: list[NDArray[Any]] = []
    geometry: Geometry | None = None
    for path in paths:
        values, found = _read(path)
        if geometry is not None and (wrong := geometry.differences(found)):
            raise DataError(
                f"{path}: not on the grid of {paths[0].name}: {', '.join(wrong)}; "
                "resample the channels onto one grid"
            )
        geometry = geometry or found
        values = _as_floats(values, path, own_type)
        channels.extend(values)
    assert geometry is not None, "a scan has at least one channel"
    # One channel stays a view: turning a large scan's memory round takes longer than reading it.
    array = channels[0][np.newaxis] if len(channels) == 1 else np.stack(channels)
    return Image(array, geometry)


def _as_floats(values: NDArray[Any], what: Path | str, own_type: bool) -> NDArray[Any]:
    """float32, or small integers as they are; NaN and infinity are refused."""
    if not (own_type and values.dtype.kind in "iu" and values.itemsize <= 2):
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


def to_simpleitk(label: NDArray[np.integer[Any]], geometry: Geometry) -> sitk.Image:
    """A label map of shape (x, y, z) as a SimpleITK image on its grid."""
    import SimpleITK as sitk

    assert label.shape == geometry.size, (label.shape, geometry.size)
    picture = sitk.GetImageFromArray(np.ascontiguousarray(label.T))
    picture.SetSpacing(geometry.spacing_mm)
    picture.SetOrigin(geometry.origin_mm)
    picture.SetDirection(geometry.direction)
    return picture


def read_label(path: Path) -> tuple[NDArray[np.integer[Any]], Geometry]:
    """Read a label map as integers of shape (x, y, z), with its grid.

    Raises:
        DataError: as `read_image`; a VoxelError for a value that is not a whole number from 0 to
            65535.
    """
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
    if values.min() < 0 or values.max() > 65535:
        raise VoxelError(
            f"{path}: labels {values.min():g} to {values.max():g}; allowed: 0 to 65535"
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


def write_label(
    path: Path, label: NDArray[np.integer[Any]], geometry: Geometry, like: Path | None = None
) -> None:
    """Write a label map of shape (x, y, z) on its grid, compressed, whole or not at all.

    The file has 8 bits a voxel, or 16 where its values need them.

    Args:
        path: where to, in the format of its ending.
        label: values from 0 to 65535.
        geometry: the grid.
        like: the file that the grid was read from. NIfTI cannot hold every direction exactly and
            NRRD no spacing; in the format of `like` the fields of its header are copied, so that
            both files are read as the same grid to the bit.
    """
    import SimpleITK as sitk

    assert label.shape == geometry.size, (label.shape, geometry.size)
    label = label.astype(smallest_type(label.max(initial=0)), copy=False)
    formats = {ending_of(path), ending_of(like) if like and _is_one_file(like) else ""}
    with replacing(path) as temporary:
        if like and formats <= {".nii", ".nii.gz"} and is_nifti_1(like):
            write_on_grid_of(like, label, temporary)
            return
        sitk.WriteImage(to_simpleitk(label, geometry), str(temporary), useCompression=True)
        if like and formats == {".nrrd"}:
            copy_grid(like, temporary)


def smallest_type(highest: int) -> type[np.uint8 | np.uint16]:
    """The smallest type that holds whole numbers from 0 to `highest`."""
    return np.uint8 if highest < 256 else np.uint16


def _read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read a file or a DICOM folder as an array of shape (channel, x, y, z) and its grid."""
    import SimpleITK as sitk

    from autoseg.image.nifti import check_nifti  # it needs this module's endings

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    _must_exist(path)
    check_header(path)
    check_nifti(path)
    try:
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


def _unreadable(path: Path, error: RuntimeError) -> DataError:
    text = str(error)
    if "orthonormal" in text:
        return sheared(path)
    reason = text.strip().splitlines()[-1].split("ITK ERROR:")[-1].strip()
    return DataError(f"{path}: cannot be read ({reason}); it may be truncated: copy it anew")
