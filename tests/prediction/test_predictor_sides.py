"""`--tta` exchanges the labels of the left and the right side where it mirrors their axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoseg.image.image import Image
from autoseg.plan.plan import Plan
from autoseg.prediction.predictor import Predictor
from tests.making import CASCADE, grid, tiny_plan
from tests.prediction.making import model_of
from tests.prediction.test_predictor_cascade import Masks

LUNGS = {"background": [0], "left lung": [2], "tumour": [3], "right lung": [1]}
LABELS: dict[str, Any] = {"labels": LUNGS, "mirrored_labels": [[1, 2]], "orientation": "PLS"}
ALL_AXES = {"overlap": [4, 4, 4], "mirror_axes": [0, 1, 2]}


class Sides(nn.Module):
    """A perfectly symmetric network: a side is where y is small or large, a tumour is bright."""

    def __init__(self, order: tuple[str, ...]) -> None:
        super().__init__()
        self.order = order

    def forward(self, patches: Tensor) -> Tensor:
        image = patches[:, 0]
        y = torch.linspace(-4, 4, patches.shape[3])[None, None, :, None].expand_as(image)
        logits = {"background": 0 * image, "left lung": -y, "right lung": y, "tumour": 5 * image}
        logits["lungs"] = y.abs() - 1
        return torch.stack([logits[name] for name in self.order], dim=1)


def patches() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((2, 1, 8, 8, 8)).astype(np.float32))


def found(plan: Plan, network: nn.Module, mirror: bool) -> Tensor:
    return Predictor(model_of(plan, network), device="cpu", mirror=mirror).probabilities(patches())


def test_a_symmetric_network_keeps_labels_on_their_side() -> None:
    plan = tiny_plan(**LABELS, inference=ALL_AXES)
    network = Sides(tuple(LUNGS))
    once, mirrored = (found(plan, network, mirror) for mirror in (False, True))
    assert torch.allclose(mirrored, once, atol=1e-6)
    without = found(
        tiny_plan(**LABELS | {"mirrored_labels": []}, inference=ALL_AXES), network, True
    )
    assert torch.allclose(without[:, 1], without[:, 3], atol=1e-6)  # the two sides are mixed up


def test_regions() -> None:
    labels = {"background": [0], "lungs": [1, 2], "left lung": [2], "right lung": [1]}
    plan = tiny_plan(
        **LABELS | {"labels": labels}, regions_class_order=[1, 2, 1], inference=ALL_AXES
    )
    network = Sides(("lungs", "left lung", "right lung"))
    once, mirrored = (found(plan, network, mirror) for mirror in (False, True))
    assert torch.allclose(mirrored, once, atol=1e-6)


def test_other_axes_exchange_nothing() -> None:
    axes = {"overlap": [4, 4, 4], "mirror_axes": [0, 2]}
    network = Sides(tuple(LUNGS))
    plan, plain = (
        tiny_plan(**LABELS | {"mirrored_labels": pairs}, inference=axes) for pairs in ([[1, 2]], [])
    )
    assert torch.equal(found(plan, network, True), found(plain, network, True))


@pytest.mark.parametrize("orientation", ["RAS", "PLS", "SAR"])
def test_the_previous_stage_of_a_cascade_is_exchanged_too(orientation: str) -> None:
    labels = LABELS | {"orientation": orientation}
    plan = tiny_plan(**CASCADE | labels, inference=ALL_AXES)
    before = np.random.default_rng(1).integers(0, 4, (8, 8, 8)).astype(np.uint8)
    scan = Image(np.random.default_rng(0).random((1, 8, 8, 8)).astype(np.float32), grid((8, 8, 8)))
    predictor = Predictor(model_of(plan, Masks()), device="cpu", mirror=True)
    assert np.array_equal(predictor.predict(scan, before), before)
