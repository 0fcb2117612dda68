from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autoseg.common.errors import DataError
from autoseg.prediction.inputs import find_inputs
from tests.dataset.making import touch
from tests.dicom_series import REPORT, make_object, save, write_series

ONE, TWO = ("CT",), ("T1", "T2")
ARRAY = np.arange(4 * 3 * 5, dtype=np.int16).reshape(4, 3, 5)


def found(path: Path, channels: tuple[str, ...] = ONE) -> dict[str, list[str]]:
    """The names of each case's files, where nothing is refused."""
    inputs = find_inputs(path, channels)
    assert inputs.refused == {}
    return {case: [file.name for file in files] for case, files in inputs.cases.items()}


def refused(path: Path, channels: tuple[str, ...] = ONE) -> dict[str, str]:
    return find_inputs(path, channels).refused


def test_names_lose_the_number_of_the_channel(tmp_path: Path) -> None:
    touch(tmp_path, "b_0000.nii.gz", "a.nrrd", "Müller 3_0000.MHA", "c.d_0000.nii")
    assert found(tmp_path) == {
        "Müller 3": ["Müller 3_0000.MHA"],
        "a": ["a.nrrd"],
        "b": ["b_0000.nii.gz"],
        "c.d": ["c.d_0000.nii"],
    }


def test_channels_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    touch(tmp_path, "a_0001.nii.gz", "a_0000.nrrd", "b.nii.gz")
    assert found(tmp_path, TWO) == {"a": ["a_0000.nrrd", "a_0001.nii.gz"], "b": ["b.nii.gz"]}


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "._a.nii.gz", ".DS_Store", "notes.txt", "deep/b.nii.gz", "x.raw")
    assert found(tmp_path) == {"a": ["a.nii.gz"]}


def test_a_folder_a_case_as_it_was_trained_from(tmp_path: Path) -> None:
    touch(tmp_path, "b/imaging.nii.gz", "b/segmentation.nii.gz", "a 1/imaging_0000.nrrd", "c.nii")
    touch(tmp_path, "a 1/imaging_0001.nrrd", "results/b.nii.gz", "mixed/imaging.mha", "mixed/x.mha")
    assert found(tmp_path, TWO) == {
        "a 1": ["imaging_0000.nrrd", "imaging_0001.nrrd"],
        "b": ["imaging.nii.gz"],
        "c": ["c.nii"],
    }
    assert found(tmp_path / "b") == {"b": ["imaging.nii.gz"]}
    assert found(tmp_path / "mixed") == {"imaging": ["imaging.mha"], "x": ["x.mha"]}


@pytest.mark.parametrize("name", ["été 1.nii.gz", "été 1_0000.nii.gz"])
def test_a_single_file(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "other.nii.gz")
    assert found(tmp_path / name) == {"été 1": [name]}


@pytest.mark.parametrize("names", [["deep/a.nii.gz"], ["notes.txt"], []])
def test_a_folder_without_scans_says_what_is_known(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=r"holds no scan; known are files ending in \.nii\.gz, "):
        find_inputs(tmp_path, ONE)


def test_a_folder_of_other_objects_says_what_they_are(tmp_path: Path) -> None:
    save(make_object(REPORT, "SR"), tmp_path / "a" / "1")
    with pytest.raises(DataError, match=r"no scan; .*; passed over: a/1: a structured report$"):
        find_inputs(tmp_path, ONE)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        find_inputs(tmp_path / "nowhere", ONE)


def test_a_file_that_is_no_scan(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"notes\.txt: no scan; known are"):
        find_inputs(tmp_path / "notes.txt", ONE)


def test_a_gap_in_the_channels_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    touch(tmp_path, "a_0001.nii.gz", "b.nii.gz")
    inputs = find_inputs(tmp_path, TWO)
    assert list(inputs.cases) == ["b"]
    assert inputs.refused == {"a": "case a: a_0000 is missing; the model's channels are T1, T2"}


def test_a_gap_between_channels_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0003.nii.gz")
    assert "case a: a_0001 is missing" in refused(tmp_path, ("a", "b", "c", "d"))["a"]


@pytest.mark.parametrize(
    "names", [["a.nii.gz", "a.nrrd"], ["a.nii.gz", "a_0000.nii.gz"], ["a_0000.nii", "a_0000.mha"]]
)
def test_two_files_of_one_case_are_refused_and_the_others_go_on(
    tmp_path: Path, names: list[str]
) -> None:
    touch(tmp_path, *names, "b.nii")
    inputs = find_inputs(tmp_path, ONE)
    assert list(inputs.cases) == ["b"]
    (reason,) = inputs.refused.values()
    assert all(str(tmp_path / name) in reason for name in names)
    assert "are the same case; rename or remove one" in reason


def test_a_number_that_no_channel_has_belongs_to_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "scan_2021.nii.gz", "scan_2022.nii.gz", "case_0001.nii.gz")
    assert sorted(found(tmp_path)) == ["case_0001", "scan_2021", "scan_2022"]


def test_a_channel_too_many_stays_with_its_case(tmp_path: Path) -> None:
    """So that the count of channels is refused, not half a scan predicted."""
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    assert found(tmp_path) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}


def test_a_series_is_one_scan(tmp_path: Path) -> None:
    write_series(tmp_path / "Patient 1", ARRAY)
    write_series(tmp_path / "v1.2", ARRAY)
    touch(tmp_path, "v1.2/.DS_Store", "v1.2/notes.txt")
    (tmp_path / "empty").mkdir()
    assert found(tmp_path) == {"Patient 1": ["Patient 1"], "v1.2": ["v1.2"]}


def test_series_and_files_side_by_side(tmp_path: Path) -> None:
    write_series(tmp_path / "a", ARRAY)
    touch(tmp_path, "b.nrrd")
    assert sorted(found(tmp_path)) == ["a", "b"]
    touch(tmp_path, "a.nii.gz")
    assert list(refused(tmp_path)) == ["a"]


def test_the_folder_itself_may_be_a_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "chest", ARRAY)
    assert found(tmp_path / "chest") == {"chest": ["chest"]}
    monkeypatch.chdir(tmp_path / "chest")
    assert list(found(Path("."))) == ["chest"]


def test_a_slice_stands_for_its_series(tmp_path: Path) -> None:
    (first, *_) = write_series(tmp_path / "chest", ARRAY)
    assert found(first) == {"chest": ["chest"]}
    write_series(tmp_path / "more", ARRAY, SeriesNumber=7)
    for file in (tmp_path / "more").iterdir():
        file.rename(tmp_path / "chest" / f"more {file.name}")
    assert list(found(first)) == ["chest_series4"]
    assert list(found(tmp_path / "chest" / "more 97.dcm")) == ["chest_series7"]


def test_a_slice_of_no_volume_is_told(tmp_path: Path) -> None:
    files = write_series(tmp_path, ARRAY)
    files[3].unlink()
    with pytest.raises(DataError, match="slices are missing"):
        find_inputs(files[0], ONE)
    with pytest.raises(DataError, match="a single slice"):
        find_inputs(write_series(tmp_path / "b", ARRAY[:, :, :1])[0], ONE)


def test_a_series_may_be_a_channel(tmp_path: Path) -> None:
    write_series(tmp_path / "study" / "p_0000", ARRAY)
    write_series(tmp_path / "study" / "p_0001", ARRAY)
    assert found(tmp_path, TWO) == {"study_p": ["p_0000", "p_0001"]}
    assert found(tmp_path / "study", TWO) == {"p": ["p_0000", "p_0001"]}


def test_folders_that_are_only_a_number_are_no_channels(tmp_path: Path) -> None:
    write_series(tmp_path / "p" / "0000", ARRAY)
    write_series(tmp_path / "p" / "0001", ARRAY)
    assert sorted(found(tmp_path)) == ["p_0000", "p_0001"]
