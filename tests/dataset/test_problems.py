from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.common.errors import DataError
from autoseg.dataset.problems import (
    Problem,
    errors_by_case,
    problems_table,
    raise_errors,
    write_verification,
)


def test_problems_are_written_and_tabulated(tmp_path: Path) -> None:
    problems = [
        Problem("", "", "too few cases", "warning", "3 cases for 5 folds"),
        Problem("a", "f", "shape", "error", "different"),
    ]
    write_verification(tmp_path / "verification.json", problems)
    written = json.loads((tmp_path / "verification.json").read_text(encoding="utf-8"))
    assert [entry["kind"] for entry in written["errors"]] == ["shape"]
    assert [entry["case"] for entry in written["warnings"]] == [""]
    assert problems_table(problems).splitlines() == [
        "warning  (all)  too few cases  3 cases for 5 folds",
        "error    a      shape          different",
    ]
    assert problems_table([]) == ""


def test_a_problem_of_many_cases_is_one_line() -> None:
    problems = [Problem(case, "f", "reading", "warning", "same") for case in "aabcdef"]
    other = Problem("a", "f", "reading", "warning", "other")
    assert problems_table([*problems, other]).splitlines() == [
        "warning  a, b, c and 3 more  reading  same",
        "warning  a                   reading  other",
    ]


def test_only_errors_are_raised() -> None:
    warning = Problem("a", "", "empty", "warning", "nothing is labelled")
    raise_errors([warning], "Task001")
    with pytest.raises(DataError, match=r"Task001 .*1 error.*: a: bad$"):
        raise_errors([warning, replace(warning, severity="error", message="bad")], "Task001")


def test_errors_are_grouped_by_case() -> None:
    bad = Problem("b", "f", "shape", "error", "different")
    problems = [
        replace(bad, kind="geometry"),
        Problem("a", "", "empty", "warning", "nothing is labelled"),
        replace(bad, case="a"),
        bad,
        replace(bad, case=""),
    ]
    assert list(errors_by_case(problems)) == ["", "a", "b"]
    assert errors_by_case(problems)["b"] == (replace(bad, kind="geometry"), bad)
    assert errors_by_case([]) == {}
