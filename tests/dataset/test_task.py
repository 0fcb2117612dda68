from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoseg.common.errors import DataError
from autoseg.dataset.corrections import save_corrections
from autoseg.dataset.task import find_task, read_task, without
from autoseg.image.image import read_image
from tests.dataset.making import (
    HIPPOCAMPUS,
    MSD,
    V2,
    declare,
    touch,
    write_4d,
    write_case,
    write_scan,
)

TWO_CHANNELS = {"channel_names": {"0": "T1", "1": "T2"}}


def test_reads_the_decathlon_layout() -> None:
    task = read_task(HIPPOCAMPUS)
    assert task.name == "Task004_Hippocampus"
    assert task.channels == ("MRI",)
    assert task.labels == {"background": (0,), "Anterior": (1,), "Posterior": (2,)}
    assert len(task.cases) == 40
    assert [case.name for case in task.cases] == sorted(case.name for case in task.cases)
    assert task.cases[0].name == "hippocampus_003"
    assert task.licence == "CC-BY-SA 4.0"


def test_decathlon_image_in_four_dimensions(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    fields = MSD | {"modality": {"0": "T1", "1": "T2"}}
    write_4d(declare(tmp_path, fields) / "imagesTr" / "a.nii.gz", array)
    touch(tmp_path, "labelsTr/a.nii.gz")
    (case,) = read_task(tmp_path).cases
    assert (read_image(case.images).array == array).all()


@pytest.mark.parametrize("written", ["./imagesTr/a.nii.gz", "imagesTr/a_0000.nii.gz"])
def test_decathlon_image_stands_for_its_channel_files(tmp_path: Path, written: str) -> None:
    training = [{"image": written, "label": "labelsTr/a.nii.gz"}]
    declare(tmp_path, MSD | {"modality": {"0": "T1", "1": "T2"}, "training": training})
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    (case,) = read_task(tmp_path).cases
    assert case.name == "a"
    assert [path.name for path in case.images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_reads_the_nnunet_layout_with_mixed_endings(tmp_path: Path) -> None:
    declare(tmp_path, V2 | TWO_CHANNELS | {"groups": {"p": ["a", "b"]}})
    touch(tmp_path, "imagesTr/b_0000.nrrd", "imagesTr/b_0001.nii.gz", "labelsTr/b.mha")
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    touch(tmp_path, "imagesTr/._a_0000.nii.gz", "labelsTr/notes.txt", "imagesTr/scan_2021.nii")
    touch(tmp_path, "labelsTr/scan_2021.nii")
    task = read_task(tmp_path)
    assert [case.name for case in task.cases] == ["a", "b", "scan_2021"]
    assert [path.name for path in task.cases[1].images] == ["b_0000.nrrd", "b_0001.nii.gz"]
    assert task.cases[1].label.name == "b.mha"
    assert task.groups == {"a": "p", "b": "p"}


def test_a_dicom_folder_is_a_channel(tmp_path: Path) -> None:
    declare(tmp_path, V2)
    touch(tmp_path, "imagesTr/a_0000/1.dcm", "labelsTr/a.nii.gz")
    (case,) = read_task(tmp_path).cases
    assert case.images[0].name == "a_0000"


def test_dicom_folders_in_the_decathlon_layout_and_by_path(tmp_path: Path) -> None:
    training = [{"image": "./imagesTr/p.1", "label": "./labelsTr/p.1.nrrd"}]
    touch(tmp_path, "imagesTr/p.1/1.dcm", "labelsTr/p.1.nrrd")
    (case,) = read_task(declare(tmp_path, MSD | {"training": training})).cases
    assert (case.name, case.images) == ("p.1", (tmp_path / "imagesTr" / "p.1",))
    files = {"images": ["imagesTr/p.1"], "label": "labelsTr/p.1.nrrd"}
    (case,) = read_task(declare(tmp_path, V2 | {"dataset": {"a": files}})).cases
    assert case.images == (tmp_path / "imagesTr" / "p.1",)


def test_explicit_paths_may_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCANS", str(tmp_path / "elsewhere"))
    touch(tmp_path, "elsewhere/x.nrrd", "labels/y.nii.gz")
    files = {"images": ["$SCANS/x.nrrd"], "label": "../labels/y.nii.gz"}
    task = read_task(declare(tmp_path / "task", V2 | {"dataset": {"case 1": files}}))
    assert task.cases[0].name == "case 1"
    assert all(path.exists() for path in (*task.cases[0].images, task.cases[0].label))


def test_all_missing_files_are_reported(tmp_path: Path) -> None:
    folder = tmp_path / "Task904"
    shutil.copytree(HIPPOCAMPUS, folder)
    (folder / "imagesTr" / "hippocampus_003.nii.gz").unlink()
    (folder / "labelsTr" / "hippocampus_008.nii.gz").unlink()
    task, problems = find_task(folder)
    assert len(task.cases) == 38
    assert [(problem.case, problem.file, problem.kind) for problem in problems] == [
        ("hippocampus_003", "imagesTr/hippocampus_003.nii.gz", "missing image"),
        ("hippocampus_008", "labelsTr/hippocampus_008.nii.gz", "missing label"),
    ]
    with pytest.raises(DataError, match=r"Task904 .*2 errors: .*_003.*_008") as caught:
        read_task(folder)
    assert "\n" not in str(caught.value)


def test_an_incomplete_set_can_be_used(tmp_path: Path) -> None:
    folder = declare(tmp_path, V2 | {"numTraining": 9})
    touch(folder, *(f"imagesTr/h_{i}_0000.nii.gz" for i in ("001", "003", "118")))
    touch(folder, *(f"labelsTr/h_{i}.nii.gz" for i in ("001", "003", "010", "281")))
    task, problems = find_task(folder)
    assert [(problem.case, problem.file) for problem in problems] == [
        ("h_010", "imagesTr/h_010_0000.*"),
        ("h_118", "labelsTr/h_118.*"),
        ("h_281", "imagesTr/h_281_0000.*"),
    ]
    assert read_task(folder, skip=["h_010", "h_118", "h_281"]) == task
    assert len(task.cases) == 2


def test_a_task_without_some_cases(tmp_path: Path) -> None:
    declare(tmp_path, V2 | {"groups": {"p": ["a", "b"], "q": ["c"]}})
    touch(
        tmp_path, *(f"imagesTr/{i}_0000.nii" for i in "abc"), *(f"labelsTr/{i}.nii" for i in "abc")
    )
    task = without(read_task(tmp_path), {"a", "nobody"})
    assert [case.name for case in task.cases] == ["b", "c"]
    assert task.groups == {"b": "p", "c": "q"}
    assert read_task(tmp_path, skip={"a"}) == task


@pytest.mark.parametrize(
    ("pattern", "patient"),
    [(r"radiopaedia_\d+_\d+", "radiopaedia_10_85902"), (r"^([a-z]+_\d+)_", "radiopaedia_10")],
)
def test_patients_by_a_pattern_in_the_name(tmp_path: Path, pattern: str, patient: str) -> None:
    declare(tmp_path, V2 | {"groups": {"pattern": pattern}})
    names = ["coronacases_001", "radiopaedia_10_85902_1", "radiopaedia_10_85902_3"]
    touch(tmp_path, *(f"imagesTr/{name}_0000.nii" for name in names))
    touch(tmp_path, *(f"labelsTr/{name}.nii" for name in names))
    assert read_task(tmp_path).groups == dict.fromkeys(names[1:], patient)


def test_a_pattern_that_matches_no_case(tmp_path: Path) -> None:
    declare(tmp_path, V2 | {"groups": {"pattern": "patient"}})
    touch(tmp_path, "imagesTr/a_0000.nii", "labelsTr/a.nii")
    with pytest.raises(DataError, match=r"'patient' .* \ba;"):
        read_task(tmp_path)


def test_only_the_first_ten_missing_files_are_in_the_message(tmp_path: Path) -> None:
    declare(tmp_path, V2)
    touch(tmp_path, *(f"labelsTr/case{i:02d}.nii.gz" for i in range(13)))
    with pytest.raises(DataError, match=r"13 errors: .*case09.*; and 3 more$"):
        read_task(tmp_path)


@pytest.mark.parametrize(
    ("files", "kind", "case"),
    [
        (["imagesTr/a_0000.nii.gz"], "missing label", "a"),
        (["labelsTr/a.nii.gz"], "missing image", "a"),
        (["imagesTr/a_0000.nii.gz", "imagesTr/a_0000.nrrd", "labelsTr/a.nii"], "ambiguous", "a"),
        (["imagesTr/a_0000.nii.gz", "labelsTr/a.nrrd", "labelsTr/a.nii"], "ambiguous", "a"),
        (["imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii"], "channels", "a"),
    ],
)
def test_files_that_do_not_pair_up(tmp_path: Path, files: list[str], kind: str, case: str) -> None:
    declare(tmp_path, V2)
    touch(tmp_path, *files)
    _, problems = find_task(tmp_path)
    assert [(problem.kind, problem.case) for problem in problems] == [(kind, case)]


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    declare(tmp_path, V2 | TWO_CHANNELS)
    touch(tmp_path, "imagesTr/a_0000.nii", "labelsTr/a.nii")
    task, (problem,) = find_task(tmp_path)
    assert task.cases == ()
    assert problem.file == "imagesTr/a_0001.*"


def test_a_case_listed_twice_and_an_unknown_case_in_groups(tmp_path: Path) -> None:
    declare(tmp_path, MSD | {"training": MSD["training"] * 2, "groups": {"a": "p", "z": "p"}})
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    _, problems = find_task(tmp_path)
    assert [(problem.case, problem.kind) for problem in problems] == [
        ("a", "listed twice"),
        ("z", "groups"),
    ]


def test_a_wrong_number_of_cases_is_a_warning(tmp_path: Path) -> None:
    declare(tmp_path, V2 | {"numTraining": 2})
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    task, (problem,) = find_task(tmp_path)
    assert problem.severity == "warning"
    assert read_task(tmp_path) == task


@pytest.mark.parametrize("fields", [V2, MSD | {"training": []}])
def test_no_cases_at_all(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"dataset\.json.*imagesTr/CASE_0000"):
        read_task(declare(tmp_path, fields))


def corrected_task(folder: Path) -> Path:
    """A task of two cases, and a corrected label map of the second one in `given/`."""
    task = folder / "Task009_X"
    for name in ("a", "b"):
        write_case(task, name, np.zeros((5, 4, 3), np.float32), np.ones((5, 4, 3), np.uint8))
    declare(task, V2)
    write_scan(folder / "given" / "b.nii.gz", np.zeros((5, 4, 3), np.uint8))
    return task


def test_corrected_labels_are_used_recorded_and_withdrawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = corrected_task(tmp_path)
    originals = {path: path.read_bytes() for path in (task / "labelsTr").iterdir()}
    given = tmp_path / "given" / "b.nii.gz"
    save_corrections(task, {"b": given})
    a, b = find_task(task)[0].cases
    assert a.label.parent == task / "labelsTr"
    assert b.label == task / "labelsTr_corrected" / "b.nii.gz"
    assert not np.asanyarray(nibabel.Nifti1Image.from_filename(b.label).dataobj).any()
    assert "1 corrected label map" in capsys.readouterr().err
    (entry,) = json.loads((b.label.parent / "corrections.json").read_text())
    assert entry["case"] == "b"
    assert entry["sha256"] == hashlib.sha256(b.label.read_bytes()).hexdigest()
    assert entry["from"] == str(given)
    assert entry["in_use"]
    save_corrections(task, {"b": given})  # once more: the earlier entry stays, out of use
    entries = json.loads((b.label.parent / "corrections.json").read_text())
    assert [of["in_use"] for of in entries] == [False, True]
    save_corrections(task, {})
    assert [case.label.parent.name for case in find_task(task)[0].cases] == ["labelsTr"] * 2
    assert b.label.is_file()
    assert originals == {path: path.read_bytes() for path in (task / "labelsTr").iterdir()}


def test_a_corrected_label_map_that_is_lost_is_refused(tmp_path: Path) -> None:
    task = corrected_task(tmp_path)
    save_corrections(task, {"b": tmp_path / "given" / "b.nii.gz"})
    (task / "labelsTr_corrected" / "b.nii.gz").unlink()
    with pytest.raises(DataError, match=r"b\.nii\.gz.*--corrections none"):
        find_task(task)
    save_corrections(task, {})
    assert len(find_task(task)[0].cases) == 2
