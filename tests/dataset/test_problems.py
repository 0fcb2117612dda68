from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.common.errors import DataError
from autoseg.dataset.checks import check_case
from autoseg.dataset.layouts import Case
from autoseg.dataset.problems import (
    Problem,
    Verification,
    errors_by_case,
    problems_table,
    write_verification,
)
from autoseg.dataset.task import Task
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image

GRID = Geometry((4, 4, 4), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
SCAN = Image(np.zeros((1, 4, 4, 4), np.float32), GRID)
FOLDER = Path("/data/Task001")
CASE = Case("a", (FOLDER / "imagesTr/a_0000.nii.gz",), FOLDER / "labelsTr/a.nii.gz")
TASK = Task(
    name="Task001",
    folder=FOLDER,
    channels=("CT",),
    labels={"background": (0,), "tumour": (1,)},
    ignore_label=5,
    regions_class_order=None,
    cases=tuple(replace(CASE, name=name) for name in "abcde"),
    groups={},
    licence=None,
    description=None,
)
USUAL = {0: 60, 1: 4}


def test_a_good_case_has_no_problems() -> None:
    assert check_case(TASK, CASE, SCAN, USUAL | {5: 1}, GRID) == []


@pytest.mark.parametrize(
    ("grid", "kind", "told"),
    [
        (replace(GRID, size=(4, 4, 5)), "shape", "size 4 x 4 x 4 against 4 x 4 x 5 voxels"),
        (replace(GRID, spacing_mm=(1.0, 1.0, 2.5)), "geometry", "spacing by 0.5 mm"),
        (replace(GRID, origin_mm=(0.0, 12.0, 0.0)), "geometry", "origin by 12 mm"),
        (
            replace(GRID, direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)),
            "geometry",
            "direction by 8 mm at the far corner",
        ),
    ],
)
def test_another_grid_is_an_error_in_mm(grid: Geometry, kind: str, told: str) -> None:
    (problem,) = check_case(TASK, CASE, SCAN, USUAL, grid)
    assert (problem.kind, problem.severity) == (kind, "error")
    assert problem.file == "labelsTr/a.nii.gz"
    assert told in problem.message


def test_rounding_noise_in_the_grid_is_none() -> None:
    noisy = replace(GRID, origin_mm=(0.005, 0.0, 0.0), spacing_mm=(1.0, 1.0, 2.000001))
    assert check_case(TASK, CASE, SCAN, USUAL, noisy) == []


def test_undeclared_labels_are_counted() -> None:
    (problem,) = check_case(TASK, CASE, SCAN, USUAL | {3: 7, 9: 1}, GRID)
    assert problem.severity == "error"
    assert "3 in 7 voxels, 9 in 1 voxel;" in problem.message


@pytest.mark.parametrize("voxels", [{0: 64}, {0: 60, 5: 4}])
def test_an_empty_label_map_is_a_warning(voxels: dict[int, int]) -> None:
    (problem,) = check_case(TASK, CASE, SCAN, voxels, GRID)
    assert (problem.kind, problem.severity) == ("empty label map", "warning")


def test_the_wrong_number_of_channels() -> None:
    two = Image(np.zeros((2, 4, 4, 4), np.float32), GRID)
    (problem,) = check_case(TASK, CASE, two, USUAL, GRID)
    assert (problem.kind, problem.file) == ("channels", "imagesTr/a_0000.nii.gz")
    assert "2 channels; dataset.json declares 1" in problem.message


def test_problems_are_written_and_tabulated(tmp_path: Path) -> None:
    problems = [
        Problem("", "", "too few cases", "warning", "3 cases for 5 folds"),
        Problem("a", "f", "shape", "error", "different"),
    ]
    write_verification(tmp_path / "verification.json", problems)
    written = json.loads((tmp_path / "verification.json").read_text(encoding="utf-8"))
    assert [entry["kind"] for entry in written["errors"]] == ["shape"]
    assert [entry["case"] for entry in written["warnings"]] == [""]
    assert problems_table(problems).splitlines() == [
        "warning  (all)  too few cases  3 cases for 5 folds",
        "error    a      shape          different",
    ]
    assert problems_table([]) == ""


def test_only_errors_stop() -> None:
    warning = Problem("a", "", "empty", "warning", "nothing is labelled")
    Verification.of([warning]).raise_errors("Task001")
    with pytest.raises(DataError, match=r"^task Task001 has 1 error: a: bad$"):
        Verification.of([warning, replace(warning, severity="error", message="bad")]).raise_errors(
            "Task001"
        )


def test_bad_cases_are_those_with_errors() -> None:
    bad = Problem("b", "f", "shape", "error", "different")
    problems = [
        replace(bad, kind="geometry"),
        Problem("a", "", "empty", "warning", "nothing is labelled"),
        replace(bad, case="a"),
        bad,
        replace(bad, case=""),
    ]
    assert list(errors_by_case(problems)) == ["", "a", "b"]
    assert errors_by_case(problems)["b"] == (replace(bad, kind="geometry"), bad)
    assert errors_by_case([]) == {}
