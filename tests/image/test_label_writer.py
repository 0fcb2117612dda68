from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.common.errors import DataError, VoxelError
from autoseg.image.image import read_image, read_label
from autoseg.image.label_writer import write_label
from tests.making import grid

SIZE = (3, 4, 5)


def label_of(value: float, dtype: type[np.generic]) -> NDArray[Any]:
    label: NDArray[Any] = np.zeros(SIZE, dtype)
    label[1, 2, 3] = value
    return label


def test_a_path_may_be_text_and_one_channel_needs_no_list(tmp_path: Path) -> None:
    path = str(tmp_path / "a.nrrd")
    write_label(path, label_of(2, np.int64), grid(SIZE))
    assert read_label(path)[0][1, 2, 3] == 2
    assert read_image(path).array.shape == (1, *SIZE)
    assert read_image([path, Path(path)]).array.shape == (2, *SIZE)


def test_no_file_is_no_scan() -> None:
    with pytest.raises(DataError, match="no file"):
        read_image([])


@pytest.mark.parametrize("value", [True, 255, 256, 65535])
def test_a_label_takes_no_more_bits_than_it_needs(value: int, tmp_path: Path) -> None:
    write_label(tmp_path / "a.mha", label_of(value, np.int32), grid(SIZE))
    found, _ = read_label(tmp_path / "a.mha")
    assert found.dtype == (np.uint8 if value < 256 else np.uint16)
    assert found.max() == value


@pytest.mark.parametrize(
    ("value", "dtype", "told"),
    [(-1, np.int16, "labels -1 to 0"), (65536, np.int32, "0 to 65536"), (1, np.float32, "float32")],
)
def test_values_that_no_label_map_has_are_refused(
    value: float, dtype: type[np.generic], told: str, tmp_path: Path
) -> None:
    with pytest.raises(VoxelError, match=told):
        write_label(tmp_path / "a.nii.gz", label_of(value, dtype), grid(SIZE))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.mhd", "a.png", "a"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.nii\.gz, \.nii, \.nrrd, \.mha$"):
        write_label(tmp_path / name, label_of(1, np.uint8), grid(SIZE))
    assert not list(tmp_path.iterdir())


def test_an_array_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\(3, 4, 5\) .* \(5, 4, 3\)"):
        write_label(tmp_path / "a.nii", label_of(1, np.uint8), grid(SIZE[::-1]))
