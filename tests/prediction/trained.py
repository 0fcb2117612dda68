"""A small trained U-Net, with clear probabilities."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from autoseg.networks.unet import UNet, build_network
from autoseg.plan.plan import Plan
from tests.making import tiny_plan

STEPS = 150
SIZE = 16


def plan_of(precision: str = "float32") -> Plan:
    """The plan of the network, with a precision for prediction."""
    return tiny_plan(
        sampling={"patch_size": [SIZE] * 3},
        network={"features": [4, 8], "deep_supervision": False, "norm": "batch"},
        training={"precision": precision},
    )


def boxes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy patches (B, 1, x, y, z) with a dark and a bright box, and their classes."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.zeros(count, SIZE, SIZE, SIZE, dtype=torch.long)
    for sample in label:
        for index in (1, 2):
            x, y, z = torch.randint(0, SIZE - 6, (3,), generator=rng).tolist()
            sample[x : x + 6, y : y + 6, z : z + 6] = index
    noise = torch.randn(label.shape, generator=rng)
    return (label + 0.1 * noise)[:, None], label


@cache
def trained_network() -> UNet:
    """Trained on random boxes for a few seconds."""
    torch.manual_seed(0)
    network = build_network(plan_of()).train()
    optimiser = torch.optim.Adam(network.parameters(), 0.03)
    for step in range(STEPS):
        image, label = boxes(2, step)
        loss = cross_entropy(network(image), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()
