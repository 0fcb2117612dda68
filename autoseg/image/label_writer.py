"""Write label maps as files, on exactly the grid of the scan."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoseg.common.arrays import Array, LabelMap
from autoseg.common.errors import DataError, VoxelError
from autoseg.common.files import replacing
from autoseg.image.formats import LONGEST_HEADER, TEXT, ending_of
from autoseg.image.geometry import File, Geometry
from autoseg.image.nifti import is_nifti_1, write_on_grid_of
from autoseg.image.raster import write_picture

if TYPE_CHECKING:
    import SimpleITK as sitk

WRITABLE = (".png", ".nii.gz", ".nii", ".nrrd", ".mha")
HIGHEST_LABEL = 65535
VECTOR = re.compile(r"\(([^)]*)\)")


def write_label(path: File, label: LabelMap, geometry: Geometry, like: File | None = None) -> None:
    """Write a label map on its grid, compressed and atomically.

    The file has 8 bits per voxel, or 16 if its values need them.

    >>> import autoseg
    >>> import numpy as np
    >>> scan = autoseg.read_image("raw/Task004_Hippocampus/imagesTs/hippocampus_040.nii.gz")
    >>> bright = (scan.array[0] > 500).astype(np.uint8)
    >>> autoseg.write_label("bright.nii.gz", bright, scan.geometry)
    >>> label, grid = autoseg.read_label("bright.nii.gz")
    >>> bool((label == bright).all()), grid == scan.geometry
    (True, True)

    Args:
        path: the file to write; its ending selects the format.
        label: array of shape (x, y, z), integers from 0 to 65535.
        geometry: the grid.
        like: the file that the grid was read from. NIfTI does not store every direction exactly,
            and NRRD stores no spacing. If `path` has the format of `like`, the fields of its
            header are copied, so that both files have the same grid to the last bit.

    Raises:
        DataError: the array does not fit the grid, or the ending is not supported; a VoxelError
            for values that a label map cannot have.
    """
    import SimpleITK as sitk

    path, like = Path(path), None if like is None else Path(like)
    label = _storable(label, geometry, path)
    formats = {ending_of(path), ending_of(like) if like and like.is_file() else ""}
    with replacing(path) as temporary:
        if like and formats <= {".nii", ".nii.gz"} and is_nifti_1(like):
            write_on_grid_of(like, label, temporary)
            return
        if ending_of(path) == ".png":
            write_picture(temporary, label)
            return
        sitk.WriteImage(to_simpleitk(label, geometry), str(temporary), useCompression=True)
        if like and formats == {".nrrd"}:
            copy_grid(like, temporary)


def to_simpleitk(label: Array, geometry: Geometry) -> "sitk.Image":
    """A label map or a scan of shape (x, y, z) as a SimpleITK image on its grid."""
    import SimpleITK as sitk

    assert label.shape == geometry.size, (label.shape, geometry.size)
    image = sitk.GetImageFromArray(np.ascontiguousarray(label.T))
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction)
    return image


def smallest_type(highest: int) -> type[np.uint8 | np.uint16]:
    """The smallest type that holds integers from 0 to `highest`."""
    return np.uint8 if highest < 256 else np.uint16


def _storable(label: LabelMap, geometry: Geometry, path: Path) -> LabelMap:
    """Check a label map, and convert it to the smallest type that holds it."""
    fitting = WRITABLE if label.shape[2:] == (1,) else WRITABLE[1:]  # a PNG is one plane
    if ending_of(path) not in fitting:
        several = "" if fitting == WRITABLE else " of several planes"
        raise DataError(f"{path}: label maps{several} are written as {', '.join(fitting)}")
    if label.shape != geometry.size:
        raise DataError(f"{path}: an array of {label.shape} does not fit a grid of {geometry.size}")
    low, high = label.min(), label.max()
    if label.dtype.kind not in "iub" or low < 0 or high > HIGHEST_LABEL:
        found = {"low": low, "high": high, "type": label.dtype}
        raise VoxelError(TEXT("label type", path=path, most=HIGHEST_LABEL, **found))
    return label.astype(smallest_type(high), copy=False)


def copy_grid(source: Path, written: Path) -> None:
    """Copy the grid of the NRRD file `source` to the three-dimensional NRRD file `written`.

    NRRD stores each axis as direction times spacing, and dividing them again changes the last bit.
    Copying the lines of the scan's header keeps every bit.
    """
    grid = _grid_lines(source)
    header, _, voxels = written.read_bytes().partition(b"\n\n")
    kept = [grid.get(_field(line), line) for line in header.decode().splitlines()]
    written.write_bytes("\n".join(kept).encode() + b"\n\n" + voxels)


def _grid_lines(path: Path) -> dict[str, str]:
    """Field name -> the line of the header that describes the grid in three dimensions."""
    with path.open("rb") as stream:  # an empty line ends the header
        text = stream.read(LONGEST_HEADER).replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    header = text.decode("utf-8", errors="replace").splitlines()
    lines = {_field(line): line for line in header}
    if "space directions" not in lines:
        return {}  # only spacings, which ITK writes unchanged
    found = {name: lines[name] for name in ("space",) if name in lines}
    for name in ("space directions", "space origin"):
        # The first three components of a vector: in some files the fourth is time.
        inside = [",".join(each.split(",")[:3]) for each in VECTOR.findall(lines.get(name, ""))]
        if inside:
            found[name] = f"{name}: {' '.join(f'({each})' for each in inside[:3])}"
    return {name: line.removesuffix("-time") for name, line in found.items()}


def _field(line: str) -> str:
    return line.partition(":")[0]
