"""Losses and counts of regions against loops in float64; counts of classes against numpy."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autoseg.preprocessing.steps import IGNORED
from autoseg.training.losses import Loss, build_loss
from tests.making import REGIONS, tiny_plan

SHAPE = (3, 4, 5)
MEMBERS = ({1, 2, 3}, {2, 3}, {3})  # parts of the regions of REGIONS
LOSSES: list[dict[str, Any]] = [
    {"loss": "dice_cross_entropy", "batch_dice": True},
    {"loss": "dice_cross_entropy", "batch_dice": False, "smooth": 1.0},
    {"loss": "tversky_cross_entropy", "alpha": 0.7, "beta": 0.3},
]


def region_loss(**spec: Any) -> Loss:
    return build_loss(tiny_plan(**REGIONS, training={"loss": spec}))


def drawn(
    seed: int = 0, outputs: int = 3, parts: int = 4, ignored: bool = False
) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (2, outputs, *SHAPE))
    target = rng.integers(IGNORED if ignored else 0, parts, (2, *SHAPE))
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(target, dtype=torch.int16)


def voxels(logits: Tensor, target: Tensor) -> list[list[tuple[list[float], list[bool]]]]:
    """Per sample: logits and true regions of every voxel that is known."""
    samples = []
    for sample, truth in zip(logits.double().numpy(), target.numpy(), strict=True):
        rows = zip(sample.reshape(len(sample), -1).T.tolist(), truth.ravel().tolist(), strict=True)
        samples.append(
            [(row, [part in region for region in MEMBERS]) for row, part in rows if part >= 0]
        )
    return samples


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


def plain_entropy(samples: list[list[tuple[list[float], list[bool]]]]) -> float:
    terms = [
        -np.log(sigmoid(value) if true else 1 - sigmoid(value))
        for sample in samples
        for row, truth in sample
        for value, true in zip(row, truth, strict=True)
    ]
    return float(np.mean(terms))


def plain_index(
    sample: list[tuple[list[float], list[bool]]],
    region: int,
    alpha: float,
    beta: float,
    smooth: float,
) -> float:
    """Tversky's; with one half and one half it is Dice of half the smoothing."""
    found = sum(sigmoid(row[region]) for row, truth in sample if truth[region])
    missed = sum(1 - sigmoid(row[region]) for row, truth in sample if truth[region])
    wrong = sum(sigmoid(row[region]) for row, truth in sample if not truth[region])
    return (found + smooth) / (found + alpha * missed + beta * wrong + smooth)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("spec", LOSSES)
def test_losses_of_regions_equal_their_definition(spec: dict[str, Any], ignored: bool) -> None:
    logits, target = drawn(ignored=ignored)
    loss, per_class = region_loss(**spec)(logits, target)
    samples = voxels(logits, target)
    tversky = spec["loss"] == "tversky_cross_entropy"
    weights = (0.7, 0.3, 1e-6) if tversky else (0.5, 0.5, spec.get("smooth", 1e-5) / 2)
    parts = [[*chain(*samples)]] if spec.get("batch_dice") else samples
    index = np.mean([[plain_index(s, region, *weights) for region in range(3)] for s in parts], 0)
    expected = (3 - index.sum()) if tversky else 1 - index.mean()
    assert loss.item() == pytest.approx(expected + plain_entropy(samples), rel=1e-5)
    assert per_class[1:].tolist() == pytest.approx(index.tolist(), rel=1e-5)


@pytest.mark.parametrize("ignored", [False, True])
def test_the_background_of_the_log_is_where_no_region_is_likely(ignored: bool) -> None:
    logits, target = drawn(1, ignored=ignored)
    _, per_class = region_loss(**LOSSES[0])(logits, target)
    rows = [*chain(*voxels(logits, target))]
    nowhere = [1 - max(map(sigmoid, row)) for row, _ in rows]
    real = [not any(truth) for _, truth in rows]
    both = sum(share for share, true in zip(nowhere, real, strict=True) if true)
    assert per_class.shape == (4,)
    assert per_class[0].item() == pytest.approx(2 * both / (sum(nowhere) + sum(real)), rel=1e-5)


@pytest.mark.parametrize("spec", LOSSES)
def test_a_perfect_prediction_of_regions_costs_nothing(spec: dict[str, Any]) -> None:
    _, target = drawn()
    inside = torch.stack([torch.isin(target, torch.tensor(list(m))) for m in MEMBERS], dim=1)
    loss, dice = region_loss(**spec)(100.0 * inside - 50, target)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert dice.tolist() == pytest.approx([1, 1, 1, 1], abs=1e-4)


@pytest.mark.parametrize("spec", LOSSES)
@pytest.mark.parametrize("regions", [False, True])
def test_gradients_do_not_depend_on_what_is_ignored(spec: dict[str, Any], regions: bool) -> None:
    made = region_loss(**spec) if regions else build_loss(tiny_plan(training={"loss": spec}))
    logits, target = drawn(ignored=True, parts=4 if regions else 3)
    assert (target == IGNORED).any()
    ignored = (target == IGNORED)[:, None].expand_as(logits)
    gradients = []
    for change in (0.0, 3.0, -100.0):
        changed = torch.where(ignored, logits + change, logits).requires_grad_()
        made(changed, target)[0].backward()
        assert changed.grad is not None
        gradients.append(changed.grad)
    assert not gradients[0][ignored].any()
    assert gradients[0][~ignored].all()
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("spec", LOSSES)
@pytest.mark.parametrize("value", [IGNORED, 0, 3])
def test_losses_of_regions_stay_finite(spec: dict[str, Any], value: int) -> None:
    logits = (drawn()[0] * 1e4).requires_grad_()
    loss, dice = region_loss(**spec)(logits, torch.full((2, *SHAPE), value, dtype=torch.int16))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(dice).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_regions_are_supervised_at_every_resolution() -> None:
    made = region_loss(**LOSSES[0])
    target = torch.randint(0, 4, (2, 4, 4, 4), dtype=torch.int16)
    fine, coarse = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 2, 2, 2)
    each = [made(fine, target)[0], made(coarse, target[:, 1::2, 1::2, 1::2])[0]]
    assert made([fine, coarse], target)[0].item() == pytest.approx(
        float(2 * each[0] + each[1]) / 3, rel=1e-5
    )


def counted(predicted: Any, truth: Any, known: Any) -> list[int]:
    return [
        int((predicted & truth & known).sum()),
        int((predicted & ~truth & known).sum()),
        int((~predicted & truth & known).sum()),
    ]


@given(st.integers(0, 10_000), st.integers(2, 5), st.booleans())
@settings(deadline=None, max_examples=40)
def test_hard_counts_of_classes_equal_numpy(seed: int, classes: int, ignored: bool) -> None:
    labels = {f"class {index}": [index] for index in range(classes)}
    logits, target = drawn(seed, classes, classes, ignored)
    predicted, truth = logits.argmax(1).numpy(), target.numpy()
    expected = [counted(predicted == i, truth == i, truth != IGNORED) for i in range(classes)]
    found = build_loss(tiny_plan(labels=labels)).hard_counts(logits, target)
    assert found.T.tolist() == expected


@given(st.integers(0, 10_000), st.booleans())
@settings(deadline=None, max_examples=40)
def test_hard_counts_of_regions_equal_numpy(seed: int, ignored: bool) -> None:
    logits, target = drawn(seed, ignored=ignored)
    values, truth = logits.numpy(), target.numpy()
    found = [~(values > 0).any(1), *(values[:, region] > 0 for region in range(3))]
    real = [truth == 0, *(np.isin(truth, list(region)) for region in MEMBERS)]
    expected = [counted(f, r, truth != IGNORED) for f, r in zip(found, real, strict=True)]
    assert region_loss(**LOSSES[0]).hard_counts(logits, target).T.tolist() == expected


@pytest.mark.parametrize("make", [region_loss, lambda **spec: build_loss(tiny_plan())])
def test_hard_counts_of_nothing_are_zero(make: Any) -> None:
    logits, _ = drawn()
    nothing = torch.full((2, *SHAPE), IGNORED, dtype=torch.int16)
    assert not make(**LOSSES[0]).hard_counts(logits, nothing).any()
