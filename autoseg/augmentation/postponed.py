"""Samples whose image is left to the training device; only what the device lacks is done at once.

A worker draws, reads the box, and moves the labels, which are cheap: no interpolation, and the box
has needed their places already. `on_device` does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autoseg.augmentation.changes import Change, Flip, draw_change
from autoseg.augmentation.previous import change_previous
from autoseg.augmentation.sampler import Border
from autoseg.augmentation.spatial import Warp, draw_warp
from autoseg.common.arrays import Triple
from autoseg.plan import augmentation as plans


@dataclass(frozen=True)
class Postponed:
    """An image as it was read, and what shall become of it.

    Attributes:
        image: (channel, *box).
        changes: in order; after them it is as large as the patch.
    """

    image: NDArray[np.float32]
    changes: tuple[Change, ...]


class Postponer:
    """Draws what happens to each sample of a plan, like `transforms.Augmenter`."""

    def __init__(self, specs: Sequence[plans.Transform], patch_size: Triple) -> None:
        self.specs = specs
        self.patch_size = patch_size

    def draw(self, rng: np.random.Generator) -> PostponedAugmentation:
        """What happens to the sample whose random numbers these are."""
        size = self.patch_size
        border: Border = "constant"
        steps: list[plans.Transform | Warp] = []
        for spec in reversed(self.specs):
            if not isinstance(spec, plans.Spatial):
                steps.append(spec)
            elif (warp := draw_warp(spec, size, rng)) is not None:
                size, border = warp.box_size, spec.border
                steps.append(warp)
        return PostponedAugmentation(size, border, tuple(reversed(steps)), rng)


@dataclass(frozen=True)
class PostponedAugmentation:
    """What happens to one sample, like `transforms.Augmentation`.

    Attributes:
        box_size: voxels to read.
        border: what lies beyond the case: zero, or its nearest voxel.
        steps: warps that are drawn, and transforms that are not.
        rng: the sample's random numbers.
    """

    box_size: Triple
    border: Border
    steps: tuple[plans.Transform | Warp, ...]
    rng: np.random.Generator

    def __call__(
        self, image: NDArray[np.float32], label: NDArray[np.int16]
    ) -> tuple[Postponed, NDArray[np.int16]]:
        """Change the label now; the image goes with what shall be done to it.

        Args:
            image: (channel, *box_size).
            label: box_size, or (label, *box_size) for a cascade's two.
        """
        labels = list(label.reshape(-1, *label.shape[-3:]))
        changes: list[Change] = []
        for step in self.steps:
            if isinstance(step, plans.PreviousMorphology | plans.PreviousRemoval):
                labels[1] = change_previous(labels[1], step, self.rng)
            elif (change := self._change(step, image, labels)) is not None:
                changes.append(change)
                labels = [_moved(change, one) for one in labels]
        moved = np.stack(labels) if label.ndim == 4 else np.ascontiguousarray(labels[0])
        # Copies of the warps travel without the places that they remember.
        light = [replace(change) for change in changes]
        return Postponed(image, tuple(light)), moved

    def _change(
        self,
        step: plans.Transform | Warp,
        image: NDArray[np.float32],
        labels: list[NDArray[np.int16]],
    ) -> Change | None:
        assert not isinstance(
            step, plans.Spatial | plans.PreviousMorphology | plans.PreviousRemoval
        )
        if isinstance(step, Warp):
            return step
        x, y, z = labels[0].shape
        return draw_change(step, len(image), (x, y, z), self.rng)


def _moved(change: Change, label: NDArray[np.int16]) -> NDArray[np.int16]:
    if isinstance(change, Warp):
        return change.label(label)
    return np.flip(label, change.axes) if isinstance(change, Flip) else label
