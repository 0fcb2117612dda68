from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoseg.dataset.checks import CaseFacts, check_case, check_task, is_ct_name, scale_of
from autoseg.dataset.task import Case, Task
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image

FOLDER = Path("/data/Task001")
NAMES = tuple("abcde")
GRID = Geometry((4, 4, 4), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
SCAN = Image(np.zeros((1, 4, 4, 4), np.float32), GRID)
CASE = Case("a", (FOLDER / "imagesTr/a_0000.nii.gz",), FOLDER / "labelsTr/a.nii.gz")
TASK = Task(
    path=FOLDER / "dataset.json",
    group_pattern=None,
    listed=None,
    case_count=None,
    name="Task001",
    folder=FOLDER,
    channels=("CT",),
    labels={"background": (0,), "tumour": (1,)},
    ignore_label=5,
    regions_class_order=None,
    mirrored_labels=None,
    cases=tuple(replace(CASE, name=name) for name in NAMES),
    groups={},
    licence=None,
    description=None,
)
FACTS = {
    name: CaseFacts(
        voxels={0: 60, 1: 4},
        content=name,
        orientation="RAS",
        spacing_mm=(1.0, 1.0, 2.0),
        scales=("hounsfield",),
        ranges=((-1024.0, 3071.0),),
    )
    for name in NAMES
}
VOXELS = {0: 60, 1: 4}


def test_a_good_case_has_no_problems() -> None:
    assert check_case(TASK, CASE, SCAN, VOXELS | {5: 1}, GRID) == []


@pytest.mark.parametrize(
    ("grid", "kind", "expected"),
    [
        (replace(GRID, size=(4, 4, 5)), "shape", "4 x 4 x 5"),
        (replace(GRID, spacing_mm=(1.0, 1.0, 2.5)), "geometry", "0.5 mm"),
        (replace(GRID, origin_mm=(0.0, 12.0, 0.0)), "geometry", "12 mm"),
        (
            replace(GRID, direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)),
            "geometry",
            "8 mm",
        ),
    ],
)
def test_another_grid_is_an_error_in_mm(grid: Geometry, kind: str, expected: str) -> None:
    (problem,) = check_case(TASK, CASE, SCAN, VOXELS, grid)
    assert (problem.kind, problem.severity) == (kind, "error")
    assert problem.file == "labelsTr/a.nii.gz"
    assert expected in problem.message


def test_rounding_noise_in_the_grid_is_ignored() -> None:
    noisy = replace(GRID, origin_mm=(0.005, 0.0, 0.0), spacing_mm=(1.0, 1.0, 2.000001))
    assert check_case(TASK, CASE, SCAN, VOXELS, noisy) == []


def test_undeclared_labels_are_counted() -> None:
    (problem,) = check_case(TASK, CASE, SCAN, VOXELS | {3: 7, 9: 1}, GRID)
    assert problem.severity == "error"
    assert "3 in 7 voxels, 9 in 1 voxel;" in problem.message


@pytest.mark.parametrize("voxels", [{0: 64}, {0: 60, 5: 4}])
def test_an_empty_label_map_is_a_warning(voxels: dict[int, int]) -> None:
    (problem,) = check_case(TASK, CASE, SCAN, voxels, GRID)
    assert (problem.kind, problem.severity) == ("empty label map", "warning")


def test_the_wrong_number_of_channels() -> None:
    two = Image(np.zeros((2, 4, 4, 4), np.float32), GRID)
    (problem,) = check_case(TASK, CASE, two, VOXELS, GRID)
    assert (problem.kind, problem.file) == ("channels", "imagesTr/a_0000.nii.gz")
    assert "2 channels" in problem.message


def test_a_sound_set_has_no_problems() -> None:
    assert check_task(TASK, FACTS) == []


def test_problems_of_labels_copies_and_folds() -> None:
    task = replace(TASK, groups=dict.fromkeys("ab", "p"))
    facts = {name: replace(case, voxels={0: 64}) for name, case in FACTS.items()}
    facts["c"] = replace(facts["c"], content="a")
    facts["e"] = replace(facts["e"], content="a")
    found = check_task(task, facts)
    assert {problem.severity for problem in found} == {"warning"}
    assert [(problem.kind, problem.case) for problem in found] == [
        ("too few cases", ""),
        ("absent label", ""),
        ("duplicate image", "a"),
    ]
    assert found[0].message.startswith("4 patients for 5 folds: ")
    assert "'tumour'" in found[1].message
    assert "c, e" in found[2].message
    assert [problem.kind for problem in check_task(TASK, FACTS, folds=6)] == ["too few cases"]


def test_few_cases_are_no_problem_with_user_splits(tmp_path: Path) -> None:
    task = replace(TASK, folder=tmp_path, cases=TASK.cases[:4])
    (problem,) = check_task(task, FACTS)
    assert problem.message.startswith("4 cases for 5 folds: ")
    (tmp_path / "splits_final.json").write_text("[]", encoding="utf-8")
    assert check_task(task, FACTS) == []


def test_one_patient_cannot_be_split() -> None:
    (problem,) = check_task(replace(TASK, groups=dict.fromkeys(NAMES, "p")), FACTS)
    assert problem.message.startswith("1 patient for 5 folds: ")
    assert "fold all" in problem.message


def test_a_ct_on_two_scales_names_both_groups() -> None:
    facts = FACTS | {
        name: replace(FACTS[name], scales=("0..255",), ranges=((0.0, 255.0),)) for name in "ad"
    }
    (problem,) = check_task(TASK, facts)
    assert (problem.case, problem.kind, problem.severity) == ("", "intensity scale", "warning")
    assert "'CT'" in problem.message
    assert "Hounsfield units (3 cases from -1024 to 3071: b, c, e)" in problem.message
    assert "0..255 (2 cases from 0 to 255: a, d)" in problem.message


@pytest.mark.parametrize(
    ("scale", "name"), [("0..1", "0..1"), ("0..255", "0..255"), ("other", "another scale")]
)
def test_a_ct_without_hounsfield_units(scale: str, name: str) -> None:
    facts = {name: replace(case, scales=(scale,)) for name, case in FACTS.items()}
    (problem,) = check_task(TASK, facts)
    assert f"{name} (5 cases from -1024 to 3071: " in problem.message


def test_other_channels_may_have_any_scale() -> None:
    facts = FACTS | {"a": replace(FACTS["a"], scales=("other",))}
    assert check_task(replace(TASK, channels=("MRI",)), facts) == []


def test_only_the_first_ten_of_a_group_are_named() -> None:
    many = {f"c{i:02d}": replace(FACTS["a"], content=str(i), scales=("other",)) for i in range(13)}
    (problem,) = check_task(TASK, many)
    assert "c09 and 3 more)" in problem.message


@pytest.mark.parametrize(
    ("spacing_mm", "expected"),
    [
        ((1.0, 1.0, 6.0), None),
        ((1.0, 1.0, 6.5), "6.5 mm along z (median 2 mm)"),
        ((0.3, 1.0, 7.0), "0.3 mm along x (median 1 mm), 7 mm along z (median 2 mm)"),
    ],
)
def test_spacings_far_from_the_median(
    spacing_mm: tuple[float, float, float], expected: str | None
) -> None:
    found = check_task(TASK, FACTS | {"b": replace(FACTS["b"], spacing_mm=spacing_mm)})
    assert [(problem.case, problem.kind) for problem in found] == (
        [("b", "spacing outlier")] if expected else []
    )
    assert expected is None or expected in found[0].message


def test_no_usable_case() -> None:
    assert check_task(TASK, {}) == []


@pytest.mark.parametrize(
    ("figures", "scale"),
    [
        ((-1024, -1024, 1500, 3071), "hounsfield"),  # a scan with air and bone
        ((-3024, -3024, 1200, 28000), "hounsfield"),  # padding and metal
        ((-1250, -1250, 250, 250), "hounsfield"),  # a lung window
        ((-150, -120, 240, 900), "hounsfield"),  # a crop without air
        ((0, 0, 250, 255), "0..255"),  # windowed and scaled, as radiopaedia's
        ((0, 0, 0.99, 1), "0..1"),
        ((0, 0, 1653, 22575), "other"),  # Hounsfield units + 1024
        ((-3.5, -2, 4, 6), "other"),  # z-scores
        ((-32768, -32768, 1500, 3071), "other"),
        ((-200, -150, 30000, 32767), "other"),
    ],
)
def test_intensity_scales(figures: tuple[float, float, float, float], scale: str) -> None:
    assert scale_of(*figures) == scale


@pytest.mark.parametrize("name", ["CT", "ct", "CTA", "CT_venous", "low_dose_ct", "abdominal CT"])
def test_ct_names(name: str) -> None:
    assert is_ct_name(name)


@pytest.mark.parametrize("name", ["MRI", "T1", "ACT", "image", "noct", "CTV_MR"])
def test_other_names(name: str) -> None:
    assert not is_ct_name(name)


def test_mixed_orientations_are_a_warning() -> None:
    assert "mixed orientation" not in {each.kind for each in check_task(TASK, FACTS)}
    first = next(iter(FACTS))
    mixed = FACTS | {first: replace(FACTS[first], orientation="PSR")}
    (found,) = [each for each in check_task(TASK, mixed) if each.kind == "mixed orientation"]
    assert found.severity == "warning"
    assert f"{len(FACTS) - 1} RAS, 1 PSR" in found.message
    assert found.message.endswith(first)


def test_a_label_that_only_one_case_has_is_named_with_the_case() -> None:
    facts = FACTS | {name: replace(FACTS[name], voxels={0: 64}) for name in NAMES[1:]}
    problems = [each for each in check_task(TASK, facts) if each.kind == "rare label"]
    assert [(each.case, each.severity) for each in problems] == [(NAMES[0], "warning")]
    assert "'tumour'" in problems[0].message
    assert "fold all" in problems[0].message
