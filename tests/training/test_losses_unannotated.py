"""Losses of partly annotated samples, against sums of probabilities by hand in float64."""

import numpy as np
import pytest
import torch

from autoseg.preprocessing.steps import IGNORED
from autoseg.training.losses import build_loss, with_background
from tests.making import tiny_plan
from tests.training.test_losses import drawn

SOME = torch.tensor([[False, False, False], [False, True, False]])  # class 1 of the second sample


def softmax(logits):
    shares = np.exp(logits.double().numpy())
    return shares / shares.sum(1, keepdims=True)


def test_the_background_takes_the_probability_of_unannotated_classes():
    logits, _ = drawn()
    expected = softmax(logits)
    expected[1, 0] += expected[1, 1]
    expected[1, 1] = 0
    np.testing.assert_allclose(softmax(with_background(logits, SOME)), expected, atol=1e-6)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_dice_and_cross_entropy_are_those_of_the_merged_classes(batch_dice):
    logits, target = drawn()
    target[1][target[1] == 1] = 0
    shares = softmax(logits)
    shares[1, 0] += shares[1, 1]
    shares[1, 1] = 0
    truth = np.eye(3)[target.numpy()].transpose(0, 4, 1, 2, 3)
    entropy = -np.log((shares * truth).sum(1)).mean()
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    both, either = 2 * (shares * truth).sum(axes), (shares + truth).sum(axes)
    dice = ((both + 1e-5) / (either + 1e-5))[..., 1:].mean()
    loss = build_loss(
        tiny_plan(training={"loss": {"loss": "dice_cross_entropy", "batch_dice": batch_dice}})
    )
    assert float(loss(logits, target, SOME)[0]) == pytest.approx(1 - dice + entropy, abs=1e-5)


@pytest.mark.parametrize("kind", ["dice_cross_entropy", "tversky_cross_entropy"])
def test_nothing_is_learned_about_an_unannotated_class(kind):
    """Moving probability between background and an unannotated class changes nothing."""
    logits, target = drawn()
    target[1] = 0
    loss = build_loss(tiny_plan(training={"loss": {"loss": kind}}))
    logits.requires_grad_()
    loss(logits, target, SOME)[0].backward()
    moved = logits.grad[1, 0] + logits.grad[1, 1]
    shares = torch.softmax(logits.detach(), 1)[1]
    ratio = logits.grad[1, 0] * shares[1] - logits.grad[1, 1] * shares[0]
    assert float(ratio.abs().max()) < 1e-7 < float(moved.abs().max())


def test_predictions_of_an_unannotated_class_count_as_background():
    logits, target = drawn()
    target[1] = 0
    logits[1, 1] = 100
    loss = build_loss(tiny_plan())
    counts = loss.hard_counts(logits[1:], target[1:], SOME[1:])
    assert counts[:, 1].tolist() == [0, 0, 0]
    assert int(counts[0, 0]) == target[1].numel()


def test_unannotated_regions_have_no_gradient():
    labels = {"background": [0], "whole": [1, 2], "core": [2]}
    plan = tiny_plan(labels=labels, regions_class_order=[1, 2])
    logits, target = drawn(classes=2)
    target = torch.randint(0, 3, target.shape, dtype=torch.int16)
    target[0, 0] = IGNORED
    unannotated = torch.tensor([[False, True], [False, False]])
    logits.requires_grad_()
    loss = build_loss(plan)
    loss(logits, target, unannotated)[0].backward()
    assert float(logits.grad[0, 1].abs().max()) == 0
    assert float(logits.grad[0, 0].abs().max()) > 0
    counts = loss.hard_counts(logits.detach()[:1], target[:1], unannotated[:1])
    assert counts[:, 2].tolist() == [0, 0, 0]


def test_full_annotation_is_the_usual_loss():
    logits, target = drawn()
    loss, none = build_loss(tiny_plan()), torch.zeros(2, 3, dtype=torch.bool)
    assert float(loss(logits, target, none)[0]) == pytest.approx(float(loss(logits, target)[0]))
