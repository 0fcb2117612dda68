"""Time a network on the CPU: torch in two precisions, and OpenVINO.

Rounds alternate between the variants, so that a busy machine slows all of them; the table has the
median seconds of one patch, the speed against torch in float32, and the seconds until the first
patch is done (for OpenVINO: building and compiling the graph):

    python scripts/bench_backend.py                                     the paper's untrained U-Net
    python scripts/bench_backend.py --model WORKSPACE/models/TASK/PLAN
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.networks.devices import describe
from autoseg.networks.unet import UNet, build_network
from autoseg.plan.plan import Plan, make_plan
from autoseg.planner.overrides import merge, read_reference
from autoseg.prediction.backends import AUTO, TORCH, Run, choose_backend
from autoseg.prediction.model import load_model

CPU = torch.device("cpu")
VARIANTS = ((TORCH, "float32"), (TORCH, "bfloat16"), (AUTO, "float32"), (AUTO, "bfloat16"))


def paper_plan() -> Plan:
    """The reference plan of the COVID set, with its four classes."""
    given: dict[str, Any] = {
        "task": "Task001_COVID",
        "channels": ["CT"],
        "labels": {"background": [0], "left lung": [1], "right lung": [2], "infection": [3]},
    }
    layers = read_reference("Task001_COVID").layers
    return make_plan(reduce(merge, (layer.values for layer in layers), given), "the paper's plan")


def in_precision(plan: Plan, precision: str) -> Plan:
    """The plan with another precision."""
    values = plan.model_dump(mode="json")
    return make_plan(merge(values, {"training": {"precision": precision}}), "the benchmark's plan")


def seconds_of(run: Run, patch: Tensor) -> float:
    """The seconds of one patch."""
    started = time.perf_counter()
    run(patch)
    return time.perf_counter() - started


def measure(plan: Plan, network: UNet, rounds: int) -> None:
    """Print the table."""
    patch = torch.randn(1, plan.input_channels, *plan.sampling.patch_size)
    names, runs, first = [], [], []
    for library, precision in VARIANTS:
        started = time.perf_counter()
        backend = choose_backend(library, [network], in_precision(plan, precision), CPU)
        backend.networks[0](patch)
        if backend.name not in names:  # without OpenVINO, torch is used
            names.append(backend.name)
            runs.append(backend.networks[0])
            first.append(time.perf_counter() - started)
    times = [[seconds_of(run, patch) for run in runs] for _ in range(rounds)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    print("| backend | s a patch | times torch float32 | s until the first patch |")
    print("| --- | ---: | ---: | ---: |")
    for name, seconds, until in zip(names, medians, first, strict=True):
        print(f"| {name} | {seconds:.3f} | {medians[0] / seconds:.2f} | {until:.2f} |")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model folder (default: the paper's U-Net)")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.model:
        model = load_model(arguments.model, None, CPU)
        plan, network = model.plan, model.networks[0]
    else:
        plan = paper_plan()
        network = build_network(plan).eval()
    size = " x ".join(map(str, plan.sampling.patch_size))
    features = "-".join(map(str, plan.network.features))
    print(f"{describe(CPU)}: {features} maps, one patch of {size}\n")
    measure(plan, network, arguments.rounds)


if __name__ == "__main__":
    main()
