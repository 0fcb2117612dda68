from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from autoseg.errors import DataError
from autoseg.image import read_geometry, read_image
from tests.dicom_series import write_series

ARRAY = np.arange(5 * 3 * 7, dtype=np.int16).reshape(5, 3, 7)


def test_a_folder_is_read_in_the_order_of_its_positions(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY)
    image = read_image([tmp_path])
    assert (image.array[0] == ARRAY).all()
    assert image.geometry.spacing_mm == pytest.approx((0.7, 1.25, 3.0))
    assert image.geometry.origin_mm == pytest.approx((1.0, 2.0, 30.0))
    assert read_geometry(tmp_path) == image.geometry


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY, [round(1.25 * z, 1) for z in range(7)])
    assert read_image([tmp_path]).geometry.spacing_mm[2] == pytest.approx(1.25, abs=0.02)


def test_a_missing_slice_is_told(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY)
    (tmp_path / "97.dcm").unlink()
    with pytest.raises(DataError, match="3 to 6 mm apart, usually 3; slices are missing"):
        read_image([tmp_path])


def test_a_slice_that_is_there_twice_is_told(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY)
    shutil.copy(tmp_path / "97.dcm", tmp_path / "copy.dcm")
    with pytest.raises(DataError, match="0 to 3 mm apart"):
        read_image([tmp_path])


def test_one_slice_has_no_gaps(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY[:, :, :1])
    assert read_image([tmp_path]).geometry.size == (5, 3, 1)


def test_a_folder_without_a_series_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 0 DICOM series"):
        read_image([tmp_path])
