from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.dataset.splits import Split, make_splits, patients

CASES = [f"case_{i:02d}" for i in range(12)]
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
def test_patients_stay_together_and_folds_even(
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
