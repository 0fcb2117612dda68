from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg.common.errors import AutosegError
from autoseg.evaluation.evaluate import choose_labels, evaluate_folders
from autoseg.evaluation.labels import (
    ALL_CLASSES,
    EvaluationOptions,
    ScoredClasses,
    apply_options,
    parse_options,
)
from autoseg.evaluation.scores import Summary
from tests.evaluation.scores import write

LUNGS = {"background": [0], "left lung": [1], "right lung": [2], "infection": [3]}
THREE = ScoredClasses({"left lung": (1,), "right lung": (2,), "infection": (3,)})


def model_names(folder: Path, **more: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.json").write_text(json.dumps({"labels": LUNGS, **more}))


def declare(truth: Path, labels: dict[str, int]) -> None:
    declared = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    (truth.parent / "dataset.json").write_text(json.dumps(declared))


def infection_alone(tmp_path: Path) -> tuple[Path, Path]:
    """A truth with infection as 1; a prediction with lungs as 1 and 2, and infection as 3."""
    truth, predicted = tmp_path / "task" / "labelsTs", tmp_path / "out"
    label = np.zeros((6, 5, 4), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    write(truth / "a.nii.gz", label)
    found = np.zeros_like(label)
    found[:3] = 1
    found[3:] = 2
    found[1:4, 1:3, 1:3] = 3
    write(predicted / "a.nrrd", found)  # the two sides may have different formats
    return truth, predicted


def evaluate(truth: Path, predicted: Path, *maps: str) -> Summary:
    labels = choose_labels(truth, predicted, parse_options(maps, (), None))
    return evaluate_folders(truth, predicted, labels)


def test_what_is_3_here_is_1_there(tmp_path: Path) -> None:
    truth, predicted = infection_alone(tmp_path)
    model_names(predicted, evaluation={"tolerances": [{"labels": [3], "mm": 3}]})
    summary = evaluate(truth, predicted, "3:1")
    assert summary.labels == ("infection",)  # lungs are not scored
    scores = summary.cases[0].labels["infection"]
    assert (scores.tp, scores.fp, scores.fn) == (8, 4, 0)
    assert summary.tolerance_mm == {"infection": 3.0}  # that of the model's 3


def test_mapping_equals_relabelling(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 6, 5, 4)).astype(np.uint8)
    write(tmp_path / "t" / "a.nii.gz", truth)
    write(tmp_path / "p" / "a.nii.gz", predicted)
    write(tmp_path / "relabelled" / "a.nii.gz", np.array([0, 2, 1, 2], np.uint8)[predicted])
    found = evaluate(tmp_path / "t", tmp_path / "p", "1:2", "2:1", "3:2")
    same = evaluate_folders(
        tmp_path / "t", tmp_path / "relabelled", ScoredClasses({"2": (2,), "1": (1,)})
    )
    for mine, theirs in zip(found.cases, same.cases, strict=True):
        assert (mine.labels, mine.surfaces, mine.lesions) == (
            *(theirs.labels, theirs.surfaces, theirs.lesions),
        )


def test_a_mapped_class_has_the_truths_name(tmp_path: Path) -> None:
    truth, predicted = infection_alone(tmp_path)
    declare(truth, {"background": 0, "COVID lesion": 1})
    model_names(predicted)
    assert evaluate(truth, predicted, "3:1").labels == ("COVID lesion",)


def test_without_names_it_is_called_by_its_value(tmp_path: Path) -> None:
    truth, predicted = infection_alone(tmp_path)
    assert evaluate(truth, predicted, "2:1", "3:1").labels == ("1",)


def test_mapping_to_what_nobody_knows(tmp_path: Path) -> None:
    truth, predicted = infection_alone(tmp_path)
    declare(truth, {"background": 0, "lesion": 1})
    model_names(predicted)
    with pytest.raises(AutosegError, match=r"--map 4:1: .* 4; .*infection \(3"):
        evaluate(truth, predicted, "4:1")
    with pytest.raises(AutosegError, match=r"--map 3:2: dataset.json .* 2; .*lesion \(1"):
        evaluate(truth, predicted, "3:2")


def test_what_no_file_holds_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, predicted = infection_alone(tmp_path)
    evaluate(truth, predicted, "4:7")
    warnings = capsys.readouterr().err.splitlines()[-2:]
    assert "7 (label 7)" in warnings[0]
    assert "reference" in warnings[0]
    assert "7 (label 4)" in warnings[1]
    assert "predicted" in warnings[1]


@pytest.mark.parametrize("text", ["3", "3:", "a:1", "3:0", "0:1", "3:1:2", "-3:1"])
def test_a_map_that_reads_differently(text: str) -> None:
    with pytest.raises(AutosegError, match=f"--map {text}: "):
        parse_options([text], (), None)


def test_a_value_cannot_become_two() -> None:
    with pytest.raises(AutosegError, match="--map: 3 "):
        parse_options(["3:1", "3:2"], (), None)


def test_merging_by_value_and_by_name() -> None:
    by_value, by_name = (
        apply_options(parse_options((), [text], None), THREE)
        for text in ("lungs=1,2", "lungs=left lung, right lung")
    )
    assert by_value == by_name
    assert by_value.merged == {"lungs": ("left lung", "right lung")}


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ("lungs", "--merge lungs: "),
        ("=1,2", "--merge =1,2: "),
        ("lungs=1,4", r"'4' .* left lung \(1\), right lung \(2\), infection"),
        ("lungs=1,heart", "'heart'"),
        ("lungs=1,1", "--merge lungs=1,1: "),
        ("infection=1,2", "'infection'"),
    ],
)
def test_merges_that_make_no_sense(merge: str, message: str) -> None:
    with pytest.raises(AutosegError, match=message):
        apply_options(parse_options((), [merge], None), THREE)


def test_tolerances() -> None:
    assert parse_options((), (), "2") == EvaluationOptions(tolerances_mm={ALL_CLASSES: 2.0})
    every = apply_options(parse_options((), (), "2"), THREE)
    assert [every.tolerance_of(name) for name in THREE.values] == [2.0, 2.0, 2.0]
    options = parse_options((), ["lungs=1,2"], "0.5,infection=3,right lung=2")
    found = apply_options(options, THREE).tolerance_mm
    assert found == {"left lung": 0.5, "right lung": 2.0, "infection": 3.0}
    of_row = apply_options(parse_options((), ["lungs=1,2"], "lungs=1.5,3=3"), THREE).tolerance_mm
    assert of_row == {"left lung": 1.5, "right lung": 1.5, "infection": 3.0}
    assert THREE.tolerance_of("infection") == 1.0


@pytest.mark.parametrize("text", ["wide", "0", "-1", "nan", "inf", "infection=", "infection=x"])
def test_tolerances_that_are_no_distance(text: str) -> None:
    with pytest.raises(AutosegError, match=r"--tolerance .* mm"):
        parse_options((), (), text)


def test_a_tolerance_of_no_class() -> None:
    with pytest.raises(AutosegError, match="--tolerance lungs=1: 'lungs'"):
        apply_options(parse_options((), (), "lungs=1"), THREE)


def test_the_plan_of_the_model_decides(tmp_path: Path) -> None:
    truth, predicted = infection_alone(tmp_path)
    merged = [{"name": "lungs", "labels": [1, 2]}]
    model_names(predicted, evaluation={"tolerance_mm": 2, "merged": merged})
    labels = choose_labels(truth, predicted)
    assert labels.merged == {"lungs": ("left lung", "right lung")}
    assert labels.tolerance_of("infection") == 2.0


def test_a_broken_evaluation_in_the_models_file(tmp_path: Path) -> None:
    truth, predicted = infection_alone(tmp_path)
    model_names(predicted, evaluation={"tolerance_mm": -1})
    with pytest.raises(AutosegError, match=r"labels.json: .*evaluation.tolerance_mm"):
        choose_labels(truth, predicted)
