"""From a partly annotated task to its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoseg.augmentation.loader import PatchSampler, Position, batches
from autoseg.cli.plan import main as plan_task
from autoseg.cli.train import main as train_task
from autoseg.fingerprint import Fingerprint
from autoseg.plan.plan import load_plan
from autoseg.preprocessing.store import CaseStore
from tests.dataset.making import V2, declare, write_case
from tests.making import store_case, tiny_plan

LABELS = {"background": 0, "left lung": 1, "right lung": 2}


def write_task(folder: Path, **fields: Any) -> None:
    rng = np.random.default_rng(0)
    declare(folder, V2 | {"labels": LABELS} | fields)
    for case in "abcdef":
        label = np.zeros((16, 16, 16), np.uint8)
        label[2:6, 4:12, 4:12] = 1
        label[10:14, 4:12, 4:12] = 2
        image = (100 * label + rng.normal(size=label.shape)).astype(np.float32)
        write_case(folder, case, image, label)


def test_other_classes_are_left_out_of_training_and_scores(tmp_path: Path) -> None:
    declared = {"a": ["left lung"], "b": ["right lung"]}
    write_task(tmp_path / "raw" / "Task001_Lungs", annotated=declared)
    small = ["training.epochs=1", "training.steps_per_epoch=2", "network.features=[4,8]"]
    small += ["network.blocks_encoder=[1,1]", "network.blocks_decoder=[1]"]
    small += ["network.strides=[[1,1,1],[2,2,2]]", "network.kernels=[[3,3,3],[3,3,3]]"]
    small += ["sampling.patch_size=[16,16,16]", "splits.folds=2"]
    words = [word for value in small for word in ("--set", value)]
    place = ["--workspace", str(tmp_path), "--processes", "1"]
    assert plan_task(["Task001_Lungs", *words, *place]) == 0
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
