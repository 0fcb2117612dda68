from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from autoseg.common.errors import AutosegError, DataError
from autoseg.dataset.task import find_task, read_task
from tests.dataset.making import MSD, V2, declare, touch, write_scan
from tests.dicom_series import write_series

LABEL = np.zeros((5, 3, 7), np.uint16)


def make_case(folder: Path, name: str, *values: int, ending: str = ".nii.gz") -> None:
    label = LABEL.copy()
    label.flat[: len(values)] = values
    write_scan(folder / name / f"imaging{ending}", label.astype(np.int16))
    write_scan(folder / name / f"segmentation{ending}", label)


def test_undeclared_labels_are_found_in_the_label_maps(tmp_path: Path) -> None:
    make_case(tmp_path, "b", 3, ending=".nrrd")
    make_case(tmp_path, "a", 1, 3)
    touch(tmp_path, ".hidden/imaging.nii.gz", "notes.txt")
    task, (problem,) = find_task(tmp_path)
    assert [case.name for case in task.cases] == ["a", "b"]
    assert [path.name for path in task.cases[1].images] == ["imaging.nrrd"]
    assert task.cases[0].label == tmp_path / "a" / "segmentation.nii.gz"
    assert task.channels == ("image",)
    assert task.labels == {"background": (0,), "1": (1,), "3": (3,)}
    assert (problem.kind, problem.severity, problem.case) == ("not declared", "warning", "")
    assert all(name in problem.message for name in ("'image'", "'1'", "'3'"))
    assert read_task(tmp_path) == task


def test_known_labels_are_used_without_reading_the_maps(tmp_path: Path) -> None:
    touch(tmp_path, "a/imaging.nii.gz", "a/segmentation.nii.gz")
    labels = {"background": (0,), "7": (7,)}
    assert read_task(tmp_path, labels).labels == labels


@pytest.mark.parametrize("channels", ["channel_names", "modality"])
def test_a_declaration_names_channels_and_labels(tmp_path: Path, channels: str) -> None:
    fields = {channels: {"0": "CT"}, "labels": V2["labels"], "groups": {"pattern": "^."}}
    touch(declare(tmp_path, fields), "a1/imaging.mha", "a1/segmentation.nii", "a1/notes.txt")
    task, problems = find_task(tmp_path)
    assert problems == []
    assert task.channels == ("CT",)
    assert task.labels == {"background": (0,), "tumour": (1,)}
    assert task.groups == {"a1": "a"}


def test_a_partial_declaration_is_completed(tmp_path: Path) -> None:
    make_case(declare(tmp_path, {"channel_names": {"0": "CT"}}), "a", 2)
    task, (problem,) = find_task(tmp_path)
    assert task.channels == ("CT",)
    assert "'2'" in problem.message
    assert "'image'" not in problem.message
    make_case(declare(tmp_path, {"labels": {"background": 0, "cyst": 2}}), "a", 2)
    task, (problem,) = find_task(tmp_path)
    assert task.labels == {"background": (0,), "cyst": (2,)}
    assert "'image'" in problem.message
    assert "'cyst'" not in problem.message


def test_an_invalid_declaration_is_refused(tmp_path: Path) -> None:
    make_case(declare(tmp_path, {"labels": {"background": 0}}), "a", 1)
    with pytest.raises(DataError, match="labels"):
        find_task(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(AutosegError, match=r"dataset\.json"):
        find_task(tmp_path)


def test_several_channels_are_numbered(tmp_path: Path) -> None:
    declare(tmp_path, V2 | {"channel_names": {"0": "T1", "1": "T2"}})
    touch(tmp_path, "a/imaging_0000.nii", "a/imaging_0001.nrrd", "a/segmentation.nii")
    touch(tmp_path, "b/imaging_0000.nii", "b/segmentation.nii")
    task, (problem,) = find_task(tmp_path)
    assert [path.name for path in task.cases[0].images] == ["imaging_0000.nii", "imaging_0001.nrrd"]
    assert (problem.case, problem.file) == ("b", "b/imaging_0001.*")


def test_problems_of_case_folders(tmp_path: Path) -> None:
    declare(tmp_path, V2)
    touch(tmp_path, "a/imaging.nii", "b/segmentation.nii", "c/scan.nii", "e/segmentation.nii")
    touch(tmp_path, "d/imaging.nii", "d/imaging.nrrd", "d/segmentation.nii", "e/imaging.nii")
    task, problems = find_task(tmp_path)
    assert [case.name for case in task.cases] == ["e"]
    assert [(problem.case, problem.kind, problem.severity) for problem in problems] == [
        ("a", "missing label", "error"),
        ("b", "missing image", "error"),
        ("c", "no case", "warning"),
        ("d", "ambiguous", "error"),
    ]
    assert "d/" in problems[3].file


def test_a_dicom_series_in_a_case_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "a" / "imaging", LABEL.astype(np.int16))
    touch(declare(tmp_path, V2), "a/segmentation.nii.gz")
    (case,) = read_task(tmp_path).cases
    assert case.images == (tmp_path / "a" / "imaging",)


def test_unreadable_label_maps_are_ignored(tmp_path: Path) -> None:
    make_case(tmp_path, "a", 300)
    make_case(tmp_path, "b")
    touch(tmp_path, "c/segmentation.nii.gz")
    task, _ = find_task(tmp_path)
    assert task.labels == {"background": (0,), "300": (300,)}
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        find_task(tmp_path)


def test_a_list_of_cases_and_the_usual_folders_take_precedence(tmp_path: Path) -> None:
    touch(tmp_path, "a/imaging.nii", "a/segmentation.nii", "imagesTr/x_0000.nii", "labelsTr/x.nii")
    assert [case.name for case in read_task(declare(tmp_path, V2)).cases] == ["x"]
    shutil.rmtree(tmp_path / "imagesTr")
    shutil.rmtree(tmp_path / "labelsTr")
    touch(tmp_path, "a/x.nii")
    listed = MSD | {"training": [{"image": "a/x.nii", "label": "a/segmentation.nii"}]}
    assert [case.name for case in read_task(declare(tmp_path, listed)).cases] == ["x"]


def test_an_empty_or_missing_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(AutosegError, match=r"dataset\.json is missing"):
            find_task(folder)
