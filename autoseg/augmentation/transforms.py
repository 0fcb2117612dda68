"""The plan's augmentation of one sample: its transforms in order.

Mirroring, brightness, contrast and gamma are batchgenerators' own transforms. For its slower ones
`spatial` and `intensity` hold others, equal to them where the same numbers are drawn, and drawn
from the same distributions.

batchgenerators draws from the global generators of numpy and Python; `seeded` sets both for one
sample and puts them back, so that a sample depends on its position only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.augmentation.intensity import add_noise, blur, lower_resolution
from autoseg.augmentation.previous import change_previous
from autoseg.augmentation.sampler import Border
from autoseg.augmentation.spatial import Warp, draw_warp
from autoseg.common.arrays import Triple
from autoseg.plan import augmentation as plans

Image = NDArray[np.float32]  # (channel, x, y, z)
Labels = NDArray[np.int16]  # (label, x, y, z)
Sample = tuple[Image, Labels]
Step = Callable[[Image, Labels, np.random.Generator], Sample]


class Augmenter:
    """Draws what happens to each sample of a plan."""

    def __init__(self, specs: Sequence[plans.Transform], patch_size: Triple) -> None:
        self.specs = specs
        self.patch_size = patch_size
        self._steps = [_step(spec) for spec in specs]

    def draw(self, rng: np.random.Generator) -> Augmentation:
        """What happens to the sample whose random numbers these are."""
        size = self.patch_size
        border: Border = "constant"
        steps = list(self._steps)
        for number, spec in reversed(list(enumerate(self.specs))):
            warp = draw_warp(spec, size, rng) if isinstance(spec, plans.Spatial) else None
            if warp is not None:
                size, border = warp.box_size, warp.spec.border
                steps[number] = partial(_warped, warp)
        return Augmentation(size, border, tuple(steps), rng)


@dataclass(frozen=True)
class Augmentation:
    """What happens to one sample.

    Attributes:
        box_size: voxels to read: the patch, or more where it turns, shrinks or deforms.
        border: what lies beyond the case: zero, or its nearest voxel.
        steps: one for each transform of the plan.
        rng: the sample's random numbers.
    """

    box_size: Triple
    border: Border
    steps: tuple[Step, ...]
    rng: np.random.Generator

    def __call__(self, image: Image, label: NDArray[np.int16]) -> Sample:
        """Augment what was read; image and label come back patch-sized.

        Args:
            image: (channel, *box_size); it may be written to.
            label: box_size, or (label, *box_size) for a cascade's two; it may be written to.
        """
        labels = label.reshape(-1, *label.shape[-3:])
        with seeded(self.rng):
            for step in self.steps:
                image, labels = step(image, labels, self.rng)
        label = labels[0] if label.ndim == 3 else labels
        return np.ascontiguousarray(image), np.ascontiguousarray(label)


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Let the global generators of numpy and Python continue from `rng` for the block."""
    before, before_python = np.random.get_state(), random.getstate()
    np.random.seed(rng.integers(2**32, size=4, dtype=np.uint32))
    random.seed(int(rng.integers(2**63)))  # batchgenerators draws some numbers from it
    try:
        yield
    finally:
        np.random.set_state(before)
        random.setstate(before_python)


def _step(spec: plans.Transform) -> Step:
    """One transform of the plan as a function; it decides itself whether it acts."""
    match spec:
        case plans.Spatial():
            return _unchanged  # unless a warp is drawn
        case plans.GaussianNoise():
            return _of_image(partial(add_noise, spec))
        case plans.GaussianBlur():
            return _of_image(partial(blur, spec))
        case plans.LowResolution():
            return _of_image(partial(lower_resolution, spec))
        case plans.PreviousMorphology() | plans.PreviousRemoval():
            return partial(_previous, spec)
        case plans.Mirror():
            return _mirror(spec) if spec.axes else _unchanged
        case _:
            return _of_batchgenerators(_intensity(spec))


def _intensity(spec: plans.Brightness | plans.Contrast | plans.Gamma) -> Any:
    from batchgenerators.transforms.color_transforms import (
        BrightnessMultiplicativeTransform,
        ContrastAugmentationTransform,
        GammaTransform,
    )

    match spec:
        case plans.Brightness():
            return BrightnessMultiplicativeTransform(spec.factor, p_per_sample=spec.probability)
        case plans.Contrast():
            return ContrastAugmentationTransform(
                spec.factor, preserve_range=spec.preserve_range, p_per_sample=spec.probability
            )
        case plans.Gamma():
            return GammaTransform(
                spec.gamma,
                invert_image=spec.invert,
                per_channel=True,
                retain_stats=spec.retain_statistics,
                p_per_sample=spec.probability,
            )


def _mirror(spec: plans.Mirror) -> Step:
    from batchgenerators.transforms.spatial_transforms import MirrorTransform

    return _of_batchgenerators(MirrorTransform(axes=spec.axes, p_per_sample=spec.probability))


def _of_batchgenerators(transform: Any) -> Step:
    def step(image: Image, labels: Labels, _: np.random.Generator) -> Sample:
        batch = transform(data=image[None], seg=labels[None])
        return batch["data"][0], batch["seg"][0]

    return step


def _of_image(change: Callable[[Image, np.random.Generator], Image]) -> Step:
    def step(image: Image, labels: Labels, rng: np.random.Generator) -> Sample:
        return change(image, rng), labels

    return step


def _warped(warp: Warp, image: Image, labels: Labels, _: np.random.Generator) -> Sample:
    return (
        np.stack([warp.image(channel) for channel in image]),
        np.stack([warp.label(label) for label in labels]),
    )


def _previous(
    spec: plans.PreviousMorphology | plans.PreviousRemoval,
    image: Image,
    labels: Labels,
    rng: np.random.Generator,
) -> Sample:
    """Change the second label, a cascade's previous stage."""
    return image, np.stack([labels[0], change_previous(labels[1], spec, rng)])


def _unchanged(image: Image, labels: Labels, _: np.random.Generator) -> Sample:
    return image, labels
