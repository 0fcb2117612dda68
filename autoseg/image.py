"""Scans and label maps, as files and as arrays.

Inside autoseg every array is in x, y, z order, as SimpleITK's own size and spacing are. SimpleITK's
numpy arrays are z, y, x: this module holds the only reversal. SimpleITK is imported when the first
file is read, because it takes a while.
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

if TYPE_CHECKING:
    import SimpleITK as sitk

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
GEOMETRY_TOLERANCE_MM = 1e-2
DIRECTION_TOLERANCE = 1e-3  # of the products of direction cosines


class VoxelError(DataError):
    """A file that can be read holds values that a scan or a label map cannot have."""


@dataclass(frozen=True)
class Geometry:
    """Where a voxel grid lies in the patient.

    Attributes:
        size: voxels along x, y, z.
        spacing_mm: distance of neighbouring voxel centres along x, y, z.
        origin_mm: position of the first voxel's centre.
        direction: 3 x 3 direction cosines, row by row.
    """

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, ...]

    def differences(
        self, other: Geometry, tolerance_mm: float = GEOMETRY_TOLERANCE_MM
    ) -> list[str]:
        """Say in words where two grids differ; nothing if they are the same grid."""
        if self.size != other.size:
            return [f"size {_times(self.size)} against {_times(other.size)} voxels"]
        found = []
        spacing = np.abs(np.subtract(self.spacing_mm, other.spacing_mm)).max()
        if spacing * max(self.size) > tolerance_mm:
            found.append(f"spacing by {spacing:.4g} mm")
        origin = float(np.linalg.norm(np.subtract(self.origin_mm, other.origin_mm)))
        if origin > tolerance_mm:
            found.append(f"origin by {origin:.4g} mm")
        extent_mm = np.multiply(self.size, self.spacing_mm)
        turned = np.subtract(self.direction, other.direction).reshape(3, 3) @ extent_mm
        if np.linalg.norm(turned) > tolerance_mm:
            found.append(f"direction by {np.linalg.norm(turned):.4g} mm at the far corner")
        return found


def _times(size: Sequence[int]) -> str:
    return " x ".join(str(n) for n in size)


@dataclass(frozen=True)
class Image:
    """One scan: `array` of shape (channel, x, y, z) and its grid.

    The values are float32, or in their file's own small integers if the reader was asked for them.
    """

    array: NDArray[Any]
    geometry: Geometry


def ending_of(path: Path) -> str:
    """The image ending of a file name (`.nii.gz` is one ending), or ''."""
    name = path.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def stem_of(path: Path) -> str:
    """The file name without its image ending."""
    return path.name[: len(path.name) - len(ending_of(path))]


def files_of(path: Path) -> list[Path]:
    """The files behind a path: the slices of a DICOM folder, a header and its data, or itself."""
    if path.is_dir():
        return sorted(path.iterdir())
    if ending_of(path) == ".mhd":
        return sorted(path.parent.glob(f"{stem_of(path)}.*"))
    return [path] if path.exists() else []


def read_image(paths: Sequence[Path], own_type: bool = False) -> Image:
    """Read one scan; each path is one channel (a file, or a folder with one DICOM series).

    A single 4D file is read as its channels. All channels must lie on the same grid.

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
        if not (own_type and values.dtype.kind in "iu" and values.itemsize <= 2):
            values = values.astype(np.float32, copy=False)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise VoxelError(
                f"{path}: {np.count_nonzero(~np.isfinite(values))} voxels are NaN or infinite; "
                "replace them, for example by the value of air"
            )
        channels.extend(values)
    assert geometry is not None, "a scan has at least one channel"
    # One channel stays a view: turning a large scan's memory round takes longer than reading it.
    array = channels[0][np.newaxis] if len(channels) == 1 else np.stack(channels)
    return Image(array, geometry)


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
    dtype = np.uint8 if values.max() < 256 else np.uint16
    return cast("NDArray[np.integer[Any]]", values.astype(dtype, copy=False)), geometry


def read_geometry(path: Path) -> Geometry:
    """Read only the header of an image file."""
    import SimpleITK as sitk

    if path.is_dir():
        return _read(path)[1]
    _must_exist(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return _geometry(reader, path)


def write_label(path: Path, label: NDArray[np.integer[Any]], geometry: Geometry) -> None:
    """Write a label map of shape (x, y, z) on its grid, compressed, whole or not at all."""
    import SimpleITK as sitk

    assert label.shape == geometry.size, (label.shape, geometry.size)
    picture = sitk.GetImageFromArray(np.ascontiguousarray(label.T))
    picture.SetSpacing(geometry.spacing_mm)
    picture.SetOrigin(geometry.origin_mm)
    picture.SetDirection(geometry.direction)
    with replacing(path) as temporary:
        sitk.WriteImage(picture, str(temporary), useCompression=True)


def _read(path: Path) -> tuple[NDArray[Any], Geometry]:
    """Read a file or a DICOM folder as an array of shape (channel, x, y, z) and its grid."""
    import SimpleITK as sitk

    from autoseg.dicom import read_series
    from autoseg.nifti import check_nifti  # it needs this module's endings

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    _must_exist(path)
    check_nifti(path)
    try:
        picture = read_series(path) if path.is_dir() else sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    array = sitk.GetArrayFromImage(picture)
    if picture.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)  # (z, y, x, channel) -> (channel, z, y, x)
    elif picture.GetDimension() == 3:
        array = array[np.newaxis]
    if array.ndim != 4:
        raise DataError(
            f"{path}: has {picture.GetDimension()} dimensions; a scan has 3 (or 4 with channels)"
        )
    return array.transpose(0, 3, 2, 1), _geometry(picture, path)


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_dir() and not ending_of(path):
        raise DataError(f"{path}: unknown ending; known are {', '.join(ENDINGS)}")


def _geometry(picture: sitk.Image | sitk.ImageFileReader, path: Path) -> Geometry:
    dimensions = picture.GetDimension()
    direction = np.reshape(picture.GetDirection(), (dimensions, dimensions))
    if dimensions not in (3, 4):
        raise DataError(f"{path}: has {dimensions} dimensions; a scan has 3 (or 4 with channels)")
    upright = direction[:3, :3]
    if np.abs(upright @ upright.T - np.eye(3)).max() > DIRECTION_TOLERANCE:
        raise _sheared(path)
    sizes, spacing = picture.GetSize()[:3], picture.GetSpacing()[:3]
    return Geometry(
        size=(int(sizes[0]), int(sizes[1]), int(sizes[2])),
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        origin_mm=tuple(picture.GetOrigin()[:3]),
        direction=tuple(float(value) for value in upright.ravel()),
    )


def _sheared(path: Path) -> DataError:
    return DataError(
        f"{path}: its direction matrix is sheared (not orthonormal), which ITK "
        "refuses; write a rigid sform/qform, or resample it onto an orthonormal grid"
    )


def _unreadable(path: Path, error: RuntimeError) -> DataError:
    text = str(error)
    if "orthonormal" in text:
        return _sheared(path)
    reason = text.strip().splitlines()[-1].split("ITK ERROR:")[-1].strip()
    return DataError(f"{path}: cannot be read ({reason}); it may be truncated: copy it anew")
