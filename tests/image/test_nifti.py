from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg.common.errors import DataError
from autoseg.image.image import read_image
from autoseg.image.nifti import check_nifti
from tests.dataset.making import HIPPOCAMPUS, write_4d, write_scan

NOISE = np.random.default_rng(0).normal(scale=500, size=(20, 21, 22))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_a_truncated_file_is_told(tmp_path: Path, ending: str, dtype: Any) -> None:
    path = tmp_path / f"a{ending}"
    write_scan(path, NOISE.astype(dtype))
    check_nifti(path)
    whole = path.read_bytes()
    for kept in (len(whole) - 64, len(whole) // 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(DataError, match=r"its end is missing"):
            check_nifti(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, ending: str, dtype: str) -> None:
    array = NOISE.astype(dtype)
    array[0, 0, :2] = np.nan, np.inf
    write_scan(tmp_path / f"a{ending}", array)
    with pytest.raises(DataError, match="2 voxels"):
        check_nifti(tmp_path / f"a{ending}")


def test_the_other_byte_order_is_understood(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii", NOISE.astype(np.float32))
    swapped = big_endian((tmp_path / "a.nii").read_bytes())
    (tmp_path / "a.nii").write_bytes(swapped)
    assert np.allclose(read_image([tmp_path / "a.nii"]).array[0], NOISE, rtol=1e-6)
    check_nifti(tmp_path / "a.nii")


def big_endian(file: bytes) -> bytes:
    """Swap the fields of a NIfTI-1 header that matter to the voxels, and the float voxels."""
    header = bytearray(file[:352])
    for start, stop, width in ((0, 4, 4), (40, 56, 2), (68, 76, 2), (76, 120, 4), (252, 256, 2)):
        header[start:stop] = np.frombuffer(header[start:stop], f"<i{width}").byteswap().tobytes()
    header[256:328] = np.frombuffer(header[256:328], "<i4").byteswap().tobytes()
    return bytes(header) + np.frombuffer(file[352:], "<f4").byteswap().tobytes()


def test_a_file_packed_in_pieces_is_whole(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii", NOISE.astype(np.int16))
    plain = (tmp_path / "a.nii").read_bytes()
    pieces = gzip.compress(plain[:5000]) + gzip.compress(plain[5000:])
    (tmp_path / "a.nii.gz").write_bytes(pieces)
    check_nifti(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(pieces[:-64])
    with pytest.raises(DataError, match="its end is missing"):
        check_nifti(tmp_path / "a.nii.gz")


def test_what_is_whole_passes(tmp_path: Path) -> None:
    write_4d(tmp_path / "four.nii.gz", np.stack([NOISE, NOISE]).astype(np.int16))
    check_nifti(tmp_path / "four.nii.gz")
    for folder in ("imagesTr", "labelsTr"):
        for path in sorted((HIPPOCAMPUS / folder).iterdir())[:5]:
            check_nifti(path)


def test_what_is_no_nifti_is_told(tmp_path: Path) -> None:
    for content in (b"", b"nothing of the kind", bytes(400), b"\x1f\x8b nothing packed"):
        (tmp_path / "a.nii.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.nii\.gz: not a NIfTI file"):
            check_nifti(tmp_path / "a.nii.gz")


def test_the_end_of_a_packed_file_must_be_there(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii.gz", NOISE.astype(np.int16))
    whole = (tmp_path / "a.nii.gz").read_bytes()
    for short in (1, 4, 8):
        (tmp_path / "a.nii.gz").write_bytes(whole[:-short])
        with pytest.raises(DataError, match="its end is missing"):
            check_nifti(tmp_path / "a.nii.gz")


def test_the_second_version_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(struct.pack("<i", 540) + b"n+2\0\r\n\x1a\n" + bytes(900))
    with pytest.raises(DataError, match="NIfTI-2"):
        check_nifti(tmp_path / "a.nii")


def test_other_files_pass(tmp_path: Path) -> None:
    for name in ("missing.nii", "a.nrrd", "."):
        check_nifti(tmp_path / name)
