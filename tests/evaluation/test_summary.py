from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.common.errors import AutosegError, DataError
from autoseg.evaluation.scores import Statistic, Summary, combine
from tests.evaluation.scores import case, three_cases


def test_statistics_of_a_class() -> None:
    lung = three_cases().statistic("lung")
    assert lung.mean == pytest.approx(0.8)
    assert lung.std == pytest.approx(0.2)
    assert lung.median == pytest.approx(0.8)
    assert lung.n == 3


def test_no_number_counts_in_no_mean() -> None:
    lesion = three_cases().statistic("lesion")
    assert (lesion.mean, lesion.median, lesion.n) == (0.25, 0.25, 2)


def test_no_numbers_at_all() -> None:
    assert Statistic.of([None, None]) == Statistic(None, None, None, 0)
    assert Statistic.of([None, 0.5]) == Statistic(0.5, None, 0.5, 1)


def test_foreground_mean_is_the_mean_of_the_classes_means() -> None:
    assert three_cases().foreground_mean() == pytest.approx((0.8 + 0.25) / 2)


def test_mean_of_a_case_leaves_out_absent_classes() -> None:
    assert [c.mean() for c in three_cases().cases] == pytest.approx([0.65, 0.6, 0.5])


def test_json() -> None:
    found = three_cases().to_json()
    assert found["foreground_mean"]["Dice"] == pytest.approx(0.525)
    assert found["foreground_mean"]["n"]["Dice"] == 2
    assert found["mean"]["lesion"]["Dice"] == 0.25
    assert found["mean"]["lesion"]["n"]["Dice"] == 2
    assert found["median"]["lung"]["Dice"] == pytest.approx(0.8)
    assert found["missing"] == ["d"]
    b = found["metric_per_case"][1]
    assert b["case"] == "b"
    assert b["reference_file"] == "truth/b.nii.gz"
    assert b["metrics"]["lesion"]["Dice"] is None
    assert b["metrics"]["lung"]["TP"] == 6
    assert b["metrics"]["lung"]["n_ref"] == 10
    assert b["volume_ml"]["lung"] == {"reference": 10.0, "predicted": 10.0}


def test_json_has_null_and_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    Summary((case("empty", lesion=(0, 0, 0, 8)),)).save(path)
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text
    found = json.loads(text)
    assert found["mean"]["lesion"]["Dice"] is None
    assert found["mean"]["lesion"]["n"]["Dice"] == 0
    assert found["foreground_mean"]["Dice"] is None
    assert found["std"]["lesion"]["Accuracy"] is None


counts = st.tuples(*[st.integers(0, 9)] * 4)


@given(st.lists(counts, min_size=1, max_size=5))
def test_json_and_back(of_cases: list[tuple[int, int, int, int]]) -> None:
    summary = Summary(tuple(case(str(i), x=numbers) for i, numbers in enumerate(of_cases)), ("m",))
    text = json.dumps(summary.to_json(), allow_nan=False)
    assert not math.isnan(summary.statistic("x").mean or 0)
    assert Summary.from_json(json.loads(text)) == summary


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    three_cases().save(path)
    assert Summary.load(path) == three_cases()


@pytest.mark.parametrize("text", ["{}", "[]", '{"metric_per_case": [{}], "missing": []}', "3"])
def test_something_else_is_no_summary(tmp_path: Path, text: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"summary\.json"):
        Summary.load(path)


def test_load_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"summary\.json"):
        Summary.load(tmp_path / "summary.json")


def test_combine() -> None:
    first = Summary((case("b", x=(1, 0, 0, 1)),), ("m", "a"))
    second = Summary((case("a", x=(1, 1, 1, 1)),), ("m",))
    both = combine([first, second])
    assert [c.case for c in both.cases] == ["a", "b"]
    assert both.missing == ("m",)
    assert both.statistic("x").mean == 0.75


def test_combine_needs_the_same_classes() -> None:
    summaries = [Summary((case("a", x=(1, 0, 0, 1)),)), Summary((case("b", y=(1, 0, 0, 1)),))]
    with pytest.raises(DataError, match="x and y"):
        combine(summaries)


def test_combine_counts_no_case_twice() -> None:
    with pytest.raises(DataError, match="3 cases"):
        combine([three_cases(), three_cases()])
