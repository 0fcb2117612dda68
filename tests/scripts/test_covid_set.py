from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import covid_set
import pytest
from covid_set import ARCHIVES, CASES, LABELS, Archive, lay_out, patient_of, published
from make_phantom import HEADERS
from make_phantom import main as make_phantom

from autoseg.common.errors import AutosegError, DataError
from autoseg.dataset.declaration import declaration_of
from autoseg.dataset.splits import make_splits
from autoseg.dataset.task import read_task
from autoseg.planner.overrides import plans_folder, read_layer

Zips = dict[Archive, Path]


@pytest.fixture
def given(archives: tuple[Archive, ...], zips: Path) -> Zips:
    return {archive: zips / archive.name for archive in archives}


def repacked(path: Path, to: Path, keep: Callable[[str], str | None]) -> Path:
    """A copy of a zip whose files are renamed, or left out where the new name is None."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for member in old.infolist():
            if name := keep(member.filename):
                new.writestr(name, old.read(member))
    return to


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


EXPECTED = {
    "dataset.json",
    *(f"imagesTr/{case}_0000.nii.gz" for case in CASES),
    *(f"labelsTr/{case}.nii.gz" for case in CASES),
}


def test_the_cases_are_those_whose_headers_are_known() -> None:
    with HEADERS.open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == list(CASES)


def test_patients() -> None:
    assert patient_of("radiopaedia_10_85902_1") == patient_of("radiopaedia_10_85902_3") is not None
    assert patient_of("radiopaedia_29_86490_1") == patient_of("radiopaedia_29_86491_1") is not None
    assert patient_of("radiopaedia_4_85506_1") != patient_of("radiopaedia_40_86625_0")
    assert patient_of("coronacases_001") is None


def test_scans_of_a_patient_are_never_on_both_sides_of_a_split() -> None:
    groups = published()["groups"]
    for folds in (2, 3, 4, 5):
        splits = make_splits(CASES, folds, groups=groups)
        assert sorted(case for split in splits for case in split.validation) == sorted(CASES)
        for split in splits:
            train = {groups[case] for case in split.train if case in groups}
            assert train.isdisjoint(groups[case] for case in split.validation if case in groups)


def test_the_declaration_is_one_that_autoseg_reads_and_the_papers_plan_counts_on() -> None:
    declared = declaration_of(published(), Path("dataset.json"))
    assert declared.channels == ("CT",)
    assert declared.licence == "CC BY-NC-SA"
    assert declared.case_count == len(CASES) == 20
    assert set(declared.groups) == {case for case in CASES if case.startswith("radiopaedia")}
    plan = read_layer(plans_folder() / "Task001_COVID.json5", "the plan").values
    assert plan["shares"] == [
        {"label": LABELS["infection"], "container": [LABELS["left lung"], LABELS["right lung"]]}
    ]


def test_the_phantom_is_declared_and_laid_out_as_the_set_is(
    given: Zips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(given, tmp_path / "set")
    arguments = ["make_phantom.py", str(tmp_path / "phantom"), "--scale", "0.02"]
    monkeypatch.setattr("sys.argv", arguments)
    make_phantom()
    assert files_below(tmp_path / "phantom") == files_below(tmp_path / "set") == EXPECTED
    phantom = json.loads((tmp_path / "phantom/dataset.json").read_text(encoding="utf-8"))
    told = ("name", "description", "reference", "licence")
    assert list(phantom) == list(published())
    assert phantom | {key: published()[key] for key in told} == published()


def test_laid_out_as_a_task(given: Zips, tmp_path: Path) -> None:
    lay_out(given, tmp_path / "Task001_COVID")
    task = read_task(tmp_path / "Task001_COVID")
    assert [case.name for case in task.cases] == sorted(CASES)
    assert task.labels == {name: (value,) for name, value in LABELS.items()}
    images, masks = (zipfile.ZipFile(path) for path in given.values())
    for case in task.cases:
        assert case.images[0].read_bytes() == images.read(f"{case.name}.nii.gz")
        assert case.label.read_bytes() == masks.read(f"{case.name}.nii.gz")


def test_files_may_lie_in_folders_of_the_archive_beside_others(given: Zips, tmp_path: Path) -> None:
    images, masks = given
    moved = repacked(given[images], tmp_path / "moved.zip", lambda name: f"a/b/{name}")
    with zipfile.ZipFile(moved, "a") as archive:
        for name in ("__MACOSX/._coronacases_001.nii.gz", "readme.txt", "coronacases_001"):
            archive.writestr(name, "x")
    lay_out({images: moved, masks: given[masks]}, tmp_path / "task")
    assert files_below(tmp_path / "task") == EXPECTED


@pytest.mark.parametrize(
    "name", ["../evil.nii.gz", "a/../../evil", "/etc/evil", "C:\\evil", "..\\evil", "C:evil"]
)
def test_an_archive_with_a_file_outside_its_folder_is_refused(
    given: Zips, tmp_path: Path, name: str
) -> None:
    images = next(iter(given))
    bad = repacked(given[images], tmp_path / "bad.zip", lambda kept: kept)
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(DataError, match="outside its folder; do not trust it"):
        lay_out({images: bad}, tmp_path / "place" / "task")
    assert files_below(tmp_path) == {"bad.zip"}


def test_a_file_too_large_to_be_one_of_the_set_is_refused(
    given: Zips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covid_set, "LARGEST_MEMBER", 100)
    with pytest.raises(DataError, match=r"bytes; no file of the set is larger than 100"):
        lay_out(given, tmp_path / "task")
    assert not (tmp_path / "task").exists()


def test_what_does_not_fit_on_the_disk_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"1000000000000.0 GB are needed, .* GB are free"):
        covid_set.check_space(tmp_path / "not" / "there" / "yet", 10**21)
    covid_set.check_space(tmp_path / "not" / "there" / "yet", 1)


def test_an_archive_without_a_case(given: Zips, tmp_path: Path) -> None:
    images = next(iter(given))
    bad = repacked(
        given[images], tmp_path / "bad.zip", lambda name: None if "_007" in name else name
    )
    with pytest.raises(DataError, match=r"lacks coronacases_007\.nii\.gz \(19 of 20"):
        lay_out({images: bad}, tmp_path / "task")
    with zipfile.ZipFile(given[images]) as whole, zipfile.ZipFile(bad, "a") as twice:
        for folder in ("a/", "b/"):
            twice.writestr(f"{folder}coronacases_007.nii.gz", whole.read("coronacases_007.nii.gz"))
    with pytest.raises(DataError, match=r".* coronacases_007\.nii\.gz twice"):
        lay_out({images: bad}, tmp_path / "task")


def test_a_damaged_archive_leaves_no_half_file(given: Zips, tmp_path: Path) -> None:
    images = next(iter(given))
    content = bytearray(given[images].read_bytes())
    with zipfile.ZipFile(given[images]) as archive:
        third = archive.getinfo("coronacases_003.nii.gz")
    content[third.header_offset + 200] ^= 255
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"coronacases_003\.nii\.gz cannot be unpacked: Bad CRC"):
        lay_out({images: tmp_path / "bad.zip"}, tmp_path / "task")
    assert files_below(tmp_path / "task") == {
        "imagesTr/coronacases_001_0000.nii.gz",
        "imagesTr/coronacases_002_0000.nii.gz",
    }
    (tmp_path / "bad.zip").write_text("no zip")
    with pytest.raises(DataError, match=r"\.zip"):
        lay_out({images: tmp_path / "bad.zip"}, tmp_path / "task")


def test_what_is_unpacked_stays_and_the_rest_is_added(given: Zips, tmp_path: Path) -> None:
    lay_out(given, tmp_path)
    gone = tmp_path / "labelsTr" / "coronacases_004.nii.gz"
    gone.unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    lay_out(given, tmp_path)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert after.keys() - before.keys() == {gone}
    assert before == {path: time for path, time in after.items() if path != gone}


def test_another_file_of_the_name_is_never_overwritten(given: Zips, tmp_path: Path) -> None:
    lay_out(given, tmp_path)
    mine = ARCHIVES[1].target(tmp_path, "coronacases_001")
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match="is another file than the one in"):
        lay_out(given, tmp_path)
    assert mine.read_bytes() == b"mine"
