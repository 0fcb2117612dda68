"""A small DICOM series, made by the tests that use it."""

from __future__ import annotations

import locale
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def write_series(
    folder: Path, array: NDArray[np.int16], positions_mm: Sequence[float] | None = None
) -> None:
    """Write a CT series whose file names run against its positions: by default 30, 33, 36, ..."""
    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    before = locale.setlocale(locale.LC_ALL)
    places = positions_mm or [30 + 3 * z for z in range(array.shape[2])]
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z, place in enumerate(places):
        slice_ = sitk.GetImageFromArray(np.ascontiguousarray(array[:, :, z].T))
        slice_.SetSpacing((0.7, 1.25))
        for tag, value in {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.{z + 1}",
            "0020|000d": "1.2.4",
            "0020|000e": "1.2.5",
            "0020|0032": f"1\\2\\{place}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(z + 1),
            "0018|0050": "3",
        }.items():
            slice_.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{100 - z}.dcm"))
        writer.Execute(slice_)
    # GDCM's writer leaves the process in the locale "C", in which Python opens text as ASCII.
    locale.setlocale(locale.LC_ALL, before)
