"""DICOM as public bug reports sent it; what is right is stored value x slope + intercept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

from autoseg.common.errors import DataError
from autoseg.image.image import read_geometry, read_image
from tests.dicom_series import SECONDARY_CAPTURE, STORAGE, write_enhanced, write_series

ARRAY = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)


def values(path: Path) -> Any:
    return read_image(path, own_type=True).array[0]


@pytest.mark.parametrize("is_compressed", [False, True])
def test_monochrome1_is_not_inverted(tmp_path: Path, is_compressed: bool) -> None:
    tags: dict[str, Any] = {
        "PhotometricInterpretation": "MONOCHROME1",
        "RescaleSlope": 2,
        "RescaleIntercept": -5,
    }
    for file in write_series(tmp_path, ARRAY, **tags):
        if is_compressed:
            header = pydicom.dcmread(file)
            header.compress(RLELossless)
            header.save_as(file)
    assert np.array_equal(values(tmp_path), 2 * ARRAY - 5)


def test_a_modality_lut_is_applied(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table["LUTDescriptor"].VR = "US"
    table.LUTData = (np.arange(4096) * 2).astype("<u2").tobytes()
    table["LUTData"].VR = "OW"
    write_series(tmp_path, ARRAY, SOPClassUID=SECONDARY_CAPTURE, ModalityLUTSequence=[table])
    assert np.array_equal(values(tmp_path), 2 * ARRAY)


@pytest.mark.parametrize("said", ["0", "-3", "5", None])
def test_only_positions_say_how_far_slices_are_apart(tmp_path: Path, said: str | None) -> None:
    tags: dict[str, Any] = {} if said is None else {"SpacingBetweenSlices": said}
    write_series(tmp_path, ARRAY, **tags)
    assert read_geometry(tmp_path).spacing_mm == pytest.approx((0.7, 1.25, 3))
    assert np.array_equal(values(tmp_path), ARRAY)


@pytest.mark.parametrize("kind", [SECONDARY_CAPTURE, f"{STORAGE}481.1", "1.3.46.670589.5.0.2"])
def test_classes_that_gdcm_does_not_know_have_a_grid(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path, ARRAY, SOPClassUID=kind)
    image = read_image(tmp_path)
    assert image.geometry.spacing_mm == pytest.approx((0.7, 1.25, 3))
    assert image.geometry.origin_mm == pytest.approx((1, 2, 30))


def test_bits_that_are_not_stored_do_not_count(tmp_path: Path) -> None:
    for file in write_series(tmp_path, ARRAY, BitsStored=12, HighBit=11):
        header = pydicom.dcmread(file)
        header.PixelData = (np.frombuffer(header.PixelData, "<u2") | 0x3000).tobytes()
        header.save_as(file)
    assert np.array_equal(values(tmp_path), ARRAY)


def test_signs_are_extended(tmp_path: Path) -> None:
    negative = (-ARRAY.astype(np.int32) & 0xFFF).astype(np.int16)
    write_series(tmp_path, negative, BitsStored=12, HighBit=11)
    assert np.array_equal(values(tmp_path), -ARRAY)


@pytest.mark.parametrize("which", ["all", "last"])
def test_files_without_a_preamble_are_read(tmp_path: Path, which: str) -> None:
    files = write_series(tmp_path, ARRAY)
    for file in files if which == "all" else files[-1:]:
        plain = Dataset()
        plain.update(pydicom.dcmread(file))
        plain.save_as(file, implicit_vr=True, little_endian=True)
        assert file.read_bytes()[128:132] != b"DICM"
        file.rename(file.with_suffix(""))
    for file in files:
        if file.exists():
            file.rename(file.with_suffix(""))
    assert np.array_equal(values(tmp_path), ARRAY)


@pytest.mark.parametrize("name", ["97.dcm", "IM97"])
def test_a_damaged_slice_is_not_left_out(tmp_path: Path, name: str) -> None:
    """The last one: without it the series looks complete."""
    files = write_series(tmp_path, ARRAY)
    for file in files:
        file.rename(tmp_path / file.name if "." in name else tmp_path / f"IM{file.stem}")
    (tmp_path / name).write_bytes(b"\0" * 500)
    with pytest.raises(DataError, match=name):
        read_image(tmp_path)


@pytest.mark.parametrize("is_marked", [False, True])
def test_a_scout_inside_a_series_is_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_marked: bool
) -> None:
    same: dict[str, Any] = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2"}
    same["FrameOfReferenceUID"] = "1.4"
    write_series(tmp_path, ARRAY, **same)
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"] if is_marked else ["ORIGINAL", "PRIMARY", "AXIAL"]
    (scout,) = write_series(
        tmp_path / "b", ARRAY[:, :, :1], None, (1, 0, 0, 0, 0, -1), ImageType=kind, **same
    )
    scout.rename(tmp_path / "scout.dcm")
    assert np.array_equal(values(tmp_path), ARRAY)
    assert "scout.dcm" in capsys.readouterr().err


def test_one_series_uid_a_slice_is_put_together(tmp_path: Path) -> None:
    for file in write_series(tmp_path, ARRAY):
        header = pydicom.dcmread(file)
        header.SeriesInstanceUID = generate_uid()
        header.save_as(file)
    assert np.array_equal(values(tmp_path), ARRAY)
    (tmp_path / "98.dcm").unlink()
    with pytest.raises(DataError, match="3 to 6 mm"):
        read_image(tmp_path)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_enhanced_multi_frame(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Positions and scales are those of each frame."""
    image = read_image(write_enhanced(tmp_path / "1", ARRAY, order))
    assert np.array_equal(image.array[0], ARRAY * (np.arange(4) + 1) - np.arange(4))
    assert image.geometry.spacing_mm == pytest.approx((0.7, 1.25, 3))
    assert image.geometry.origin_mm == pytest.approx((1, 2, 30))


def test_an_enhanced_object_with_a_frame_too_few_is_refused(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "1", ARRAY, (0, 1, 3))
    with pytest.raises(DataError, match="3 to 6 mm"):
        read_image(tmp_path)
    write_enhanced(tmp_path / "1", ARRAY, (0, 1, 2, 3), NumberOfFrames=3)
    with pytest.raises(DataError, match="NumberOfFrames"):
        read_image(tmp_path)
