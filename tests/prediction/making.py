"""Networks whose output is easy to compute by hand, and models of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoseg.models.checkpoint import save_checkpoint
from autoseg.models.folder import FINAL
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan
from autoseg.prediction.model import Model
from autoseg.prediction.sliding_window import Slab


class Pointwise(nn.Module):
    """Pointwise logits: class c has `slope * c * value - c * c / 2 + shift`.

    With slope 1 and no shift a voxel of value v belongs to the class nearest to v.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, classes: int = 3, slope: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        number = torch.arange(classes, dtype=torch.float32).view(1, classes, 1, 1, 1)
        self.register_buffer("gain", slope * number)
        self.register_buffer("offset", shift * number - number**2 / 2)

    def forward(self, patches: Tensor) -> Tensor:
        logits: Tensor = 8 * (self.gain * patches[:, :1] + self.offset)
        return logits


class Layers(nn.Module):
    """Logits of nested regions: a voxel of value v lies in the first `round(v)` of them."""

    edges: Tensor

    def __init__(self, regions: int, slope: float = 1.0) -> None:
        super().__init__()
        self.slope = slope
        edges = torch.arange(regions, dtype=torch.float32) + 0.5
        self.register_buffer("edges", edges.view(1, regions, 1, 1, 1))

    def forward(self, patches: Tensor) -> Tensor:
        logits: Tensor = 8 * self.slope * (patches[:, :1] - self.edges)
        return logits


class Sided(nn.Module):
    """Logits with a different slope along x, y and z, so all mirror images differ."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, patches: Tensor) -> Tensor:
        x, y, z = (torch.linspace(0, 1, size) for size in patches.shape[2:])
        ramp = x[:, None, None] + 2 * y[:, None] + 4 * z
        return torch.cat([patches[:, :1] * ramp * number for number in range(self.classes)], dim=1)


def model_of(plan: Plan, *networks: nn.Module, folder: Path = Path("model")) -> Model:
    """A loaded model of such networks."""
    folds = tuple(str(fold) for fold in range(len(networks)))
    return Model(folder, plan, folds, cast("tuple[Any, ...]", networks))


def save_model(plan: Plan, folder: Path, *folds: str, plan_id: str | None = None) -> Path:
    """A model folder with untrained networks, each fold's from its own seed."""
    plan.save(folder / "plan.json")
    for seed, fold in enumerate(folds):
        torch.manual_seed(seed)
        weights = dict(build_network(plan).state_dict())
        save_checkpoint(folder / f"fold_{fold}" / FINAL, weights, {"plan_id": plan_id or plan.id})
    return folder


def mean_of(slab: Slab) -> NDArray[np.float32]:
    """All planes of a slab: (class, planes, y, z)."""
    planes = slab.empty(slab.stop - slab.first)
    slab.mean(slab.first, slab.stop, planes)
    found: NDArray[np.float32] = planes.numpy()
    return found
