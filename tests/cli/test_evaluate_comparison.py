"""`autoseg_evaluate TASK --compare A B` and `-p A --against B`."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.cli.evaluate import main
from autoseg.common.errors import AutosegError
from autoseg.evaluation.scores import Summary
from autoseg.workflow.evaluation import different_names
from tests.evaluation.scores import HIPPOCAMPUS, case, shifted_hippocampus

FORMS = ("csv", "md", "pdf", "png", "svg", "tex")


def save_plan(root: Path, plan: str, *tenths: int) -> None:
    """Two folds, whose cases a, b, ... have a Dice of so many tenths."""
    cases = [case("abcdefghij"[i], x=(n, 10 - n, 10 - n, n)) for i, n in enumerate(tenths)]
    for fold in (0, 1):
        folder = root / "models" / "Task001_X" / plan / f"fold_{fold}" / "validation"
        Summary(tuple(cases[fold::2])).save(folder / "summary.json")


def test_two_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_plan(tmp_path, "big", 2, 4, 6, 8, 9, 9, 7)
    save_plan(tmp_path, "small", 1, 2, 3, 4, 4, 3)
    arguments = ["Task001", "--workspace", str(tmp_path), "--compare"]
    assert main([*arguments, "big", "small"]) == 0
    printed = capsys.readouterr()
    (row,) = (line.split() for line in printed.out.splitlines() if line.startswith("Dice"))
    assert row[:7] == ["Dice", "x", "6", "0", "0.6333", "0.2833", "0.3500"]
    assert row[-1] == "A"
    assert "warning: 1 case scored only for big, left out: g" in printed.err
    out = tmp_path / "models" / "Task001_X" / "big" / "cross_validation"
    assert sorted(path.name for path in out.iterdir()) == [f"against_small.{e}" for e in FORMS]
    text = (out / "against_small.md").read_text(encoding="utf-8")
    assert text.startswith("big against small, case by case")
    assert "Sensitivity" in text


def test_the_start_of_a_plans_name_is_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for plan in ("big", "small", "small-2d"):
        save_plan(tmp_path, plan, 2, 4, 6, 8)
    arguments = ["Task001", "--workspace", str(tmp_path), "--compare"]
    assert main([*arguments, "bi", "small"]) == 0
    out = tmp_path / "models" / "Task001_X" / "big" / "cross_validation"
    assert (out / "against_small.md").is_file()
    assert main([*arguments, "big", "s"]) == 2
    assert "'s' has no validated fold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Task001", "--compare", "big", "big"], "cannot be compared with itself"),
        (["Task001", "--compare", "big", "other"], "plan 'other' has no validated fold"),
        (["Task001", "--compare", "big", "big", "--plan", "big"], "--plan"),
        (["Task001", "--against", "x"], "give either TASK or -g and -p"),
        (["-g", "x", "-p", "y", "--compare", "a", "b"], "TASK"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_plan(tmp_path, "big", 2, 4)
    monkeypatch.setenv("AUTOSEG_WORKSPACE", str(tmp_path))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shifted_hippocampus(tmp_path / "one" / "out", (1, 1, 1, 2, 1, 2))
    shifted_hippocampus(tmp_path / "two" / "out", (2, 3, 2, 3, 3, 3))
    folders = [str(tmp_path / name / "out") for name in ("one", "two")]
    arguments = ["-g", str(HIPPOCAMPUS / "labelsTr"), "--processes", "1", "-p"]
    assert main([*arguments, folders[0], "--against", folders[1]]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    dice = {row[1]: row for row in rows if row[:1] == ["Dice"] and len(row) > 8}
    assert set(dice) == {"Anterior", "Posterior"}
    assert all(row[2] == "6" and row[-1] == "A" for row in dice.values())
    assert (tmp_path / "one" / "out" / "against_two_out.csv").is_file()
    assert not (tmp_path / "two" / "out" / "summary.json").exists()
    assert main([*arguments, folders[0], "--against", folders[0]]) == 2
    assert "cannot be compared with itself" in capsys.readouterr().err


def test_names_that_differ(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "x" / "out", tmp_path / "b" / "x" / "out"
    assert different_names(one, other) == ("a_x_out", "b_x_out")
    assert different_names(one, tmp_path / "c") == ("out", "c")
    with pytest.raises(AutosegError, match="compared with itself"):
        different_names(one, one)
