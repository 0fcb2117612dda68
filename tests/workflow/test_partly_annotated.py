"""From a partly annotated task to its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg.augmentation.loader import PatchSampler, Position, batches
from autoseg.cli.evaluate import main as evaluate_task
from autoseg.cli.plan import main as plan_task
from autoseg.cli.train import main as train_task
from autoseg.fingerprint import Fingerprint
from autoseg.plan.plan import load_plan
from autoseg.preprocessing.store import CaseStore
from tests.dataset.making import V2, declare, write_case
from tests.making import store_case, tiny_plan

LABELS = {"background": 0, "left lung": 1, "right lung": 2}


SMALL = (
    *("training.epochs=1", "training.steps_per_epoch=2", "network.features=[4,8]"),
    *("network.blocks_encoder=[1,1]", "network.blocks_decoder=[1]"),
    *("network.strides=[[1,1,1],[2,2,2]]", "network.kernels=[[3,3,3],[3,3,3]]"),
    *("sampling.patch_size=[16,16,16]", "splits.folds=2"),
)
SETTINGS = [word for value in SMALL for word in ("--set", value)]


def write_task(folder: Path, cases: str = "abcdef", **fields: Any) -> None:
    rng = np.random.default_rng(0)
    declare(folder, V2 | {"labels": LABELS} | fields)
    for case in cases:
        label = np.zeros((16, 16, 16), np.uint8)
        label[2:6, 4:12, 4:12] = 1
        label[10:14, 4:12, 4:12] = 2
        image = (100 * label + rng.normal(size=label.shape)).astype(np.float32)
        write_case(folder, case, image, label)


def test_other_classes_are_left_out_of_training_and_scores(tmp_path: Path) -> None:
    declared = {"a": ["left lung"], "b": ["right lung"]}
    write_task(tmp_path / "raw" / "Task001_Lungs", annotated=declared)
    place = ["--workspace", str(tmp_path), "--processes", "1"]
    assert plan_task(["Task001_Lungs", *SETTINGS, *place]) == 0
    folder = tmp_path / "preprocessed" / "Task001_Lungs" / "default"
    plan = load_plan(folder / "plan.json")
    assert plan.annotated == {"a": ("left lung",), "b": ("right lung",)}
    assert Fingerprint.load(folder / "fingerprint.json").presence["a"] == {"left lung"}
    assert train_task(["Task001_Lungs", "0", "1", *place, "--device", "cpu"]) == 0
    store = CaseStore(folder / "cases", plan.preprocessing_id)
    assert sorted(store.open("a").foreground) == [1]
    scored = {}
    for path in (tmp_path / "models" / "Task001_Lungs" / "default").glob(
        "fold_*/validation/*.json"
    ):
        if path.name == "summary.json":
            for case in json.loads(path.read_text())["metric_per_case"]:
                scored[case["case"]] = set(case["metrics"])
    both = {"left lung", "right lung"}
    assert scored == dict.fromkeys("cdef", both) | {"a": {"left lung"}, "b": {"right lung"}}


@pytest.mark.parametrize(
    "declared", [{"*": ["left lung"]}, {"a": "present", "b": ["left lung"], "c": ["spleen"]}]
)
def test_annotations_that_cannot_be_used(tmp_path: Path, declared: object) -> None:
    write_task(tmp_path / "raw" / "Task001_Lungs", annotated=declared)
    assert plan_task(["Task001_Lungs", "--workspace", str(tmp_path), "--processes", "1"]) == 2
    assert not (tmp_path / "preprocessed" / "Task001_Lungs" / "default").exists()


def test_annotation_changes_sides_with_the_labels(tmp_path: Path) -> None:
    labels = {name: [value] for name, value in LABELS.items()}
    plan = tiny_plan(
        labels=labels,
        orientation="RAS",
        mirrored_labels=[[1, 2]],
        annotated={"a": ["left lung"]},
        augmentation=[{"transform": "mirror", "axes": [0]}],
    )
    store = CaseStore(tmp_path, plan.preprocessing_id)
    image = np.arange(512, dtype=np.float32).reshape(1, 8, 8, 8)
    store_case(store, "a", image, np.ones((8, 8, 8), np.int16))
    sampler = PatchSampler(store, ["a"], plan.sampling, steps_per_epoch=8)
    seen = set()
    with batches(sampler, plan, Position(0, 0, 0, 0, 0), workers=0) as stream:
        for _ in range(8):
            batch = next(stream)
            for label, missing in zip(batch["label"], batch["unannotated"], strict=True):
                (value,) = np.unique(label)
                seen.add(int(value))
                assert missing.tolist() == [False, value == 2, value == 1]
    assert seen == {1, 2}


def test_one_task_of_two_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    write_task(raw / "Task001_Lungs")
    write_task(raw / "Task002_Left", labels={"background": 0, "left lung": 1, "other": 2})
    words = ["Task001", "Task002", "--workspace", str(tmp_path), "--processes", "1"]
    assert plan_task([*words, "--merge", "../x"]) == plan_task(words) == 2
    assert plan_task(["Task001", "--merge", "Task003_Both", *words[2:]]) == 2
    assert {path.name for path in raw.iterdir()} == {"Task001_Lungs", "Task002_Left"}
    assert plan_task([*words, "--merge", "Task003_Both"]) == 0
    assert "other" in capsys.readouterr().out
    plan = load_plan(tmp_path / "preprocessed" / "Task003_Both" / "default" / "plan.json")
    assert list(plan.labels) == ["background", "left lung", "right lung", "other"]
    assert set(plan.annotated) == {
        f"{t}_{c}" for t in ("Task001_Lungs", "Task002_Left") for c in "abcdef"
    }
    assert plan_task([*words, "--merge", "Task003_Both"]) == 2  # it exists


def test_a_task_without_any_fully_annotated_case_is_evaluated(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_task(raw / "Task001_Left", "abc", labels={"background": 0, "left lung": 1, "right": 2})
    write_task(raw / "Task002_Right", "def", labels={"background": 0, "left": 1, "right lung": 2})
    place = ["--workspace", str(tmp_path), "--processes", "1"]
    assert plan_task(["1", "2", "--merge", "Task003_Both", *SETTINGS, *place]) == 0
    assert train_task(["3", "0", "1", *place, "--device", "cpu"]) == 0
    assert evaluate_task(["3", *place]) == 0
    model = tmp_path / "models" / "Task003_Both" / "default"
    assert (model / "cross_validation" / "report.html").is_file()
    # Postprocessing and temperature need cases with all labels.
    assert not (model / "postprocessing.json").exists()
    calibration = model / "calibration.json"
    assert "temperature" not in (
        json.loads(calibration.read_text()) if calibration.is_file() else {}
    )
