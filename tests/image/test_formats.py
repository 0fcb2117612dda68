from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.common.errors import DataError
from autoseg.common.progress import noted
from autoseg.image.formats import check_header
from autoseg.image.image import read_image

NOISE = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)


def written(path: Path, compressed: bool = False) -> Path:
    picture = sitk.GetImageFromArray(NOISE)
    picture.SetSpacing((1.0, 2.0, 0.5))
    picture.SetOrigin((-3.0, 4.0, 5.5))
    sitk.WriteImage(picture, str(path), compressed)
    return path


def changed(path: Path, old: bytes, new: bytes) -> Path:
    whole = path.read_bytes()
    assert old in whole
    path.write_bytes(whole.replace(old, new, 1))
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd"])
def test_what_is_whole_passes(tmp_path: Path, ending: str, compressed: bool) -> None:
    path = written(tmp_path / f"a{ending}", compressed)
    check_header(path)
    assert np.array_equal(read_image([path]).array[0].T, NOISE)


def test_other_files_pass(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"whatever")
    for name in ("a.nii", "missing.mha", "."):
        check_header(tmp_path / name)


@pytest.mark.parametrize(
    ("ending", "old", "new", "parts"),
    [
        (".mha", b"NDims = 3", b"NDims = -3", ["NDims", "-3"]),
        (".mha", b"NDims = 3", b"NDims = 2", ["2 dimensions"]),
        (".mha", b"DimSize = 7 6 5", b"DimSize = 7 6", ["DimSize", "3"]),
        (".mha", b"DimSize = 7 6 5", b"DimSize = 7 0 5", ["DimSize", "7 x 0 x 5"]),
        (".mha", b"DimSize = 7 6 5", b"DimSize = 70 6 5", ["8400", "840"]),
        (".mha", b"Offset = -3", b"Offset = nan", ["Offset", "NaN"]),
        (".mha", b"Offset = -3 4 5.5", b"Offset = -3 4", ["Offset", "2", "3"]),
        (".mha", b"Offset = -3", b"Offset = x", ["Offset", "x"]),
        (".mha", b"MET_FLOAT", b"MET_THING", ["ElementType", "MET_THING"]),
        (".mha", b"LOCAL", b"/etc/hostname", ["/etc/hostname"]),
        (".mhd", b"a.raw", b"b.raw", ["b.raw"]),
        (".nrrd", b"dimension: 3", b"dimension: 2", ["2 dimensions"]),
        (".nrrd", b"sizes: 7 6 5", b"sizes: 7 6 x", ["sizes", "3"]),
        (".nrrd", b"sizes: 7 6 5", b"sizes: 99 99 99", ["970299", "840"]),
        (".nrrd", b"(1,0,0)", b"none", ["space directions", "2"]),
        (".nrrd", b"(-3,4,5.5)", b"(nan,4,5.5)", ["space origin", "NaN"]),
        (".nrrd", b"encoding: raw", b"encoding: raw\ndata file: ../b.raw", ["../b.raw"]),
        (".nrrd", b"sizes: ", b"size: ", ["sizes", "missing"]),
    ],
)
def test_an_impossible_header_is_an_error(
    tmp_path: Path, ending: str, old: bytes, new: bytes, parts: list[str]
) -> None:
    path = changed(written(tmp_path / f"a{ending}"), old, new)
    with pytest.raises(DataError) as caught:
        check_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    ("ending", "stated", "instead"),
    [
        (".mha", b"TransformMatrix =", b"Comment         ="),
        (".nrrd", b"space: left-posterior-superior\n", b"space dimension: 3\n"),
        (".nrrd", b"space: left-posterior-superior\n", b"space: scanner-xyz\n"),
    ],
)
def test_a_header_without_orientation_is_named(
    tmp_path: Path, ending: str, stated: bytes, instead: bytes
) -> None:
    path = written(tmp_path / f"a{ending}")
    with noted() as notes:
        read_image(path)
        assert notes == []
        read_image(changed(path, stated, instead))
    (note,) = notes
    assert note.startswith(f"{path}: states no orientation")
