from typing import Any

import numpy as np
import pytest
import torch

from autoseg.preprocessing.steps import IGNORED
from autoseg.training.losses import build_loss, shrink
from tests.making import tiny_plan

SHAPE = (3, 4, 5)


def loss_of(**spec):
    return build_loss(tiny_plan(training={"loss": spec}))


def dice_loss(**spec):
    return loss_of(loss="dice_cross_entropy", **spec)


def tversky_loss(**spec):
    return loss_of(loss="tversky_cross_entropy", **spec)


def drawn(seed=0, classes=3, samples=2, ignored=False, shape=SHAPE):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (samples, classes, *shape))
    target = rng.integers(IGNORED if ignored else 0, classes, (samples, *shape))
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(target, dtype=torch.int16)


def perfect(target, classes=3):
    return torch.nn.functional.one_hot(target.long(), classes).movedim(-1, 1).float() * 50


def plain(logits: torch.Tensor, target: torch.Tensor) -> list[tuple[Any, Any]]:
    """Per sample: lists of (share of each class, true class) of its known voxels, in float64."""
    samples = []
    for sample, truth in zip(logits.double().numpy(), target.numpy(), strict=True):
        rows = sample.reshape(len(sample), -1).T
        shares = np.exp(rows - rows.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        known = truth.ravel() != IGNORED
        samples.append((shares[known], truth.ravel()[known]))
    return samples


def plain_entropy(samples):
    shares = np.concatenate([s for s, _ in samples])
    truth = np.concatenate([t for _, t in samples])
    return -np.mean([np.log(row[index]) for row, index in zip(shares, truth, strict=True)])


def plain_dice(shares, truth, index, smooth):
    both = sum(row[index] for row, true in zip(shares, truth, strict=True) if true == index)
    either = shares[:, index].sum() + (truth == index).sum()
    return (2 * both + smooth) / (either + smooth)


def plain_tversky(shares, truth, index, alpha, beta, smooth):
    here = truth == index
    found = shares[here, index].sum()
    missed = (1 - shares[here, index]).sum()
    wrong = shares[~here, index].sum()
    return (found + smooth) / (found + alpha * missed + beta * wrong + smooth)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("smooth", [0, 1e-5, 1.0])
def test_dice_and_cross_entropy_equal_their_definition(batch_dice, background, ignored, smooth):
    logits, target = drawn(ignored=ignored)
    loss, dice = dice_loss(batch_dice=batch_dice, background=background, smooth=smooth)(
        logits, target
    )
    samples = plain(logits, target)
    parts = samples
    if batch_dice:
        shares, truth = zip(*samples, strict=True)
        parts = [(np.concatenate(shares), np.concatenate(truth))]
    per_class = np.mean(
        [[plain_dice(*part, index, smooth) for index in range(3)] for part in parts], axis=0
    )
    counted = per_class if background else per_class[1:]
    assert loss.item() == pytest.approx(1 - counted.mean() + plain_entropy(samples), rel=1e-5)
    assert dice.tolist() == pytest.approx(per_class.tolist(), rel=1e-5)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (0.7, 0.3)])
def test_tversky_and_cross_entropy_equal_their_definition(alpha, beta, ignored):
    logits, target = drawn(seed=1, ignored=ignored)
    loss, index = tversky_loss(alpha=alpha, beta=beta, smooth=1e-6)(logits, target)
    samples = plain(logits, target)
    indices = np.array(
        [[plain_tversky(*part, i, alpha, beta, 1e-6) for i in range(3)] for part in samples]
    )
    expected = (3 - indices.sum(1)).mean() + plain_entropy(samples)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert index.tolist() == pytest.approx(indices.mean(0).tolist(), rel=1e-5)


LOSSES = [dice_loss, tversky_loss]


@pytest.mark.parametrize("make", LOSSES)
def test_a_perfect_prediction_costs_nothing(make):
    _, target = drawn()
    loss, dice = make()(perfect(target), target)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert dice.tolist() == pytest.approx([1, 1, 1], abs=1e-4)


@pytest.mark.parametrize("make", LOSSES)
def test_what_is_ignored_has_no_effect(make):
    logits, target = drawn(ignored=True)
    other = torch.where((target == IGNORED)[:, None], logits + torch.randn_like(logits), logits)
    other.requires_grad_()
    loss, _ = make()(other, target)
    assert loss.item() == pytest.approx(make()(logits, target)[0].item(), rel=1e-6)
    loss.backward()
    assert other.grad is not None
    assert not other.grad.movedim(1, -1)[target == IGNORED].any()


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("value", [IGNORED, 0])
def test_without_known_or_foreground_voxels_it_stays_finite(make, value):
    logits, _ = drawn()
    logits.requires_grad_()
    loss, _ = make()(logits, torch.full((2, *SHAPE), value, dtype=torch.int16))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("make", LOSSES)
def test_extreme_logits_stay_finite(make):
    logits, target = drawn()
    extreme = (logits * 1e4).requires_grad_()
    loss, _ = make()(extreme, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("make", LOSSES)
def test_half_precision_and_any_memory_layout_give_the_same(make):
    logits, target = drawn()
    logits = logits.bfloat16()
    expected, _ = make()(logits.float(), target)
    odd = logits.to(memory_format=torch.channels_last_3d)
    strided = torch.empty(2, *SHAPE[::-1], dtype=torch.int16).permute(0, 3, 2, 1).copy_(target)
    found, _ = make()(odd, strided)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_weights_of_deep_supervision():
    rng = np.random.default_rng(0)
    target = torch.tensor(rng.integers(0, 3, (2, 8, 8, 4)), dtype=torch.int16)
    outputs = [
        torch.tensor(rng.normal(size=(2, 3, *shape)), dtype=torch.float32)
        for shape in ((8, 8, 4), (4, 4, 4), (2, 2, 2))
    ]
    single = dice_loss()
    coarse = [target, target[:, 1::2, 1::2], target[:, 2::4, 2::4, 1::2]]
    each = [single(o, t)[0].item() for o, t in zip(outputs, coarse, strict=True)]
    loss, dice = dice_loss()(outputs, target)
    assert loss.item() == pytest.approx((4 * each[0] + 2 * each[1] + each[2]) / 7, rel=1e-5)
    assert torch.equal(dice, single(outputs[0], target)[1])
    assert dice_loss()([outputs[0]], target)[0].item() == pytest.approx(each[0])


def test_shrinking_takes_voxels_and_keeps_ignored_ones():
    target = torch.arange(-1, 63, dtype=torch.int16).reshape(1, 4, 4, 4)
    small = shrink(target, (2, 4, 2))
    assert small.dtype == torch.int16
    assert torch.equal(small, target[:, 1::2, :, 1::2])
    assert torch.equal(shrink(target, (4, 4, 4)), target)
