"""The statistic of each table of the paper, on scores by hand, and the page of a study."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.experiments.paper import PICTURES, TABLES, difference
from autoseg.experiments.report import (
    FIGURE_ELEMENTS,
    draw_network,
    draw_pipeline,
    report_study,
    write_elements,
)
from autoseg.experiments.results import read_scores
from autoseg.experiments.study import OTHERS, USUAL, read_paper, read_study
from autoseg.models.log import read_log
from autoseg.plan.plan import Plan
from autoseg.planner.compose import PlanOptions, compose
from autoseg.planner.explain import rows as plan_rows
from tests.browser import Browser, chromium
from tests.experiments.study_folders import TASK, Run, Score, ablation, sensitivity, write_study
from tests.forking import fine_pictures
from tests.making import tiny_plan
from tests.planner.making import fingerprint

__all__ = ["fine_pictures"]

PAPER = "mueller_2021"
SIDED = {"background": (0,), "left lung": (1,), "right lung": (2,), "infection": (3,)}
# Dice of the cases of folds of unequal sizes, for (k, fold). No two statistics of them are equal.
DICE = {
    (2, 0): (0.10, 0.25, 0.90, 0.93, 0.98),
    (2, 1): (0.40, 0.66),
    (3, 0): (0.31, 0.87, 0.99, 0.52),
    (3, 1): (0.74,),
    (3, 2): (0.05, 0.13, 0.62),
}
TEST = {  # the same three cases, by each model: here k = 2 is better than k = 3
    (2, 0): (0.85, 0.80, 0.20),
    (2, 1): (0.65, 0.72, 0.79),
    (3, 0): (0.30, 0.45, 0.95),
    (3, 1): (0.40, 0.55, 0.15),
    (3, 2): (0.11, 0.68, 0.81),
}
METRICS = {"DSC": "Dice", "IoU": "IoU", "Sens": "Sensitivity", "Spec": "Specificity"}
Values = NDArray[np.float64]


def metrics(dice: float) -> dict[str, float]:
    """Four metrics, none of which orders the cases as Dice does, except IoU."""
    sensitivity = (7 * dice) % 1
    return {
        "Dice": dice,
        "IoU": dice / (2 - dice),
        "Sensitivity": sensitivity,
        "Specificity": 1 - sensitivity**2 / 3,
    }


def uneven(workspace: Path, **values: Any) -> Path:
    """A study of k = 2 and 3 with these cases; the infection has 0.9 of the Dice of the lungs."""
    runs: dict[Run, list[Score]] = {}
    for (k, fold), dice in DICE.items():
        runs["default", k, fold] = [
            ("validation", "infection", [metrics(0.9 * value) for value in dice]),
            ("validation", "lungs", [metrics(value) for value in dice]),
            ("An_et_al", "infection", [metrics(value) for value in TEST[k, fold]]),
        ]
    return write_study(workspace, runs, ["An_et_al"], **values)


def folds_of(k: int, group: str, metric: str) -> list[Values]:
    """The values of each fold."""
    source = TEST if group.startswith("An") else DICE
    share = 0.9 if group == "infection" else 1
    found = [dice for (of, _), dice in source.items() if of == k]
    return [np.array([metrics(share * d)[METRICS[metric]] for d in fold]) for fold in found]


def table(folder: Path, name: str) -> dict[str, dict[str, str]]:
    """First cell -> column -> cell."""
    with (folder / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file)
    return {row[0]: dict(zip(header, row, strict=True)) for row in found}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = {
        "table_1": "medians",
        "table_2": "folds",
        "table_3": "related_work",
        "arxiv_table_1": "fold_metrics",
        "training": "training",
        "means": "means",
    }
    folder = uneven(tmp_path_factory.mktemp("uneven"), report=report, paper=PAPER)
    write_elements(read_scores(folder), 1)
    return folder


def test_table_1_is_the_median_and_the_std_of_all_cases_pooled(tables: Path) -> None:
    found = table(tables, "table_1")
    assert list(found) == ["2", "3"]
    told_apart: dict[
        str, bool
    ] = {}  # wrong statistic -> whether any cell tells it from the right one
    for k in (2, 3):
        for group in ("lungs", "infection", "An_et_al infection"):
            for metric in METRICS:
                folds = folds_of(k, group, metric)
                pooled = np.concatenate(folds)
                medians = [float(np.median(fold)) for fold in folds]
                stds = [fold.std(ddof=1) for fold in folds if len(fold) > 1]
                median, _, std = found[str(k)][f"{group} {metric}"].partition(" ± ")
                assert median == f"{np.median(pooled):.3f}"
                assert std == (f"{pooled.std(ddof=1):.2f}" if metric in ("DSC", "IoU") else "")
                wrong = {
                    "mean": f"{pooled.mean():.3f}" != median,
                    "mean of fold medians": f"{np.mean(medians):.3f}" != median,
                    "median of fold medians": f"{np.median(medians):.3f}" != median,
                }
                if std:
                    wrong |= {
                        "ddof 0": f"{pooled.std():.2f}" != std,
                        "mean of fold stds": f"{np.mean(stds):.2f}" != std,
                        "std of fold medians": f"{np.std(medians, ddof=1):.2f}" != std,
                        "std of fold means": f"{np.std([f.mean() for f in folds], ddof=1):.2f}"
                        != std,
                    }
                for name, differs in wrong.items():
                    told_apart[name] = told_apart.get(name, False) or differs
    assert len(told_apart) == 7
    assert all(told_apart.values())


def test_tables_2_and_the_arxiv_one_are_means_of_the_folds_medians(tables: Path) -> None:
    second, arxiv = table(tables, "table_2"), table(tables, "arxiv_table_1")
    for group in ("lungs", "infection"):
        for metric in ("DSC", "Sens", "Spec"):
            cells = {f"k = {k} {group}": k for k in (2, 3)} if metric == "DSC" else {}
            for column, k, rows in (
                *((column, k, second) for column, k in cells.items()),
                (f"{group} {metric}", 3, arxiv),
            ):
                folds = folds_of(k, group, metric)
                medians = [float(np.median(fold)) for fold in folds]
                pooled = np.concatenate(folds)
                assert [rows[str(i)][column] for i in range(k)] == [f"{m:.3f}" for m in medians]
                assert rows["AVG"][column] == f"{np.mean(medians):.3f}"
                others = [np.median(pooled), pooled.mean()]
                assert rows["AVG"][column] not in {f"{other:.3f}" for other in others}
                assert rows["n"][column] == str(len(pooled))
    assert second["2"]["k = 2 lungs"] == ""  # there is no such fold


def test_means_are_of_all_cases(tables: Path) -> None:
    found = table(tables, "means")["3"]
    pooled = np.concatenate(folds_of(3, "lungs", "IoU"))
    assert found["lungs IoU"] == f"{pooled.mean():.3f} ± {pooled.std(ddof=1):.3f}"
    assert (found["folds"], found["lungs n"], found["An_et_al infection n"]) == ("3", "8", "9")


def test_table_3_has_the_best_pooled_median_of_each_set(tables: Path) -> None:
    rows = table(tables, "table_3")
    pooled = {
        (k, group): float(np.median(np.concatenate(folds_of(k, group, "DSC"))))
        for k in (2, 3)
        for group in ("infection", "An_et_al infection")
    }
    best = [max(pooled[k, group] for k in (2, 3)) for group in ("infection", "An_et_al infection")]
    assert best[1] == pooled[2, "An_et_al infection"]
    assert best[0] == pooled[2, "infection"] != pooled[3, "infection"]
    own = rows["this study"]
    assert own["DSC COVID-19"] == " / ".join(f"{value:.3f}" for value in best)
    assert (own["training size"], own["validation/testing size"]) == ("8", "8 / 3")
    assert own["training data"] == TASK
    assert len(rows) == 12  # 15 with the second rows of Saood, Ma and Wang
    assert rows["Müller et al."]["DSC COVID-19"] == "0.804 / 0.661"
    assert all(row["reference"] for name, row in rows.items() if name != "this study")


def test_epochs_and_hours(tables: Path) -> None:
    study = read_scores(tables)
    logs = {
        (arm.name, fold): read_log(path) or []
        for arm in study.arms
        for fold, path in zip(arm.folds, arm.runs, strict=True)
    }
    found = table(tables, "training")
    # write_study has 40, 41, ... epochs of 2 s: the mean of the means would be 40.8
    assert found["2"]["mean epochs"] == "40.5"
    assert found["all 5 models"]["mean epochs"] == "40.8"
    assert found["all 5 models"]["hours"] == f"{(40 + 41 + 40 + 41 + 42) * 2 / 3600:.2f}"
    last = [log[-1].training_loss for (k, _), log in logs.items() if k == "3"]
    assert found["3"]["last training loss"] == f"{np.mean(last):.3f}"


def test_figures_4_show_cases_and_not_medians(tmp_path: Path) -> None:
    study = read_scores(uneven(tmp_path))
    a = FIGURE_ELEMENTS["dice"](study)
    assert a is not None
    dots = [line.get_xdata() for axes in a.axes for line in axes.lines if line.get_marker() == "o"]
    lungs, infection = (np.concatenate(folds_of(3, name, "DSC")) for name in ("lungs", "infection"))
    np.testing.assert_allclose(sorted(np.concatenate(dots)), sorted([*lungs, *infection]))
    b = FIGURE_ELEMENTS["dice_of_plans"](study)
    assert b is not None
    assert [axes.get_title() for axes in b.axes] == ["lungs", "infection"]
    rows = [text.get_text() for text in b.axes[0].get_yticklabels()]
    assert [row.split("  ")[0] for row in rows] == [
        f"{where}: k = {k}" for where in ("validation", "An_et_al") for k in (2, 3)
    ]
    c = FIGURE_ELEMENTS["dice_on_test_sets"](study)
    assert c is not None
    models = [text.get_text() for text in c.axes[0].get_yticklabels()]
    assert models == [f"An_et_al: k = {k}: fold {f}  n = 3" for k in (2, 3) for f in range(k)]


def test_figure_5_from_zero(tmp_path: Path) -> None:
    study = read_scores(uneven(tmp_path))
    limits = {}
    for name in ("loss", "loss_from_zero"):
        figure = FIGURE_ELEMENTS[name](study)
        assert figure is not None
        limits[name] = {axes.get_ylim() for axes in figure.axes if axes.get_visible()}
    assert {low for low, _ in limits["loss_from_zero"]} == {0}
    assert all(low > 0 for low, _ in limits["loss"])


@pytest.fixture(scope="module")
def recipe() -> Plan:
    data = fingerprint(task=TASK, labels=SIDED, shape=(512, 512, 200), spacing_mm=(0.8, 0.8, 1.5))
    return compose(data, PlanOptions())


def texts_of(draw: object, plan: Plan) -> str:
    assert callable(draw)
    return "\n".join(text.get_text() for text in draw(plan).axes[0].texts)


def test_figures_2_and_3_are_drawn_from_the_plan(recipe: Plan) -> None:
    drawn = texts_of(draw_network, recipe)
    for maps, size in ((32, "160 x 160 x 80"), (64, "80 x 80 x 40"), (256, "20 x 20 x 10")):
        assert drawn.count(f"{maps} maps of {size}") == 2  # encoder and decoder
    assert drawn.count("512 maps of 10 x 10 x 5") == 1
    assert drawn.count("max pooling 2 x 2 x 2") == drawn.count("transposed convolution") == 4
    assert drawn.count("2 x convolution 3 x 3 x 3, relu, batch normalisation") == 9
    assert "softmax: 4 maps" in drawn
    flow = " ".join(texts_of(draw_pipeline, recipe).split())
    for value in ("1.58 x 1.58 x 2.7 mm", "-1250 to 250 HU", "160 x 160 x 80", "80 x 80 x 40"):
        assert value in flow
    assert "5-fold cross-validation" in flow
    tiny = texts_of(draw_network, tiny_plan())
    assert "with stride 2 x 2 x 2" in tiny
    assert "4 maps of 4 x 4 x 4" in tiny
    assert "instance normalisation, leaky relu" in tiny


def test_the_recipe_has_the_printed_values(recipe: Plan) -> None:
    own = {row.key: row.value for row in plan_rows(recipe)}
    printed = [item["values"] for item in read_paper(PAPER)["items"].values() if "values" in item]
    assert len(printed) == 2
    for values in printed:
        assert {key: own[key] for key in values} == values


def test_the_studies_make_every_table_and_figure_of_the_paper(tmp_path: Path) -> None:
    paper = read_paper(PAPER)
    studies = [read_study(f"covid_{kind}") for kind in ("sensitivity", "ablation")]
    assert {study.paper for study in studies} == {PAPER}
    made = {name for study in studies for name in study.report}
    assert set(paper["order"]) - made == {"figure_1"}  # which shows the data
    assert set(paper["items"]) == set(paper["order"])
    for name in ("sensitivity", "ablation"):
        assert read_study(f"phantom_{name}").report == read_study(f"covid_{name}").report
    # The columns of the printed tables are those of the study's.
    reports = [{k: v for k, v in study.report.items() if v in TABLES} for study in studies]
    first = sensitivity(tmp_path, report=reports[0], paper=PAPER, name="first")
    second = ablation(tmp_path, report=reports[1], paper=PAPER, name="second")
    write_elements(read_scores(first), 1)
    write_elements(read_scores(second), 1)
    for name in ("table_1", "table_2", "table_3", "arxiv_table_1", "training"):
        folder = second if name == "table_2" else first
        rows, item = table(folder, name), paper["items"][name]
        assert list(next(iter(rows.values()))) == list(item["columns"])
        assert {row[0] for row in item["rows"]} <= set(rows)
        assert {len(row) for row in item["rows"]} == {len(item["columns"])}


@pytest.mark.parametrize(
    ("own", "printed", "expected"),
    [
        ("0.950 ± 0.10", "0.960 ± 0.06", "\N{MINUS SIGN}0.010"),
        ("0.9612", "0.960", "+0.001"),
        ("300.5", "312", "\N{MINUS SIGN}12"),
        ("0.800 / 0.700", "0.804 / 0.661", "\N{MINUS SIGN}0.004 / +0.039"),
        ("missing", "0.960", ""),
        ("-", "0.960", ""),
        ("16 x 16 x 8 voxels", "160 x 160 x 80 voxels", "differs"),
        ("max_pool", "max_pool", "equal"),
        ("0.5", "", ""),
    ],
)
def test_differences_from_printed_values(own: str, printed: str, expected: str) -> None:
    assert difference(own, printed) == expected


def test_every_element_can_be_asked_for() -> None:
    assert {*TABLES, *FIGURE_ELEMENTS, PICTURES} == {*USUAL, *OTHERS}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def test_the_page_has_both_studies_in_the_papers_order(tmp_path: Path, browser: Browser) -> None:
    paper = read_paper(PAPER)
    first = sensitivity(
        tmp_path,
        report={"table_1": "medians", "figure_3": "network", "means": "means"},
        paper=PAPER,
    )
    second = ablation(tmp_path, report={"table_2": "folds"}, paper=PAPER, name="second")
    ablation(tmp_path, report={"figure_5": "dice"}, name="other")  # of no paper
    report_study(second)
    page, report = report_study(first)[-2:]
    assert report == first / "report.html"
    assert page == first / "index.html"
    browser.look(1280)
    browser.open(page)
    assert browser.complaints == []
    assert browser.requests == [page.resolve().as_uri()]
    names = browser.run("[...document.querySelectorAll('section')].map((each) => each.id)")
    assert names == [*paper["order"], "means"]
    cells = browser.run(
        "Object.fromEntries([...document.querySelectorAll('section')].map((each) => [each.id, "
        "[...each.querySelectorAll('tbody tr')].map((row) => [...row.cells].map("
        "(cell) => [...cell.childNodes].map((node) => node.textContent.trim())"
        ".filter((text) => text)))]))"
    )
    assert cells["table_1"][3][1] == ["0.900 ± 0.02", "0.971 ± 0.07", "(\N{MINUS SIGN}0.071)"]
    assert cells["table_1"][0][9] == ["0.500 ± 0.02", "0.555 ± 0.07", "(\N{MINUS SIGN}0.055)"]
    assert cells["table_2"][5][-1] == ["0.761", "0.761", "(equal)"]
    assert cells["figure_3"][1][0] == ["network.features"]
    assert cells["figure_3"][1][1][1:] == ["32, 64, 128, 256, 512", "(differs)"]
    notes = browser.run(
        "Object.fromEntries([...document.querySelectorAll('section')].map((each) => [each.id, "
        "[...each.querySelectorAll('.note')].map((note) => note.innerText).join(' ')]))"
    )
    assert notes["table_2"].endswith("From the study second.")
    assert "run covid_ablation or phantom_ablation" in notes["figure_5"]
    assert browser.run("document.querySelector('#figure_3 img').naturalWidth") > 500
    assert browser.run("document.documentElement.scrollWidth") <= 1280
