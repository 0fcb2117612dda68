from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.errors import DataError
from autoseg.evaluation.cross_validation import fold_rows, gather
from autoseg.evaluation.summary import Summary
from tests.evaluation.scores import case


def save(folder: Path, fold: object, *cases: tuple[str, int]) -> None:
    """Save a fold's summary: cases with a Dice of so many tenths."""
    scores = tuple(case(name, x=(n, 10 - n, 10 - n, n)) for name, n in cases)
    Summary(scores).save(folder / f"fold_{fold}" / "validation" / "summary.json")


def test_folds_and_what_is_missing(tmp_path: Path) -> None:
    save(tmp_path, 0, ("a", 2), ("b", 4), ("c", 9))
    save(tmp_path, 3, ("d", 8))
    (tmp_path / "fold_2").mkdir()
    (tmp_path / "fold_all").mkdir()
    (tmp_path / "cross_validation").mkdir()
    found = gather(tmp_path)
    assert list(found.folds) == [0, 3]
    assert found.missing == (1, 2)
    assert gather(tmp_path, fold_count=5).missing == (1, 2, 4)
    assert [c.case for c in found.combined.cases] == ["a", "b", "c", "d"]


def test_golden_rows(tmp_path: Path) -> None:
    save(tmp_path, 0, ("a", 2), ("b", 4), ("c", 9))
    save(tmp_path, 2, ("d", 8))
    assert fold_rows(gather(tmp_path)) == [
        ("fold", "cases", "x"),
        ("0 (median)", "3", "0.4000"),
        ("2 (median)", "1", "0.8000"),
        ("1", "0", "missing"),
        ("mean of the medians", "4", "0.6000"),
        ("mean ± std of all cases", "4", "0.5750 ± 0.3304"),
    ]


def test_no_fold_at_all(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(DataError, match="no fold has"):
        gather(tmp_path)
