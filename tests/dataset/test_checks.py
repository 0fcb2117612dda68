from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.dataset.checks import CaseFacts, check_task
from autoseg.dataset.layouts import Case
from autoseg.dataset.task import Task

FOLDER = Path("/data/Task001")
NAMES = tuple("abcde")
TASK = Task(
    name="Task001",
    folder=FOLDER,
    channels=("CT",),
    labels={"background": (0,), "tumour": (1,)},
    ignore_label=5,
    regions_class_order=None,
    cases=tuple(Case(name, (FOLDER / f"{name}.nii",), FOLDER / f"{name}.nii") for name in NAMES),
    groups={},
    licence=None,
    description=None,
)
FACTS = {
    name: CaseFacts(
        voxels={0: 60, 1: 4},
        content=name,
        spacing_mm=(1.0, 1.0, 2.0),
        scales=("hounsfield",),
        ranges=((-1024.0, 3071.0),),
    )
    for name in NAMES
}


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
    assert found[0].message.startswith("4 patients for 5 folds: by the rules each gets a fold; ")
    assert "'tumour'" in found[1].message
    assert "the same image as c, e" in found[2].message
    assert [problem.kind for problem in check_task(TASK, FACTS, folds=6)] == ["too few cases"]


def test_few_cases_are_no_problem_with_splits_of_ones_own(tmp_path: Path) -> None:
    task = replace(TASK, folder=tmp_path, cases=TASK.cases[:4])
    (problem,) = check_task(task, FACTS)
    assert problem.message.startswith("4 cases for 5 folds: ")
    (tmp_path / "splits_final.json").write_text("[]", encoding="utf-8")
    assert check_task(task, FACTS) == []


def test_one_patient_cannot_be_split() -> None:
    (problem,) = check_task(replace(TASK, groups=dict.fromkeys(NAMES, "p")), FACTS)
    assert problem.message == (
        "1 patient for 5 folds: there is no cross-validation, only `fold all` can be trained"
    )


def test_a_ct_on_two_scales_names_both_groups() -> None:
    facts = FACTS | {
        name: replace(FACTS[name], scales=("0..255",), ranges=((0.0, 255.0),)) for name in "ad"
    }
    (problem,) = check_task(TASK, facts)
    assert (problem.case, problem.kind, problem.severity) == ("", "intensity scale", "warning")
    assert (
        "channel 'CT' is not on one scale: Hounsfield units (3 cases from -1024 to 3071: b, c, e) "
        "and 0..255 (2 cases from 0 to 255: a, d); convert all cases to Hounsfield units "
    ) in problem.message


@pytest.mark.parametrize(
    ("scale", "name"), [("0..1", "0..1"), ("0..255", "0..255"), ("other", "another scale")]
)
def test_a_ct_that_is_never_in_hounsfield_units(scale: str, name: str) -> None:
    facts = {name: replace(case, scales=(scale,)) for name, case in FACTS.items()}
    (problem,) = check_task(TASK, facts)
    assert f"is on {name} (5 cases from -1024 to 3071: " in problem.message
    assert " instead of Hounsfield units (air -1000, water 0); convert them" in problem.message


def test_other_channels_may_be_on_any_scale() -> None:
    facts = FACTS | {"a": replace(FACTS["a"], scales=("other",))}
    assert check_task(replace(TASK, channels=("MRI",)), facts) == []


def test_only_the_first_ten_of_a_group_are_named() -> None:
    many = {f"c{i:02d}": replace(FACTS["a"], content=str(i), scales=("other",)) for i in range(13)}
    (problem,) = check_task(TASK, many)
    assert "c09 and 3 more)" in problem.message


@pytest.mark.parametrize(
    ("spacing_mm", "told"),
    [
        ((1.0, 1.0, 6.0), None),
        ((1.0, 1.0, 6.5), "spacing 6.5 mm along z (median 2 mm)"),
        ((0.3, 1.0, 7.0), "spacing 0.3 mm along x (median 1 mm), 7 mm along z (median 2 mm)"),
    ],
)
def test_spacings_far_from_the_median(
    spacing_mm: tuple[float, float, float], told: str | None
) -> None:
    found = check_task(TASK, FACTS | {"b": replace(FACTS["b"], spacing_mm=spacing_mm)})
    assert [(problem.case, problem.kind) for problem in found] == (
        [("b", "spacing outlier")] if told else []
    )
    assert told is None or told in found[0].message


def test_no_usable_case() -> None:
    assert check_task(TASK, {}) == []
