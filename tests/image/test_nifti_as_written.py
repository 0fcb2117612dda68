"""NIfTI and its relatives as other programs write them; nibabel says what is right."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.common.errors import DataError, VoxelError
from autoseg.common.progress import noted
from autoseg.image.geometry import orientation_of
from autoseg.image.image import read_geometry, read_image, read_label

nibabel = pytest.importorskip("nibabel")
NOISE = np.random.default_rng(0).integers(-50, 900, (7, 6, 5)).astype(np.int16)


def affine(path: Path) -> NDArray[np.float64]:
    """The grid of a file, as nibabel describes it."""
    grid = read_geometry(path)
    assert grid == read_image(path).geometry
    found = np.eye(4)
    found[:3, :3] = np.reshape(grid.direction, (3, 3)) * grid.spacing_mm
    found[:3, 3] = grid.origin_mm
    return np.diag([-1, -1, 1, 1]) @ found


def write(path: Path, array: NDArray[Any], matrix: Any = None, scale: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if matrix is None else matrix), path)
    if scale is not None:
        content = bytearray(path.read_bytes())
        struct.pack_into("<2f", content, 112, *scale)
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("scale", [(0, -1024), (np.nan, -1024), (0, 0), (np.inf, 3)])
@pytest.mark.parametrize("shape", [(7, 6, 5), (7, 6, 5, 2)])
def test_a_slope_of_zero_means_no_scaling(tmp_path: Path, scale: Any, shape: Any) -> None:
    array = np.resize(NOISE, shape)
    path = write(tmp_path / "a.nii", array, scale=scale)
    found = read_image(path).array
    assert np.array_equal(found, np.moveaxis(array.reshape(7, 6, 5, -1), -1, 0))
    assert np.array_equal(nibabel.load(path).get_fdata(), array)


def test_a_slope_counts_and_must_have_an_intercept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", NOISE, scale=(2, -7))
    assert np.array_equal(read_image(path).array[0], nibabel.load(path).get_fdata())
    with pytest.raises(DataError, match="scl_inter nan"):
        read_image(write(tmp_path / "b.nii", NOISE, scale=(2, np.nan)))


@pytest.mark.parametrize("codes", [(1, 1), (2, 2), (1, 2), (0, 1), (4, 1)])
@pytest.mark.parametrize("degrees", [0.02, 1, 180.05])
def test_the_sform_comes_first(tmp_path: Path, codes: tuple[int, int], degrees: float) -> None:
    """Near 180 degrees a quaternion is exact to 4e-4 only."""
    turn = np.radians(180 + degrees)
    matrix = np.diag([0.7, 0.7, 3.0, 1.0])
    matrix[:2, :2] = 0.7 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix[:3, 3] = 90, 80, -40
    image = nibabel.Nifti1Image(NOISE, matrix)
    image.set_qform(matrix, codes[0])
    image.set_sform(matrix, codes[1])
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert affine(tmp_path / "a.nii.gz") == pytest.approx(image.affine, abs=2e-5)


def test_a_pair_of_header_and_voxels(tmp_path: Path) -> None:
    matrix = np.diag([2.0, 1, 3, 1])
    nibabel.save(nibabel.Nifti1Pair(NOISE, matrix), tmp_path / "a.img")
    assert np.array_equal(read_image(tmp_path / "a.hdr").array[0], NOISE)
    assert affine(tmp_path / "a.hdr") == pytest.approx(matrix)
    (tmp_path / "a.img").write_bytes((tmp_path / "a.img").read_bytes()[:-10])
    with pytest.raises(DataError, match=r"a\.hdr: cannot be read"):
        read_image(tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    with pytest.raises(DataError, match=r"a\.img"):
        read_image(tmp_path / "a.hdr")
    nibabel.save(nibabel.AnalyzeImage(NOISE, matrix), tmp_path / "b.img")
    with pytest.raises(DataError, match=r"b\.hdr: an Analyze 7\.5 header"):
        read_image(tmp_path / "b.hdr")


def test_freesurfer_volumes_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    nibabel.save(nibabel.MGHImage(NOISE, np.eye(4)), tmp_path / "a.mgz")
    for reader in (read_image, read_label, read_geometry):
        with pytest.raises(DataError, match=r"mri_convert a\.mgz a\.nii\.gz"):
            reader(tmp_path / "a.mgz")


@pytest.mark.parametrize("name", ["a.seg.nrrd", "a.nhdr"])
def test_nrrd_of_other_names(tmp_path: Path, name: str) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(NOISE.T), str(tmp_path / name))
    assert np.array_equal(read_image(tmp_path / name).array[0], NOISE)


LABEL = np.zeros((7, 6, 5), np.uint8)
LABEL[2:4] = 1
LABEL[4:] = 2


def test_labels_close_to_whole_numbers_are_rounded_and_noted(tmp_path: Path) -> None:
    stored = np.rint(LABEL * 32767.5).astype(np.uint16)
    scaled = write(tmp_path / "a.nii", stored, scale=(2 / 65535, 0))
    plain = write(tmp_path / "b.nii", (LABEL * np.float32(0.9999999)).astype(np.float32))
    with noted() as notes:
        for path in (scaled, plain):
            assert np.array_equal(read_label(path)[0], LABEL)
    assert "scl_slope of its header is 3.052e-05" in notes[0]
    assert "scl_slope" not in notes[1]


def test_labels_far_from_whole_numbers_are_refused_with_the_reason(tmp_path: Path) -> None:
    stored = np.rint(LABEL * 127.5).astype(np.uint8)
    path = write(tmp_path / "a.nii", stored, scale=(2 / 255, 0))
    with pytest.raises(VoxelError, match=r"1\.00392 \(scl_slope .* 0\.007843\)"):
        read_label(path)


def test_a_file_without_qform_and_sform_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", LABEL)
    stored = bytearray(path.read_bytes())
    for codes, is_named in (((0, 0), True), ((1, 0), False), ((0, 2), False)):
        struct.pack_into("<2h", stored, 252, *codes)
        path.write_bytes(stored)
        with noted() as notes:
            grid = read_label(path)[1]
            assert read_geometry(path) == grid
        assert [note.partition(": states no orientation")[0] for note in notes] == (
            [str(path)] if is_named else []
        )
        assert not is_named or orientation_of(grid) == "LPS"  # as ITK; nibabel takes LAS
