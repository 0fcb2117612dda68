from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap

from autoseg.evaluation.figures.charts import draw_volumes
from autoseg.evaluation.metrics import METRICS, Lesions
from autoseg.evaluation.report.facts import (
    ALL,
    RESAMPLES,
    Predictions,
    Sortable,
    case_table,
    class_table,
    penalties,
    read_predictions,
    version_rows,
    worst_first,
)
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.surface import Surface
from tests.evaluation.making import write_record
from tests.evaluation.scores import case, three_cases


def texts(table: Sortable, group: str) -> list[tuple[str, str]]:
    return [(line.cells[0].text, line.cells[1].text) for line in table.lines if line.group == group]


def test_worst_cases_come_first_and_missing_ones_last() -> None:
    table = case_table(three_cases())
    assert table.groups == (ALL, "lung", "lesion")
    assert [column.name for column in table.columns[:3]] == ["case", "Dice", "IoU"]
    assert table.sorted_by == 1
    # means of the classes that are there: b has no lesion
    assert texts(table, ALL) == [
        ("c", "0.500"), ("b", "0.600"), ("a", "0.650"), ("d", "missing"),
    ]  # fmt: skip
    assert texts(table, "lesion") == [
        ("c", "0.000"), ("b", "-"), ("a", "0.500"), ("d", "missing"),
    ]  # fmt: skip


def test_every_metric_has_a_column_that_brings_the_worst_up() -> None:
    table = case_table(three_cases())
    first = {column.name: column.first for column in table.columns}
    assert first["Dice"] == "ascending"
    assert len(table.columns) == 1 + len(METRICS) - 5 + 2  # no surfaces, no lesions
    assert all(len(line.cells) == len(table.columns) for line in table.lines)
    surfaces = {label: Surface(1.0, 0.5, 0.9) for label in ("lung", "lesion")}
    cases = [replace(each, surfaces=surfaces) for each in three_cases().cases]
    first = {column.name: column.first for column in case_table(Summary(tuple(cases))).columns}
    assert first["HD95 (mm)"] == "descending"
    assert first["NSD"] == "ascending"


def test_long_names_may_be_broken() -> None:
    names = {column.name: column.parts for column in class_table(three_cases()).columns}
    assert names["VolumeDifference (ml)"] == ["Volume", "Difference (ml)"]
    assert names["Dice"] == ["Dice"]


def test_folds_and_links() -> None:
    table = case_table(three_cases(), {"a": "1", "b": "0"}, {"c": "#case-1"})
    assert table.columns[1].name == "fold"
    assert table.sorted_by == 2
    of = {line.cells[0].text: line.cells for line in table.lines}
    assert [of[name][1].text for name in "abc"] == ["1", "0", "-"]
    assert [of[name][0].link for name in "abc"] == ["", "", "#case-1"]


def test_one_class_needs_no_choice() -> None:
    table = case_table(Summary((case("a", x=(1, 0, 0, 1)),)))
    assert table.groups == ()
    assert len(table.lines) == 1


def test_many_cases_are_cut_and_it_is_reported() -> None:
    cases = tuple(case(f"c{i:03}", x=(i, 100 - i, 0, 0)) for i in range(100))
    table = case_table(Summary(cases), most_rows=10)
    assert [line.cells[0].text for line in table.lines] == [f"c{i:03}" for i in range(10)]
    assert table.note.startswith("The 10 worst of 100 cases")
    assert case_table(Summary(cases), most_rows=100).note == ""


def test_merged_rows_count_in_no_mean_of_a_case() -> None:
    one = case("a", x=(1, 0, 0, 1), y=(0, 1, 1, 0), both=(5, 5, 5, 5))
    table = case_table(Summary((replace(one, merged={"both": ("x", "y")}),)))
    assert table.groups == (ALL, "x", "y", "both")
    assert texts(table, ALL) == [("a", "0.500")]


def test_ties_are_in_the_order_of_names() -> None:
    cases = [case(name, x=(1, 1, 0, 0)) for name in "cab"]
    empty = case("0", x=(0, 0, 0, 1))
    assert [each.case for each in worst_first([empty, *cases])] == ["a", "b", "c", "0"]


def test_class_means_have_their_n() -> None:
    lines = class_table(three_cases()).lines
    assert [line.cells[1].text for line in lines] == ["0.800 ± 0.200", "0.250 ± 0.354"]
    assert [line.cells[1].more for line in lines] == ["n = 3", "n = 2"]  # too few for intervals
    assert lines[1].cells[1].value == 0.25


def test_class_means_have_confidence_intervals() -> None:
    """Those of SciPy's bootstrap, with the same seed."""
    dice = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    cases = [
        case(f"c{i}", x=(round(20 * v), *[round(20 - 20 * v)] * 2, 0)) for i, v in enumerate(dice)
    ]
    low, high = bootstrap(
        (dice,), np.mean, n_resamples=RESAMPLES, batch=1000, random_state=np.random.default_rng(0)
    ).confidence_interval
    (line,) = class_table(Summary(tuple(cases))).lines
    assert line.cells[1].more == f"{low:.3f} to {high:.3f}, n = 6"


def test_the_reader_sees_four_metrics_first() -> None:
    surfaces = {label: Surface(1.0, 0.5, 0.9) for label in ("lung", "lesion")}
    cases = [replace(each, surfaces=surfaces) for each in three_cases().cases]
    for table in (class_table(Summary(tuple(cases))), case_table(Summary(tuple(cases)))):
        shown = [column.name for column in table.columns if column.shown]
        assert shown == ["Dice", "HD95 (mm)", "NSD", "VolumeDifference (ml)"]


def test_penalties_are_marked_and_explained() -> None:
    surfaces = {"lung": Surface(2.0, 0.5, 0.9), "lesion": Surface(913.0, 913.0, 0.0)}
    cases = [replace(each, surfaces=surfaces) for each in three_cases().cases]
    summary = Summary(tuple(cases))  # the lesion is only predicted in c
    lung, lesion = class_table(summary).lines
    place = [column.name for column in class_table(summary).columns].index("HD95 (mm)")
    assert "†" not in lung.cells[place].text
    assert "†" in lesion.cells[place].text
    assert "†" not in lesion.cells[1].text
    marked = {
        line.cells[0].text
        for line in case_table(summary).lines
        if line.group == "lesion" and any("†" in cell.text for cell in line.cells)
    }
    assert marked == {"c"}
    assert "1 time here, up to 913 mm (lesion of c)" in penalties(summary)
    assert penalties(three_cases()) == ""


def test_a_partly_annotated_case_lacks_a_class() -> None:
    whole, partly = case("a", lung=(8, 2, 2, 8), lesion=(0, 1, 0, 19)), case("b", lung=(6, 4, 4, 6))
    cases = [
        replace(of, surfaces={name: Surface(1.0, 0.5, 0.9) for name in of.labels})
        for of in (whole, partly)
    ]
    summary = Summary(tuple(cases))
    lung, lesion = class_table(summary).lines
    assert (lung.cells[1].more, lesion.cells[1].more) == ("n = 2", "n = 1")
    assert texts(case_table(summary), "lesion") == [("a", "0.000"), ("b", "-")]
    assert "1 time here" in penalties(summary)
    assert len(draw_volumes(summary).axes) == 1  # the lesion is in no reference


def test_lesions_only_of_classes_with_several_components() -> None:
    lesions = {"lung": Lesions(1, 1, 1, 0), "lesion": Lesions(4, 3, 5, 1)}
    cases = tuple(replace(each, lesions=lesions) for each in three_cases().cases)
    table = class_table(Summary(cases))
    place = [column.name for column in table.columns].index("LesionRecall")
    assert [line.cells[place].text for line in table.lines] == ["-", "0.750 ± 0.000"]
    organs = tuple(replace(each, lesions={"lung": lesions["lung"]}) for each in cases)
    names = {column.name for column in class_table(Summary(organs)).columns}
    assert "LesionRecall" not in names


def test_a_record_is_read(tmp_path: Path) -> None:
    write_record(tmp_path, {"a": 1.0, "b": 2.0, "c": 9.0})
    found = read_predictions(tmp_path)
    assert found is not None
    assert found.head == {"task": "Task004", "plan": "p"}
    assert found.seconds == (1.0, 2.0, 9.0)
    assert version_rows([found, found])[1:] == [("device", "cpu"), ("autoseg", "1.2.3")]
    assert found.median == 2.0


@pytest.mark.parametrize("text", ["{", "[]", '{"cases": 3}', '{"cases": {"a": {"seconds": "x"}}}'])
def test_a_damaged_record_is_reported(
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
