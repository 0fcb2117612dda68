"""What autoseg does on the pretended card, as JSON: `python -m tests.pretended_card.step`.

A process of its own, because the card must be there before torch is imported.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.pretended_card.card import CUDA, Card, pretended_card  # before torch

# ruff: isort: split
import numpy as np

from autoseg.augmentation.loader import PatchSampler, Position, batches
from autoseg.dataset.splits import Split
from autoseg.image.image import Image
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan
from autoseg.planner.patch_rule import training_memory
from autoseg.prediction.predictor import Predictor
from autoseg.prediction.sliding_window import count_tiles
from autoseg.training.learner import Learner
from autoseg.training.state import Run
from autoseg.training.train import train
from tests.making import CASCADE, grid, tiny_plan, tiny_store
from tests.prediction.making import model_of

GB = 1e9
LARGE: dict[str, Any] = {
    "sampling": {"patch_size": [128, 128, 128], "batch_size": 2},
    "network": {
        "features": [32, 64, 128, 256, 320, 320],
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
        "kernels": [[3, 3, 3]] * 6,
        "blocks_encoder": [2] * 6,
        "blocks_decoder": [2] * 5,
        "deep_supervision": True,
    },
    "inference": {"overlap": [64, 64, 64], "mirror_axes": []},
    "training": {"precision": "bfloat16", "average_decay": 0.999},
}
REGIONS = {
    "labels": {"background": [0], "whole": [1, 2], "core": [2]},
    "regions_class_order": [1, 2],
}
SGD = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.99, "nesterov": True}
HALF = {"precision": "float16"}
SMALL: dict[str, dict[str, Any]] = {
    "plain": {"training": {"average_decay": 0.99}},
    "batch norm": {"network": {"norm": "batch"}},
    "residual": {"network": {"residual": True}},
    "regions": REGIONS,
    "Tversky": {"training": {"loss": {"loss": "tversky_cross_entropy"}}},
    "SGD": {"training": {"optimizer": SGD}},
    "float16": {"training": HALF},
    "partly annotated": {"annotated": {"case_0": ["organ"]}},
    "augment_on device": {"training": {"augment_on": "device"}},
}


FINER = {"target_spacing_mm": [0.8, 0.7, 1.0], "preprocessing": [{"step": "resample"}]}
PREDICTIONS: dict[str, dict[str, Any]] = {
    "plain": FINER,
    "TTA": FINER | {"inference": {"mirror": True, "mirror_axes": [0, 1, 2]}},
    "regions": FINER | REGIONS,
    "2d": {
        "sampling": {"patch_size": [8, 8, 1]},
        "inference": {"overlap": [4, 4, 0]},
        "network": {"strides": [[1, 1, 1], [2, 2, 1]], "kernels": [[3, 3, 1]] * 2},
    },
    "cascade": FINER | CASCADE,
    "no memory": FINER,
}


def large_plan(norm: str) -> Plan:
    """NnU-Net's usual network for patches of 128 x 128 x 128 voxels."""
    network = LARGE["network"] | {"norm": norm, "convolution_bias": norm == "instance"}
    return tiny_plan(**LARGE | {"network": network})


def figures(card: Card, learner: Learner) -> dict[str, Any]:
    """What was counted."""
    return {
        "waits": dict(card.waits),
        "layouts": dict(card.layouts),
        "traffic_gb": sum(card.traffic.values()) / GB,
        "peak_gb": card.peak / GB,
        "copies_to_card": dict(card.copies),
        "to_host": sum(card.to_host.values()),
        "dtype": str(learner.dtype),
    }


def large_step(norm: str) -> dict[str, Any]:
    """The second training step of a large plan."""
    plan = large_plan(norm)
    size = (plan.sampling.batch_size, *plan.sampling.patch_size)
    image = np.zeros((size[0], len(plan.channels), *size[1:]), np.float32)
    batch = {"data": image, "label": np.zeros(size, np.int16)}
    with pretended_card() as card:
        learner = Learner(plan, CUDA)
        learner.step(batch, 1e-3)
        card.reset()
        learner.step(batch, 1e-3)
        found = figures(card, learner)
    return found | {"planned_gb": training_memory(plan).peak / GB}


def small_step(changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The second training step of a small plan, with real patches."""
    plan = tiny_plan(**changes)
    store = tiny_store(folder, plan)
    sampler = PatchSampler(store, [f"case_{i}" for i in range(4)], plan.sampling, 4)
    older = plan.training.precision == "float16"
    with pretended_card((7, 0) if older else (9, 0)) as card:
        learner = Learner(plan, CUDA)
        with batches(sampler, plan, Position(0, 0, 0, 0, 0), workers=0) as stream:
            learner.step(next(stream), 1e-3)
            batch = next(stream)
            card.reset()
            learner.step(batch, 1e-3)
        return figures(card, learner)


def whole_run(folder: Path, **changes: Any) -> dict[str, Any]:
    """Training with validation and checkpoints, extended by `resume`: its epochs and files."""
    training = {"epochs": 2, "steps_per_epoch": 2, "validation_steps": 2, "average_decay": 0.99}
    training |= changes
    plan = tiny_plan(training=training)
    longer = tiny_plan(training=training | {"epochs": 3})
    store = tiny_store(folder / "cases", plan)
    split = Split(("case_0", "case_1", "case_2"), ("case_3",))
    run = Run(folder / "fold_0", 0, CUDA, 0, False, time.monotonic(), 1)
    with pretended_card():
        train(plan, store, split, run)
        state = train(longer, store, split, replace(run, resume=True))
    return {"epochs": state.done, "files": sorted(path.name for path in run.folder.iterdir())}


def prediction(name: str, quality: bool) -> dict[str, Any]:
    """The second prediction of a scan by two folds."""
    plan, shape = tiny_plan(**PREDICTIONS[name]), (14, 13, 17)
    values = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    image = Image(values, grid(shape))

    def model(of: Plan) -> Predictor:
        return Predictor(model_of(of, *(build_network(of).eval() for _ in range(2))), device="cuda")

    with pretended_card(free=1000 if name == "no memory" else 80 << 30) as card:
        predictor = model(plan)
        if plan.previous_stage is not None:
            predictor.previous = model(tiny_plan(**FINER))
        for _ in range(2):
            card.reset()
            prepared = predictor.prepare(image)
            observer = predictor.observer(quality, False)
            label = predictor.segment(prepared, observer=observer)
            observer.figures()
        low, inference = prepared.image.shape[1:], plan.inference
        tiles = count_tiles(low, plan.sampling.patch_size, inference.overlap)
        return {
            "tiles": tiles * (2 if plan.previous_stage else 1),
            "to_host": sum(card.to_host.values()),
            "label": label.nbytes * (2 if plan.previous_stage else 1),
            "copies": sum(card.copies.values()),
            "bus_waits": dict(card.waits),
            "peak_gb": card.peak / GB,
        }


def main() -> None:
    """Print all figures."""
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {f"large {norm}": large_step(norm) for norm in ("instance", "batch")}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, changes) in enumerate(SMALL.items()):
            found[name] = small_step(changes, Path(folder, str(index)))
        for name in PREDICTIONS:
            found[f"predict {name}"] = prediction(name, quality=False)
        found["predict with quality"] = prediction("plain", quality=True)
        found["run"] = whole_run(Path(folder, "run"))
        found["run, float16"] = whole_run(Path(folder, "run16"), precision="float16")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
