"""Training and prediction on a real graphics card, for check_card.py.

Everything also runs on the processor, with `small` plans in seconds, so that tests cover it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from bench_backend import paper_plan
from bench_training import changed, nnunet_step, random_batch
from numpy.typing import NDArray

from autoseg.augmentation.loader import Batch, PatchSampler, Position, batches
from autoseg.common.parallel import cores, memory_of_this_process
from autoseg.image.geometry import Geometry
from autoseg.networks.devices import describe, fast_convolutions, pick_device, received_ahead
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan, make_plan
from autoseg.planner.overrides import merge
from autoseg.prediction.model import Model
from autoseg.prediction.predictor import Predictor
from autoseg.preprocessing.steps import Prepared
from autoseg.preprocessing.store import CaseStore
from autoseg.training.learner import Learner

CPU = torch.device("cpu")
GB = 1e9
HEAD = ("what", "figure", "to compare with")
# Largest differences to the processor. Convolutions on CUDA use TensorFloat-32 (10 bits).
LOSS, GRADIENT, VOXELS = 2e-3, 2e-2, 1e-3
LARGE: dict[str, Any] = {
    "sampling": {"patch_size": [128, 128, 128], "batch_size": 2},
    "network": {
        "features": [32, 64, 128, 256, 320, 320],
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
        "kernels": [[3, 3, 3]] * 6,
        "blocks_encoder": [2] * 6,
        "blocks_decoder": [2] * 5,
        "residual": False,
        "down": "strided",
        "norm": "instance",
        "activation": "leaky_relu",
        "activation_first": False,
        "deep_supervision": True,
    },
    "inference": {"overlap": [64, 64, 64]},
    "training": {"loss": {"loss": "dice_cross_entropy"}, "precision": "auto"},
}
SMALL: dict[str, Any] = {
    "sampling": {"patch_size": [16, 16, 16], "batch_size": 2},
    "network": {
        "features": [4, 8],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "kernels": [[3, 3, 3]] * 2,
        "blocks_encoder": [1] * 2,
        "blocks_decoder": [1],
    },
    "inference": {"overlap": [8, 8, 8]},
}
# For comparisons with the processor, which would take minutes for a large plan.
MIDDLE: dict[str, Any] = {
    "sampling": {"patch_size": [64, 64, 64], "batch_size": 2},
    "network": {
        "features": [16, 32, 64, 128],
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 3],
        "kernels": [[3, 3, 3]] * 4,
        "blocks_encoder": [2] * 4,
        "blocks_decoder": [2] * 3,
    },
    "inference": {"overlap": [32, 32, 32]},
}


@dataclass(frozen=True)
class Row:
    """A line of the table; `is_right` is False for a difference beyond its limit."""

    what: str
    figure: str
    other: str = ""
    is_right: bool = True


@dataclass(frozen=True)
class Card:
    """What is measured, and how long.

    Attributes:
        device: the card; on the processor nothing waits and no peak is known.
        small: measure small plans and scans.
        seconds: of each measurement of steps.
        nnunet: virtual environment with nnU-Net.
    """

    device: torch.device
    small: bool = False
    seconds: float = 8.0
    nnunet: Path | None = None

    @property
    def is_cuda(self) -> bool:
        """Whether it is a card."""
        return self.device.type == "cuda"

    def plan(self, *changes: dict[str, Any]) -> Plan:
        """The paper's plan, with changes, and small if wanted."""
        values = paper_plan().model_dump(mode="json")
        values["inference"]["overlap"] = [0, 0, 0]
        for change in (*changes, *([SMALL] if self.small else [])):
            values = merge(values, change)
        return make_plan(values, "the plan to measure")

    def wait(self) -> None:
        """Until the card has done everything."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def peak_gb(self) -> float:
        """The most memory of the card since the last call, or that of this process."""
        if not self.is_cuda:
            return memory_of_this_process() / GB
        peak = torch.cuda.max_memory_allocated(self.device) / GB
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


def rows(card: Card) -> Iterator[Row]:
    """All lines of the table, in turn."""
    with fast_convolutions(card.device):
        for norm in ("instance", "batch"):
            yield from agreement(card, norm)
        for name, plan in (
            ("the paper's plan", card.plan()),
            ("nnU-Net's 128^3 plan", card.plan(LARGE)),
        ):
            yield from training(card, name, plan)
        for classes in (4, 10 if card.small else 100):
            yield prediction(card, classes)


# Correctness.


def agreement(card: Card, norm: str) -> Iterator[Row]:
    """Loss, gradients and label maps of the card and of the processor."""
    network = {"norm": norm, "deep_supervision": True}
    exact = {"training": {"precision": "float32", "gradient_clip": None, "compile": False}}
    plan = card.plan(MIDDLE, {"network": network}, exact)
    batch = random_batch(plan)
    found: dict[torch.device, tuple[float, torch.Tensor]] = {}
    for device in (CPU, card.device):
        learner = Learner(plan, device)
        loss, _ = learner.step(batch, 0.0)
        gradients = [p.grad for p in learner.network.parameters() if p.grad is not None]
        found[device] = (
            float(loss),
            torch.cat([each.double().cpu().flatten() for each in gradients]),
        )
    (mine, gradient), (other, reference) = found[card.device], found[CPU]
    off = abs(mine - other) / abs(other)
    yield Row(f"loss, {norm} norm", f"{mine:.6f}", f"processor {other:.6f}", off < LOSS)
    turn = float((gradient - reference).norm() / reference.norm())
    yield Row(
        f"gradient, {norm} norm", f"differs by {turn:.1e}", f"limit {GRADIENT:g}", turn < GRADIENT
    )
    learner = Learner(plan, card.device)
    image, label = bright_boxes(plan, plan.sampling.patch_size)
    size = plan.sampling.batch_size
    easy: Batch = {"data": np.stack([image] * size), "label": np.stack([label] * size)}
    for _ in range(5 if card.small else 60):
        learner.step(easy, 1e-3)
    scan, _ = bright_boxes(plan, [n + n // 2 for n in plan.sampling.patch_size])
    maps = [segmented(plan, learner.weights(), scan[0], device) for device in (CPU, card.device)]
    share = float((maps[0] != maps[1]).mean())
    yield Row(
        f"label map, {norm} norm",
        f"{100 * share:.4f} % of the voxels differ",
        f"limit {100 * VOXELS:g} %",
        share <= VOXELS,
    )


def bright_boxes(plan: Plan, size: Sequence[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """A noisy image (1, x, y, z) with a brighter box for each class, and their labels."""
    rng = np.random.default_rng(0)
    label = np.zeros(size, np.int16)
    for index in range(1, len(plan.classes.parts)):
        low = [int(rng.integers(0, n // 2)) for n in size]
        label[tuple(slice(a, a + n // 3) for a, n in zip(low, size, strict=True))] = index
    return (label + rng.normal(0, 0.2, size))[None].astype(np.float32), label


def segmented(
    plan: Plan, weights: dict[str, torch.Tensor], scan: NDArray[Any], device: torch.device
) -> NDArray[Any]:
    """The label map of a scan on the plan's own grid, by the predictor."""
    plan = plan.model_copy(update={"preprocessing": ()})
    return np.asarray(predictor_of(plan, weights, device).predict(scan, spacing_mm=SPACING_MM))


SPACING_MM = (1.0, 1.0, 1.0)


def predictor_of(
    plan: Plan, weights: dict[str, torch.Tensor] | None, device: torch.device
) -> Predictor:
    """The predictor of a network, by default an untrained one."""
    torch.manual_seed(0)
    network = build_network(plan)
    if weights is not None:
        network.load_state_dict(weights)
    model = Model(Path(), plan, ("0",), (network.to(device).eval(),))
    return Predictor(model, device=str(device), postprocess=False, backend="torch")


# Speed of training.


def training(card: Card, name: str, plan: Plan) -> Iterator[Row]:
    """Steps a second without and with compilation, the share of waiting, and the peak."""
    batch = random_batch(plan)
    size = plan.sampling.batch_size
    fastest = 0.0
    for compiles in (False, True):
        started = time.perf_counter()
        learner = Learner(changed(plan, "training", compile=compiles), card.device)
        learner.step(batch, 1e-4)
        card.wait()
        first = time.perf_counter() - started
        rate = steps_a_second(card, learner, repeat(batch))
        fastest = max(fastest, rate)
        how = "compiled" if compiles else "eager"
        yield Row(
            f"training, {name}, {how}",
            f"{rate:.3g} steps/s, {size * rate:.3g} patches/s, {card.peak_gb():.3g} GB",
            learner.not_compiled or f"first step {first:.1f} s",
        )
        del learner
    for where in ("processor", "device"):
        yield waiting(card, name, changed(plan, "training", augment_on=where))
    if card.nnunet is not None:
        steps = max(3, round(fastest * card.seconds))
        with nnunet_step(plan, card.nnunet, steps, card.device.type) as measure:
            rate = 1 / measure(Path()).seconds
        yield Row(f"training, {name}, nnU-Net's trainer", f"{rate:.3g} steps/s")


def steps_a_second(card: Card, learner: Learner, stream: Iterator[Batch]) -> float:
    """The pace after some steps; a stream must also have lost its prepared batches."""
    for is_warm in (False, True):
        steps, started = 0, time.perf_counter()
        while steps < 2 or time.perf_counter() - started < (card.seconds if is_warm else 0.25):
            learner.step(next(stream), 1e-4)
            steps += 1
        card.wait()
        rate = steps / (time.perf_counter() - started)
    return rate


def waiting(card: Card, name: str, plan: Plan) -> Row:
    """The share of the time in which the card waits for batches of real workers."""
    workers = 0 if card.small else max(1, cores() - 1)
    with TemporaryDirectory() as folder, workers_of(plan, Path(folder), card, workers) as stream:
        learner = Learner(plan, card.device)
        held = next(stream)
        alone = steps_a_second(card, learner, repeat(held))  # meanwhile the queues fill
        for _ in range(4 * workers):
            learner.step(next(stream), 1e-4)
        fed = steps_a_second(card, learner, stream)
    share = max(0.0, 1 - fed / alone)
    where = plan.training.augment_on
    return Row(
        f"training, {name}, augmented on the {where}",
        f"{fed:.3g} steps/s, {100 * share:.0f} % waiting for {workers} workers",
        f"{alone:.3g} steps/s of a batch that is there",
    )


@contextmanager
def workers_of(plan: Plan, folder: Path, card: Card, workers: int) -> Iterator[Iterator[Batch]]:
    """A stream of batches of synthetic cases."""
    store = CaseStore(folder, plan.preprocessing_id)
    x, y, z = (n + 32 for n in plan.sampling.patch_size)
    size = (x, y, z)
    for number in range(2):
        image, label = bright_boxes(plan, size)
        grid = Geometry(size, SPACING_MM, (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        box = tuple((0, length) for length in size)
        store.write(f"case_{number}", Prepared(image, label, grid, box, SPACING_MM), [])
    sampler = PatchSampler(store, ["case_0", "case_1"], plan.sampling, 1000)
    with (
        batches(sampler, plan, Position(0, 0, 0, 0, 0), workers) as made,
        received_ahead(made, card.device) as stream,
    ):
        yield stream


# Prediction.


def prediction(card: Card, classes: int) -> Row:
    """A chest CT with the paper's network for some classes."""
    labels = {"background": [0], **{f"class {i}": [i] for i in range(1, classes)}}
    values = card.plan().model_dump(mode="json") | {"labels": labels}
    plan = make_plan(values, "the plan to measure")
    size = (40, 40, 24) if card.small else (512, 512, 300)
    rng = np.random.default_rng(0)
    coarse = rng.normal(-400, 400, [n // 8 + 1 for n in size])
    scan = np.kron(coarse, np.ones((8, 8, 8)))[tuple(map(slice, size))].astype(np.int16)
    predictor = predictor_of(plan, None, card.device)
    spacing_mm = (1.0, 1.0, 1.0) if card.small else (0.7, 0.7, 1.0)
    predictor.predict(scan[:, :, : size[2] // 4], spacing_mm=spacing_mm)  # cuDNN's measurements
    card.peak_gb()
    started = time.perf_counter()
    found = predictor.predict(scan, spacing_mm=spacing_mm)
    seconds = time.perf_counter() - started
    host = memory_of_this_process() / GB
    return Row(
        f"prediction, {' x '.join(map(str, size))}, {classes} classes",
        f"{seconds:.1f} s, {card.peak_gb():.3g} GB of the device, {host:.3g} GB of the host so far",
        is_right=found.shape == size,
    )


def check(
    device: str | None,
    small: bool,
    nnunet: Path | None,
    seconds: float,
    tell: Callable[[str], None] = print,
) -> bool:
    """Tell the Markdown table; returns whether everything agrees with the processor."""
    card = Card(pick_device(device), small, seconds, nnunet)
    tell(f"{describe(card.device)}, {cores()} cores, torch {torch.__version__}\n")
    tell(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    is_right = True
    for row in rows(card):
        tell(f"| {row.what} | {row.figure}{'' if row.is_right else ' (WRONG)'} | {row.other} |")
        is_right &= row.is_right
    return is_right
