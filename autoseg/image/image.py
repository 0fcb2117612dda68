"""Read scans and label maps as arrays in x, y, z order, and measure what a scan looks like.

SimpleITK's sizes and spacings are in x, y, z order, too, but its NumPy arrays are z, y, x: only
readers and writers transpose them.
"""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Array, LabelMap, bounding_box
from autoseg.common.errors import DataError, Stopped, VoxelError, is_lack_of_memory
from autoseg.common.files import obstacle
from autoseg.common.progress import note
from autoseg.image import geometry as grids
from autoseg.image.dicom import find_volume, is_dicom, read_series
from autoseg.image.dicom_series import Series, Source
from autoseg.image.formats import READABLE, TEXT, check_header, ending_of, is_picture, stem_of
from autoseg.image.geometry import File, Geometry, Turn
from autoseg.image.label_writer import HIGHEST_LABEL, smallest_type
from autoseg.image.nifti import check_nifti, is_nifti, itk_header, layout_of, read_nifti, with_sform
from autoseg.image.raster import read_picture

if TYPE_CHECKING:
    import SimpleITK as sitk


LABEL_TOLERANCE = 1e-3  # from a whole number
SPARE_BYTES = 16 * 2**20  # with less free memory, ITK reports intact files as damaged


@dataclass(frozen=True)
class Image:
    """A scan: its voxels and their grid.

    Attributes:
        array: array of shape (channel, x, y, z), float32 or integers of up to 16 bits.
        geometry: the voxel grid.

    >>> import autoseg
    >>> scan = autoseg.read_image("raw/Task004_Hippocampus/imagesTs/hippocampus_040.nii.gz")
    >>> isinstance(scan, autoseg.Image), scan.array.shape == (1, *scan.geometry.size)
    (True, True)
    """

    array: Array
    geometry: Geometry


def files_of(path: Source) -> list[Path]:
    """All files that a path stands for: a DICOM folder, a header and its data, or one file."""
    if isinstance(path, Series):
        return path.files
    if path.is_dir() or (path.exists() and not ending_of(path)):
        return sorted((path if path.is_dir() else path.parent).iterdir())
    if ending_of(path) in (".mhd", ".nhdr", ".hdr"):
        return sorted(path.parent.glob(f"{stem_of(path)}.*"))
    return [path] if path.exists() else []


def read_image(paths: File | Series | Sequence[File | Series], own_type: bool = False) -> Image:
    """Read one scan; each path is one channel, and all must lie on the same grid.

    A path is an image file, a folder with one DICOM series, or one slice of a series. The fourth
    dimension of a 4D file becomes channels, and so do the colours of a picture (PNG, TIFF, BMP),
    which is one plane.

    >>> import autoseg
    >>> scan = autoseg.read_image("raw/Task004_Hippocampus/imagesTs/hippocampus_040.nii.gz")
    >>> scan.array.shape, scan.array.dtype
    ((1, 36, 52, 37), dtype('float32'))
    >>> scan.geometry.spacing_mm
    (1.0, 1.0, 1.0)

    Args:
        paths: one file, or one for each channel.
        own_type: keep integers of up to 16 bits instead of converting them to float32, which takes
            half the memory and less time.

    Raises:
        DataError: a file is missing, unreadable, not three-dimensional, or the channels lie on
            different grids; a VoxelError for NaN or infinity.
    """
    given = [paths] if isinstance(paths, str | Path | Series) else paths
    if not (files := [path if isinstance(path, Series) else Path(path) for path in given]):
        raise DataError("read_image: no file given; give one for each channel")
    channels: list[Array] = []
    geometry: Geometry | None = None
    for path in files:
        values, found = _read(path)
        geometry = geometry or found
        grids.check_same_grid(found, str(path), geometry, getattr(files[0], "name", str(files[0])))
        values = _as_floats(values, str(path), own_type)
        channels.extend(values)
    assert geometry is not None
    # A single channel stays a view: transposing a large scan takes longer than reading it.
    array = channels[0][np.newaxis] if len(channels) == 1 else np.stack(channels)
    return Image(array, geometry)


def _as_floats(values: Array, what: File, own_type: bool) -> Array:
    """float32, or small integers unchanged; NaN and infinity are errors."""
    if not (own_type and values.dtype.kind in "iu" and values.itemsize <= 2):
        with np.errstate(over="ignore"):  # overflow becomes infinity, an error below
            values = values.astype(np.float32, copy=False)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise VoxelError(TEXT("not finite", what=what, count=bad))
    return values


def from_array(array: Array, spacing_mm: Sequence[float], orientation: str = "LPS") -> Image:
    """Make a scan of an array (x, y, z) or (channel, x, y, z), axis-aligned and at the origin.

    Args:
        array: the voxels.
        spacing_mm: along x, y, z.
        orientation: sides of the patient towards which x, y, z run.

    Raises:
        DataError: another number of axes, or a spacing that is not three positive numbers; a
            VoxelError for NaN or infinity.
    """
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise DataError(f"array of shape {array.shape}; expected (x, y, z) or (channel, x, y, z)")
    if len(spacing_mm) != 3 or not all(0 < spacing < np.inf for spacing in spacing_mm):
        raise DataError(f"spacing_mm is {tuple(spacing_mm)}; give three positive numbers (x, y, z)")
    values = _as_floats(array if array.ndim == 4 else array[np.newaxis], "the array", own_type=True)
    direction = grids.direction_of(orientation)
    return Image(values, Geometry.of(values.shape[1:], spacing_mm, (0, 0, 0), direction))


def from_simpleitk(image: "sitk.Image") -> Image:
    """Make a scan of a SimpleITK image; components or the fourth dimension become channels.

    Raises:
        DataError: not three-dimensional, or sheared; a VoxelError for NaN or infinity.
    """
    values, geometry = _unpack(image, "the SimpleITK image")
    return Image(_as_floats(values, "the SimpleITK image", own_type=True), geometry)


def read_label(path: File) -> tuple[LabelMap, Geometry]:
    """Read a label map with its grid.

    >>> import autoseg
    >>> label, grid = autoseg.read_label(
    ...     "raw/Task004_Hippocampus/labelsTs/hippocampus_040.nii.gz"
    ... )
    >>> label.shape == grid.size, sorted(set(label.ravel().tolist()))
    (True, [0, 1, 2])

    Returns:
        array of shape (x, y, z) in the smallest unsigned type that fits, and its grid.

    Raises:
        DataError: as `read_image`; a VoxelError for a value that is not a whole number from 0 to
            65535.
    """
    path = Path(path)
    array, geometry = _read(path, as_label=True)
    if len(array) != 1:
        hint = "; export overlapping segments one by one" if ".seg." in path.name else ""
        hint = "; write one value for each pixel instead of colours" if is_picture(path) else hint
        raise DataError(f"{path}: has {len(array)} channels; a label map has one{hint}")
    values = array[0]
    if not np.issubdtype(values.dtype, np.integer):
        if not np.isfinite(values).all():
            raise VoxelError(f"{path}: the label map contains NaN or infinity")
        values = _rounded(values, path)
    low, high = values.min(), values.max()
    if low < 0 or high > HIGHEST_LABEL:
        raise VoxelError(TEXT("label values", path=path, low=low, high=high, most=HIGHEST_LABEL))
    values = values.astype(smallest_type(high), copy=False)
    return cast("LabelMap", values), geometry


def _rounded(values: NDArray[np.floating[Any]], path: Path) -> NDArray[np.floating[Any]]:
    """Values close to whole numbers, rounded: programs scale label maps by scl_slope."""
    rounded: NDArray[np.floating[Any]] = np.rint(values)
    if np.array_equal(rounded, values):
        return rounded
    scaled, advice = "", "resample label maps with nearest-neighbour interpolation"
    if is_nifti(path) and (layout := layout_of(path)).is_scaled:
        scaled = f" (scl_slope of its header is {layout.scale[0]:.4g})"
        advice = "save it as integers without scaling"
    odd = values[np.abs(rounded - values) > LABEL_TOLERANCE]
    if odd.size:
        what = f"{odd.size} voxels are not integers, such as {odd.flat[0]:.6g}{scaled}"
        raise VoxelError(f"{path}: {what}; {advice}")
    note(f"{path}: labels are not exactly whole numbers{scaled}; rounded")
    return rounded


def read_geometry(path: Path) -> Geometry:
    """Read only the header of an image file."""
    _must_exist(path)
    if not _is_one_file(path):
        return find_volume(path).geometry
    check_header(path)
    if is_picture(path):
        return _read(path, as_label=True)[1]
    try:
        reader = itk_header(path)
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return with_sform(path, grids.geometry_of(reader, path))


def _read(path: Source, as_label: bool = False) -> tuple[Array, Geometry]:
    """Read a file or a DICOM series as an array of shape (channel, x, y, z) and its grid."""
    import SimpleITK as sitk

    if isinstance(path, Series):
        return read_series(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    _must_exist(path)
    check_header(path)
    if is_picture(path):
        return read_picture(path, as_label, lambda p: sitk.GetArrayFromImage(sitk.ReadImage(p)))
    try:
        if (found := read_nifti(path)) is not None:
            return found
        check_nifti(path)
        if not _is_one_file(path):
            return read_series(path)
        image = sitk.ReadImage(str(path))
    except MemoryError as error:
        raise MemoryError(f"to read {path}") from error
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    array, geometry = _unpack(image, path)
    return array, with_sform(path, geometry)


def _unpack(image: "sitk.Image", what: File) -> tuple[Array, Geometry]:
    """An array of shape (channel, x, y, z) and its grid."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)  # (z, y, x, channel) -> (channel, z, y, x)
    elif image.GetDimension() == 3:
        array = array[np.newaxis]
    if array.ndim != 4:
        raise DataError(f"{what}: {image.GetDimension()} dimensions; expected 3 (4 with channels)")
    return array.transpose(0, 3, 2, 1), grids.geometry_of(image, what)


def _is_one_file(path: Path) -> bool:
    """Whether it is an image file, not a DICOM series."""
    return path.is_file() and bool(ending_of(path))


def _must_exist(path: Path) -> None:
    if reason := obstacle(path):
        raise DataError(reason)
    if not path.is_dir() and not ending_of(path) and not is_dicom(path):
        raise DataError(f"{path}: unknown file type; use one of {', '.join(READABLE)}, or DICOM")


def _unreadable(path: Path, error: RuntimeError) -> DataError | MemoryError:
    if isinstance(error, Stopped):  # a signal came, which is no fault of the file
        raise error
    if is_lack_of_memory(error) or not _has_memory(SPARE_BYTES):
        return MemoryError(f"to read {path}")
    text = str(error)
    if "orthonormal" in text:
        return grids.sheared(path)
    reason = text.strip().splitlines()[-1].split("ITK ERROR:")[-1].strip()
    reason = re.sub(r"\(0x\w+\): ", ": ", reason)  # the address of an object
    return DataError(f"{path}: cannot be read ({reason}); it may be truncated; copy it again")


def _has_memory(size: int) -> bool:
    with suppress(MemoryError):
        return len(bytearray(size)) == size
    return False


# What a scan looks like in a few figures. The same figures of the training scans are in the
# fingerprint. All are measured on a regular sample of at most `POINTS` ** 3 voxels, so that a large
# scan takes no longer than a small one.

POINTS = 32  # along each axis
BODY_SIZE = 32  # quantiles of a body
BODY_FRACTIONS = (np.arange(BODY_SIZE) + 0.5) / BODY_SIZE
RANGE_FRACTIONS = (0.005, 0.995)
PADDING_SHARE = 0.05  # fewer voxels with one value are tissue
PATIENT = "LPS"  # order of the patient's axes: left-right, front-back, foot-head

Lengths = tuple[float, float, float]


class Appearance(NamedTuple):
    """The figures of one scan.

    Attributes:
        orientation: of the axes as they are stored.
        spacing_mm: from left to right, front to back, foot to head.
        extent_mm: of the box of nonzero voxels, in the same order.
        ranges: for each channel the 0.5 and the 99.5 percentile.
        bodies: for each channel the quantiles inside the body; empty if they are not known.
    """

    orientation: str
    spacing_mm: Lengths
    extent_mm: Lengths
    ranges: tuple[tuple[float, float], ...]
    bodies: tuple[tuple[float, ...], ...]


def appearance_of(image: Image) -> Appearance:
    """Measure a scan."""
    orientation, spacing = grids.orientation_of(image.geometry), image.geometry.spacing_mm
    sampled, strides = _sample(image.array)
    box = bounding_box((sampled != 0).any(axis=0)) or tuple(map(slice, sampled.shape[1:]))
    axes = zip(box, strides, image.geometry.size, spacing, strict=True)
    x, y, z = (min((b.stop - (b.start or 0)) * stride, size) * mm for b, stride, size, mm in axes)
    ranges = (np.quantile(values, RANGE_FRACTIONS).tolist() for values in sampled)
    return Appearance(
        orientation=orientation,
        spacing_mm=on_patient_axes(spacing, orientation),
        extent_mm=on_patient_axes((x, y, z), orientation),
        ranges=tuple((low, high) for low, high in ranges),
        bodies=tuple(map(_body, sampled)),
    )


def on_patient_axes(lengths: Lengths, orientation: str) -> Lengths:
    """Lengths along the axes x, y, z of a scan in the order of the patient's axes."""
    return Turn.between(orientation, PATIENT).triple(lengths)


def body_of(channel: Array) -> tuple[float, ...]:
    """Equally spaced quantiles of a channel (x, y, z) inside the body.

    Padding is outside of the body: the lowest value, and 0, where many voxels share it.
    """
    return _body(_sample(channel[None])[0][0])


def _sample(array: Array) -> tuple[Array, tuple[int, ...]]:
    """A regular sample of an array (channel, x, y, z), and the strides along x, y, z."""
    strides = tuple(math.ceil(size / POINTS) for size in array.shape[1:])
    return array[(slice(None), *(slice(None, None, stride) for stride in strides))], strides


def _body(sampled: Array) -> tuple[float, ...]:
    values = np.sort(sampled, axis=None)
    for padding in (values[0], 0):
        start = np.searchsorted(values, padding, "left")
        stop = np.searchsorted(values, padding, "right")
        if PADDING_SHARE * sampled.size < stop - start < values.size:
            values = np.delete(values, slice(start, stop))
    return tuple(float(f"{value:.6g}") for value in np.quantile(values, BODY_FRACTIONS))
