from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from autoseg.common.errors import DataError
from autoseg.image.dicom import dicom_files, find_series, is_dicom, read_contents
from autoseg.image.image import files_of, read_geometry, read_image
from tests.dicom_series import (
    REPORT,
    SECONDARY_CAPTURE,
    STORAGE,
    make_object,
    make_slice,
    save,
    write_series,
)
from tests.turning import TURNS, rotation

ARRAY = np.arange(5 * 3 * 7, dtype=np.int16).reshape(5, 3, 7)


def test_a_folder_is_read_in_the_order_of_its_positions(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY)
    image = read_image([tmp_path])
    assert (image.array[0] == ARRAY).all()
    assert image.geometry.spacing_mm == pytest.approx((0.7, 1.25, 3.0))
    assert image.geometry.origin_mm == pytest.approx((1.0, 2.0, 30.0))
    assert read_geometry(tmp_path) == image.geometry


@settings(max_examples=15, deadline=None)
@given(TURNS)
def test_any_orientation_is_read(
    tmp_path_factory: pytest.TempPathFactory, turn: tuple[float, ...]
) -> None:
    matrix = rotation(turn)
    folder = tmp_path_factory.mktemp("series")
    write_series(folder, ARRAY, orientation=(*matrix[:, 0], *matrix[:, 1]))
    image = read_image([folder])
    assert (image.array[0] == ARRAY).all()
    assert np.reshape(image.geometry.direction, (3, 3)) == pytest.approx(matrix, abs=1e-6)
    assert image.geometry.spacing_mm == pytest.approx((0.7, 1.25, 3.0), abs=1e-6)
    first = np.array([1.0, 2.0, 0.0]) + 30 * matrix[:, 2]
    assert image.geometry.origin_mm == pytest.approx(first, abs=1e-6)


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY, [round(1.25 * z, 1) for z in range(7)])
    assert read_image([tmp_path]).geometry.spacing_mm[2] == pytest.approx(1.25, abs=0.02)


def test_a_missing_slice_is_told(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY)
    (tmp_path / "97.dcm").unlink()
    told = r"3 to 6 mm .* 3; .*98\.dcm and 96\.dcm"
    with pytest.raises(DataError, match=told):
        read_image([tmp_path])


def test_a_slice_that_is_there_twice_is_told(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY)
    shutil.copy(tmp_path / "97.dcm", tmp_path / "copy.dcm")
    with pytest.raises(DataError, match=r"97\.dcm and copy\.dcm"):
        read_image([tmp_path])


def test_several_phases_in_one_series_are_told(tmp_path: Path) -> None:
    for phase in ("early", "late"):
        write_series(tmp_path / phase, ARRAY, SeriesInstanceUID="1.2.3")
        for file in (tmp_path / phase).iterdir():
            file.rename(tmp_path / f"{phase} {file.name}")
    with pytest.raises(DataError, match=r"2 slices .* 7 positions"):
        read_image([tmp_path])


def test_slices_of_another_size_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY, SeriesInstanceUID="1.2.3")
    write_series(tmp_path / "b", ARRAY[:3], [60], SeriesInstanceUID="1.2.3")
    shutil.move(tmp_path / "b" / "100.dcm", tmp_path / "other.dcm")
    with pytest.raises(DataError, match="5 x 3 and 3 x 3"):
        read_image([tmp_path])


def test_pixels_of_another_size_are_told(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY, SeriesInstanceUID="1.2.3")
    write_series(tmp_path / "b", ARRAY, [51], SeriesInstanceUID="1.2.3", PixelSpacing=[2, 2])
    shutil.move(tmp_path / "b" / "100.dcm", tmp_path / "other.dcm")
    with pytest.raises(DataError, match="pixel sizes"):
        read_image([tmp_path])


def test_slices_turned_against_each_other_are_told(tmp_path: Path) -> None:
    slanted = (1.0, 0.0, 0.0, 0.0, np.cos(0.2), np.sin(0.2))
    write_series(tmp_path, ARRAY, SeriesInstanceUID="1.2.3")
    write_series(tmp_path / "b", ARRAY, [60], slanted, SeriesInstanceUID="1.2.3")
    shutil.move(tmp_path / "b" / "100.dcm", tmp_path / "other.dcm")
    with pytest.raises(DataError, match="orientations"):
        read_image([tmp_path])


def test_a_tilted_gantry_is_told(tmp_path: Path) -> None:
    import pydicom

    for file in write_series(tmp_path, ARRAY):
        header = pydicom.dcmread(file)
        x, y, z = header.ImagePositionPatient
        header.ImagePositionPatient = [x, y + 0.1 * z, z]
        header.save_as(file)
    with pytest.raises(DataError, match=r"1\.8 mm"):
        read_image([tmp_path])


def test_slices_with_scales_of_their_own(tmp_path: Path) -> None:
    """As in PET; the first one's values are whole numbers, those of the others are not."""
    import pydicom

    slopes = np.array([1, 0.5, 0.7, 0.9, 1.1, 0.25, 0.3])
    for file, slope in zip(write_series(tmp_path, ARRAY), slopes, strict=True):
        header = pydicom.dcmread(file)
        header.RescaleSlope, header.RescaleIntercept = slope, -3
        header.save_as(file)
    image = read_image([tmp_path], own_type=True)
    assert image.array[0] == pytest.approx(ARRAY * slopes - 3, rel=1e-6)


def test_slices_of_which_one_states_no_scale_are_refused(tmp_path: Path) -> None:
    import pydicom

    for file in write_series(tmp_path, ARRAY)[2:3]:
        header = pydicom.dcmread(file)
        del header.RescaleSlope, header.RescaleIntercept
        header.save_as(file)
    with pytest.raises(DataError, match="1 slice of 7 without RescaleSlope"):
        read_image([tmp_path])


def test_one_slice_has_no_gaps(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY[:, :, :1])
    assert read_image([tmp_path]).geometry.size == (5, 3, 1)


def test_a_folder_without_a_series_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 DICOM series"):
        read_image([tmp_path])


def test_a_slice_stands_for_its_series(tmp_path: Path) -> None:
    first = write_series(tmp_path / "a", ARRAY)
    second = write_series(tmp_path / "b", -ARRAY)
    for file in second:
        file.rename(tmp_path / "a" / file.stem)  # no ending, as archives name them
    with pytest.raises(DataError, match="2 DICOM series"):
        read_image([tmp_path / "a"])
    assert (read_image([first[3]]).array[0] == ARRAY).all()
    assert (read_image([tmp_path / "a" / "95"]).array[0] == -ARRAY).all()
    assert read_geometry(first[3]).size == (5, 3, 7)
    assert len(files_of(first[3])) == 14


def test_a_localiser_beside_a_series_does_not_count(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY)
    write_series(tmp_path / "b", ARRAY[:, :, :2], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    for file in (tmp_path / "b").iterdir():
        file.rename(tmp_path / f"localiser {file.name}")
    assert (read_image([tmp_path]).array[0] == ARRAY).all()


def test_objects_that_are_no_slices_are_named(tmp_path: Path) -> None:
    def reason(name: str) -> str:
        (other,) = read_contents([tmp_path / name]).others
        return other.reason

    save(make_object(REPORT, "SR"), tmp_path / "report")
    save(make_object(f"{STORAGE}66", "OT"), tmp_path / "raw")
    save(make_slice(ARRAY[:, :, 0], SECONDARY_CAPTURE), tmp_path / "screen")
    save(make_slice(ARRAY[:, :, 0]), tmp_path / "placeless")
    save(make_object("1.2.840.10008.1.3.10", ""), tmp_path / "DICOMDIR")
    film, colour = (make_slice(ARRAY[:, :, 0], SECONDARY_CAPTURE) for _ in range(2))
    film.NumberOfFrames = 3
    colour.SamplesPerPixel = 3
    save(film, tmp_path / "film")
    save(colour, tmp_path / "colour")
    assert reason("report") == "a structured report"
    assert reason("raw") == "an object without an image (OT)"
    assert reason("screen") == reason("placeless") == "an image without a position in the patient"
    assert reason("DICOMDIR") == "an index of files (DICOMDIR)"
    assert reason("film") == "a film of several frames"
    assert reason("colour") == "a colour image"
    with pytest.raises(DataError, match=r"report: .*\(a structured report\)"):
        find_series(tmp_path / "report")


@pytest.mark.parametrize("kept", [200, 600])
def test_a_slice_cut_off_in_its_header_is_not_overlooked(tmp_path: Path, kept: int) -> None:
    """Without it the rest could look like a whole, shorter series."""
    last = write_series(tmp_path, ARRAY)[-1]
    last.write_bytes(last.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"94\.dcm: damaged DICOM file"):
        read_image([tmp_path])


def test_a_slice_cut_off_in_its_pixels_is_told(tmp_path: Path) -> None:
    last = write_series(tmp_path, ARRAY)[-1]
    last.write_bytes(last.read_bytes()[:-10])
    with pytest.raises(DataError, match="cannot be read"):
        read_image([tmp_path])


def test_the_mark_tells_dicom(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"DICM")
    (tmp_path / "no").write_bytes(bytes(200))
    (first, *_) = write_series(tmp_path, ARRAY)
    shutil.copy(first, tmp_path / ".hidden.dcm")
    assert not any(is_dicom(tmp_path / name) for name in ("short", "no", "missing", "."))
    assert is_dicom(first)
    assert len(dicom_files(tmp_path)) == 7
