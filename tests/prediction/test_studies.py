"""Studies as on a CD or in an archive: put together, named, chosen, and unpacked."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from autoseg.common.errors import AutosegError, DataError
from autoseg.image.image import read_image
from autoseg.prediction.inputs import find_inputs, unpacked
from autoseg.prediction.studies import find_studies, series_choice
from tests.dicom_series import write_enhanced, write_series

ARRAY = np.arange(4 * 3 * 5, dtype=np.int16).reshape(4, 3, 5)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def names(root: Path, name_by: str = "patient") -> list[str]:
    studies = find_studies(root, name_by)
    assert studies.refused == {}
    return [scan.name for scan in studies.scans]


def change(files: list[Path], **tags: Any) -> None:
    for file in files:
        header = pydicom.dcmread(file)
        for name, value in tags.items():
            setattr(header, name, value)
        header.save_as(file)


def test_cases_are_named_by_patient_id_and_series_number(tmp_path: Path) -> None:
    write_series(tmp_path / "DOE^JANE" / "a", ARRAY, PatientID="P 1/x", SeriesNumber=3)
    write_series(tmp_path / "DOE^JANE" / "b", ARRAY, PatientID="P 1/x", SeriesNumber=4)
    assert names(tmp_path) == ["P_1_x_3", "P_1_x_4"]
    assert names(tmp_path, "folder") == ["DOE^JANE_a", "DOE^JANE_b"]


def test_names_are_unique_where_case_is_ignored(tmp_path: Path) -> None:
    for folder, patient, uid in (("a", "p", "1.2.77"), ("b", "P", "1.2.88"), ("c", "p", "1.2.77")):
        write_series(tmp_path / folder, ARRAY, PatientID=patient, SeriesInstanceUID=uid)
    assert names(tmp_path) == ["p_4_77", "P_4_88", "p_4_77_2"]
    assert names(tmp_path, "uid") == ["1.2.77", "1.2.88", "1.2.77_2"]


@pytest.mark.parametrize("patient", ["", "Doe^Jane", None])
def test_no_name_of_a_patient(tmp_path: Path, patient: str | None) -> None:
    write_series(tmp_path / "Doe", ARRAY, PatientID=patient, PatientName="DOE^JANE")
    assert names(tmp_path) == ["unknown_4"]
    assert "doe" not in str(find_studies(tmp_path).listed).casefold()


def test_a_number_in_a_name_is_no_channel(tmp_path: Path) -> None:
    write_series(tmp_path / "a", ARRAY, SeriesNumber=1001)
    write_series(tmp_path / "b", ARRAY, SeriesNumber=1000)
    assert list(find_inputs(tmp_path, ("T1", "T2")).cases) == ["p1_1000", "p1_1001"]


def test_one_series_uid_and_folder_a_slice(tmp_path: Path) -> None:
    for number, file in enumerate(write_series(tmp_path / "made", ARRAY)):
        change([file], SeriesInstanceUID=f"1.2.{number}")
        (tmp_path / "in" / str(number)).mkdir(parents=True)
        file.rename(tmp_path / "in" / str(number) / "1")
    (scan,) = find_studies(tmp_path / "in").scans
    assert np.array_equal(read_image([scan.path]).array[0], ARRAY)


def test_a_last_slice_with_a_uid_of_its_own_is_not_lost(tmp_path: Path) -> None:
    change(write_series(tmp_path, ARRAY)[-1:], SeriesInstanceUID="1.2.3")
    studies = find_studies(tmp_path)
    assert studies.scans == []
    assert len(studies.refused) == 2


def test_overlapping_parts_of_a_series(tmp_path: Path) -> None:
    """An archive that copies some slices into both folders."""
    files = write_series(tmp_path / "a", ARRAY)
    (tmp_path / "b").mkdir()
    for file in files[2:]:
        (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    for file in files[4:]:
        file.unlink()
    (scan,) = find_studies(tmp_path).scans
    assert np.array_equal(read_image([scan.path]).array[0], ARRAY)


def test_a_scan_in_several_planes_is_refused_unless_it_is_a_localiser(tmp_path: Path) -> None:
    same: dict[str, Any] = {"SeriesInstanceUID": "1.2.3", "StudyInstanceUID": "1.2"}
    for orientation in (None, SAGITTAL):
        made = tmp_path / "made"
        more = {} if orientation is None else {"orientation": orientation}
        for file in write_series(made, np.dstack([ARRAY] * 3), **more, **same):
            file.rename(tmp_path / f"{orientation is None}{file.name}")
    (reason,) = find_studies(tmp_path).refused.values()
    assert "several planes" in reason
    change(list(tmp_path.glob("*.dcm")), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    studies = find_studies(tmp_path)
    assert studies.refused == {}
    assert list(studies.passed_over.values()) == ["a localiser"]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("Modality=CT", ["p1_1", "p1_2"]),
        ("modality = CT", None),
        ("Modality=ct and SliceThickness<=2", ["p1_1"]),
        ("Modality=CT AND SliceThickness>2", ["p1_2"]),
        ("ImageType=AXIAL and SeriesNumber!=2", ["p1_1", "p1_3"]),
        ("SliceThickness=3.0 and SeriesNumber>=2", ["p1_2", "p1_3"]),
        ("1.2.333", ["p1_3"]),
        ("EchoTime<100", []),
        ("SliceThickness<thin", None),
        ("Modality", None),
        ("1.2.334", []),
    ],
)
def test_series_are_chosen(tmp_path: Path, text: str, chosen: list[str] | None) -> None:
    write_series(tmp_path / "a", ARRAY, SeriesNumber=1, SliceThickness=1)
    write_series(tmp_path / "b", ARRAY, SeriesNumber=2)
    mr: dict[str, Any] = {"Modality": "MR", "SeriesInstanceUID": "1.2.333"}
    write_series(tmp_path / "c", ARRAY, SeriesNumber=3, **mr)
    if chosen is None:
        with pytest.raises(AutosegError, match="--series"):
            series_choice(text)
        return
    studies = find_studies(tmp_path, choice=series_choice(text))
    assert [scan.name for scan in studies.scans] == chosen
    assert list(studies.listed) == ["p1_1", "p1_2", "p1_3"]


def test_a_choice_of_nothing_lists_the_series(tmp_path: Path) -> None:
    write_series(tmp_path, ARRAY)
    with pytest.raises(DataError, match=r"p1_4: CT, series 4, 4 x 3 x 5 voxels of 0\.7 x 1"):
        find_inputs(tmp_path, ("CT",), choice=series_choice("Modality=MR"))


def test_tags_of_enhanced_objects_are_chosen(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "1", ARRAY[:, :, :4], (0, 1, 2, 3))
    assert len(find_studies(tmp_path, choice=series_choice("SliceThickness<=3")).scans) == 1
    assert find_studies(tmp_path, choice=series_choice("SliceThickness<3")).scans == []


def zipped(path: Path, files: dict[str, bytes], mode: int = stat.S_IFREG) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)
    return path


def test_a_zip_file_is_read_and_leaves_nothing_behind(tmp_path: Path) -> None:
    files = write_series(tmp_path / "a" / "b", ARRAY)
    content = {str(file.relative_to(tmp_path)): file.read_bytes() for file in files}
    path = zipped(tmp_path / "study.zip", content)
    with unpacked(path) as folder:
        (source,) = find_inputs(folder, ("CT",)).cases["p1_4"]
        assert np.array_equal(read_image([source]).array[0], ARRAY)
        assert folder.name == "study"
    assert not folder.parent.exists()
    with unpacked(tmp_path / "a") as folder:
        assert folder == tmp_path / "a"


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\..\\x", "c:x"])
def test_a_zip_file_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "a.zip", {name: b"x"})
    with pytest.raises(DataError, match=r"a\.zip: .* outside"), unpacked(path):
        pass


def test_hostile_and_damaged_zip_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipped(tmp_path / "link.zip", {"x": b"/etc"}, stat.S_IFLNK)
    with pytest.raises(DataError, match="is a link"), unpacked(link):
        pass
    bad = tmp_path / "bad.zip"
    bad.write_bytes(link.read_bytes()[:20])
    with pytest.raises(DataError, match=r"bad\.zip: not a valid zip"), unpacked(bad):
        pass
    bomb = zipped(tmp_path / "bomb.zip", {"x": bytes(10**6)})
    monkeypatch.setattr("autoseg.prediction.inputs.SMALL_BYTES", 1000)
    with pytest.raises(DataError, match="zip bomb"), unpacked(bomb):
        pass
