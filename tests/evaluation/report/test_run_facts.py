from __future__ import annotations

from pathlib import Path

import pytest

from autoseg.evaluation.report.facts import (
    Predictions,
    fold_times,
    prediction_times,
    read_predictions,
    version_rows,
)
from autoseg.models.log import Training
from tests.evaluation.making import write_record


def test_a_record_is_read(tmp_path: Path) -> None:
    write_record(tmp_path, {"a": 1.0, "b": 2.0, "c": 9.0})
    found = read_predictions(tmp_path)
    assert found is not None
    assert found.head == {"task": "Task004", "plan": "p"}
    assert found.seconds == (1.0, 2.0, 9.0)
    assert version_rows([found, found])[1:] == [("device", "cpu"), ("autoseg", "1.2.3")]
    (line,) = prediction_times(found).lines
    assert [cell.text for cell in line.cells] == ["3", "2 s"]


@pytest.mark.parametrize("text", ["{", "[]", '{"cases": 3}', '{"cases": {"a": {"seconds": "x"}}}'])
def test_a_damaged_record_is_said(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "predictions.json").write_text(text)
    assert read_predictions(tmp_path) is None
    assert "predictions.json" in capsys.readouterr().err


def test_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_predictions(tmp_path) is None
    assert capsys.readouterr().err == ""


def test_different_versions_are_all_named() -> None:
    runs = ({"torch": "2.11"}, {"torch": "2.13", "device": "cuda:0"})
    assert version_rows([Predictions({}, runs)]) == [("torch", "2.11, 2.13"), ("device", "cuda:0")]


def test_times_sort_as_times() -> None:
    trainings = {0: Training(50, 3700.0, {}), 1: Training(10, 65.0, {}), 2: None}
    table = fold_times(trainings, {0: Predictions({}, (), (0.25, 0.5, 0.75)), 1: None})
    assert [[cell.text for cell in line.cells] for line in table.lines] == [
        ["0", "50", "1 h 01 min", "1 min 14 s", "3", "0.5 s"],
        ["1", "10", "1 min 05 s", "6.5 s", "-", "-"],
        ["2", "-", "-", "-", "-", "-"],
    ]
    assert [line.cells[2].value for line in table.lines] == [3700.0, 65.0, None]
