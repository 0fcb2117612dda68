from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import AutosegError, DataError
from autoseg.evaluation.evaluate import evaluate_case, evaluate_folders
from autoseg.evaluation.labels import ScoredClasses
from autoseg.evaluation.metrics import METRICS, Volumes
from autoseg.evaluation.scores import (
    CaseScores,
    Statistic,
    Summary,
    combine,
    merge,
)
from tests.evaluation.reference_scores import check_summary
from tests.evaluation.scores import case, three_cases, write

LABELS = ScoredClasses({"left": (1,), "right": (2,)}, merged={"both": ("left", "right")})
counts = st.tuples(*[st.integers(0, 9)] * 4)


def scored(tmp_path: Path, truth: np.ndarray, predicted: np.ndarray) -> CaseScores:
    files = tmp_path / "t" / "a.nii.gz", tmp_path / "p" / "a.nii.gz"
    for file, label in zip(files, (truth, predicted), strict=True):
        write(file, label.astype(np.uint8), (1.0, 1.0, 2.0))
    return evaluate_case(*files, LABELS)


def halves() -> tuple[np.ndarray, np.ndarray]:
    """The left half is right; of the right half, 16 voxels are moved by one."""
    truth = np.zeros((10, 6, 6), int)
    truth[1:4, 1:5, 1:5], truth[6:7, 1:5, 1:5] = 1, 2
    predicted = truth.copy()
    predicted[predicted == 2] = 0
    predicted[7:8, 1:5, 1:5] = 2
    return truth, predicted


def test_every_metric_of_a_case(tmp_path: Path) -> None:
    found = scored(tmp_path, *halves())
    assert {m: found.value("left", m) for m in METRICS} == {
        **dict.fromkeys(("Dice", "IoU", "Sensitivity", "Specificity", "Precision"), 1.0),
        **{"Accuracy": 1.0, "HD95_mm": 0.0, "ASSD_mm": 0.0, "NSD": 1.0},
        **{"VolumeDifference_ml": 0.0, "RelativeVolumeDifference": 0.0},
        **{"LesionRecall": 1.0, "LesionPrecision": 1.0},
    }
    assert found.value("right", "HD95_mm") == 1.0
    assert found.value("right", "LesionRecall") == 0.0
    assert found.lesions["right"].false == 1


def test_a_merged_row_is_the_mean_of_its_classes(tmp_path: Path) -> None:
    found = scored(tmp_path, *halves())
    assert found.value("both", "Dice") == 0.5  # their union's is 6/8
    for metric in METRICS:
        of = [found.value(name, metric) for name in ("left", "right")]
        if metric != "VolumeDifference_ml":
            assert found.value("both", metric) == pytest.approx(mean_of_known(of))
    assert found.labels["both"].n_ref == 48 + 16
    assert found.volume_ml["both"].reference == pytest.approx(64 * 0.002)
    assert found.lesions["both"].reference == 2


def test_merged_rows_count_in_no_mean_over_classes(tmp_path: Path) -> None:
    found = scored(tmp_path, *halves())
    assert found.classes == ("left", "right")
    assert found.mean("NSD") == mean_of_known(found.value(c, "NSD") for c in ("left", "right"))
    summary = Summary((found,))
    assert summary.labels == ("left", "right", "both")
    assert summary.foreground_mean() == 0.5
    assert summary.to_json()["mean"]["both"]["Dice"] == 0.5


@given(counts, counts)
def test_merging_a_class_with_itself_changes_no_ratio(
    left: tuple[int, int, int, int], right: tuple[int, int, int, int]
) -> None:
    both = merge(case("a", x=left, y=right), {"xx": ("x", "x"), "xy": ("x", "y"), "yx": ("y", "x")})
    for metric in METRICS:
        if metric != "VolumeDifference_ml":
            assert both.value("xx", metric) == both.value("x", metric)
        assert both.value("xy", metric) == both.value("yx", metric)
    assert both.labels["xy"].tp == left[0] + right[0]


def test_a_mean_leaves_out_what_has_no_number() -> None:
    both = merge(case("a", x=(1, 1, 1, 1), y=(0, 0, 0, 4)), {"xy": ("x", "y")})
    assert both.value("xy", "Dice") == both.value("x", "Dice") == 0.5


def test_empty_cases_have_one_policy(tmp_path: Path) -> None:
    """As the table in `metrics` says."""
    nothing, there = np.zeros((3, 4, 6), int), np.zeros((3, 4, 6), int)
    there[1, 1, 1] = 1
    both, missed, invented = (
        scored(tmp_path, *pair) for pair in ((nothing,) * 2, (there, nothing), (nothing, there))
    )
    assert [both.value("left", m) for m in ("Dice", "NSD", "HD95_mm", "LesionRecall")] == [None] * 4
    for one in (missed, invented):
        assert (one.value("left", "Dice"), one.value("left", "NSD")) == (0.0, 0.0)
        diagonal = pytest.approx((3**2 + 4**2 + 12**2) ** 0.5)
        assert one.value("left", "HD95_mm") == one.value("left", "ASSD_mm") == diagonal
    assert (missed.value("left", "LesionRecall"), missed.value("left", "LesionPrecision")) == (
        0,
        None,
    )
    assert invented.value("left", "RelativeVolumeDifference") is None
    assert invented.value("left", "VolumeDifference_ml") == pytest.approx(0.002)
    assert both.value("left", "VolumeDifference_ml") == 0.0


def test_volumes() -> None:
    relative = METRICS["RelativeVolumeDifference"].of
    assert (Volumes(4.0, 3.0).difference, relative(Volumes(4.0, 3.0))) == (-1.0, -0.25)
    assert relative(Volumes(0.0, 3.0)) is None


label_maps = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).choice([0, 0, 0, 1, 2], (3, 4, 3))
)


@settings(deadline=None, max_examples=20)
@given(label_maps, label_maps)
def test_json_and_back(
    tmp_path_factory: pytest.TempPathFactory, truth: np.ndarray, predicted: np.ndarray
) -> None:
    found = scored(tmp_path_factory.mktemp("case"), truth, predicted)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert CaseScores.from_json(json.loads(text)) == found


def test_a_summary_from_before_there_were_surfaces(tmp_path: Path) -> None:
    summary = Summary((scored(tmp_path, *halves()),), (), {"left": 1.0, "right": 1.0})
    old = summary.to_json()
    del old["tolerance_mm"], old["lesions"]
    for entry in old["metric_per_case"]:
        del entry["lesions"], entry["merged"]
        kept = [
            *("Dice", "IoU", "Sensitivity", "Specificity", "Precision", "Accuracy"),
            *("TP", "FP", "FN", "TN", "n_pred", "n_ref"),
        ]
        entry["metrics"] = {
            name: {metric: of[metric] for metric in kept} for name, of in entry["metrics"].items()
        }
    found = Summary.from_json(old)
    assert found.statistic("right").mean == 0.0
    assert found.statistic("right", "NSD").n == 0
    assert found.statistic("right", "VolumeDifference_ml").n == 1
    assert found.to_json()["mean"]["left"]["HD95_mm"] is None
    renamed = replace(summary.cases[0], case="b")
    both = combine([found, Summary((renamed,), (), {"left": 1.0, "right": 1.0})])
    assert both.statistic("left", "NSD").n == 1
    assert both.tolerance_mm == {"left": 1.0, "right": 1.0}


def test_one_tolerance_in_one_summary() -> None:
    of = [
        Summary((case(name, x=(1, 0, 0, 1)),), (), {"x": mm}) for name, mm in (("a", 1), ("b", 2))
    ]
    with pytest.raises(DataError, match="tolerances"):
        combine(of)


def test_lesions_are_pooled_over_cases(tmp_path: Path) -> None:
    truth, predicted = halves()
    for name, found in (("a", predicted), ("b", truth)):
        write(tmp_path / "t" / f"{name}.nii.gz", truth.astype(np.uint8))
        write(tmp_path / "p" / f"{name}.nii.gz", found.astype(np.uint8))
    summary = evaluate_folders(tmp_path / "t", tmp_path / "p", LABELS)
    right = summary.to_json()["lesions"]["right"]
    assert right == {
        **{"reference": 2, "found": 1, "missed": 1, "predicted": 2, "false": 1},
        **{"recall": 0.5, "precision": 0.5},
    }
    assert summary.tolerance_mm == {"left": 1.0, "right": 1.0}


def test_statistics_of_a_class() -> None:
    lung = three_cases().statistic("lung")
    assert lung.mean == pytest.approx(0.8)
    assert lung.std == pytest.approx(0.2)
    assert lung.median == pytest.approx(0.8)
    assert lung.n == 3


def test_no_number_counts_in_no_mean() -> None:
    lesion = three_cases().statistic("lesion")
    assert (lesion.mean, lesion.median, lesion.n) == (0.25, 0.25, 2)


def test_no_numbers_at_all() -> None:
    assert Statistic.of([None, None]) == Statistic(None, None, None, 0)
    assert Statistic.of([None, 0.5]) == Statistic(0.5, None, 0.5, 1)


def test_foreground_mean_is_the_mean_of_the_classes_means() -> None:
    assert three_cases().foreground_mean() == pytest.approx((0.8 + 0.25) / 2)


def test_mean_of_a_case_leaves_out_absent_classes() -> None:
    assert [c.mean() for c in three_cases().cases] == pytest.approx([0.65, 0.6, 0.5])


def test_summary_json() -> None:
    found = three_cases().to_json()
    assert found["foreground_mean"]["Dice"] == pytest.approx(0.525)
    assert found["foreground_mean"]["n"]["Dice"] == 2
    assert found["mean"]["lesion"]["Dice"] == 0.25
    assert found["mean"]["lesion"]["n"]["Dice"] == 2
    assert found["median"]["lung"]["Dice"] == pytest.approx(0.8)
    assert found["missing"] == ["d"]
    b = found["metric_per_case"][1]
    assert b["case"] == "b"
    assert b["reference_file"] == "truth/b.nii.gz"
    assert b["metrics"]["lesion"]["Dice"] is None
    assert b["metrics"]["lung"]["TP"] == 6
    assert b["metrics"]["lung"]["n_ref"] == 10
    assert b["volume_ml"]["lung"] == {"reference": 10.0, "predicted": 10.0}


def test_json_has_null_and_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    Summary((case("empty", lesion=(0, 0, 0, 8)),)).save(path)
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text
    found = json.loads(text)
    assert found["mean"]["lesion"]["Dice"] is None
    assert found["mean"]["lesion"]["n"]["Dice"] == 0
    assert found["foreground_mean"]["Dice"] is None
    assert found["std"]["lesion"]["Accuracy"] is None


@given(st.lists(counts, min_size=1, max_size=5))
def test_summary_to_json_and_back(of_cases: list[tuple[int, int, int, int]]) -> None:
    summary = Summary(tuple(case(str(i), x=numbers) for i, numbers in enumerate(of_cases)), ("m",))
    text = json.dumps(summary.to_json(), allow_nan=False)
    assert not math.isnan(summary.statistic("x").mean or 0)
    assert Summary.from_json(json.loads(text)) == summary


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    three_cases().save(path)
    assert Summary.load(path) == three_cases()


@pytest.mark.parametrize("text", ["{}", "[]", '{"metric_per_case": [{}], "missing": []}', "3"])
def test_something_else_is_no_summary(tmp_path: Path, text: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"summary\.json"):
        Summary.load(path)


def test_load_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"summary\.json"):
        Summary.load(tmp_path / "summary.json")


def test_combine() -> None:
    first = Summary((case("b", x=(1, 0, 0, 1)),), ("m", "a"))
    second = Summary((case("a", x=(1, 1, 1, 1)),), ("m",))
    both = combine([first, second])
    assert [c.case for c in both.cases] == ["a", "b"]
    assert both.missing == ("m",)
    assert both.statistic("x").mean == 0.75


def test_combine_needs_the_same_classes() -> None:
    summaries = [Summary((case("a", x=(1, 0, 0, 1)),)), Summary((case("b", y=(1, 0, 0, 1)),))]
    with pytest.raises(DataError, match="x and y"):
        combine(summaries)


def test_combine_counts_no_case_twice() -> None:
    with pytest.raises(DataError, match="3 cases"):
        combine([three_cases(), three_cases()])


CLASSES: dict[str, tuple[int, ...]] = {"lung": (1,), "infection": (2,), "both": (1, 2)}


def random_map(seed: int, values: list[int]) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, (5, 4, 6)).astype(np.uint8)


CASES = {
    "usual": (random_map(0, [0, 1, 2]), random_map(1, [0, 1, 2])),
    "right": (random_map(2, [0, 1, 2]), random_map(2, [0, 1, 2])),
    "no_infection": (random_map(3, [0, 1]), random_map(4, [0, 1])),
    "invented": (random_map(5, [0, 1]), random_map(6, [0, 1, 2])),
    "missed": (random_map(7, [0, 1, 2]), random_map(8, [0, 1])),
    "nothing": (random_map(9, [0]), random_map(9, [0])),
    "nothing_found": (random_map(10, [0, 1, 2]), random_map(10, [0])),
    "everything": (random_map(11, [1]), random_map(11, [1])),
}


@pytest.mark.parametrize(
    "names", [list(CASES), ["nothing"], ["no_infection", "nothing"], ["everything"]]
)
def test_every_number_is_scikit_learns(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        for folder, label in zip(("truth", "found"), CASES[name], strict=True):
            write(tmp_path / folder / f"{name}.nii.gz", label)
    path = tmp_path / "found" / "summary.json"
    evaluate_folders(tmp_path / "truth", tmp_path / "found", ScoredClasses(CLASSES)).save(path)
    summary = check_summary(path, tmp_path / "truth", CLASSES)
    assert len(summary["metric_per_case"]) == len(names)


def test_undefined_metrics_are_null(tmp_path: Path) -> None:
    for folder, label in zip(("truth", "found"), CASES["nothing"], strict=True):
        write(tmp_path / folder / "a.nii.gz", label)
    path = tmp_path / "found" / "summary.json"
    evaluate_folders(tmp_path / "truth", tmp_path / "found", ScoredClasses(CLASSES)).save(path)
    summary = check_summary(path, tmp_path / "truth", CLASSES)
    for figure in ("mean", "median"):
        assert summary[figure]["lung"]["Dice"] is None
        n = summary[figure]["lung"]["n"]
        there = {"Specificity", "Accuracy", "VolumeDifference_ml"}
        assert n == {metric: int(metric in there) for metric in METRICS}
