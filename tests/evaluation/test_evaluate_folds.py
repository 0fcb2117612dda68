from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.common.errors import DataError
from autoseg.evaluation.evaluate import fold_rows, gather, tables
from autoseg.evaluation.scores import Summary
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
        ("n", "4", "4"),
    ]


def test_tables_have_n_and_what_is_missing(tmp_path: Path) -> None:
    save(tmp_path, 0, ("a", 2), ("b", 4), ("c", 9))
    save(tmp_path, 2, ("d", 8))
    found = tables(gather(tmp_path))
    assert list(found) == ["dice_of_folds", "medians", "means"]
    assert all(table.note == "Missing folds: 1." for table in found.values())
    medians, means = found["medians"].rows, found["means"].rows
    assert medians[:2] == [("metric", "x"), ("Dice", "0.6000 (4)")]
    assert means[1] == ("Dice", "0.5750 ± 0.3304 (4)")
    assert means[2][0] == "IoU"
    assert ("HD95 (mm)", "- (0)") in medians  # these cases have no surfaces
    save(tmp_path, 1, ("e", 1))
    assert tables(gather(tmp_path))["medians"].note == ""


def test_a_fold_without_a_number_counts_in_no_mean(tmp_path: Path) -> None:
    save(tmp_path, 0, ("a", 6))
    Summary((case("b", x=(0, 0, 0, 9)),)).save(tmp_path / "fold_1/validation/summary.json")
    assert tables(gather(tmp_path))["medians"].rows[1] == ("Dice", "0.6000 (1)")
    assert fold_rows(gather(tmp_path))[3] == ("mean of the medians", "2", "0.6000")


def test_no_fold_at_all(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(DataError, match=r"summary\.json"):
        gather(tmp_path)
