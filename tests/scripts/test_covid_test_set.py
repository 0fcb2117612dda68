from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from covid_test_set import DECLARATION, FOLDER, lay_out_test_set

from autoseg.common.errors import DataError
from autoseg.image.image import read_label
from autoseg.planner.overrides import plans_folder, read_layer
from tests.dataset.making import write_scan


def make_case(folder: Path, case: str, scan: str = "_ct", annotated: bool = True) -> None:
    """Two files as the challenge has them."""
    rng = np.random.default_rng(len(case))
    write_scan(folder / f"{case}{scan}.nii.gz", rng.normal(0, 9, (8, 8, 4)).astype(np.int16))
    if annotated:
        label = (rng.random((8, 8, 4)) < 0.1).astype(np.uint8)
        write_scan(folder / f"{case}_seg.nii.gz", label)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


EXPECTED = {
    "dataset.json",
    "imagesTs/volume-covid19-A-0003_0000.nii.gz",
    "imagesTs/volume-covid19-A-0047_1_0000.nii.gz",
    "labelsTs/volume-covid19-A-0003.nii.gz",
    "labelsTs/volume-covid19-A-0047_1.nii.gz",
}


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    """As it unpacks: annotated scans in Train, others in Validation."""
    folder = tmp_path / "COVID-19-20_v2"
    make_case(folder / "Train", "volume-covid19-A-0003")
    make_case(folder / "Train", "volume-covid19-A-0047_1")
    make_case(folder / "Validation", "volume-covid19-A-0002", annotated=False)
    return folder


def test_the_challenges_folder(
    challenge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lay_out_test_set(challenge, tmp_path / "set") == 2
    assert files_below(tmp_path / "set") == EXPECTED
    scan = tmp_path / "set/imagesTs/volume-covid19-A-0003_0000.nii.gz"
    assert scan.samefile(challenge / "Train/volume-covid19-A-0003_ct.nii.gz")
    label, _ = read_label(tmp_path / "set/labelsTs/volume-covid19-A-0047_1.nii.gz")
    assert set(np.unique(label)) == {0, 1}
    declared = json.loads((tmp_path / "set/dataset.json").read_text(encoding="utf-8"))
    assert declared["labels"] == {"background": 0, "infection": 1}
    assert declared["numTest"] == 2
    said = capsys.readouterr().err
    assert "left out 1 scans without an annotation (_seg.nii.gz): volume-covid19-A-0002" in said


def test_a_second_time_changes_nothing(challenge: Path, tmp_path: Path) -> None:
    lay_out_test_set(challenge, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.gz")}
    lay_out_test_set(challenge, tmp_path / "set")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.gz")}


def test_the_set_may_lie_in_the_folder_that_it_is_made_of(challenge: Path) -> None:
    for _ in range(2):
        assert lay_out_test_set(challenge, challenge / "test_sets" / "COVID-19-20") == 2


def test_copies_where_links_are_not_possible(
    challenge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", no_links)
    lay_out_test_set(challenge, tmp_path / "set")
    assert files_below(tmp_path / "set") == EXPECTED
    copy = tmp_path / "set/imagesTs/volume-covid19-A-0003_0000.nii.gz"
    original = challenge / "Train/volume-covid19-A-0003_ct.nii.gz"
    assert not copy.samefile(original)
    assert copy.read_bytes() == original.read_bytes()


def test_the_archives_scans_with_the_challenges_annotations(tmp_path: Path) -> None:
    make_case(tmp_path / "tcia", "volume-covid19-A-0003", scan="", annotated=False)
    make_case(tmp_path / "challenge", "volume-covid19-A-0003")
    (tmp_path / "challenge/volume-covid19-A-0003_ct.nii.gz").unlink()
    assert lay_out_test_set(tmp_path, tmp_path / "set") == 1


def test_the_challenges_scan_is_taken_where_both_are_there(tmp_path: Path) -> None:
    make_case(tmp_path / "tcia", "volume-covid19-A-0003", scan="", annotated=False)
    make_case(tmp_path / "challenge", "volume-covid19-A-0003")
    lay_out_test_set(tmp_path, tmp_path / "set")
    scan = tmp_path / "set/imagesTs/volume-covid19-A-0003_0000.nii.gz"
    assert scan.samefile(tmp_path / "challenge/volume-covid19-A-0003_ct.nii.gz")


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    make_case(tmp_path / "Train", "patient_1")
    with pytest.raises(DataError, match=r"_seg\.nii\.gz.*found 0 scans and 0 annotations") as told:
        lay_out_test_set(tmp_path / "Train", tmp_path / "set")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "set").exists()
    with pytest.raises(DataError, match="nowhere"):
        lay_out_test_set(tmp_path / "nowhere", tmp_path / "set")


def test_two_files_for_the_same(challenge: Path, tmp_path: Path) -> None:
    make_case(challenge / "Again", "volume-covid19-A-0003")
    with pytest.raises(DataError, match=r"volume-covid19-A-0003.* and .*volume-covid19-A-0003"):
        lay_out_test_set(challenge, tmp_path / "set")


def test_the_papers_study_looks_for_it_where_it_is_laid_out() -> None:
    path = plans_folder() / "experiments" / "covid_sensitivity.json5"
    (held_out,) = read_layer(path, "the study").values["held_out"]
    assert held_out["images"] == f"test_sets/{FOLDER}/imagesTs"
    assert held_out["labels"] == f"test_sets/{FOLDER}/labelsTs"
    assert held_out["classes"] == {"infection": [DECLARATION["labels"]["infection"]]}
