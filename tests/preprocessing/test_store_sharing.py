"""Plans with the same preprocessing share cases; replacing a case does not affect the others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from autoseg.dataset.task import Case
from autoseg.preprocessing import store
from autoseg.preprocessing.preprocess import preprocess
from autoseg.preprocessing.steps import Prepared
from autoseg.preprocessing.store import CaseStore
from tests.making import grid, tiny_plan
from tests.preprocessing.test_preprocess import contents, make_cases

STEPS = [{"step": "z_score"}]
PLAN = tiny_plan(preprocessing=STEPS)
SAME = tiny_plan(preprocessing=STEPS, name="same", splits={"folds": 3})
OTHER = tiny_plan(name="other")
PREPARED = Prepared(
    np.zeros((1, 8, 8, 8), np.float32),
    np.zeros((8, 8, 8), np.int16),
    grid((8, 8, 8)),
    ((0, 8), (0, 8), (0, 8)),
    (1.0, 1.0, 1.0),
)


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    return make_cases(tmp_path / "raw", "a", "b")


def run(plans: Path, plan: str, cases: list[Case]) -> tuple[int, CaseStore]:
    by_name = {made.name: made for made in (PLAN, SAME, OTHER)}
    store = CaseStore(plans / plan / "cases", by_name[plan].preprocessing_id)
    return preprocess(by_name[plan], cases, store, 1, plans=plans), store


def test_plans_with_the_same_preprocessing_do_it_once(tmp_path: Path, cases: list[Case]) -> None:
    assert PLAN.preprocessing_id == SAME.preprocessing_id != OTHER.preprocessing_id
    made, first = run(tmp_path / "plans", "default", cases)
    linked, second = run(tmp_path / "plans", "same", cases)
    assert (made, linked) == (2, 0)
    assert contents(first) == contents(second)
    files = [path.relative_to(first.folder) for path in first.folder.rglob("*.b2nd")]
    assert len(files) == 4
    assert all(os.path.samefile(first.folder / file, second.folder / file) for file in files)
    assert run(tmp_path / "plans", "other", cases)[0] == 2
    assert not list(tmp_path.rglob(".*"))  # neither locks nor leftovers


def test_the_other_keeps_its_case_when_one_makes_it_again(
    tmp_path: Path, cases: list[Case]
) -> None:
    _, first = run(tmp_path / "plans", "default", cases)
    _, second = run(tmp_path / "plans", "same", cases)
    before = contents(first)
    second.write("a", PREPARED, [])
    assert contents(first) == before
    assert contents(second) != before


def test_a_damaged_case_is_not_taken(tmp_path: Path, cases: list[Case]) -> None:
    _, first = run(tmp_path / "plans", "default", cases)
    image = first.folder / "a" / "image.b2nd"
    image.write_bytes(image.read_bytes()[:-1] + b"!")
    made, second = run(tmp_path / "plans", "same", cases)
    assert made == 1
    assert second.is_whole("a")


def test_changed_files_are_not_taken(tmp_path: Path, cases: list[Case]) -> None:
    run(tmp_path / "plans", "default", cases)
    os.utime(cases[1].label, ns=(0, 1))
    assert run(tmp_path / "plans", "same", cases)[0] == 1


def test_without_links_cases_are_copied(
    tmp_path: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("this file system knows no links")

    _, first = run(tmp_path / "plans", "default", cases)
    second = CaseStore(tmp_path / "copy", PLAN.preprocessing_id)
    monkeypatch.setattr("autoseg.preprocessing.store.os.link", no_links)
    assert store._link(first.folder / "a", second.folder / "a")
    assert second.is_whole("a")
