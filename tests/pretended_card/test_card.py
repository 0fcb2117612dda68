"""A pretended card: no waits in training, few copies, known traffic; predictions stay there."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
INCLUDE = Path(str(importlib.metadata.distribution("torch").locate_file("torch/include/c10")))
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.skipif(not INCLUDE.is_dir(), reason="torch has no header files"),
    pytest.mark.skipif(
        "+cu" in importlib.metadata.version("torch"), reason="this torch has CUDA of its own"
    ),
]
STEPS = ["plain", "batch norm", "residual", "regions", "Tversky", "SGD", "float16"]
STEPS += ["partly annotated", "augment_on device", "large instance", "large batch"]
# GB that a step of nnU-Net's usual network reads and writes (batch 2, bfloat16), as recorded.
TRAFFIC = {"large instance": 32.3, "large batch": 32.4}
Figures = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found() -> Figures:
    command = [sys.executable, "-W", "ignore", "-m", "tests.pretended_card.step"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: Figures = json.loads(done.stdout)
    return figures


@pytest.mark.parametrize("name", STEPS)
def test_a_step_never_waits_for_the_card(found: Figures, name: str) -> None:
    assert found[name]["waits"] == {}
    assert found[name]["to_host"] == 0


@pytest.mark.parametrize("name", STEPS)
def test_no_activation_is_copied_to_another_layout(found: Figures, name: str) -> None:
    assert found[name]["layouts"] == {}


@pytest.mark.parametrize("name", STEPS)
def test_each_array_of_a_batch_is_copied_once(found: Figures, name: str) -> None:
    arrays = 3 if name in ("partly annotated", "augment_on device") else 2
    assert sum(found[name]["copies_to_card"].values()) <= arrays


@pytest.mark.parametrize("name", TRAFFIC)
def test_traffic_and_memory_of_a_step(found: Figures, name: str) -> None:
    assert found[name]["traffic_gb"] < 1.03 * TRAFFIC[name]
    assert found[name]["peak_gb"] < 1.3 * found[name]["planned_gb"]
    assert found[name]["planned_gb"] < 1.5 * found[name]["peak_gb"]


def test_older_cards_compute_in_float16(found: Figures) -> None:
    assert found["float16"]["dtype"] == "torch.float16"


@pytest.mark.parametrize("name", ["run", "run, float16"])
def test_a_whole_run_is_trained_and_resumed(found: Figures, name: str) -> None:
    assert found[name]["epochs"] == 3
    assert {"final.safetensors", "latest.safetensors", "log.jsonl"} <= set(found[name]["files"])


@pytest.mark.parametrize("name", ["plain", "TTA", "regions", "2d", "cascade"])
def test_only_label_maps_come_back_from_a_prediction(found: Figures, name: str) -> None:
    of = found[f"predict {name}"]
    assert of["to_host"] == of["label"]
    assert sum(of["bus_waits"].values()) == (2 if name == "cascade" else 1)
    # The scan and the weights; each operator and list of parts stays there.
    assert of["copies"] <= (5 if name == "cascade" else 2)


def test_a_prediction_that_does_not_fit_comes_back_tile_by_tile(found: Figures) -> None:
    of = found["predict no memory"]
    assert of["to_host"] == of["tiles"] * 3 * 8 * 8 * 8 * 4
    assert of["peak_gb"] < found["predict plain"]["peak_gb"]


def test_quality_brings_some_numbers_of_each_tile(found: Figures) -> None:
    plain, of = found["predict plain"], found["predict with quality"]
    assert of["to_host"] - plain["to_host"] <= of["tiles"] * 2 * 5 * 3 * 4
    assert sum(of["bus_waits"].values()) == 2  # the label map, and the numbers at the end
