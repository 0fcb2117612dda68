from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.image.geometry import geometry_of
from autoseg.image.image import read_image, read_label
from autoseg.image.nifti import TYPES, read_nifti
from tests.dataset.making import HIPPOCAMPUS, write_4d, write_scan
from tests.image.test_nifti import big_endian

NOISE = np.random.default_rng(0).normal(scale=50, size=(9, 8, 7))
LONG = np.random.default_rng(1).integers(0, 99, size=(90, 80, 70))  # ITK sees the beginning only
TURNED = (0.8, -0.6, 0.0, 0.48, 0.64, -0.6, 0.36, 0.48, 0.8)
SLOPE_AT, INTERCEPT_AT, CODE_AT, SFORM_AT = 112, 116, 70, 254


def by_itk(path: Path) -> tuple[NDArray[Any], Any]:
    """The slow reference."""
    picture = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(picture).T[np.newaxis], geometry_of(picture, path)


def assert_as_itk_reads(path: Path) -> None:
    found = read_nifti(path)
    assert found is not None
    array, geometry = by_itk(path)
    assert found[1] == geometry
    assert found[0].dtype == array.dtype
    assert found[0].strides == array.strides
    assert np.array_equal(found[0], array)


def set_header(path: Path, place: int, form: str, *values: float) -> None:
    """Change one number of an unpacked file's header."""
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, place, *values)
    path.write_bytes(content)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("code", TYPES)
def test_every_type_is_read_as_by_itk(tmp_path: Path, ending: str, code: int) -> None:
    path = tmp_path / f"a{ending}"
    write_scan(path, NOISE.astype(TYPES[code][0]), (0.7, 1.25, 3.0), (1.0, -2.0, 3.5), TURNED)
    assert_as_itk_reads(path)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    size=st.tuples(*[st.integers(1, 6)] * 3),
    spacing=st.tuples(*[st.floats(0.125, 10, width=32)] * 3),
    origin=st.tuples(*[st.floats(-500, 500, width=32)] * 3),
    seed=st.integers(0, 1000),
    sform=st.sampled_from([0, 1, 2]),
)
def test_every_grid_is_read_as_by_itk(
    tmp_path: Path, size: Any, spacing: Any, origin: Any, seed: int, sform: int
) -> None:
    rng = np.random.default_rng(seed)
    direction, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    path = tmp_path / "a.nii"
    array = rng.integers(-99, 99, size).astype(np.int16)
    write_scan(path, array, spacing, origin, tuple(direction.ravel().tolist()))
    set_header(path, SFORM_AT, "<h", sform)
    assert_as_itk_reads(path)


def test_real_scans_are_read_as_by_itk() -> None:
    for path in sorted(HIPPOCAMPUS.glob("*Tr/*.nii.gz"))[::8]:
        assert_as_itk_reads(path)


def test_the_other_byte_order(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii", NOISE.astype(np.float32))
    (tmp_path / "a.nii").write_bytes(big_endian((tmp_path / "a.nii").read_bytes()))
    assert_as_itk_reads(tmp_path / "a.nii")


@pytest.mark.parametrize(("slope", "intercept"), [(2.0, 0.0), (1.0, -1024.0), (0.5, 3.0)])
def test_scaled_values_are_left_to_itk(tmp_path: Path, slope: float, intercept: float) -> None:
    path = tmp_path / "a.nii"
    for dtype in (np.int16, np.float32):
        write_scan(path, np.rint(NOISE).astype(dtype))
        set_header(path, SLOPE_AT, "<2f", slope, intercept)
        assert read_nifti(path) is None
        assert np.allclose(read_image([path]).array[0], np.rint(NOISE) * slope + intercept)


def test_no_slope_is_no_scaling(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii", NOISE.astype(np.int16))
    set_header(tmp_path / "a.nii", SLOPE_AT, "<2f", 0.0, 0.0)
    assert_as_itk_reads(tmp_path / "a.nii")


def test_channels_are_read_and_pieces_left_to_itk(tmp_path: Path) -> None:
    write_4d(tmp_path / "four.nii.gz", np.stack([NOISE, NOISE]).astype(np.int16))
    whole = read_nifti(tmp_path / "four.nii.gz")
    assert whole is not None
    assert np.array_equal(whole[0], np.stack([NOISE, NOISE]).astype(np.int16))
    write_scan(tmp_path / "a.nii", NOISE.astype(np.int16))
    plain = (tmp_path / "a.nii").read_bytes()
    path = tmp_path / "pieces.nii.gz"
    path.write_bytes(gzip.compress(plain[:500]) + gzip.compress(plain[500:]))
    assert read_nifti(path) is None
    assert np.array_equal(read_image([path]).array[0], NOISE.astype(np.int16))
    assert read_nifti(tmp_path / "a.nrrd") is None


def test_a_single_piece_that_ends_amid_the_voxels_is_told(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii", LONG.astype(np.int16))
    plain = (tmp_path / "a.nii").read_bytes()
    length = struct.pack("<I", len(plain))
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(plain[:-100])[:-4] + length)
    with pytest.raises(DataError, match="its end is missing"):
        read_nifti(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_wrong_checksum_is_told(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "a.nii.gz"
    write_scan(path, LONG.astype(dtype))
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        read_nifti(path)


def test_a_claim_beyond_what_can_be_packed_reserves_nothing(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii", LONG.astype(np.uint8))
    set_header(tmp_path / "a.nii", 42, "<3h", 32000, 32000, 32000)
    packed = gzip.compress((tmp_path / "a.nii").read_bytes())
    path = tmp_path / "a.nii.gz"
    path.write_bytes(packed[:-4] + struct.pack("<I", (352 + 32000**3) % 2**32))
    with pytest.raises(DataError, match="its end is missing"):
        read_nifti(path)


def test_arrays_can_be_written_to(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii.gz", NOISE.clip(0).astype(np.uint8))
    label, _ = read_label(tmp_path / "a.nii.gz")
    label[:] = 0
    assert not label.any()
