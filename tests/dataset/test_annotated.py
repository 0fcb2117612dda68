"""Cases that were annotated for some labels only, and tasks merged from several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from autoseg.common.errors import AutosegError, DataError
from autoseg.dataset.merge import merge_tasks
from autoseg.dataset.task import find_task, read_task
from tests.dataset.making import V2, declare, touch, write_case

ORGANS: dict[str, Any] = V2 | {"labels": {"background": 0, "liver": 1, "spleen": 2}}


def annotated(folder: Path, fields: object) -> Path:
    declare(folder, ORGANS | {"annotated": fields})
    touch(
        folder,
        *(f"{d}/{c}" for c in ("a_1", "a_2", "b") for d in ("labelsTr",) for c in [f"{c}.nii.gz"]),
    )
    touch(folder, *(f"imagesTr/{case}_0000.nii.gz" for case in ("a_1", "a_2", "b")))
    return folder


def test_names_count_more_than_patterns(tmp_path: Path) -> None:
    declared = {"a_*": ["liver"], "a_2": "present", "*_1": ["spleen"]}
    task = read_task(annotated(tmp_path, declared))
    assert task.annotated == {"a_1": ("liver",), "a_2": ()}


@pytest.mark.parametrize(
    "declared", [{"a_1": ["kidney"]}, {"a_1": []}, {"a_1": "all"}, {"a_1": ["background"]}, [1]]
)
def test_wrong_declarations(tmp_path: Path, declared: object) -> None:
    with pytest.raises(DataError, match=r"annotated"):
        read_task(annotated(tmp_path, declared))


def test_a_pattern_without_a_case_is_an_error(tmp_path: Path) -> None:
    _, problems = find_task(annotated(tmp_path, {"c*": ["liver"]}))
    assert [(p.kind, p.severity) for p in problems] == [("annotated", "error")]


def two_tasks(folder: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    one = declare(folder / "A", ORGANS | {"labels": {"background": 0, "liver": 1, "spleen": 4}})
    other = declare(folder / "B", V2 | {"labels": {"background": 0, "tumour": 1, "liver": 3}})
    for task, values in ((one, (0, 1, 4)), (other, (0, 1, 3))):
        for case in ("x", task.name.lower()):
            image = rng.normal(size=(4, 5, 6)).astype(np.float32)
            write_case(task, case, image, rng.choice(values, (4, 5, 6)).astype(np.uint8))
    return one, other


def test_merged_tasks_keep_the_meaning_of_every_voxel(tmp_path: Path) -> None:
    one, other = two_tasks(tmp_path)
    table = merge_tasks([read_task(one), read_task(other)], tmp_path / "C", processes=1)
    assert table[1:] == [
        ("liver", "1", "1", "3"),
        ("spleen", "2", "4", "not annotated"),
        ("tumour", "3", "not annotated", "1"),
    ]
    merged = read_task(tmp_path / "C")
    assert [case.name for case in merged.cases] == ["A_x", "B_x", "a", "b"]
    assert merged.annotated == {
        "A_x": ("liver", "spleen"),
        "a": ("liver", "spleen"),
        "B_x": ("tumour", "liver"),
        "b": ("tumour", "liver"),
    }
    for case in merged.cases:
        source, names = (one, {1: 1, 4: 2}) if case.name in ("A_x", "a") else (other, {1: 3, 3: 1})
        before = sitk.GetArrayFromImage(
            sitk.ReadImage(
                str(source / "labelsTr" / f"{case.name.removeprefix(f'{source.name}_')}.nii.gz")
            )
        )
        after = sitk.GetArrayFromImage(sitk.ReadImage(str(case.label)))
        assert np.array_equal(after, np.vectorize({0: 0, **names}.get)(before))
        assert case.images[0].parent == source / "imagesTr"
    assert not list(tmp_path.glob(".*"))


def test_tasks_that_cannot_be_merged(tmp_path: Path) -> None:
    one, other = two_tasks(tmp_path)
    fields = json.loads((other / "dataset.json").read_text())
    declare(other, fields | {"channel_names": {"0": "MR"}})
    with pytest.raises(DataError, match="channels"):
        merge_tasks([read_task(one), read_task(other)], tmp_path / "C", processes=1)
    with pytest.raises(AutosegError, match="exists"):
        merge_tasks([read_task(one), read_task(one)], one, processes=1)
    assert not (tmp_path / "C").exists()


def test_merged_tasks_keep_what_was_declared_of_labels(tmp_path: Path) -> None:
    one, other = two_tasks(tmp_path)
    liver, tumour = (
        {"type": [code, "SCT", name], "category": ["85756007", "SCT", "Tissue"]}
        for code, name in (("10200004", "Liver"), ("108369006", "Neoplasm"))
    )
    for task, fields in (
        (one, {"mirrored_labels": {"liver": "spleen"}, "codes": {"liver": liver}}),
        (other, {"codes": {"liver": liver, "tumour": tumour}}),
    ):
        declare(task, json.loads((task / "dataset.json").read_text()) | fields)
    merge_tasks([read_task(one), read_task(other)], tmp_path / "C", processes=1)
    merged = read_task(tmp_path / "C")
    assert merged.mirrored_labels == {"liver": "spleen"}
    found = {name: code.type[0] for name, code in merged.codes.items()}
    assert found == {"liver": "10200004", "tumour": "108369006"}
    fields = json.loads((other / "dataset.json").read_text())
    declare(other, fields | {"codes": {"liver": tumour}})
    with pytest.raises(DataError, match="codes of 'liver'"):
        merge_tasks([read_task(one), read_task(other)], tmp_path / "E", processes=1)
    pairs = {"mirrored_labels": {"spleen": "tumour"}}
    third = declare(
        tmp_path / "D", V2 | {"labels": {"background": 0, "spleen": 1, "tumour": 2}} | pairs
    )
    write_case(third, "z", np.zeros((4, 5, 6), np.float32), np.ones((4, 5, 6), np.uint8))
    with pytest.raises(DataError, match="mirrored_labels"):
        merge_tasks([read_task(one), read_task(third)], tmp_path / "E", processes=1)
    assert not (tmp_path / "E").exists()


@pytest.mark.parametrize("value", [2, 9])
def test_values_that_a_task_does_not_declare_are_not_merged(tmp_path: Path, value: int) -> None:
    one, other = two_tasks(tmp_path)
    label = np.full((4, 5, 6), value, np.uint8)
    write_case(other, "w", np.zeros((4, 5, 6), np.float32), label)
    with pytest.raises(DataError, match=rf"w\.nii\.gz: undeclared labels: {value}"):
        merge_tasks([read_task(one), read_task(other)], tmp_path / "C", processes=1)
    assert not (tmp_path / "C").exists()
