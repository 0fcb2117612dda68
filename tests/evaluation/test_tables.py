from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from autoseg.evaluation.metrics import Lesions
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import (
    as_csv,
    dice_rows,
    dice_text,
    in_mm,
    lesion_rows,
    metric_rows,
    print_table,
    rows_as_markdown,
)
from tests.evaluation.scores import case, three_cases


def test_golden_rows() -> None:
    assert dice_rows(three_cases()) == [
        ("case", "lung", "lesion", "mean"),
        ("a", "0.8000", "0.5000", "0.6500"),
        ("b", "0.6000", "-", "0.6000"),
        ("c", "1.0000", "0.0000", "0.5000"),
        ("d", "missing", "missing", "missing"),
        ("mean ± std", "0.8000 ± 0.2000", "0.2500 ± 0.3536", "0.5250"),
        ("median", "0.8000", "0.2500", ""),
        ("n", "3", "2", ""),
    ]


def test_one_case_has_no_std() -> None:
    rows = dice_rows(Summary((case("a", x=(1, 1, 0, 2)),)))
    assert rows[2] == ("mean ± std", "0.6667", "0.6667")


def test_metric_rows() -> None:
    header, dice, *others = metric_rows(three_cases())
    assert header == ("metric: mean (n)", "lung", "lesion")
    assert dice == ("Dice", "0.8000 (3)", "0.2500 (2)")
    found = {row[0]: row[1:] for row in others}
    assert found["HD95 (mm)"] == ("- (0)", "- (0)")  # these cases have no surfaces
    assert found["VolumeDifference (ml)"] == ("0.0000 (3)", "1.0000 (3)")


def test_lesion_rows() -> None:
    cases = (
        replace(case("a", x=(1, 0, 0, 1)), lesions={"x": Lesions.of(3, 2, 4, 1)}),
        replace(case("b", x=(1, 0, 0, 1)), lesions={"x": Lesions.of(1, 0, 0, 0)}),
    )
    header, found = lesion_rows(Summary(cases))
    assert header[1:5] == ("lesions", "found", "missed", "false")
    assert found == ("x", "4", "2", "2", "1", "0.5000", "0.7500")


def test_tolerances_in_words() -> None:
    assert in_mm({"lung": 1.0, "lesion": 1.0}) == "1 mm"
    assert in_mm({"lung": 1.0, "lesion": 3.0}) == "lung 1 mm, lesion 3 mm"
    assert in_mm({}) == "-"


def test_markdown() -> None:
    lines = rows_as_markdown(dice_rows(three_cases())).splitlines()
    assert lines[0].split() == ["|", "case", "|", "lung", "|", "lesion", "|", "mean", "|"]
    assert lines[1].replace("-", "") == "|  | : | : | : |"
    assert len({len(line) for line in lines}) == 1
    summary = Summary((case("a|b", x=(1, 0, 0, 1)),))
    assert rows_as_markdown(dice_rows(summary)).count("a\\|b") == 1


def test_csv_has_every_number() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(three_cases()))))
    assert len(rows) == 4 * 2
    assert rows[0]["Dice"] == "0.8"
    assert rows[0]["TP"] == "8"
    assert rows[0]["reference_ml"] == "10.0"
    assert (rows[3]["case"], rows[3]["class"], rows[3]["Dice"]) == ("b", "lesion", "")
    assert (rows[7]["case"], rows[7]["TP"]) == ("d", "")


def test_plain_table_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(three_cases())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Dice                   lung           lesion     mean"
    assert printed[2] == "b                    0.6000                -   0.6000"


def test_drawn_table_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_table(Summary((case("[red]a", x=(1, 0, 0, 1)),)))
    printed = capsys.readouterr().out
    assert "┃" in printed
    assert "[red]a" in printed  # names are no markup


def test_a_line_about_a_case() -> None:
    assert dice_text(three_cases().cases[1]) == "b: Dice lung 0.6000, lesion -"
