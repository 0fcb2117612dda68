"""Müller et al. 2021, number by number: what the plan `Task001_COVID` makes of training.

Each formula is written out a second time, in plain float64.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.folder import FINAL, LATEST
from autoseg.networks.unet import Convolution, build_network
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Adam, Plateau
from autoseg.planner.compose import PlanOptions, compose
from autoseg.training import train as loop
from autoseg.training.learner import Learner, build_optimizer
from autoseg.training.losses import build_loss
from autoseg.training.state import EpochSoFar, PlateauState
from tests.making import count_parameters, tiny_plan
from tests.planner.making import fingerprint
from tests.training.making import start, store_of, without_pictures

LABELS = {"background": (0,), "left lung": (1,), "right lung": (2,), "infection": (3,)}


@pytest.fixture(scope="module")
def plan() -> Plan:
    data = fingerprint(
        task="Task001_COVID", labels=LABELS, shape=(512, 512, 200), spacing_mm=(0.8, 0.8, 1.5)
    )
    return compose(data, PlanOptions())


# --- loss ---


def loss_by_hand(logits: np.ndarray, target: np.ndarray) -> float:
    """L_Tversky + L_CCE: alpha = beta = 0.5, e = 1e-6, sums over the axes of each sample."""
    tversky, entropy = [], []
    for sample, truth in zip(logits.astype(np.float64), target, strict=True):
        shares = np.exp(sample - sample.max(0)) / np.exp(sample - sample.max(0)).sum(0)
        indices = []
        for label in range(4):
            here, share = truth == label, shares[label]
            tp = share[here].sum()
            fn = (1 - share[here]).sum()
            fp = share[~here].sum()
            indices.append((tp + 1e-6) / (tp + 0.5 * fn + 0.5 * fp + 1e-6))
        tversky.append(4 - sum(indices))
        entropy += [-math.log(shares[truth[at]][at]) for at in np.ndindex(truth.shape)]
    return float(np.mean(tversky) + np.mean(entropy))


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 3], [0], [2]])
def test_loss(plan: Plan, labels: list[int]) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 4, 5, 4, 3)).astype(np.float32)
    target = rng.choice(labels, (2, 5, 4, 3)).astype(np.int16)
    found, _ = build_loss(plan)(torch.from_numpy(logits), torch.from_numpy(target))
    assert found.item() == pytest.approx(loss_by_hand(logits, target), rel=1e-5)


def test_a_class_that_is_nowhere_costs_up_to_one_and_the_background_counts(plan: Plan) -> None:
    target = torch.zeros((1, 4, 4, 4), dtype=torch.int16)
    sure = torch.full((1, 4, 4, 4, 4), -40.0)
    sure[:, 0] = 40
    assert build_loss(plan)(sure, target)[0].item() == pytest.approx(0, abs=1e-4)
    wrong = sure.roll(1, dims=1)  # all left lung: that class and the background are lost
    assert build_loss(plan)(wrong, target)[0].item() == pytest.approx(2 + 80, rel=1e-4)


# --- network ---


@pytest.fixture(scope="module")
def network(plan: Plan) -> Any:
    with torch.device("meta"):  # its layers, without their memory
        return build_network(plan)


def test_the_number_of_parameters_by_hand(network: Any) -> None:
    maps = [32, 64, 128, 256, 512]

    def convolution(inputs: int, outputs: int, voxels: int = 27) -> int:
        return voxels * inputs * outputs + outputs

    def block(inputs: int, outputs: int) -> int:  # convolutions, then scales and shifts
        return convolution(inputs, outputs) + convolution(outputs, outputs) + 2 * 2 * outputs

    encoder = sum(block(i, o) for i, o in zip([1, *maps], maps, strict=False))
    decoder = sum(
        convolution(below, here, voxels=8) + block(2 * here, here) for here, below in pairwise(maps)
    )
    by_hand = encoder + decoder + convolution(32, 4, voxels=1)
    assert by_hand == count_parameters(network) == 22_581_316


def test_layers(network: Any) -> None:
    kinds = Counter(type(module) for module in network.modules() if not list(module.children()))
    assert kinds == {
        Convolution: 2 * 5 + 2 * 4,
        nn.Conv3d: 1,
        nn.ReLU: 18,
        nn.BatchNorm3d: 18,
        nn.MaxPool3d: 4,
        nn.ConvTranspose3d: 4,
    }
    order = [type(layer) for layer in network.encoder[1].modules() if not list(layer.children())]
    one = [Convolution, nn.ReLU, nn.BatchNorm3d]
    assert order == [nn.MaxPool3d, *one, *one]  # ReLU before the normalisation
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            # Keras keeps 0.99 of the running mean, torch's momentum is what it takes anew.
            assert module.momentum == pytest.approx(1 - 0.99)
            assert (module.eps, module.affine) == (1e-3, True)
        if isinstance(module, nn.MaxPool3d | nn.ConvTranspose3d):
            size, stride = module.kernel_size, module.stride
            assert set(size if isinstance(size, tuple) else (size,)) == {2}
            assert set(stride if isinstance(stride, tuple) else (stride,)) == {2}
        if isinstance(module, nn.Conv3d) and module is not network.heads[0]:
            assert (module.kernel_size, module.stride) == ((3, 3, 3), (1, 1, 1))
            assert module.padding == (1, 1, 1)
    assert [up.out_channels for up in network.up] == [256, 128, 64, 32]
    assert network.heads[0].kernel_size == (1, 1, 1)


# --- optimiser ---


def test_adam_step_by_step(plan: Plan) -> None:
    spec = plan.training.optimizer
    assert spec == Adam(learning_rate=1e-3, betas=(0.9, 0.999), epsilon=1e-7, weight_decay=0.0)
    layer = nn.Linear(3, 1, bias=False)
    optimizer = build_optimizer(spec, layer)
    weight = layer.weight.detach().double().numpy().copy()
    first, second = np.zeros((1, 3)), np.zeros((1, 3))
    for step in range(1, 6):
        gradient = np.array([[1.0, -0.01, 1e-4]]) / step
        layer.weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
        weight -= 1e-3 * mean / (np.sqrt(square) + 1e-7)
        assert layer.weight.detach().numpy() == pytest.approx(weight, abs=1e-7)


# --- schedule ---


def keras_rates(losses: list[float], spec: Plateau, rate: float) -> list[float]:
    """Reduce on plateau in Keras' sense, for a whole history at once.

    An epoch is better if it is lower than the best one by more than `min_delta`. After `patience`
    epochs that are not, the rate falls. A cooldown counts the epochs after a fall down to zero; the
    epoch that brings it to zero is already waited for.
    """
    rates, best, waited, cooling = [], math.inf, 0, 0
    for loss in losses:
        if cooling:
            cooling, waited = cooling - 1, 0
        better = loss < best - spec.min_delta
        best = loss if better else best
        waited = 0 if better else waited + (0 if cooling else 1)
        if not better and not cooling and waited >= spec.patience_epochs and rate > spec.floor:
            rate, waited, cooling = max(rate * spec.factor, spec.floor), 0, spec.cooldown_epochs
        rates.append(rate)
    return rates


def torch_rates(losses: list[float], spec: Plateau, rate: float) -> list[float]:
    """torch waits one epoch more than its patience, and does not wait in the last of a cooldown."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        factor=spec.factor,
        patience=spec.patience_epochs - 1,
        threshold=spec.min_delta,
        threshold_mode="abs",
        cooldown=max(0, spec.cooldown_epochs - 1),
        min_lr=spec.floor,
        eps=0,
    )
    rates = []
    for loss in losses:
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def our_rates(losses: list[float], spec: Plateau, rate: float) -> list[float]:
    state, rates = PlateauState(rate), []
    for loss in losses:
        state = state.after_epoch(loss, spec)
        rates.append(state.learning_rate)
    return rates


def spec_of(plan: Plan) -> Plateau:
    assert isinstance(plan.training.schedule, Plateau)
    return plan.training.schedule


# Gaps that lie on either side of min_delta, and long standstills.
histories = st.lists(
    st.tuples(st.sampled_from([0, 5e-5, 9e-5, 2e-4, 0.01]), st.integers(1, 40)), max_size=8
).map(
    lambda runs: [
        2.0 - fall * (number + 1) - 0.01 * index
        for index, (fall, length) in enumerate(runs)
        for number in range(length)
    ]
)


@given(histories)
def test_the_rate_falls_where_keras_and_torch_let_it_fall(history: list[float]) -> None:
    spec = Plateau(factor=0.1, patience_epochs=15, min_delta=1e-4, cooldown_epochs=1, floor=1e-5)
    ours = our_rates(history, spec, 1e-3)
    assert ours == pytest.approx(keras_rates(history, spec, 1e-3), rel=1e-12)
    assert ours == pytest.approx(torch_rates(history, spec, 1e-3), rel=1e-12)


@given(st.integers(1, 4), st.integers(0, 4), st.lists(st.integers(0, 6), max_size=60))
def test_any_patience_and_cooldown(patience: int, cooldown: int, values: list[int]) -> None:
    spec = Plateau(patience_epochs=patience, cooldown_epochs=cooldown, min_delta=0.5, floor=1e-9)
    losses = [float(value) for value in values]
    ours = our_rates(losses, spec, 1e-3)
    assert ours == pytest.approx(keras_rates(losses, spec, 1e-3), rel=1e-12)
    assert ours == pytest.approx(torch_rates(losses, spec, 1e-3), rel=1e-12)


def test_a_standstill_by_hand(plan: Plan) -> None:
    rates = our_rates([1.0] * 60, spec_of(plan), plan.training.optimizer.learning_rate)
    # The first epoch is the best; 15 later the rate falls, and again after 15, down to the floor.
    assert rates == pytest.approx([1e-3] * 15 + [1e-4] * 15 + [1e-5] * 30)


# --- how long, and which weights ---


def test_how_long(plan: Plan) -> None:
    training, sampling = plan.training, plan.sampling
    assert (training.steps_per_epoch, sampling.batch_size) == (150, 2)
    assert (training.epochs, training.early_stopping_epochs) == (1000, 100)
    assert training.seconds is None
    assert training.keep == "best_training_loss"


def test_early_stopping_and_the_best_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan
) -> None:
    """The paper's own patience on a tiny network whose losses are given."""
    without_pictures(monkeypatch)
    keys = {"early_stopping_epochs", "keep", "schedule", "loss", "optimizer", "epochs"}
    values = plan.training.model_dump(mode="json", include=keys)
    tiny = tiny_plan(
        network={"norm": "batch"},
        training=values | {"steps_per_epoch": 1, "validation_steps": 0, "precision": "float32"},
    )
    losses = [3.0, 2.0, 1.0] + [1.0] * 200  # as low is not lower
    given_losses, seen = iter(losses), []
    means = EpochSoFar.means

    def replaced(*arguments: Any) -> tuple[float, list[float]]:
        return next(given_losses), means(*arguments)[1]

    def remember(learner: Learner, *_: Any) -> tuple[None, list[float]]:
        seen.append(learner.weights()["heads.0.weight"].clone())
        return None, []

    monkeypatch.setattr(EpochSoFar, "means", replaced)
    monkeypatch.setattr(loop, "validate", remember)
    state = start(tiny, store_of(tmp_path, tiny), tmp_path / "run")
    assert (state.done, state.best_epoch) == (3 + 100, 2)
    # The first better epoch is the third; the rates fall 15 and 30 epochs after it.
    rates = [epoch.learning_rate for epoch in state.history]
    assert rates[17:19] == pytest.approx([1e-3, 1e-4])
    assert rates[32:34] == pytest.approx([1e-4, 1e-5])
    weights, about = load_checkpoint(tmp_path / "run" / FINAL)
    assert about["epoch"] == 2
    assert torch.equal(weights["heads.0.weight"], seen[2])
    latest, _ = load_checkpoint(tmp_path / "run" / LATEST)
    assert not torch.equal(latest["network.heads.0.weight"], seen[2])
