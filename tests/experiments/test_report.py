"""The tables and figures of studies, against the numbers that the paper prints."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from autoseg.common.errors import AutosegError
from autoseg.experiments.report import report_study
from autoseg.experiments.results import read_scores
from tests.experiments.study_folders import (
    ABLATION,
    AVERAGES,
    TASK,
    ablation,
    sensitivity,
    write_study,
)


def rows_of(folder: Path, name: str) -> list[list[str]]:
    with (folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_ablation_is_table_2_of_the_paper(tmp_path: Path) -> None:
    folder = ablation(tmp_path)
    paths = report_study(folder)
    header, *folds, averages, counts = rows_of(folder, "folds")
    assert header == ["fold", *ABLATION]
    for fold, row in enumerate(folds):
        cells = [f"{of[fold][0]:.3f} / {of[fold][1]:.3f}" for of in ABLATION.values()]
        assert row == [str(fold), *cells]
    assert averages == ["AVG", *AVERAGES]
    assert counts == ["n", *["15 / 15"] * 4]
    figures = {path.name for path in paths if path.suffix == ".svg"}
    assert figures == {"loss.svg", "dice_of_folds.svg", "dice_of_plans.svg"}
    text = (folder / "figures" / "loss.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {plan} (5 folds) -->" in text for plan in ABLATION)


def test_the_sensitivity_analysis_has_the_layout_of_table_1(tmp_path: Path) -> None:
    folder = sensitivity(tmp_path)
    report_study(folder)
    header, *rows = rows_of(folder, "medians")
    metrics = ("DSC", "IoU", "Sens", "Spec", "n")
    groups = ("lungs", "infection", "An_et_al infection")
    assert header == [
        "k",
        "folds",
        *(f"{group} {metric}" for group in groups for metric in metrics),
    ]
    for k, row in zip((2, 3, 4, 5), rows, strict=True):
        assert row[:3] == [str(k), str(k), "0.900"]
        assert row[7] == f"{0.5 + k / 20:.3f}"
        assert row[12] == f"{0.4 + k / 20:.3f}"
        assert row[5] == "-"  # no number of specificity: n tells so
        assert row[6] == f"0-{3 * k}"
    means = rows_of(folder, "means")
    assert means[1][2] == "0.900 ± 0.018"
    latex = (folder / "tables" / "medians.tex").read_text(encoding="utf-8")
    assert "\\multicolumn{5}{c}{An\\_et\\_al infection}" in latex
    assert "\\caption{study: Mean of the folds' medians" in latex
    assert {line.count("&") for line in latex.splitlines() if line.endswith("\\\\")} == {16, 3}


def test_what_is_missing_is_seen(tmp_path: Path) -> None:
    gone = frozenset({(4, 0), (4, 2), *((3, fold) for fold in range(3))})
    folder = sensitivity(tmp_path, without=gone)
    report_study(folder)
    medians = {row[0]: row for row in rows_of(folder, "medians")[1:]}
    assert medians["3"][1:] == ["0 of 3", *(["missing"] * 4 + ["0"]) * 3]
    assert medians["4"][1] == "2 of 4"
    folds = {row[0]: row for row in rows_of(folder, "folds")}
    assert folds["fold"] == ["fold", "k = 2", "k = 3", "k = 4", "k = 5"]
    assert folds["2"][1:4] == ["", "missing", "missing"]
    assert folds["AVG"][2] == "missing"
    text = (folder / "tables" / "folds.md").read_text(encoding="utf-8")
    assert "k = 3: 0, 1, 2; k = 4: 0, 2." in text
    drawn = (folder / "figures" / "loss.svg").read_text(encoding="utf-8")
    assert "<!-- k = 3 (missing) -->" in drawn


def test_classes_come_from_the_plan(tmp_path: Path) -> None:
    folder = ablation(tmp_path)
    found = read_scores(folder)
    assert (found.task, found.head, found.classes) == (TASK, "plan", ["lungs", "infection"])
    assert found.labels is not None
    assert found.labels.colours["lungs"] == "#0072B2"
    shutil.rmtree(tmp_path / "models")
    assert read_scores(folder).classes == ["left lung", "right lung", "infection", "lungs"]


def test_a_study_of_which_nothing_is_done(tmp_path: Path) -> None:
    folder = write_study(tmp_path, {("default", 2, 0): [], ("default", 2, 1): []})
    assert report_study(folder) == []
    assert not (folder / "tables").exists()


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"study\.json"):
        report_study(tmp_path)
    folder = ablation(tmp_path)
    (folder / "results.csv").write_text("plan,set,fold\ndefault-k5,validation,first\n")
    with pytest.raises(AutosegError, match=r"experiments/study .*ValueError"):
        report_study(folder)
    (folder / "results.csv").unlink()
    with pytest.raises(AutosegError, match=r"results\.csv"):
        report_study(folder)
