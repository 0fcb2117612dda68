"""The real files that pydicom and nibabel ship for their own tests: read as they read them, or
refused by name.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_modality_lut

from autoseg.common.errors import DataError
from autoseg.image.dicom import find_series
from autoseg.image.formats import ending_of
from autoseg.image.image import Image, read_image

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
FEWEST_READ = {"pydicom": 10, "nibabel": 6}
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not DICOM.is_dir(), reason="pydicom has no test files"),
]


def read(path: Path, counts: Counter[str]) -> Image | None:
    """The scan; None if it is refused, in a line that names the file or its folder."""
    image, told = None, ""
    try:
        image = read_image(path)
    except DataError as error:
        told = str(error)
    counts["refused" if image is None else "read"] += 1
    assert image or path.name in told or path.parent.name in told
    assert len(told.splitlines()) < 2
    return image


def stack(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values (x, y, z) and affine of the slices of a series, by pydicom alone."""
    found = [pydicom.dcmread(file, force=True) for file in find_series(path).files]
    if not found[0].file_meta.get("TransferSyntaxUID"):
        for each in found:
            each.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    normal = np.cross(*np.reshape(found[0].ImageOrientationPatient, (2, 3)).astype(float))
    found.sort(key=lambda each: float(np.dot(np.array(each.ImagePositionPatient, float), normal)))
    values = np.stack([apply_modality_lut(each.pixel_array, each).T for each in found], axis=-1)
    places = [np.array(each.ImagePositionPatient, float) for each in found]
    step = (places[-1] - places[0]) / max(len(found) - 1, 1)
    row, column = np.reshape(found[0].ImageOrientationPatient, (2, 3)).astype(float)
    down, across = map(float, found[0].PixelSpacing)
    if len(found) == 1:
        step = normal * float(found[0].get("SliceThickness") or 1)
    return values, np.stack([row * across, column * down, step, places[0]], axis=1)


def affine(image: Image) -> NDArray[np.float64]:
    """The columns of the grid: a step along x, y and z, and the origin, in LPS."""
    grid = image.geometry
    axes = np.reshape(grid.direction, (3, 3)) * grid.spacing_mm
    return np.column_stack([axes, grid.origin_mm])


def same_as_pydicom(image: Image, path: Path) -> None:
    values, matrix = stack(path)
    assert np.array_equal(image.array[0], values.astype(np.float32)), path
    # Half a pixel of drift is taken for rounding: the slices are stacked along their normal.
    assert affine(image) == pytest.approx(matrix, abs=0.02), path


def test_files_of_pydicom(tmp_path: Path) -> None:
    single = [path for path in sorted(DICOM.iterdir()) if path.is_file()]
    nested = (DICOM / "dicomdirtests").rglob("*")
    paths = sorted({path.parent for path in nested if path.is_file()})
    for path in single:  # each alone: a folder would be one scan
        folder = tmp_path / path.name
        folder.mkdir()
        paths.append(Path(shutil.copy(path, folder)))
    counts: Counter[str] = Counter()
    for path in paths:
        image = read(path, counts)
        if image is None:
            continue
        same_as_pydicom(image, path)
    assert counts["read"] >= FEWEST_READ["pydicom"]


def test_files_of_nibabel() -> None:
    nibabel = pytest.importorskip("nibabel")
    counts: Counter[str] = Counter()
    data = Path(nibabel.__file__).parent / "tests" / "data"
    for path in sorted(each for each in data.iterdir() if each.is_file()):
        if not ending_of(path) and path.suffix != ".dcm":
            counts["another format"] += 1
            with pytest.raises(DataError, match="unknown file type"):
                read_image(path)
            continue
        image = read(path, counts)
        if image is None:
            continue
        if path.suffix == ".dcm":
            same_as_pydicom(image, path)
            continue
        expected = nibabel.load(path)
        values = np.asarray(expected.dataobj).reshape(*image.array.shape[1:], -1)
        assert np.moveaxis(image.array, 0, -1) == pytest.approx(values, rel=1e-5), path
        matrix = expected.affine[:3] * [[-1], [-1], [1]]
        assert affine(image) == pytest.approx(matrix, abs=1e-3), path
    assert counts["read"] >= FEWEST_READ["nibabel"]
