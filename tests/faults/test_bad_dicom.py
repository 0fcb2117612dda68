"""Damaged DICOM series: refused in one line that names them, or read as if nothing were wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from autoseg.common.errors import DataError
from autoseg.image.dicom import dicom_files, read_contents
from autoseg.image.image import Image, read_image
from tests.dicom_series import write_series
from tests.faults.bad_dicom import ARRAY, PLAIN, damages, whole
from tests.faults.commands import everything_in, tell
from tests.making import tiny_plan
from tests.prediction.making import save_model

FEWEST = 500
# Whatever a person reads in these headers, no program can tell that it is not meant.
MEANT = re.compile(
    r"one-SeriesInstanceUID-.*"  # its last slice belongs to another series
    r"|.*-Rescale(Slope|Intercept)-5"  # a scale of -1, an offset of -1
    r"|missing-last|missing-most|flip-.*"
)


def outcome(folder: Path) -> Image | str:
    """The scan, or why it is refused."""
    try:
        return read_image([folder])
    except DataError as error:
        message = str(error)
        assert str(folder) in message
        assert len(message.splitlines()) == 1
        assert len(message) < 1000
        return message


def test_no_damage_is_overlooked(tmp_path: Path) -> None:
    whole(tmp_path / "whole")
    good = read_image([tmp_path / "whole"])
    assert (good.array[0] == ARRAY).all()
    every = list(damages())
    refused = 0
    for name, damage in every:
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        damage(tmp_path / name)
        found = outcome(tmp_path / name)
        if isinstance(found, str):
            refused += 1
        elif not MEANT.fullmatch(name):
            assert np.array_equal(found.array, good.array), name
            assert found.geometry == good.geometry, name
        else:
            assert found.array.shape[1:3] == good.array.shape[1:3], name
        shutil.rmtree(tmp_path / name)
    assert len(every) >= FEWEST
    assert refused >= len(every) // 2


def test_predicting_damaged_series(tmp_path: Path) -> None:
    """A tree of them: those that cannot be read are named, the others are segmented."""
    some = dict(list(damages())[::11])
    for name, damage in some.items():
        damage_in = tmp_path / "in" / name
        write_series(damage_in, ARRAY)
        damage(damage_in)
    plan = tiny_plan(inference={"overlap": [0, 0, 0]})
    model = save_model(plan, tmp_path / "model", "0")
    before = everything_in(tmp_path / "in")
    words = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", str(model)]
    words += ["--name-by", "folder"]
    told = tell("predict", *words, "--device", "cpu", "--backend", "torch")
    assert told.status == 2
    said = set(re.findall(r"^(?:refused|skipped|ignored) ([\w.-]+)", told.err, re.MULTILINE))
    written = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "out").glob("*.nii.gz")}
    assert said
    assert written
    assert {name for name in some if not _is_told(name, said | written)} == set()
    assert everything_in(tmp_path / "in") == before


def _is_told(name: str, told: set[str]) -> bool:
    return any(each.startswith(name) for each in told)


@pytest.mark.parametrize(
    "syntax", [*PLAIN[:1], ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_other_encodings_are_read(tmp_path: Path, syntax: UID) -> None:
    import pydicom

    for file in write_series(tmp_path, ARRAY):
        header = pydicom.dcmread(file)
        header["PixelData"].VR = "OW"
        if syntax == ExplicitVRBigEndian:
            header.PixelData = header.pixel_array.astype(">i2").tobytes()
        header.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(file, header, enforce_file_format=True)
    assert (read_image([tmp_path]).array[0] == ARRAY).all()


def test_pixels_that_are_not_there_are_not_taken_from_elsewhere(tmp_path: Path) -> None:
    """GDCM alone would hand out whatever lies in memory behind them."""
    write_series(tmp_path, ARRAY, Rows=4000, Columns=4000)
    with pytest.raises(DataError, match=r"60 bytes .* 4000 x 4000 .* 32000000"):
        read_image([tmp_path])


def test_the_spacing_of_an_object_of_another_kind_counts(tmp_path: Path) -> None:
    """Programs that convert scans often write them as secondary captures."""
    write_series(tmp_path, ARRAY, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    assert read_image([tmp_path]).geometry.spacing_mm == pytest.approx((0.7, 1.25, 3.0))


def test_slices_of_different_types(tmp_path: Path) -> None:
    """Without a sign in the first slice's file, the negative values of the others stay negative."""
    files = write_series(tmp_path, ARRAY - 50)
    import pydicom

    header = pydicom.dcmread(files[0])
    header.PixelRepresentation = 0
    header.PixelData = np.ascontiguousarray(ARRAY[:, :, 0].T, dtype="<u2").tobytes()
    header.save_as(files[0])
    found = read_image([tmp_path]).array[0]
    assert (found[:, :, 0] == ARRAY[:, :, 0]).all()
    assert (found[:, :, 1:] == ARRAY[:, :, 1:] - 50).all()


def test_a_damaged_slice_among_its_series_is_not_passed_over(tmp_path: Path) -> None:
    last = write_series(tmp_path, ARRAY, SeriesInstanceUID="1.2.3")[-1]
    last.unlink()
    (file,) = write_series(
        tmp_path / "b", ARRAY[:, :, :1], [39], SeriesInstanceUID="1.2.3", ImagePositionPatient=None
    )
    file.rename(last)
    with pytest.raises(DataError, match=r"97\.dcm: .* without a position"):
        read_contents(dicom_files(tmp_path))
