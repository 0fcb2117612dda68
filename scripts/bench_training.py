"""Time training steps of one network in several precisions, memory layouts, and compiled.

Rounds alternate between the variants, so that a busy machine slows all of them; the table has the
median round of each, and its speed against float32 with contiguous memory. With `--nnunet` it is
the plan's own step on the processor against nnU-Net's trainer (its network, loss and optimiser,
with the same patch, batch, maps, kernels and strides; it computes in float32 there), each in a
process of its own, by turns:

    python scripts/bench_training.py --norm batch --compile
    python scripts/bench_training.py --nnunet /path/to/venv
    python scripts/bench_training.py --plan WORKSPACE/preprocessed/TASK/PLAN/plan.json
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from nnunet_plans import few_scans, plan_of_task, set_network, write_plan
from side_by_side import (
    Command,
    bench_parser,
    by_turns,
    nnunet_with,
    print_table,
    run_measured,
    self_measured,
)

from autoseg.augmentation.loader import Batch
from autoseg.networks.devices import describe, fast_convolutions, pick_device
from autoseg.plan.plan import Plan, load_plan, make_plan
from autoseg.training.learner import Learner

OURS = "_step"  # as this script calls itself to be measured
SIDE = Path(__file__).with_name("nnunet_training.py")
CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last_3d


@dataclass(frozen=True)
class Variant:
    """One way to compute the same steps."""

    precision: str
    layout: torch.memory_format
    compiled: bool = False

    @property
    def name(self) -> str:
        """The name in the table."""
        layout = " + channels_last_3d" if self.layout is LAST else ""
        return f"{self.precision}{layout}{' + compile' if self.compiled else ''}"


def hippocampus_like(norm: str) -> Plan:
    """A small U-Net as planned for the Hippocampus set."""
    values: dict[str, Any] = {
        "task": "Task000_Bench",
        "channels": ["MRI"],
        "labels": {"background": [0], "anterior": [1], "posterior": [2]},
        "target_spacing_mm": [1.0, 1.0, 1.0],
        "preprocessing": [],
        "sampling": {"patch_size": [40, 56, 40], "batch_size": 2},
        "augmentation": [],
        "network": {
            "features": [16, 32, 64, 128],
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
            "kernels": [[3, 3, 3]] * 4,
            "blocks_encoder": [2, 2, 2, 2],
            "blocks_decoder": [2, 2, 2],
            "norm": norm,
        },
        "training": {},
        "inference": {"overlap": [20, 28, 20]},
    }
    return make_plan(values, "the benchmark's plan")


def changed(plan: Plan, part: str, **values: Any) -> Plan:
    """The plan with other values in one section, validated again."""
    found = plan.model_dump(mode="json")
    found[part] |= values
    return make_plan(found, "the benchmark's plan")


def variants(device: torch.device, compiled: bool) -> list[Variant]:
    """The variants to compare; float16 on CUDA only."""
    halves = ["bfloat16", *(["float16"] if device.type == "cuda" else [])]
    found = [Variant(p, layout) for p in ("float32", *halves) for layout in (CONTIGUOUS, LAST)]
    return [*found, *(Variant(p, LAST, True) for p in ("float32", "bfloat16") if compiled)]


def learner_of(plan: Plan, variant: Variant, device: torch.device) -> Learner:
    """A learner for a variant."""
    training = {"precision": variant.precision, "compile": variant.compiled}
    learner = Learner(changed(plan, "training", **training), device)
    learner.format = variant.layout
    learner.network.to(memory_format=variant.layout)  # type: ignore[call-overload]
    return learner


def random_batch(plan: Plan) -> Batch:
    """Noise of the plan's shape, and labels in it."""
    rng = np.random.default_rng(0)
    patch, size = plan.sampling.patch_size, plan.sampling.batch_size
    image = rng.normal(size=(size, plan.input_channels, *patch)).astype(np.float32)
    label = rng.integers(0, len(plan.classes.parts), (size, *patch)).astype(np.int16)
    return {"data": image, "label": label}


def seconds_of(learner: Learner, batch: Batch, steps: int) -> float:
    """Seconds per step; waits for the device only at the end."""
    started = time.perf_counter()
    for _ in range(steps):
        loss, _ = learner.step(batch, 1e-4)
    float(loss)
    return (time.perf_counter() - started) / steps


def measure(
    plan: Plan, device: torch.device, wanted: Sequence[Variant], rounds: int, steps: int
) -> list[float]:
    """Median seconds per step of each variant."""
    batch = random_batch(plan)
    with fast_convolutions(device):
        learners = [learner_of(plan, variant, device) for variant in wanted]
        for learner in learners:
            seconds_of(learner, batch, 2)
        times = [[seconds_of(learner, batch, steps) for learner in learners] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def run_step(plan_file: str, steps: str) -> None:
    """The command that is measured: some steps."""
    cpu = torch.device("cpu")
    plan = load_plan(Path(plan_file))
    batch = random_batch(plan)
    with fast_convolutions(cpu):
        learner = Learner(plan, cpu)
        seconds_of(learner, batch, 2)
        run_measured(lambda: seconds_of(learner, batch, 1), int(steps))


@contextmanager
def nnunet_step(
    plan: Plan, environment: Path, steps: int, device: str = "cpu"
) -> Iterator[Command]:
    """A command that measures some steps of nnU-Net's trainer with the network of a plan."""
    with TemporaryDirectory() as name, nnunet_with(few_scans(), environment) as nnunet:
        plans = plan_of_task(nnunet)
        nnunet.run("nnUNetv2_preprocess", "-c", "3d_fullres", "-np", "1")  # it looks for it
        set_network(plans, plan)
        file = Path(name) / "plans.json"
        write_plan(plans, file)
        declared = nnunet.root / "raw" / "Dataset001_Bench" / "dataset.json"
        python = str(environment / "bin" / "python")
        command = [python, str(SIDE), str(file), str(declared), str(steps), device]
        yield lambda _: self_measured(command, nnunet.places)


def against_nnunet(plan: Plan, environment: Path, rounds: int, steps: int) -> None:
    """Print the row."""
    with TemporaryDirectory() as name, nnunet_step(plan, environment, steps) as theirs:
        file = Path(name) / "plan.json"
        plan.save(file)
        ours = [sys.executable, __file__, OURS, str(file), str(steps)]
        commands = {"autoseg": lambda _: self_measured(ours, {}), "nnU-Net": theirs}
        costs = by_turns(commands, rounds)
    what = f"training step, {words(plan)}"
    print_table(what, costs["autoseg"], "nnU-Net, float32,", costs["nnU-Net"])


def words(plan: Plan) -> str:
    """Network, patch and batch of a plan, as text."""
    patch = " x ".join(map(str, plan.sampling.patch_size))
    return (
        f"{'-'.join(map(str, plan.network.features))} maps, {plan.network.norm} normalisation, "
        f"patches of {patch}, batch {plan.sampling.batch_size}"
    )


def main() -> None:
    """The command line."""
    parser = bench_parser(__doc__, rounds=5)
    parser.add_argument("--plan", type=Path, help="a plan.json (default: a small U-Net)")
    parser.add_argument("--norm", choices=["batch", "instance"], default="instance")
    parser.add_argument("--patch", type=int, nargs=3, metavar=("X", "Y", "Z"))
    parser.add_argument("--batch", type=int, help="samples per batch")
    parser.add_argument("--device")
    parser.add_argument("--steps", type=int, default=3, help="steps per round")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    plan = load_plan(arguments.plan) if arguments.plan else hippocampus_like(arguments.norm)
    if arguments.patch:
        overlap = [size // 2 for size in arguments.patch]
        plan = changed(plan, "inference", overlap=[0, 0, 0])
        plan = changed(plan, "sampling", patch_size=arguments.patch)
        plan = changed(plan, "inference", overlap=overlap)
    if arguments.batch:
        plan = changed(plan, "sampling", batch_size=arguments.batch)
    if arguments.nnunet:
        against_nnunet(plan, arguments.nnunet, arguments.rounds, arguments.steps)
        return
    print(f"{describe(device)}, torch {torch.__version__}: {words(plan)}\n")
    wanted = variants(device, arguments.compile)
    medians = measure(plan, device, wanted, arguments.rounds, arguments.steps)
    print("| variant | steps/s | times float32 |\n| --- | ---: | ---: |")
    for variant, seconds in zip(wanted, medians, strict=True):
        print(f"| {variant.name} | {1 / seconds:.2f} | {medians[0] / seconds:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == [OURS]:
        run_step(*sys.argv[2:])
    else:
        main()
