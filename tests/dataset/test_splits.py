from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.common.errors import DataError
from autoseg.dataset.splits import (
    Recipe,
    Split,
    load_or_make_splits,
    make_splits,
    patients,
    read_splits,
    remake_splits,
    write_splits,
)

CASES = [f"case_{i:02d}" for i in range(12)]
names = st.lists(st.text(min_size=1, max_size=8), min_size=5, max_size=60, unique=True)


def is_a_partition(splits: tuple[Split, ...], cases: list[str]) -> bool:
    validated = [case for split in splits for case in split.validation]
    whole = all(sorted(split.train + split.validation) == sorted(cases) for split in splits)
    return whole and sorted(validated) == sorted(cases)


@given(names, st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_each_case_validates_once_and_folds_are_even(
    cases: list[str], folds: int, seed: int
) -> None:
    splits = make_splits(cases, folds, seed)
    assert is_a_partition(splits, cases)
    sizes = [len(split.validation) for split in splits]
    assert max(sizes) - min(sizes) <= 1


@given(names, st.randoms())
def test_the_order_of_the_cases_does_not_matter(cases: list[str], random: Any) -> None:
    shuffled = list(cases)
    random.shuffle(shuffled)
    assert make_splits(shuffled) == make_splits(cases)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 99))
def test_patients_stay_together(whose: list[int], seed: int) -> None:
    groups = {f"case{i}": f"patient{who}" for i, who in enumerate(whose)}
    cases = [*groups, "single1", "single2", "single3"]
    splits = make_splits(cases, 3, seed, groups)
    assert is_a_partition(splits, cases)
    for split in splits:
        assert not {groups.get(c) for c in split.train if c in groups} & {
            groups.get(c) for c in split.validation
        }
    sizes = [len(split.validation) for split in splits]
    assert max(sizes) - min(sizes) <= max(len(unit) for unit in patients(cases, groups))


def test_golden_split() -> None:
    assert [split.validation for split in make_splits(CASES)] == [
        ("case_00", "case_03", "case_08"),
        ("case_07", "case_10", "case_11"),
        ("case_06", "case_09"),
        ("case_01", "case_04"),
        ("case_02", "case_05"),
    ]


@pytest.mark.parametrize("count", [5, 12, 61])
def test_without_groups_the_folds_are_those_of_nnunet(count: int) -> None:
    from sklearn.model_selection import KFold

    cases = np.array(sorted(f"case{i}" for i in range(count)))
    theirs = KFold(5, shuffle=True, random_state=12345).split(cases)
    assert [split.validation for split in make_splits(cases.tolist())] == [
        tuple(cases[test]) for _, test in theirs
    ]


def test_leave_one_out() -> None:
    splits = make_splits(CASES, len(CASES))
    assert sorted(split.validation for split in splits) == [(case,) for case in CASES]
    assert is_a_partition(splits, CASES)
    groups = {case: f"patient{i // 3}" for i, case in enumerate(CASES)}
    by_patient = make_splits(CASES, 4, groups=groups)
    assert sorted(split.validation for split in by_patient) == patients(CASES, groups)


def test_too_few_cases_or_patients() -> None:
    with pytest.raises(DataError, match="4 cases cannot fill 5 folds; choose fewer folds"):
        make_splits(CASES[:4])
    with pytest.raises(DataError, match="1 patient cannot fill 5 folds"):
        make_splits(CASES, groups=dict.fromkeys(CASES, "p"))
    with pytest.raises(DataError, match="1 fold: cross-validation needs at least 2"):
        make_splits(CASES, folds=1)


def test_written_splits_are_read_back(tmp_path: Path) -> None:
    splits = make_splits(CASES)
    write_splits(tmp_path / "splits.json", splits)
    assert read_splits(tmp_path / "splits.json", CASES) == splits


@pytest.mark.parametrize(
    ("folds", "told"),
    [
        ({}, "must be a list"),
        ([], "must be a list"),
        ([{"train": CASES[:2]}], 'fold 0: "val" must be a list'),
        (["fold"], 'fold 0: "train" must be a list'),
        ([{"train": [1], "val": CASES[:1]}], '"train" must be a list of case names'),
        ([{"train": [], "val": CASES[:1]}], '"train" is empty'),
        ([{"train": CASES[:1], "val": []}], '"val" is empty'),
        ([{"train": CASES[:1] * 2, "val": CASES[1:2]}], '"train" has case_00 twice'),
        ([{"train": ["x", *CASES], "val": ["y"]}], "names x, y, not a case"),
        ([{"train": CASES, "val": CASES[:1]}], "case_00 in train and in val"),
    ],
)
def test_a_wrong_splits_file_is_told(tmp_path: Path, folds: Any, told: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(folds))
    with pytest.raises(DataError, match=told):
        read_splits(path, CASES)


@pytest.mark.parametrize(
    "where",
    ["plan/splits.json", "plan/splits_final.json", "task/splits.json", "task/splits_final.json"],
)
def test_the_users_splits_are_honoured_and_kept(tmp_path: Path, where: str) -> None:
    folder, task = tmp_path / "plan", tmp_path / "task"
    mine = (Split(train=tuple(CASES[1:]), validation=(CASES[0],)),)
    write_splits(tmp_path / where, mine)
    assert load_or_make_splits(folder, task, CASES) == mine
    assert read_splits(folder / "splits.json", CASES) == mine


def test_new_splits_are_written_once(tmp_path: Path) -> None:
    made = load_or_make_splits(tmp_path, tmp_path / "task", CASES, folds=3, seed=1)
    assert made == make_splits(CASES, 3, 1)
    assert load_or_make_splits(tmp_path, tmp_path / "task", CASES, folds=4, seed=2) == made


def test_classes_decide_over_new_splits_and_remade_ones(tmp_path: Path) -> None:
    rare = make_splits(CASES, 3)[0].validation[:3]
    classes = {case: {"rare"} if case in rare else set() for case in CASES}
    made = load_or_make_splits(tmp_path, tmp_path / "task", CASES, folds=3, classes=classes)
    assert made == make_splits(CASES, 3, classes=classes) != make_splits(CASES, 3)
    before = Recipe(tuple(CASES), 3, 12345, {}, classes)
    remake_splits(tmp_path, before, replace(before, folds=2, seed=1))
    assert read_splits(tmp_path / "splits.json", CASES) == make_splits(CASES, 2, 1, None, classes)


def test_remade_splits_follow_the_cases_but_the_users_own_stay(tmp_path: Path) -> None:
    before = Recipe(tuple(CASES), 3, 1, {}, {})
    fewer = replace(before, cases=tuple(CASES[2:]))
    write_splits(tmp_path / "splits.json", before.make())
    remake_splits(tmp_path, before, fewer)
    assert read_splits(tmp_path / "splits.json", CASES) == fewer.make()
    mine = make_splits(CASES, 2, 77)
    write_splits(tmp_path / "splits.json", mine)
    remake_splits(tmp_path, before, fewer)
    assert read_splits(tmp_path / "splits.json", CASES) == mine


def test_cases_that_the_splits_leave_out_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_or_make_splits(tmp_path, tmp_path, CASES)
    load_or_make_splits(tmp_path, tmp_path, [*CASES, "new"])
    assert "leaves out new" in capsys.readouterr().err
