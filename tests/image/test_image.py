from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoseg.common.errors import DataError, VoxelError
from autoseg.image.formats import ending_of, stem_of
from autoseg.image.geometry import Geometry
from autoseg.image.image import read_geometry, read_image, read_label
from autoseg.image.label_writer import write_label
from tests.dataset.making import HIPPOCAMPUS, write_4d, write_scan

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
OBLIQUE = (0.8, -0.6, 0.0, 0.48, 0.64, -0.6, 0.36, 0.48, 0.8)
DIRECTIONS = {
    "LPS": IDENTITY,
    "RAS": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
    "LAS": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0),
    "LPI": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "PIR": (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "oblique": OBLIQUE,
}
ENDINGS = [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"]
GRID = Geometry((5, 3, 7), (0.7, 1.25, 3.0), (-12.5, 4.0, 100.25), IDENTITY)


def close(found: Geometry, expected: Geometry) -> bool:
    """NIfTI keeps a grid in 32 bits."""
    return found.differences(expected, tolerance_mm=1e-3) == []


def some_array(dtype: Any = np.int16) -> NDArray[Any]:
    return np.arange(5 * 3 * 7, dtype=dtype).reshape(5, 3, 7)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_an_image_is_read_in_x_y_z_with_its_grid(
    tmp_path: Path, ending: str, direction: tuple[float, ...]
) -> None:
    import SimpleITK as sitk

    grid = replace(GRID, direction=direction)
    path = tmp_path / f"a{ending}"
    write_scan(path, some_array(), grid.spacing_mm, grid.origin_mm, direction)
    image = read_image([path])
    assert image.array.dtype == np.float32
    assert image.array.shape == (1, 5, 3, 7)
    assert image.array[0, 4, 1, 2] == sitk.ReadImage(str(path))[4, 1, 2]
    assert (image.array[0] == some_array()).all()
    assert close(image.geometry, grid)
    assert read_geometry(path) == image.geometry


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_a_written_label_map_is_read_back(
    tmp_path: Path, ending: str, direction: tuple[float, ...]
) -> None:
    grid = replace(GRID, direction=direction)
    path = tmp_path / "out" / f"a{ending}"
    write_label(path, some_array(np.uint8), grid)
    label, found = read_label(path)
    assert label.dtype == np.uint8
    assert (label == some_array()).all()
    assert close(found, grid)
    assert list(path.parent.iterdir()) == [path]


def test_the_grid_of_a_prediction_is_exactly_its_scans(tmp_path: Path) -> None:
    scan = HIPPOCAMPUS / "imagesTr" / "hippocampus_003.nii.gz"
    image = read_image([scan])
    write_label(tmp_path / "a.nii.gz", np.zeros(image.geometry.size, np.uint8), image.geometry)
    assert read_geometry(tmp_path / "a.nii.gz") == image.geometry


def test_channels_come_from_several_files_or_from_one(tmp_path: Path) -> None:
    array = np.stack([some_array(np.float32), -some_array(np.float32)])
    write_4d(tmp_path / "both.nii.gz", array)
    write_scan(tmp_path / "first.nii.gz", array[0])
    write_scan(tmp_path / "second.nrrd", array[1])
    one = read_image([tmp_path / "both.nii.gz"])
    two = read_image([tmp_path / "first.nii.gz", tmp_path / "second.nrrd"])
    assert (one.array == array).all()
    assert (two.array == array).all()
    assert one.geometry == two.geometry


def test_vector_voxels_are_channels(tmp_path: Path) -> None:
    import SimpleITK as sitk

    array = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    picture = sitk.GetImageFromArray(np.ascontiguousarray(array.T), isVector=True)
    sitk.WriteImage(picture, str(tmp_path / "a.nrrd"))
    assert (read_image([tmp_path / "a.nrrd"]).array == array).all()


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        (np.int16, np.int16),
        (np.uint16, np.uint16),
        (np.uint8, np.uint8),
        (np.int32, np.float32),  # float32 does not hold all of them
        (np.float64, np.float32),
    ],
)
def test_small_integers_stay_as_they_are_if_asked(tmp_path: Path, dtype: Any, kept: Any) -> None:
    write_scan(tmp_path / "a.nrrd", some_array(dtype))
    image = read_image([tmp_path / "a.nrrd"], own_type=True)
    assert image.array.dtype == kept
    assert (image.array[0] == some_array()).all()
    assert read_image([tmp_path / "a.nrrd"]).array.dtype == np.float32


def test_channels_on_different_grids_are_told(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii.gz", some_array())
    write_scan(tmp_path / "b.nii.gz", some_array(), origin_mm=(0, 0, 5))
    with pytest.raises(DataError, match=r"b\.nii\.gz: not on the grid of a.nii.gz: origin by 5 mm"):
        read_image([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"])


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])  # NIfTI: see test_nifti.py
def test_a_truncated_file_is_told(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    write_scan(path, noise)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_image([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, bad: float) -> None:
    array = some_array(np.float32)
    array[0, 0, :2] = bad
    write_scan(tmp_path / "a.nrrd", array)
    with pytest.raises(VoxelError, match="2 voxels"):
        read_image([tmp_path / "a.nrrd"])
    with pytest.raises(VoxelError, match="NaN"):
        read_label(tmp_path / "a.nrrd")


@pytest.mark.parametrize("tilt", [0.0005, 0.2])
def test_a_sheared_grid_is_told_in_every_format(tmp_path: Path, tilt: float) -> None:
    path = tmp_path / "a.nrrd"
    write_scan(path, some_array(), direction=(1, 0, 0, 0, 1, tilt, 0, 0, (1 - tilt**2) ** 0.5))
    if tilt < 0.001:
        assert read_geometry(path).direction[5] == pytest.approx(tilt)
        return
    for read in (lambda: read_image([path]), lambda: read_label(path), lambda: read_geometry(path)):
        with pytest.raises(DataError, match="sheared"):
            read()


def test_two_dimensions_are_refused(tmp_path: Path) -> None:
    import SimpleITK as sitk

    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.float32)), str(path))
    for read in (lambda: read_image([path]), lambda: read_label(path), lambda: read_geometry(path)):
        with pytest.raises(DataError, match="2 dimensions"):
            read()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.5, r"1 voxels .* 0\.5"),
        (-1.0, "labels -1 to 104"),
        (70000.0, "allowed: 0 to 65535"),
    ],
)
def test_what_is_no_label_is_told(tmp_path: Path, value: float, told: str) -> None:
    array = some_array(np.float32)
    array[0, 0, 0] = value
    write_scan(tmp_path / "a.nii.gz", array)
    with pytest.raises(VoxelError, match=told):
        read_label(tmp_path / "a.nii.gz")


def test_whole_labels_in_any_type_are_read_small(tmp_path: Path) -> None:
    for number, (dtype, expected) in enumerate(
        [(np.float64, np.uint8), (np.int32, np.uint8), (np.uint16, np.uint8)]
    ):
        write_scan(tmp_path / f"{number}.nrrd", some_array(dtype))
        label, _ = read_label(tmp_path / f"{number}.nrrd")
        assert label.dtype == expected
        assert (label == some_array()).all()
    write_scan(tmp_path / "large.nrrd", some_array(np.int32) + 300)
    assert read_label(tmp_path / "large.nrrd")[0].dtype == np.uint16


def test_a_label_map_has_one_channel(tmp_path: Path) -> None:
    write_4d(tmp_path / "a.nii.gz", np.zeros((2, 3, 3, 3), np.uint8))
    with pytest.raises(DataError, match="2 channels"):
        read_label(tmp_path / "a.nii.gz")


def test_missing_and_unknown_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match=r"b\.nii: no such file"):
        read_image([tmp_path / "b.nii"])
    with pytest.raises(DataError, match=r"\.nii\.gz, \.nii"):
        read_image([tmp_path / "a.txt"])
    with pytest.raises(DataError, match="0 DICOM series"):
        read_image([tmp_path])


@pytest.mark.parametrize(
    ("name", "stem", "ending"),
    [
        ("a.nii.gz", "a", ".nii.gz"),
        ("a.b.NII", "a.b", ".nii"),
        ("a_0000.nrrd", "a_0000", ".nrrd"),
        ("a.txt", "a.txt", ""),
        ("a.gz", "a.gz", ""),
    ],
)
def test_stem_and_ending(name: str, stem: str, ending: str) -> None:
    assert stem_of(Path("folder") / name) == stem
    assert ending_of(Path("folder") / name) == ending


def test_a_grid_does_not_differ_from_itself() -> None:
    assert GRID.differences(GRID) == []


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(GRID, size=(5, 3, 8)), ["size 5 x 3 x 7 against 5 x 3 x 8 voxels"]),
        (replace(GRID, spacing_mm=(0.7, 1.25, 2.0)), ["spacing by 1 mm"]),
        (replace(GRID, origin_mm=(-12.5, 7.0, 104.25)), ["origin by 5 mm"]),
    ],
)
def test_differences_are_told_in_mm(other: Geometry, told: list[str]) -> None:
    assert GRID.differences(other) == told


@given(st.floats(-1e-3, 1e-3), st.floats(-1e-6, 1e-6))
def test_rounding_noise_is_no_difference(shift: float, stretch: float) -> None:
    x, y, z = GRID.origin_mm
    noisy = replace(GRID, origin_mm=(x + shift, y - shift, z + shift))
    noisy = replace(noisy, direction=tuple(value + stretch for value in GRID.direction))
    assert GRID.differences(noisy) == []


def test_a_small_turn_of_a_large_grid_is_a_difference() -> None:
    large = replace(GRID, size=(512, 512, 300))
    turned = replace(large, direction=(1.0, 1e-3, 0.0, -1e-3, 1.0, 0.0, 0.0, 0.0, 1.0))
    (told,) = large.differences(turned)
    assert told.startswith("direction by 0.7")
