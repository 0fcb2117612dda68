"""`autoseg_train`: the folds to train, and errors before training."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.cli.plan import main as plan_task
from autoseg.cli.train import _folds, main
from autoseg.workflow.workspace import ENVIRONMENT_VARIABLE
from tests.cli.making import write_ct


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "Arbeit für Zoë"
    write_ct(root / "raw" / "Task001_Würfel", size=8)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(root))
    return root


@pytest.mark.parametrize(
    ("words", "folds"),
    [
        (["fold", "0"], ["0"]),
        (["0"], ["0"]),
        (["fold", "0", "1"], ["0", "1"]),
        (["2", "1"], ["2", "1"]),
        (["fold", "all"], ["all"]),
        (["all"], ["all"]),
        (["0", "00", "0"], ["0"]),
    ],
)
def test_folds(words: list[str], folds: list[str]) -> None:
    assert _folds(words) == folds


@pytest.mark.parametrize(
    "words", [["fold"], ["fold", "x"], ["x"], ["-1"], ["0", "fold"], ["0.5"], ["²"], ["fold=0"]]
)
def test_other_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Task001", "--", *words]) == 2
    found = " ".join(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: folds {found!r}: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Task002", "0"], "task 'Task002' was not found in"),
        (["Task001", "0"], "Task001_Würfel has no plan in"),
        (["Task001", "0"], "run: autoseg_plan Task001_Würfel"),
        (["Task001", "0", "--plan", "mine"], "plan 'mine' was not found in"),
        (["./gone", "0"], "/gone is not a folder"),
    ],
)
def test_before_there_is_a_plan(
    workspace: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not (workspace / "models").exists()


def test_with_two_plans(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert plan_task(["Task001", "--name", name, "--processes", "1"]) == 0
    capsys.readouterr()
    assert main(["Task001", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Task001_Würfel has the plans a, b; ")
    assert main(["Task001", "7", "--plan", "a"]) == 2
    assert "fold '7' does not exist; choose 0 to 4, or all" in capsys.readouterr().err
    assert not (workspace / "models").exists()


def test_an_absent_device(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_task(["Task001", "--processes", "1"]) == 0
    capsys.readouterr()
    assert main(["Task001", "0", "--device", "cuda:77"]) == 2
    assert "--device cuda:77" in capsys.readouterr().err
