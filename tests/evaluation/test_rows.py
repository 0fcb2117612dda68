from __future__ import annotations

import csv
import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from autoseg.evaluation.tables import Table, as_latex, escaped, rows_as_csv, write_table

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
