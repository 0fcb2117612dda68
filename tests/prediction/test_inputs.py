from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from autoseg.common.errors import DataError
from autoseg.image.dicom_series import Source
from autoseg.image.image import read_image
from autoseg.prediction.inputs import find_inputs
from autoseg.prediction.studies import Studies, find_studies
from tests.dataset.making import touch
from tests.dicom_series import (
    REPORT,
    STORAGE,
    make_object,
    make_slice,
    save,
    write_series,
)

ONE, TWO = ("CT",), ("T1", "T2")
ARRAY = np.arange(4 * 3 * 5, dtype=np.int16).reshape(4, 3, 5)


def found(path: Path, channels: tuple[str, ...] = ONE) -> dict[str, list[str]]:
    """The file names of each case, if nothing is refused."""
    inputs = find_inputs(path, channels, "folder")
    assert inputs.refused == {}
    return {case: [Path(str(file)).name for file in files] for case, files in inputs.cases.items()}


def refused(path: Path, channels: tuple[str, ...] = ONE) -> dict[str, str]:
    return find_inputs(path, channels, "folder").refused


def test_case_names_have_no_channel_number(tmp_path: Path) -> None:
    touch(tmp_path, "b_0000.nii.gz", "a.nrrd", "Müller 3_0000.MHA", "c.d_0000.nii")
    assert found(tmp_path) == {
        "Müller 3": ["Müller 3_0000.MHA"],
        "a": ["a.nrrd"],
        "b": ["b_0000.nii.gz"],
        "c.d": ["c.d_0000.nii"],
    }


def test_channels_are_sorted_by_number(tmp_path: Path) -> None:
    touch(tmp_path, "a_0001.nii.gz", "a_0000.nrrd", "b.nii.gz")
    assert found(tmp_path, TWO) == {"a": ["a_0000.nrrd", "a_0001.nii.gz"], "b": ["b.nii.gz"]}


def test_other_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "._a.nii.gz", ".DS_Store", "notes.txt", "deep/b.nii.gz", "x.raw")
    assert found(tmp_path) == {"a": ["a.nii.gz"]}


def test_miscnn_folders_are_cases(tmp_path: Path) -> None:
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
def test_a_folder_without_scans_lists_the_supported_formats(
    tmp_path: Path, names: list[str]
) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=r"\.nii\.gz, "):
        find_inputs(tmp_path, ONE)


def test_a_folder_of_other_objects_lists_them(tmp_path: Path) -> None:
    save(make_object(REPORT, "SR"), tmp_path / "a" / "1")
    with pytest.raises(DataError, match=r"a/1: a structured report$"):
        find_inputs(tmp_path, ONE)


def test_a_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        find_inputs(tmp_path / "nowhere", ONE)


def test_a_file_that_is_not_a_scan(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"notes\.txt: .*\.nii\.gz"):
        find_inputs(tmp_path / "notes.txt", ONE)


def test_a_missing_channel_does_not_stop_the_other_cases(tmp_path: Path) -> None:
    touch(tmp_path, "a_0001.nii.gz", "b.nii.gz")
    inputs = find_inputs(tmp_path, TWO)
    assert list(inputs.cases) == ["b"]
    assert list(inputs.refused) == ["a"]
    assert "a_0000" in inputs.refused["a"]
    assert inputs.refused["a"].endswith("T1, T2")


def test_a_missing_channel_between_others_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0003.nii.gz")
    assert "a_0001 is missing" in refused(tmp_path, ("a", "b", "c", "d"))["a"]


@pytest.mark.parametrize(
    "names", [["a.nii.gz", "a.nrrd"], ["a.nii.gz", "a_0000.nii.gz"], ["a_0000.nii", "a_0000.mha"]]
)
def test_duplicate_files_do_not_stop_the_other_cases(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names, "b.nii")
    inputs = find_inputs(tmp_path, ONE)
    assert list(inputs.cases) == ["b"]
    (reason,) = inputs.refused.values()
    assert all(str(tmp_path / name) in reason for name in names)


def test_a_number_above_the_last_channel_belongs_to_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "scan_2021.nii.gz", "scan_2022.nii.gz", "case_0001.nii.gz")
    assert sorted(found(tmp_path)) == ["case_0001", "scan_2021", "scan_2022"]


def test_numbers_are_taken_for_channels_and_said_to_be(tmp_path: Path) -> None:
    """Three scans, or three channels of one: only a person can know."""
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz")
    (reason,) = refused(tmp_path).values()
    assert "a_0001.nii.gz" in reason
    assert "one channel, CT" in reason
    assert list(refused(tmp_path)) == ["a"]


def test_a_surplus_channel_stays_with_its_case(tmp_path: Path) -> None:
    """So the number of channels is refused; otherwise a part of the scan would be predicted."""
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz")
    assert list(found(tmp_path, TWO)) == ["a"]


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


def test_a_slice_of_an_incomplete_volume_is_refused(tmp_path: Path) -> None:
    files = write_series(tmp_path, ARRAY)
    files[3].unlink()
    with pytest.raises(DataError, match=re.escape(str(files[0]))):
        find_inputs(files[0], ONE)
    with pytest.raises(DataError, match="single slice"):
        find_inputs(write_series(tmp_path / "b", ARRAY[:, :, :1])[0], ONE)


def test_a_series_may_be_a_channel(tmp_path: Path) -> None:
    write_series(tmp_path / "study" / "p_0000", ARRAY)
    write_series(tmp_path / "study" / "p_0001", ARRAY)
    assert found(tmp_path, TWO) == {"study_p": ["p_0000", "p_0001"]}
    assert found(tmp_path / "study", TWO) == {"p": ["p_0000", "p_0001"]}


def test_folders_that_are_only_a_number_are_not_channels(tmp_path: Path) -> None:
    write_series(tmp_path / "p" / "0000", ARRAY)
    write_series(tmp_path / "p" / "0001", ARRAY)
    assert sorted(found(tmp_path)) == ["p_0000", "p_0001"]


SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def named(studies: Studies) -> dict[str, Source]:
    """Case names and paths of a tree, if nothing is refused."""
    assert studies.refused == {}
    return {scan.name: scan.path for scan in studies.scans}


def gather(files: Sequence[Path], folder: Path, prefix: str) -> None:
    """Move files into a folder that may hold others."""
    folder.mkdir(exist_ok=True)
    for file in files:
        file.rename(folder / f"{prefix}{file.stem}")


def test_a_tree_of_any_depth(tmp_path: Path) -> None:
    write_series(tmp_path / "PA01" / "ST01" / "SE01", ARRAY)
    write_series(tmp_path / "PA01" / "ST01" / "SE02", -ARRAY)
    write_series(tmp_path / "PA02" / "2020" / "Thorax" / "a b" / "SE01", ARRAY)
    write_series(tmp_path / "loose", ARRAY)
    (tmp_path / "PA01" / ".trash").mkdir()
    write_series(tmp_path / "PA01" / ".trash" / "SE03", ARRAY)
    found = named(find_studies(tmp_path, "folder"))
    assert found == {
        "PA01_ST01_SE01": tmp_path / "PA01" / "ST01" / "SE01",
        "PA01_ST01_SE02": tmp_path / "PA01" / "ST01" / "SE02",
        "PA02_2020_Thorax_a b_SE01": tmp_path / "PA02" / "2020" / "Thorax" / "a b" / "SE01",
        "loose": tmp_path / "loose",
    }
    assert (read_image([found["PA01_ST01_SE02"]]).array[0] == -ARRAY).all()


def test_several_series_in_one_folder_are_separate_cases(tmp_path: Path) -> None:
    export = tmp_path / "export"
    for number, factor in ((2, 1), (5, -1), (11, 2)):
        files = write_series(tmp_path / "made", factor * ARRAY, SeriesNumber=number)
        gather(files, export, f"IM{number}")
    found = named(find_studies(tmp_path, "folder"))
    assert list(found) == ["export_series2", "export_series5", "export_series11"]
    assert (read_image([found["export_series5"]]).array[0] == -ARRAY).all()
    assert (read_image([found["export_series11"]]).array[0] == 2 * ARRAY).all()
    assert list(named(find_studies(export, "folder"))) == list(found)


@pytest.mark.parametrize("number", [3, None])
def test_series_with_the_same_number_get_unique_names(tmp_path: Path, number: int | None) -> None:
    for identity in ("1.2.77", "1.2.88"):
        files = write_series(
            tmp_path / "made", ARRAY, SeriesNumber=number, SeriesInstanceUID=identity
        )
        gather(files, tmp_path / "ct", identity)
    shown = number or ""
    names = [f"ct_series{shown}_77", f"ct_series{shown}_88"]
    assert list(named(find_studies(tmp_path, "folder"))) == names


def test_what_is_not_a_volume_is_passed_over(tmp_path: Path) -> None:
    ct = tmp_path / "ct"
    write_series(ct, ARRAY, SeriesNumber=2)
    localiser = write_series(
        tmp_path / "made", ARRAY[:, :, :2], SeriesNumber=1, ImageType=["ORIGINAL", "X", "LOCALIZER"]
    )
    gather(localiser, ct, "localiser")
    single = write_series(tmp_path / "made", ARRAY[:, :, :1], SeriesNumber=8)
    gather(single, ct, "single")
    planes = write_series(tmp_path / "made", ARRAY, SeriesInstanceUID="1.2.3", SeriesNumber=9)
    gather(planes, ct, "axial")
    planes = write_series(
        tmp_path / "made", ARRAY, None, SAGITTAL, SeriesInstanceUID="1.2.3", SeriesNumber=9
    )
    gather(planes, ct, "sagittal")
    for name in ("r1", "r2", "r3"):
        save(make_object(REPORT, "SR"), ct / name)
    save(make_object("1.2.840.10008.1.3.10", ""), tmp_path / "DICOMDIR")
    studies = find_studies(tmp_path, "folder")
    assert named(studies) == {"ct": ct}
    assert studies.passed_over == {
        "DICOMDIR": "an index of files (DICOMDIR)",
        str(Path("ct") / "r1"): "a structured report (and 2 more like it)",
        "ct_series1": "a localiser",
        "ct_series8": "a single slice: a localiser or an image, not a volume",
        "ct_series9": "its slices lie in several planes: a localiser, not a volume",
    }
    assert (read_image([ct]).array[0] == ARRAY).all()


def test_bad_series_do_not_stop_the_others(tmp_path: Path) -> None:
    write_series(tmp_path / "good", ARRAY)
    write_series(tmp_path / "gap", ARRAY)[2].unlink()
    damaged = write_series(tmp_path / "p" / "damaged", ARRAY)[-1]
    damaged.write_bytes(damaged.read_bytes()[:300])
    enhanced = make_slice(ARRAY[:, :, 0], f"{STORAGE}2.1")
    enhanced.NumberOfFrames = 5
    save(enhanced, tmp_path / "enhanced" / "1")
    studies = find_studies(tmp_path, "folder")
    assert [scan.name for scan in studies.scans] == ["good"]
    assert sorted(studies.refused) == [str(Path("enhanced") / "1"), "gap", "p_damaged"]
    assert f"{tmp_path / 'gap'}, series 4: neighbouring slices are" in studies.refused["gap"]
    assert f"{damaged}: damaged DICOM file" in studies.refused["p_damaged"]
    assert "a multi-frame object" in studies.refused[str(Path("enhanced") / "1")]
    assert studies.passed_over == {}


@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4]], [[0, 2, 4], [1, 3]], [[0, 1, 2, 3], [4]]])
def test_a_series_split_over_folders_is_one_scan(tmp_path: Path, parts: list[list[int]]) -> None:
    """Each part alone looks like a complete series."""
    files = write_series(tmp_path / "made", ARRAY)
    for number, part in enumerate(parts):
        gather([files[z] for z in part], tmp_path / f"disc{number}", "")
    studies = find_studies(tmp_path, "folder")
    ((name, source),) = named(studies).items()
    assert name == "disc0"
    assert (read_image([source]).array[0] == ARRAY).all()


def test_a_series_whose_parts_have_a_gap_is_refused(tmp_path: Path) -> None:
    """Two parts of three: each alone looks like a complete series."""
    files = write_series(tmp_path / "made", ARRAY)
    gather(files[:2], tmp_path / "disc0", "")
    gather(files[3:], tmp_path / "disc2", "")
    files[2].unlink()
    studies = find_studies(tmp_path)
    assert studies.scans == []
    (reason,) = studies.refused.values()
    assert "disc0 and" in reason
    assert "3 to 6 mm" in reason


def test_copies_of_a_series_are_separate_scans(tmp_path: Path) -> None:
    """The same holds for tools that write the same UID everywhere."""
    for name in ("a", "b"):
        write_series(tmp_path / name, ARRAY, SeriesInstanceUID="1.2.3", SOPInstanceUID="1.2.4")
    assert sorted(named(find_studies(tmp_path, "folder"))) == ["a", "b"]


def test_circular_links(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", ARRAY)
    write_series(tmp_path / "elsewhere", ARRAY)
    try:
        os.symlink(tmp_path / "in", tmp_path / "in" / "a" / "back", target_is_directory=True)
        os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "b", target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    assert sorted(named(find_studies(tmp_path / "in", "folder"))) == ["a", "b"]
