from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.evaluation.metrics import Lesions
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import (
    Table,
    as_csv,
    as_latex,
    dice_rows,
    dice_text,
    escaped,
    in_mm,
    lesion_rows,
    metric_rows,
    print_dice,
    rows_as_csv,
    rows_as_markdown,
    write_table,
)
from tests.evaluation.scores import case, three_cases


def test_golden_dice_rows() -> None:
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
        replace(case("a", x=(1, 0, 0, 1)), lesions={"x": Lesions(3, 2, 4, 1)}),
        replace(case("b", x=(1, 0, 0, 1)), lesions={"x": Lesions(1, 0, 0, 0)}),
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
    print_dice(three_cases())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "Dice                   lung           lesion     mean"
    assert printed[2] == "b                    0.6000                -   0.6000"


def test_drawn_table_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_dice(Summary((case("[red]a", x=(1, 0, 0, 1)),)))
    printed = capsys.readouterr().out
    assert "┃" in printed
    assert "[red]a" in printed  # names are no markup


def test_a_line_about_a_case() -> None:
    assert dice_text(three_cases().cases[1]) == "b: Dice lung 0.6000, lesion -"


TABLE = Table(
    "100 % of the folds' medians",
    [
        ("k", "folds", "DSC", "IoU"),
        ("2", "1 of 2", "0.96 ± 0.01", "-"),
        ("a_b", "5", "-0.5", "x|y"),
    ],
    groups=[("", 2), ("left & right", 2)],
    note="Missing folds: 1.",
)


def test_golden_latex() -> None:
    lines = as_latex(TABLE).splitlines()
    assert lines[1:4] == [
        "\\begin{table}",
        "  \\centering",
        "  \\caption{100 \\% of the folds' medians. Missing folds: 1.}",
    ]
    start = lines.index("    \\toprule")
    assert lines[start + 1 : start + 7] == [
        "    \\multicolumn{2}{c}{} & \\multicolumn{2}{c}{left \\& right} \\\\",
        "    \\cmidrule(lr){3-4}",
        "    k & folds & DSC & IoU \\\\",
        "    \\midrule",
        "    2 & 1 of 2 & 0.96 $\\pm$ 0.01 & -- \\\\",
        "    a\\_b & 5 & $-$0.5 & x\\textbar{}y \\\\",
    ]
    assert "  \\begin{tabular}{lrrr}" in lines


def test_groups_stand_in_the_header_elsewhere(tmp_path: Path) -> None:
    paths = write_table(tmp_path / "new" / "a.b", TABLE)
    assert [path.name for path in paths] == ["a.b.csv", "a.b.md", "a.b.tex"]
    rows = list(csv.reader(io.StringIO(paths[0].read_text(encoding="utf-8"))))
    assert rows[0] == ["k", "folds", "left & right DSC", "left & right IoU"]
    assert rows[1:] == [list(row) for row in TABLE.rows[1:]]
    title, _, header, _, *body = paths[1].read_text(encoding="utf-8").splitlines()
    assert title == TABLE.title
    assert header.split("|")[3].strip() == "left & right DSC"
    assert body[1].endswith("x\\|y |")
    assert body[-1] == TABLE.note


@given(st.text(alphabet="ab \\&%$#_{}~^<>|±-1", max_size=12))
def test_nothing_special_is_left(text: str) -> None:
    """Reading LaTeX's escapes back gives the text."""
    found = escaped(text)
    if text == "-":
        assert found == "--"
        return
    back = found.replace("\\textbackslash{}", "\0")
    for command, character in (
        *(("\\textasciitilde{}", "~"), ("\\textasciicircum{}", "^"), ("\\textless{}", "<")),
        *(("\\textgreater{}", ">"), ("\\textbar{}", "|"), ("$\\pm$", "±"), ("$-$", "-")),
        *((f"\\{special}", special) for special in "&%$#_{}"),
    ):
        back = back.replace(command, character)
    assert back.replace("\0", "\\") == text


CELL = st.text(st.characters(exclude_characters="\r"), max_size=5)


@given(st.lists(st.tuples(CELL, CELL), min_size=1))
def test_csv_is_read_back(rows: list[tuple[str, str]]) -> None:
    text = rows_as_csv(rows)
    assert [tuple(row) for row in csv.reader(io.StringIO(text, newline=""))] == rows


def test_wide_groups_stand_below_each_other_in_latex() -> None:
    names = ("validation", "first hospital", "second hospital")
    groups = [("", 2), *((name, 3) for name in names)]
    header = ("k", "folds", *(f"{metric}{i}" for i in range(3) for metric in "abc"))
    values = [[f"0.{i}{column} ± 0.123" for column in range(3)] for i in range(3)]
    row = ("2", "5", *(value for of_group in values for value in of_group))
    lines = as_latex(Table("Wide", [header, row], groups)).splitlines()
    begun = [line.strip() for line in lines if "begin{tabular}" in line]
    assert begun == ["\\begin{tabular}{lrrrrrrr}", "\\begin{tabular}{lrrrr}"]
    cells = [[escaped(value) for value in of_group] for of_group in values]
    assert f"    2 & 5 & {' & '.join(cells[0] + cells[1])} \\\\" in lines
    assert f"    2 & 5 & {' & '.join(cells[2])} \\\\" in lines
    assert "    \\multicolumn{2}{c}{} & \\multicolumn{3}{c}{second hospital} \\\\" in lines
    assert sum("\\caption" in line for line in lines) == 1


def test_a_group_wider_than_a_page_stands_alone() -> None:
    header = ("k", *"abcd")
    row = ("1", *["x" * 50] * 4)
    text = as_latex(Table("Wide", [header, row], [("", 1), ("one", 3), ("two", 1)]))
    assert text.count("begin{tabular}{lrrr}") == 1
    assert text.count("begin{tabular}{lr}") == 1
