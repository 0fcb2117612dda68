"""Peak memory of segmenting a large scan, without that of the libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.prediction.predictor import Predictor
from autoseg.preprocessing.steps import Prepared
from tests.making import grid, tiny_plan
from tests.prediction.making import Pointwise, model_of
from tests.preprocessing.test_preprocess_memory import CHILD, peak_bytes

NATIVE, LOW = (512, 512, 320), (96, 96, 112)
MB = 1 << 20


def predictor_of(classes: int) -> Predictor:
    labels = {"background": [0]} | {f"organ {n}": [n] for n in range(1, classes)}
    plan = tiny_plan(
        labels=labels,
        sampling={"patch_size": [32, 32, 32]},
        inference={"overlap": [0, 0, 0], "weighting": "uniform"},
    )
    return Predictor(model_of(plan, Pointwise(classes)), device="cpu", backend="torch")


def scan_of(classes: int, native: Any, low: Any) -> Prepared:
    """A prepared scan with values that grow along x, so each class has its own layer."""
    layers = np.linspace(0, classes - 1, low[0], dtype=np.float32)
    image = np.broadcast_to(layers[None, :, None, None], (1, *low)).copy()
    where = grid(native)
    return Prepared(image, None, where, tuple((0, n) for n in native), where.spacing_mm)


def measure(classes: int) -> None:
    """Print how a large scan raises the peak after a small one has loaded all libraries."""
    torch.set_num_threads(1)
    model = predictor_of(classes)
    model.segment(scan_of(classes, (50, 50, 50), (40, 40, 40)))
    scan = scan_of(classes, NATIVE, LOW)
    before = peak_bytes()
    label = model.segment(scan)
    window = min(model.window_bytes(scan, axis) for axis in range(3))
    found = [int(label[p]) for p in ((0, 0, 0), (511, 511, 319))]
    print(json.dumps([peak_bytes() - before, window, found]))


@pytest.mark.parametrize("classes", [4, 40])
def test_peak_memory_is_the_label_map_the_window_and_some_planes(classes: int) -> None:
    """512 x 512 x 320 voxels; all probabilities would be 1.3 GB for 4 classes, 13 for 40."""
    pytest.importorskip("resource")
    command = [sys.executable, "-c", CHILD, sys.executable, "-m", __name__, str(classes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    growth, window, found = json.loads(done.stdout.splitlines()[-1])
    assert found == [0, classes - 1]
    # Patches that are in the network, planes that wait, and one class on 16 native planes.
    some = (80 + 3 * classes) * MB
    assert prod(NATIVE) < growth < prod(NATIVE) + window + some
    assert window == 4 * (classes + 1) * 32 * LOW[0] * LOW[1]


if __name__ == "__main__":
    measure(int(sys.argv[1]))
