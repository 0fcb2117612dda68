"""A patch with the statistics of real ones, where no scan is at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.common.arrays import Triple
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, Resample
from autoseg.preprocessing.steps import prepare

UPRIGHT = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
ORDINARY = (0.0, 1000.0)


def example_patch(plan: Plan, seed: int = 0) -> Tensor:
    """What the plan's network might see: (1, channel, *patch), a cascade's masks included.

    Blocks of different brightness in noise go through the plan's own preprocessing, but for
    resampling, and then have the range and the spread that it gives to scans.
    """
    rng = np.random.default_rng(seed)
    raw = np.stack([_blocks(plan, channel, rng) for channel in range(len(plan.channels))])
    patch = plan.sampling.patch_size
    x, y, z = (spacing or 1.0 for spacing in plan.target_spacing_mm)
    image = Image(raw, Geometry(patch, (x, y, z), (0.0, 0.0, 0.0), UPRIGHT))
    steps = tuple(step for step in plan.preprocessing if not isinstance(step, Resample))
    found = prepare(plan.model_copy(update={"preprocessing": steps}), image).image
    masks = np.zeros((plan.input_channels - len(found), *patch), np.float32)
    parts = _coarse(rng.integers(0, len(masks) + 1, (4, 4, 4)), patch)
    for part, mask in enumerate(masks, start=1):
        mask[parts == part] = 1
    return torch.from_numpy(np.concatenate([found, masks]))[None]


def _blocks(plan: Plan, channel: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Intensities before preprocessing, within the channel's window if it has one."""
    windows = [
        step.window
        for step in plan.preprocessing
        if isinstance(step, Clip) and step.channel in (None, channel)
    ]
    low, high = windows[0] if windows else ORDINARY
    patch = plan.sampling.patch_size
    bright = _coarse(rng.uniform(0.1, 0.9, (4, 4, 4)), patch) + rng.normal(0, 0.05, patch)
    return np.asarray(low + (high - low) * bright, np.float32)


def _coarse(blocks: NDArray[Any], patch: Triple) -> NDArray[Any]:
    """Blocks (4, 4, 4) widened to a patch."""
    x, y, z = (np.arange(size) * 4 // size for size in patch)
    return blocks[np.ix_(x, y, z)]
