"""DICOM series as volumes, with the faults that ITK only warns of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoseg.errors import DataError

if TYPE_CHECKING:
    import SimpleITK as sitk

POSITION, ORIENTATION = "0020|0032", "0020|0037"
GAP_TOLERANCE = 0.1  # of the usual distance: positions are often rounded to a tenth of a millimetre


def read_series(folder: Path) -> Any:
    """Read the one DICOM series of a folder, its slices in the order of their positions.

    Raises:
        DataError: there is not exactly one series, or its slices are not evenly spaced (some are
            missing, or there twice).
        RuntimeError: ITK cannot read it.
    """
    import SimpleITK as sitk

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise DataError(f"{folder}: holds {len(series)} DICOM series; give a folder with one")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    picture = reader.Execute()
    _check_gaps(folder, _positions_mm(reader, len(names)))
    return picture


def _check_gaps(folder: Path, positions_mm: NDArray[np.float64]) -> None:
    gaps = np.diff(positions_mm)
    usual = float(np.median(gaps)) if gaps.size else 0.0
    if gaps.size and np.abs(gaps - usual).max() > GAP_TOLERANCE * abs(usual):
        apart = np.diff(np.sort(positions_mm))  # with slices there twice, GDCM gives up sorting
        raise DataError(
            f"{folder}: neighbouring slices are {apart.min():.4g} to {apart.max():.4g} mm apart, "
            f"usually {np.median(apart):.4g}; slices are missing or there twice: export it again"
        )


def _positions_mm(reader: sitk.ImageSeriesReader, slices: int) -> NDArray[np.float64]:
    """Where the slices lie along their normal; empty if the files do not say it."""
    keys = (POSITION, ORIENTATION)
    if not all(reader.HasMetaDataKey(i, key) for i in range(slices) for key in keys):
        return np.empty(0)
    rows = np.array(reader.GetMetaData(0, ORIENTATION).split("\\"), dtype=np.float64)
    normal = np.cross(rows[:3], rows[3:])
    places = [reader.GetMetaData(i, POSITION).split("\\") for i in range(slices)]
    return np.array(places, dtype=np.float64) @ normal
