"""What a learner makes of regions and of a cascade's previous stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg.augmentation.loader import Batch
from autoseg.training.learner import Learner, dice_of
from tests.making import CASCADE, REGIONS, tiny_plan

CPU = torch.device("cpu")
ADAM = {"precision": "float32", "optimizer": {"optimizer": "adam"}}


def learner(**changes: Any) -> Learner:
    network = {"norm": "batch", "features": [4, 8]}
    return Learner(tiny_plan(**{"training": ADAM, "network": network} | changes), CPU)


def nested() -> NDArray[np.int16]:
    """Boxes inside one another: the parts 1, 2 and 3 of `REGIONS`."""
    label = np.zeros((2, 8, 8, 8), np.int16)
    label[:, 1:7, 1:7, 1:7] = 1
    label[:, 2:6, 2:6, 2:6] = 2
    label[:, 3:5, 3:5, 3:6] = 3
    return label


def batch(label: NDArray[np.int16], image: NDArray[Any]) -> Batch:
    return {"data": image[:, None].astype(np.float32), "label": label}


def taught(pupil: Learner, given: Batch, steps: int = 80) -> list[float | None]:
    """The Dice per class after a few steps."""
    for _ in range(steps):
        pupil.step(given, 2e-2)
    _, counts = pupil.validate(given)
    return dice_of(counts)


def test_regions_are_learnt() -> None:
    label = nested()
    dice = taught(learner(**REGIONS), batch(label, label))
    assert len(dice) == 4
    assert all(value is not None and value > 0.9 for value in dice)


def test_a_cascade_learns_from_its_previous_stage() -> None:
    """The image is noise: only the previous stage tells where the classes are."""
    label = np.minimum(nested(), 2)
    noise = np.random.default_rng(0).normal(size=label.shape)
    dice = taught(learner(**CASCADE), batch(np.stack([label, label], axis=1), noise))
    assert all(value is not None and value > 0.9 for value in dice)


def test_a_cascade_sees_one_mask_for_each_part() -> None:
    pupil = learner(**CASCADE)
    label = np.minimum(nested(), 2)
    previous = np.roll(label, 1, axis=2)
    given = batch(np.stack([label, previous], axis=1), np.zeros(label.shape))
    image, target, _ = pupil.to_device(given)
    assert torch.equal(target, torch.from_numpy(label))
    assert image.shape == (2, 3, 8, 8, 8)
    for part in (1, 2):
        assert torch.equal(image[:, part], torch.from_numpy(previous == part).float())
