from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from autoseg.image.image import read_image
from autoseg.prediction.inputs import Studies, find_studies
from tests.dicom_series import (
    REPORT,
    STORAGE,
    make_object,
    make_slice,
    save,
    write_series,
)

ARRAY = np.arange(4 * 3 * 5, dtype=np.int16).reshape(4, 3, 5)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def named(studies: Studies) -> dict[str, Path]:
    """Case names and paths of a tree in which nothing is refused."""
    assert studies.refused == {}
    return {scan.name: scan.path for scan in studies.scans}


def gather(files: Sequence[Path], folder: Path, prefix: str) -> None:
    """Put files into one folder with others."""
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
    found = named(find_studies(tmp_path))
    assert found == {
        "PA01_ST01_SE01": tmp_path / "PA01" / "ST01" / "SE01",
        "PA01_ST01_SE02": tmp_path / "PA01" / "ST01" / "SE02",
        "PA02_2020_Thorax_a b_SE01": tmp_path / "PA02" / "2020" / "Thorax" / "a b" / "SE01",
        "loose": tmp_path / "loose",
    }
    assert (read_image([found["PA01_ST01_SE02"]]).array[0] == -ARRAY).all()


def test_several_series_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    export = tmp_path / "export"
    for number, factor in ((2, 1), (5, -1), (11, 2)):
        files = write_series(tmp_path / "made", factor * ARRAY, SeriesNumber=number)
        gather(files, export, f"IM{number}")
    found = named(find_studies(tmp_path))
    assert list(found) == ["export_series2", "export_series5", "export_series11"]
    assert (read_image([found["export_series5"]]).array[0] == -ARRAY).all()
    assert (read_image([found["export_series11"]]).array[0] == 2 * ARRAY).all()
    assert list(named(find_studies(export))) == list(found)


@pytest.mark.parametrize("number", [3, None])
def test_series_of_the_same_number_have_names_of_their_own(
    tmp_path: Path, number: int | None
) -> None:
    for identity in ("1.2.77", "1.2.88"):
        files = write_series(
            tmp_path / "made", ARRAY, SeriesNumber=number, SeriesInstanceUID=identity
        )
        gather(files, tmp_path / "ct", identity)
    shown = number or ""
    assert list(named(find_studies(tmp_path))) == [f"ct_series{shown}_77", f"ct_series{shown}_88"]


def test_what_is_no_volume_is_passed_over_by_name(tmp_path: Path) -> None:
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
    studies = find_studies(tmp_path)
    assert named(studies) == {"ct": ct}
    assert studies.passed_over == {
        "DICOMDIR": "an index of files (DICOMDIR)",
        str(Path("ct") / "r1"): "a structured report (and 2 more like it)",
        "ct_series1": "a localiser",
        "ct_series8": "a single slice: a localiser or a picture, not a volume",
        "ct_series9": "its slices lie in several planes: a localiser, not a volume",
    }
    assert (read_image([ct]).array[0] == ARRAY).all()


def test_bad_series_are_refused_by_name_and_the_others_go_on(tmp_path: Path) -> None:
    write_series(tmp_path / "good", ARRAY)
    write_series(tmp_path / "gap", ARRAY)[2].unlink()
    damaged = write_series(tmp_path / "p" / "damaged", ARRAY)[-1]
    damaged.write_bytes(damaged.read_bytes()[:300])
    enhanced = make_slice(ARRAY[:, :, 0], f"{STORAGE}2.1")
    enhanced.NumberOfFrames = 5
    save(enhanced, tmp_path / "enhanced" / "1")
    studies = find_studies(tmp_path)
    assert [scan.name for scan in studies.scans] == ["good"]
    assert sorted(studies.refused) == [str(Path("enhanced") / "1"), "gap", "p_damaged"]
    assert f"{tmp_path / 'gap'}, series 4: neighbouring slices are" in studies.refused["gap"]
    assert f"{damaged}: damaged DICOM file" in studies.refused["p_damaged"]
    assert "a multi-frame object" in studies.refused[str(Path("enhanced") / "1")]
    assert studies.passed_over == {}


@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4]], [[0, 2, 4], [1, 3]], [[0, 1, 2, 3], [4]]])
def test_a_series_in_several_folders_is_not_taken_for_several(
    tmp_path: Path, parts: list[list[int]]
) -> None:
    """Each of its halves alone looks like a whole series."""
    files = write_series(tmp_path / "made", ARRAY)
    for number, part in enumerate(parts):
        gather([files[z] for z in part], tmp_path / f"disc{number}", "")
    studies = find_studies(tmp_path)
    assert studies.scans == []
    assert sorted(studies.refused) == ["disc0", "disc1"] or len(parts[1]) == 1
    assert all("hold parts of one series" in reason for reason in studies.refused.values())


def test_copies_of_a_series_are_scans_of_their_own(tmp_path: Path) -> None:
    """So are the series of tools that write one identity for all."""
    for name in ("a", "b"):
        write_series(tmp_path / name, ARRAY, SeriesInstanceUID="1.2.3", SOPInstanceUID="1.2.4")
    assert sorted(named(find_studies(tmp_path))) == ["a", "b"]


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a", ARRAY)
    write_series(tmp_path / "elsewhere", ARRAY)
    try:
        os.symlink(tmp_path / "in", tmp_path / "in" / "a" / "back", target_is_directory=True)
        os.symlink(tmp_path / "elsewhere", tmp_path / "in" / "b", target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    assert sorted(named(find_studies(tmp_path / "in"))) == ["a", "b"]
