from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.common.errors import DataError
from autoseg.evaluation.figures.overlay import find_image, worst_median_best
from autoseg.evaluation.scores import Summary
from tests.evaluation.scores import case, three_cases


def test_worst_median_best() -> None:
    assert [c.case for c in worst_median_best(three_cases())] == ["c", "b", "a"]
    tenths = {"p": 4, "q": 1, "r": 9, "s": 5}
    four = Summary(tuple(case(k, x=(n, 10 - n, 10 - n, n)) for k, n in tenths.items()))
    assert [c.case for c in worst_median_best(four)] == ["q", "p", "r"]


def test_fewer_cases() -> None:
    empty, full = case("e", x=(0, 0, 0, 9)), case("f", x=(1, 0, 0, 9))
    assert worst_median_best(Summary((empty,))) == []
    assert worst_median_best(Summary((empty, full))) == [full]


def test_find_image(tmp_path: Path) -> None:
    for name in ("a_0000.nii.gz", "a_0001.nii.gz", "b.nrrd", "ab.nii.gz", "a.txt"):
        (tmp_path / name).touch()
    assert find_image(tmp_path, "a").name == "a_0000.nii.gz"
    assert find_image(tmp_path, "b").name == "b.nrrd"
    with pytest.raises(DataError, match=r"c\.nii\.gz"):
        find_image(tmp_path, "c")
