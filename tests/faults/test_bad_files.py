"""Every damaged file is refused by one line that names it; ITK alone reads or crashes on some."""

from __future__ import annotations

from pathlib import Path

import pytest
import SimpleITK as sitk

from autoseg.common.errors import DataError
from autoseg.image.image import read_geometry, read_image
from tests.dataset.making import HIPPOCAMPUS
from tests.faults.damage import damaged_files

FEWEST = 250


@pytest.fixture(scope="module")
def scan() -> sitk.Image:
    first = min((HIPPOCAMPUS / "imagesTr").glob("*.nii.gz"))
    picture: sitk.Image = sitk.Cast(sitk.ReadImage(str(first)), sitk.sitkInt16)
    return picture


def test_damaged_scans_are_refused_by_name(tmp_path: Path, scan: sitk.Image) -> None:
    count = 0
    for name, content in damaged_files(scan):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            print(name, read_image([path]).geometry)
        message = str(caught.value)
        assert str(path) in message, name
        assert len(message.splitlines()) == 1, name
        count += 1
    assert count >= FEWEST


def test_headers_of_damaged_scans_end_nothing(tmp_path: Path, scan: sitk.Image) -> None:
    """Of some only the voxels are bad, so a header may be read; but nothing else happens."""
    for name, content in damaged_files(scan):
        path = tmp_path / name
        path.write_bytes(content)
        told = ""
        try:
            told = f"{path}: {min(read_geometry(path).size)} voxels"
        except DataError as error:
            told = str(error)
        assert str(path) in told, name
        assert f"{path}: 0 voxels" not in told, name
