"""The tables and figures of studies, against the numbers that the paper prints."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from autoseg.common.errors import AutosegError
from autoseg.common.files import write_json
from autoseg.evaluation.scores import Summary
from autoseg.experiments.report import report_study
from autoseg.experiments.results import read_scores
from autoseg.experiments.status import Record
from autoseg.models.folder import SUMMARY
from autoseg.plan.plan import load_plan
from tests.evaluation.scores import case
from tests.experiments.study_folders import (
    ABLATION,
    AVERAGES,
    TASK,
    Run,
    Score,
    ablation,
    around,
    sensitivity,
    validation_scores,
    write_study,
)


def rows_of(folder: Path, name: str) -> list[list[str]]:
    with (folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_ablation_is_table_2_of_the_paper(tmp_path: Path) -> None:
    folder = ablation(tmp_path)
    paths = report_study(folder)
    header, *folds, averages, counts = rows_of(folder, "folds")
    assert header == ["fold", *(f"{plan} {c}" for plan in ABLATION for c in ("lungs", "infection"))]
    for fold, row in enumerate(folds):
        assert row == [
            str(fold),
            *(f"{value:.3f}" for of in ABLATION.values() for value in of[fold]),
        ]
    assert averages == ["AVG", *(cell for pair in AVERAGES for cell in pair.split(" / "))]
    assert counts == ["n", *["15"] * 8]
    figures = {path.name for path in paths if path.suffix == ".svg"}
    assert figures == {"loss.svg", "dice_of_folds.svg", "dice_of_plans.svg"}
    text = (folder / "figures" / "loss.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {plan} (5 folds) -->" in text for plan in ABLATION)


def test_the_sensitivity_analysis_has_the_layout_of_table_1(tmp_path: Path) -> None:
    folder = sensitivity(tmp_path, report={"table_1": "medians", "means": "means"})
    report_study(folder)
    header, *rows = rows_of(folder, "table_1")
    groups = ("lungs", "infection", "An_et_al infection")
    assert header == ["k", *(f"{g} {m}" for g in groups for m in ("DSC", "IoU", "Sens", "Spec"))]
    for k, row in zip((2, 3, 4, 5), rows, strict=True):
        assert row[:5] == [str(k), "0.900 ± 0.02", "0.900 ± 0.02", "0.900", "-"]
        assert row[5] == f"{0.5 + k / 20:.3f} ± 0.02"
        assert row[9] == f"{0.4 + k / 20:.3f} ± 0.02"
    # No case has a specificity: the numbers of cases tell so.
    note = (folder / "tables" / "table_1.md").read_text(encoding="utf-8").splitlines()[-1]
    assert "k = 2: lungs 0-6, infection 0-6, An_et_al infection 0-6;" in note
    names, means, *_ = rows_of(folder, "means")
    assert (names[1], means[1:3], means[6]) == ("folds", ["2", "0.900 ± 0.018"], "0-6")
    latex = (folder / "tables" / "table_1.tex").read_text(encoding="utf-8")
    assert "\\multicolumn{4}{c}{An\\_et\\_al infection}" in latex
    assert "\\caption{study: Median" in latex


def test_what_is_missing_is_seen(tmp_path: Path) -> None:
    gone = frozenset({(4, 0), (4, 2), *((3, fold) for fold in range(3))})
    folder = sensitivity(tmp_path, without=gone)
    report_study(folder)
    medians = {row[0]: row for row in rows_of(folder, "medians")[1:]}
    assert medians["3"][1:] == ["missing"] * 12
    assert {row[0]: row[1] for row in rows_of(folder, "means")}["4"] == "2 of 4"
    folds = {row[0]: row for row in rows_of(folder, "folds")}
    assert folds["fold"][1::2] == ["k = 2 lungs", "k = 3 lungs", "k = 4 lungs", "k = 5 lungs"]
    assert folds["2"][1:7:2] == ["", "missing", "missing"]
    assert folds["AVG"][3] == "missing"
    text = (folder / "tables" / "folds.md").read_text(encoding="utf-8")
    assert "k = 3: 0, 1, 2; k = 4: 0, 2." in text
    text = (folder / "tables" / "medians.md").read_text(encoding="utf-8")
    assert "k = 4: 0, 2; k = 3 on An_et_al: 0, 1, 2; k = 4 on An_et_al: 0, 2." in text
    training = {row[0]: row for row in rows_of(folder, "training")}
    assert training["3"] == ["3", "0", *["missing"] * 3]
    assert training["all 9 models"][1] == "9"
    drawn = (folder / "figures" / "loss.svg").read_text(encoding="utf-8")
    assert "<!-- k = 3 (missing) -->" in drawn
    assert "9 of 14 models are validated." in (folder / "index.html").read_text(encoding="utf-8")


def test_classes_come_from_the_plan(tmp_path: Path) -> None:
    folder = ablation(tmp_path)
    found = read_scores(folder)
    assert (found.study["task"], found.head, found.classes) == (
        TASK,
        "plan",
        ["lungs", "infection"],
    )
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


def compared(workspace: Path) -> Path:
    """Two plans of two folds with eight cases each; the second one is better, and was changed."""
    runs: dict[Run, Sequence[Score]] = {
        (plan, 2, fold): validation_scores(0.9, 0.5)
        for plan in ("narrow", "wide")
        for fold in (0, 1)
    }
    plans = [{"name": "narrow"}, {"name": "wide", "overrides": {"network": {"features": [4, 8]}}}]
    folder = write_study(workspace, runs, plans=plans, title="Wider?")
    for plan, better in (("narrow", 0), ("wide", 5)):
        models = workspace / "models" / TASK / f"{plan}-k2"
        for fold in (0, 1):
            cases = [case(f"c{fold}{i}", organ=(60 + 2 * i + better, 9, 9, 900)) for i in range(8)]
            Summary(tuple(cases)).save(models / f"fold_{fold}" / SUMMARY)
    changed = load_plan(models / "plan.json")
    network = changed.network.model_copy(update={"features": (4, 8)})
    sampling = changed.sampling.model_copy(update={"batch_size": 3})
    changed.model_copy(update={"network": network, "sampling": sampling}).save(models / "plan.json")
    write_record(models / "fold_0")
    return folder


def write_record(folder: Path) -> None:
    began = "2026-01-31T12:00:00+00:00"
    record = Record("done", began, 7200.0, device="cuda:0", memory_gb=3.5, energy_kwh=0.25)
    write_json(folder / "run.json", asdict(record))


def test_arms_are_compared_on_a_page(tmp_path: Path) -> None:
    folder = compared(tmp_path)
    assert report_study(folder)[-1] == folder / "report.html"
    text = (folder / "report.html").read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
    assert "<title>Wider?</title>" in text
    dice = np.array([[(2 * tp) / (2 * tp + 18) for tp in range(60 + b, 76 + b, 2)] for b in (0, 5)])
    differences = np.round(np.tile(dice[1] - dice[0], 2), 12)
    assert f">{wilcoxon(differences, zero_method='wilcox').pvalue:.4f}<" in text
    assert f">{differences.mean():.4f}<" in text
    assert "(network.features): 4, 8 instead of 2, 4" in words
    assert "in more than the study asked" in words
    warning = words[words.index("in more than the study asked") :].split(".", 2)
    assert "sampling" in "".join(warning[:2])
    assert "network.features" not in "".join(warning[:2])
    for cell in ("2.000", "3.50", "0.2500", "cuda:0"):  # hours, GB, kWh
        assert f">{cell}<" in text


def test_scores_of_test_sets_are_on_the_page(tmp_path: Path) -> None:
    folder = sensitivity(tmp_path)
    report_study(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    table = text[text.index("Dice of the test set An_et_al, mean") :].split("</table>")[0]
    found = re.findall(r">(\d\.\d{3}) ± (\d\.\d{3})<small>n = (\d+)<", table)
    for (mean, _, n), k in zip(found, (2, 3, 4, 5), strict=True):
        values = [each["Dice"] for each in around(0.4 + k / 20)]
        assert float(mean) == pytest.approx(np.mean(np.array(values, float)), abs=5e-4)
        assert int(n) == k * len(values)


def test_plans_that_differ_as_asked_cause_no_warning(tmp_path: Path) -> None:
    folder = ablation(tmp_path)
    report_study(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "in more than the study asked" not in text
    assert "The plans are equal." in text
    assert "There is nothing to compare" in text  # only the table of results is there
