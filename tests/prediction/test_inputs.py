from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.errors import DataError
from autoseg.prediction.inputs import find_inputs
from tests.dataset.making import touch

ONE, TWO = ("CT",), ("T1", "T2")


def found(path: Path, channels: tuple[str, ...] = ONE) -> dict[str, list[str]]:
    return {
        case: [file.name for file in files] for case, files in find_inputs(path, channels).items()
    }


def make_series(folder: Path, *extra: str) -> Path:
    """A folder that starts like a DICOM series."""
    touch(folder, "slice1", *extra)
    (folder / "slice1").write_bytes(bytes(128) + b"DICM" + bytes(20))
    return folder


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


@pytest.mark.parametrize("name", ["été 1.nii.gz", "été 1_0000.nii.gz"])
def test_a_single_file(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name, "other.nii.gz")
    assert found(tmp_path / name) == {"été 1": [name]}


@pytest.mark.parametrize("names", [["deep/a.nii.gz"], ["notes.txt"], []])
def test_a_folder_without_scans_says_what_is_known(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=r"holds no scan; known are files ending in \.nii\.gz, "):
        find_inputs(tmp_path, ONE)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        find_inputs(tmp_path / "nowhere", ONE)


def test_a_gap_in_the_channels_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a_0001.nii.gz", "b.nii.gz")
    with pytest.raises(DataError, match=r"case a: a_0000 is missing; .* channels are T1, T2"):
        find_inputs(tmp_path, TWO)


def test_a_gap_between_channels_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0003.nii.gz")
    with pytest.raises(DataError, match="case a: a_0001 is missing"):
        find_inputs(tmp_path, ("a", "b", "c", "d"))


@pytest.mark.parametrize(
    "names", [["a.nii.gz", "a.nrrd"], ["a.nii.gz", "a_0000.nii.gz"], ["a_0000.nii", "a_0000.mha"]]
)
def test_two_files_of_one_case_are_refused(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match="are the same case; rename or remove one"):
        find_inputs(tmp_path, ONE)


def test_a_number_that_no_channel_has_belongs_to_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "scan_2021.nii.gz", "scan_2022.nii.gz", "case_0001.nii.gz")
    assert sorted(found(tmp_path)) == ["case_0001", "scan_2021", "scan_2022"]


def test_a_channel_too_many_stays_with_its_case(tmp_path: Path) -> None:
    """So that the count of channels is refused, not half a scan predicted."""
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    assert found(tmp_path) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}


def test_a_series_is_one_scan(tmp_path: Path) -> None:
    make_series(tmp_path / "Patient 1", "slice2")
    make_series(tmp_path / "v1.2", ".DS_Store")
    (tmp_path / "empty").mkdir()
    assert found(tmp_path) == {"Patient 1": ["Patient 1"], "v1.2": ["v1.2"]}


def test_the_folder_itself_may_be_a_series(tmp_path: Path) -> None:
    make_series(tmp_path / "chest")
    assert found(tmp_path / "chest") == {"chest": ["chest"]}


def test_a_series_may_be_a_channel(tmp_path: Path) -> None:
    make_series(tmp_path / "p_0000")
    make_series(tmp_path / "p_0001")
    assert found(tmp_path, TWO) == {"p": ["p_0000", "p_0001"]}
