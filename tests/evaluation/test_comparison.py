from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from autoseg.common.errors import DataError
from autoseg.evaluation.comparison import (
    Comparison,
    Difference,
    bootstrap_interval,
    compare,
    holm,
    signed_rank_p,
)
from autoseg.evaluation.figures.charts import draw_differences
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.surface import Surface
from tests.evaluation.scores import case


def of_tenths(*tenths: int, name: str = "x") -> Summary:
    """Cases a, b, ... with a Dice of so many tenths."""
    return Summary(
        tuple(case("abcdefghij"[i], **{name: (n, 10 - n, 10 - n, n)}) for i, n in enumerate(tenths))
    )


def dice(found: Comparison) -> Difference:
    return found.of("Dice")[0]


def test_golden_difference() -> None:
    found = dice(
        compare(of_tenths(2, 4, 6, 8, 9, 9, 9), of_tenths(1, 2, 3, 4, 4, 3, 9), ("p", "q"))
    )
    assert found.values == pytest.approx((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.0))
    assert (found.n, found.ties, found.single) == (7, 1, 0)
    assert found.mean == pytest.approx(0.3)
    # All six differences are positive: 2 of 2 ** 6 signs are as extreme.
    assert found.p == pytest.approx(2 / 64)
    assert found.better() == "A"


def test_the_interval_contains_the_mean_and_never_changes() -> None:
    values = np.random.default_rng(0).normal(1, 2, 30)
    low, high = bootstrap_interval(values) or (0, 0)
    assert low < values.mean() < high
    assert bootstrap_interval(values) == (low, high)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(30), rel=0.15)


def test_coverage_of_the_interval() -> None:
    """Of normal samples of 15, about 95 % of the intervals contain the true mean."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        low, high = bootstrap_interval(rng.normal(0, 1, 15)) or (1, 1)
        hits += low <= 0 <= high
    assert hits >= 50


def test_equal_differences_and_lone_ones() -> None:
    assert bootstrap_interval([0.5] * 8) == (0.5, 0.5)
    assert bootstrap_interval([0.0] * 8) == (0.0, 0.0)
    low, high = bootstrap_interval([0.0] * 30 + [1.0]) or (-1, -1)
    assert 0 <= low <= 1 / 31 <= high


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-30, 30).filter(bool), min_size=6, max_size=9, unique_by=abs))
def test_p_equals_counting_all_signs(values: list[int]) -> None:
    """The exact two-sided test: the share of all sign patterns that are as extreme."""
    ranks = rankdata(np.abs(values))
    middle = ranks.sum() / 2
    observed = abs(ranks[np.array(values) > 0].sum() - middle)
    sums = np.array([ranks @ signs for signs in product((0, 1), repeat=len(values))])
    expected = np.mean(np.abs(sums - middle) >= observed - 1e-9)
    assert signed_rank_p(values) == pytest.approx(expected)


def test_too_few_cases_are_reported() -> None:
    found = dice(compare(of_tenths(1, 2, 3, 4, 5), of_tenths(2, 3, 4, 5, 6), ("p", "q")))
    assert (found.interval, found.p, found.p_holm) == (None, None, None)
    assert found.note() == "too few cases: at least 6 are needed"
    assert found.better() == ""


def test_ties_are_reported() -> None:
    same = of_tenths(1, 2, 3, 4, 5, 6)
    found = dice(compare(same, same, ("p", "q")))
    assert (found.p, found.ties, found.note()) == (None, 6, "no case differs")
    other = of_tenths(1, 2, 3, 4, 6, 7)
    assert dice(compare(same, other, ("p", "q"))).note().startswith("only 2 cases differ")


def test_cases_defined_in_one_only_are_left_out() -> None:
    a = of_tenths(5, 5, 5, 5, 5, 5)
    empty = replace(a.cases[0], labels=case("a", x=(0, 0, 0, 9)).labels)
    found = dice(compare(a, Summary((empty, *a.cases[1:])), ("p", "q")))
    assert (found.n, found.single) == (5, 1)
    assert "1 left out" in found.note()


def test_holm_by_hand() -> None:
    made = [
        Difference("Dice", str(p), (), None, None, 0, None, p) for p in (0.04, 0.01, None, 0.03)
    ]
    assert [each.p_holm for each in holm(made)] == [0.06, 0.03, None, 0.06]
    assert holm([replace(made[0], p=0.9), replace(made[0], p=0.8)])[0].p_holm == 1.0


def test_lower_distances_and_volumes_close_to_zero_are_better() -> None:
    def with_distance(summary: Summary, mm: float) -> Summary:
        cases = [
            replace(of, surfaces={"x": Surface(hd95_mm=mm + i / 10, assd_mm=1.0, nsd=1.0)})
            for i, of in enumerate(summary.cases)
        ]
        return replace(summary, cases=tuple(cases))

    base = of_tenths(*range(1, 9))
    found = compare(with_distance(base, 5), with_distance(base, 2), ("p", "q"))
    assert found.of("HD95_mm")[0].better() == "B"
    # Too small by 4 ml in A, too large by 1 ml in B: B is closer to zero.
    small = Summary(tuple(case(c, x=(5, 0, 4, 9)) for c in "abcdefg"))
    large = Summary(tuple(case(c, x=(9, 1, 0, 9)) for c in "abcdefg"))
    volumes = compare(small, large, ("p", "q")).of("VolumeDifference_ml")[0]
    assert volumes.values == (3.0,) * 7
    assert volumes.better() == "B"


def test_what_is_not_shared() -> None:
    a = of_tenths(1, 2, 3)
    with pytest.raises(DataError, match=r"p and q .*class"):
        compare(a, of_tenths(1, 2, name="y"), ("p", "q"))
    with pytest.raises(DataError, match=r"p and q .*case"):
        compare(a, Summary((case("other", x=(1, 1, 1, 1)),)), ("p", "q"))
    found = compare(
        replace(a, tolerance_mm={"x": 1.0}),
        replace(of_tenths(1, 2), tolerance_mm={"x": 2.0}),
        ("p", "q"),
    )
    assert (found.only_a, found.only_b) == (("c",), ())
    assert not found.of("NSD")
    assert "Left out: NSD" in found.table().note


def test_table_and_figure() -> None:
    found = compare(of_tenths(2, 4, 6, 8, 9, 9), of_tenths(1, 2, 3, 4, 4, 3), ("p", "q"))
    table = found.table(["Dice"])
    assert table.rows[0][:8] == ("metric", "class", "n", "equal", "A", "B", "A - B", "95 % CI")
    assert table.rows[1][:7] == ("Dice", "x", "6", "0", "0.6333", "0.2833", "0.3500")
    assert table.rows[1][8:11] == ("0.0312", "0.0312", "A")
    assert table.note.startswith("A: p. B: q.")
    assert all(len(row) == len(table.rows[0]) for row in found.table().rows)
    axes = draw_differences(found).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["x  n = 6"]
    assert np.size(axes.lines[0].get_xdata()) == 6
