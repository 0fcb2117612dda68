"""Label maps written as files; SimpleITK is imported with the first one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import DataError, VoxelError
from autoseg.common.files import replacing
from autoseg.image.formats import ENDINGS, ending_of
from autoseg.image.geometry import Geometry
from autoseg.image.nifti import is_nifti_1, write_on_grid_of

if TYPE_CHECKING:
    import SimpleITK as sitk


# Label maps as NRRD files on the very grid of another NRRD file.
#
# NRRD has no spacing: it stores each axis as direction times spacing, and dividing them again
# changes the last bit. Copying the lines of the scan's header keeps every bit.

VECTOR = re.compile(r"\(([^)]*)\)")
LONGEST_HEADER = 1 << 20


def copy_grid(source: Path, written: Path) -> None:
    """Put the grid of the NRRD file `source` into the three-dimensional NRRD file `written`."""
    grid = _grid_lines(_header(source))
    content = written.read_bytes()
    header, _, voxels = content.partition(b"\n\n")
    lines = header.decode().splitlines()
    kept = [grid.get(_field(line), line) for line in lines]
    written.write_bytes("\n".join(kept).encode() + b"\n\n" + voxels)


def _grid_lines(header: list[str]) -> dict[str, str]:
    """The lines that say where the grid lies, by the name of their field, for three dimensions."""
    lines = {_field(line): line for line in header}
    if "space directions" not in lines:
        return {}  # plain spacings, which ITK writes as they are
    found = {name: lines[name] for name in ("space",) if name in lines}
    for name in ("space directions", "space origin"):
        vectors = VECTOR.findall(lines.get(name, ""))
        if vectors:
            found[name] = f"{name}: {' '.join(_in_space(vector) for vector in vectors[:3])}"
    return {name: line.removesuffix("-time") for name, line in found.items()}


def _in_space(vector: str) -> str:
    """The first three numbers of a vector: some files give time as the fourth."""
    return f"({','.join(vector.split(',')[:3])})"


def _field(line: str) -> str:
    return line.partition(":")[0]


def _header(path: Path) -> list[str]:
    """The lines above the empty one."""
    with path.open("rb") as stream:
        text = stream.read(LONGEST_HEADER).replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    return text.decode("utf-8", errors="replace").splitlines()


File = Path | str
ONE_FILE = tuple(ending for ending in ENDINGS if ending != ".mhd")  # which has its voxels apart
HIGHEST_LABEL = 65535


def write_label(
    path: File, label: NDArray[np.integer[Any]], geometry: Geometry, like: File | None = None
) -> None:
    """Write a label map on its grid, compressed, whole or not at all.

    The file has 8 bits a voxel, or 16 where its values need them.

    >>> import autoseg
    >>> import numpy as np
    >>> scan = autoseg.read_image("raw/Task004_Hippocampus/imagesTs/hippocampus_040.nii.gz")
    >>> bright = (scan.array[0] > 500).astype(np.uint8)
    >>> autoseg.write_label("bright.nii.gz", bright, scan.geometry)
    >>> label, grid = autoseg.read_label("bright.nii.gz")
    >>> bool((label == bright).all()), grid == scan.geometry
    (True, True)

    Args:
        path: where to, in the format of its ending.
        label: array of shape (x, y, z), whole numbers from 0 to 65535.
        geometry: the grid.
        like: the file that the grid was read from. NIfTI cannot hold every direction exactly and
            NRRD no spacing; in the format of `like` the fields of its header are copied, so that
            both files are read as the same grid to the bit.

    Raises:
        DataError: the array does not fit the grid, or no label map is written with this ending; a
            VoxelError for values that no label map has.
    """
    import SimpleITK as sitk

    path, like = Path(path), None if like is None else Path(like)
    label = _storable(label, geometry, path)
    formats = {ending_of(path), ending_of(like) if like and like.is_file() else ""}
    with replacing(path) as temporary:
        if like and formats <= {".nii", ".nii.gz"} and is_nifti_1(like):
            write_on_grid_of(like, label, temporary)
            return
        sitk.WriteImage(to_simpleitk(label, geometry), str(temporary), useCompression=True)
        if like and formats == {".nrrd"}:
            copy_grid(like, temporary)


def to_simpleitk(label: NDArray[np.integer[Any]], geometry: Geometry) -> sitk.Image:
    """A label map of shape (x, y, z) as a SimpleITK image on its grid."""
    import SimpleITK as sitk

    assert label.shape == geometry.size, (label.shape, geometry.size)
    picture = sitk.GetImageFromArray(np.ascontiguousarray(label.T))
    picture.SetSpacing(geometry.spacing_mm)
    picture.SetOrigin(geometry.origin_mm)
    picture.SetDirection(geometry.direction)
    return picture


def smallest_type(highest: int) -> type[np.uint8 | np.uint16]:
    """The smallest type that holds whole numbers from 0 to `highest`."""
    return np.uint8 if highest < 256 else np.uint16


def _storable(
    label: NDArray[np.integer[Any]], geometry: Geometry, path: Path
) -> NDArray[np.integer[Any]]:
    """A label map in the smallest type that holds it, if it can be written to this file."""
    if ending_of(path) not in ONE_FILE:
        raise DataError(f"{path}: a label map is written as one of {', '.join(ONE_FILE)}")
    if label.shape != geometry.size:
        raise DataError(f"{path}: an array of {label.shape} does not fit a grid of {geometry.size}")
    low, high = label.min(), label.max()
    if label.dtype.kind not in "iub" or low < 0 or high > HIGHEST_LABEL:
        raise VoxelError(
            f"{path}: labels {low} to {high} of type {label.dtype}; allowed: whole numbers from 0 "
            f"to {HIGHEST_LABEL}"
        )
    return label.astype(smallest_type(high), copy=False)
