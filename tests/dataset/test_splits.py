from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.common.errors import DataError
from autoseg.dataset.splits import (
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
def test_without_groups_the_folds_equal_those_of_nnunet(count: int) -> None:
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
    with pytest.raises(DataError, match=r"4 cases .* 5 folds"):
        make_splits(CASES[:4])
    with pytest.raises(DataError, match=r"1 patient .* 5 folds"):
        make_splits(CASES, groups=dict.fromkeys(CASES, "p"))
    with pytest.raises(DataError, match="1 fold"):
        make_splits(CASES, folds=1)


def test_written_splits_are_read_back(tmp_path: Path) -> None:
    splits = make_splits(CASES)
    write_splits(tmp_path / "splits.json", splits)
    assert read_splits(tmp_path / "splits.json", CASES) == splits


@pytest.mark.parametrize(
    ("folds", "named"),
    [
        ({}, "splits.json"),
        ([], "splits.json"),
        ([{"train": CASES[:2]}], 'fold 0: "val"'),
        (["fold"], 'fold 0: "train"'),
        ([{"train": [1], "val": CASES[:1]}], 'fold 0: "train"'),
        ([{"train": [], "val": CASES[:1]}], '"train" is empty'),
        ([{"train": CASES[:1], "val": []}], '"val" is empty'),
        ([{"train": CASES[:1] * 2, "val": CASES[1:2]}], '"train" .*case_00'),
        ([{"train": ["x", *CASES], "val": ["y"]}], "fold 0: x, y"),
        ([{"train": CASES, "val": CASES[:1]}], "fold 0: case_00"),
    ],
)
def test_an_invalid_splits_file_is_refused(tmp_path: Path, folds: Any, named: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(folds))
    with pytest.raises(DataError, match=named):
        read_splits(path, CASES)


@pytest.mark.parametrize(
    "where",
    ["plan/splits.json", "plan/splits_final.json", "task/splits.json", "task/splits_final.json"],
)
def test_user_splits_are_used_and_saved(tmp_path: Path, where: str) -> None:
    folder, task = tmp_path / "plan", tmp_path / "task"
    user_splits = (Split(train=tuple(CASES[1:]), validation=(CASES[0],)),)
    write_splits(tmp_path / where, user_splits)
    assert load_or_make_splits(folder, task, CASES) == user_splits
    assert read_splits(folder / "splits.json", CASES) == user_splits


def test_new_splits_are_written_once(tmp_path: Path) -> None:
    made = load_or_make_splits(tmp_path, tmp_path / "task", CASES, folds=3, seed=1)
    assert made == make_splits(CASES, 3, 1)
    assert load_or_make_splits(tmp_path, tmp_path / "task", CASES, folds=4, seed=2) == made


def test_classes_stratify_new_and_remade_splits(tmp_path: Path) -> None:
    rare = make_splits(CASES, 3)[0].validation[:3]
    classes = {case: {"rare"} if case in rare else set() for case in CASES}
    made = load_or_make_splits(tmp_path, tmp_path / "task", CASES, folds=3, classes=classes)
    assert made == make_splits(CASES, 3, classes=classes) != make_splits(CASES, 3)
    before: tuple[Any, ...] = (CASES, 3, 12345, {}, classes)
    wanted: tuple[Any, ...] = (CASES, 2, 1, {}, classes)
    remake_splits(tmp_path, before, wanted)
    assert read_splits(tmp_path / "splits.json", CASES) == make_splits(CASES, 2, 1, None, classes)


def test_remade_splits_follow_the_cases_but_user_splits_are_kept(tmp_path: Path) -> None:
    before: tuple[Any, ...] = (CASES, 3, 1, {}, {})
    fewer: tuple[Any, ...] = (CASES[2:], 3, 1, {CASES[0]: "p"}, {})
    write_splits(tmp_path / "splits.json", make_splits(*before))
    remake_splits(tmp_path, before, fewer)
    assert read_splits(tmp_path / "splits.json", CASES) == make_splits(CASES[2:], 3, 1)
    user_splits = make_splits(CASES, 2, 77)
    write_splits(tmp_path / "splits.json", user_splits)
    remake_splits(tmp_path, before, fewer)
    assert read_splits(tmp_path / "splits.json", CASES) == user_splits


def test_unused_cases_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_or_make_splits(tmp_path, tmp_path, CASES)
    load_or_make_splits(tmp_path, tmp_path, [*CASES, "new"])
    assert f"{tmp_path / 'splits.json'} leaves out new;" in capsys.readouterr().err


# Stratification.

Presence = Mapping[str, frozenset[str]]


def seen(validation: tuple[tuple[str, ...], ...], classes: Presence) -> int:
    """How many (fold, class) pairs validation sees."""
    return sum(len({name for case in fold for name in classes[case]}) for fold in validation)


def validation_of(splits: tuple[Split, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(split.validation for split in splits)


def test_a_class_that_plain_folds_miss_reaches_every_fold() -> None:
    plain = make_splits(CASES, 3)
    rare = plain[0].validation[:3]
    classes = {case: frozenset({"a", "b"} if case in rare else {"a"}) for case in CASES}
    splits = make_splits(CASES, 3, classes=classes)
    assert all(set(split.validation) & set(rare) for split in splits)
    assert [len(split.validation) for split in splits] == [4, 4, 4]
    moved = sum(
        len(set(a.validation) - set(b.validation)) for a, b in zip(plain, splits, strict=True)
    )
    assert moved == 4  # two exchanges
    assert splits == make_splits(CASES[::-1], 3, classes=classes)


@given(st.integers(5, 40), st.integers(2, 5), st.integers(0, 99))
def test_nothing_changes_where_every_case_has_every_class(
    count: int, folds: int, seed: int
) -> None:
    cases = [f"case{i}" for i in range(count)]
    classes = dict.fromkeys(cases, frozenset({"a", "b"}))
    assert make_splits(cases, folds, seed, classes=classes) == make_splits(cases, folds, seed)


def best_possible(cases: list[str], sizes: list[int], classes: Presence) -> int:
    """The most pairs that any division into folds of these sizes sees, by trying all."""
    if not sizes:
        return 0
    return max(
        seen((chosen,), classes)
        + best_possible([case for case in cases if case not in chosen], sizes[1:], classes)
        for chosen in combinations(cases, sizes[0])
    )


@pytest.mark.parametrize("seed", range(12))
def test_small_sets_are_divided_as_well_as_possible(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases, folds = CASES[: rng.integers(6, 8)], int(rng.integers(2, 4))
    shares = rng.uniform(0.15, 0.7, size=4)
    classes = {
        case: frozenset(f"class{i}" for i in range(4) if rng.random() < shares[i]) for case in cases
    }
    found = validation_of(make_splits(cases, folds, classes=classes))
    sizes = [len(fold) for fold in found]
    assert seen(found, classes) == best_possible(cases, sizes, classes)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sets(st.sampled_from("abc"))), min_size=4),
    st.integers(0, 9),
)
def test_stratification_keeps_patients_together_and_folds_even(
    given_cases: list[tuple[int, set[str]]], seed: int
) -> None:
    groups = {f"case{i}": f"patient{who}" for i, (who, _) in enumerate(given_cases)}
    classes = {f"case{i}": frozenset(has) for i, (_, has) in enumerate(given_cases)}
    for extra in ("x", "y", "z"):
        classes[extra] = frozenset("a")
    plain = make_splits(classes, 3, seed, groups)
    splits = make_splits(classes, 3, seed, groups, classes)
    assert sorted(case for split in splits for case in split.validation) == sorted(classes)
    for split in splits:
        theirs = {groups[case] for case in split.validation if case in groups}
        assert not theirs & {groups[case] for case in split.train if case in groups}
    sizes = [len(split.validation) for split in splits]
    assert max(sizes) - min(sizes) <= max(len(unit) for unit in patients(classes, groups))
    before, after = (seen(validation_of(s), classes) for s in (plain, splits))
    assert after >= before
    assert splits == plain or after > before


def test_leave_one_out_has_nothing_to_exchange() -> None:
    classes = {case: frozenset({"a"} if case < "case_03" else {"b"}) for case in CASES}
    assert make_splits(CASES, 12, classes=classes) == make_splits(CASES, 12)


def test_one_case_is_told_to_train_fold_all() -> None:
    with pytest.raises(DataError, match=r"1 case .* `fold all`"):
        make_splits(["a"], folds=5)


def test_the_names_in_a_file_may_have_another_form_of_their_accents(tmp_path: Path) -> None:
    names = [unicodedata.normalize("NFD", name) for name in ("é", "ö")]
    path = tmp_path / "splits.json"
    path.write_text(json.dumps([{"train": names[:1], "val": names[1:]}]), encoding="utf-8")
    assert read_splits(path, ["é", "ö"]) == (Split(("é",), ("ö",)),)
