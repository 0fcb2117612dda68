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
from scipy import ndimage

from autoseg.augmentation.sampler import Border
from autoseg.augmentation.spatial import Warp, draw_warp
from autoseg.augmentation.spline import along
from autoseg.common.arrays import (
    Mask,
    Triple,
    bounding_box,
    connected_components,
    count_values,
)
from autoseg.plan import augmentation as plans
from autoseg.plan.augmentation import (
    GaussianBlur,
    GaussianNoise,
    LowResolution,
    PreviousMorphology,
    PreviousRemoval,
)
from autoseg.preprocessing.resample import apply_operators, axis_operator

# Random faults in what a cascade's previous stage found, so that the cascade learns to mend them.
#
# nnU-Net's two, on part numbers instead of one mask a part: a voxel still has one part at most.
# Segmentations are (x, y, z), 0 for background.

Operator = Callable[[Mask, int], Mask]


def change_previous(
    segmentation: NDArray[Any],
    spec: PreviousMorphology | PreviousRemoval,
    rng: np.random.Generator,
) -> NDArray[Any]:
    """The segmentation, with the transform's chance changed."""
    if rng.random() >= spec.probability:
        return segmentation
    if isinstance(spec, PreviousMorphology):
        return _morphed(segmentation, spec, rng)
    return _without_components(segmentation, spec, rng)


def dilated(mask: Mask, radius: int) -> Mask:
    """All voxels within a radius (voxels) of the mask; beyond the patch nothing is known."""
    from scipy.ndimage import distance_transform_edt

    box = bounding_box(mask)
    if box is None:
        return mask
    box = tuple(slice(max(0, side.start - radius), side.stop + radius) for side in box)
    out = np.zeros_like(mask)
    out[box] = distance_transform_edt(~mask[box]) <= radius
    return out


def eroded(mask: Mask, radius: int) -> Mask:
    """The voxels of the mask that are further than a radius from all others."""
    return ~dilated(~mask, radius)


def opened(mask: Mask, radius: int) -> Mask:
    """Eroded, then dilated: what is thinner than the ball goes."""
    return dilated(eroded(mask, radius), radius)


def closed(mask: Mask, radius: int) -> Mask:
    """Dilated, then eroded: gaps thinner than the ball are filled."""
    return eroded(dilated(mask, radius), radius)


OPERATORS: tuple[Operator, ...] = (dilated, eroded, opened, closed)


def _morphed(
    segmentation: NDArray[Any], spec: PreviousMorphology, rng: np.random.Generator
) -> NDArray[Any]:
    """One random operator for each part; where a part grows, the others give way."""
    out = segmentation.copy()
    for part in rng.permutation(_parts(segmentation)):
        operator = OPERATORS[rng.integers(len(OPERATORS))]
        mask = out == part
        changed = operator(mask, int(rng.integers(spec.radius[0], spec.radius[1] + 1)))
        out[mask] = 0
        out[changed] = part
    return out


def _without_components(
    segmentation: NDArray[Any], spec: PreviousRemoval, rng: np.random.Generator
) -> NDArray[Any]:
    """Each part without one of its components, chosen evenly among those that are small enough."""
    out = segmentation.copy()
    for part in _parts(segmentation):
        components, count = connected_components(out == part)
        sizes = count_values(components, count + 1)[1:]
        small = 1 + np.flatnonzero(sizes < spec.largest_share * out.size)
        if len(small):
            out[components == small[rng.integers(len(small))]] = 0
    return out


def _parts(segmentation: NDArray[Any]) -> NDArray[Any]:
    return np.unique(segmentation[segmentation > 0])


# Noise, blur and low resolution, in less time than batchgenerators takes.
#
# The same draws from the same distributions, and given the same draws the same image.

ImageArray = NDArray[np.float32]  # (channel, x, y, z)


def add_noise(spec: GaussianNoise, image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Gaussian noise; what the plan calls its variance is, as in batchgenerators, its deviation."""
    if rng.random() >= spec.probability:
        return image
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= rng.uniform(*spec.variance)
    noise += image
    return noise


def blur(spec: GaussianBlur, image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """A Gaussian blur of each channel with a chance and a sigma of its own."""
    if rng.random() >= spec.probability:
        return image
    channels = []
    for channel in image:
        if rng.random() < spec.channel_probability:
            sigma = rng.uniform(*spec.sigma)
            for axis, size in enumerate(channel.shape):
                channel = along(blurring(size, sigma), channel, axis)
        channels.append(channel)
    return np.stack(channels)


def blurring(size: int, sigma: float) -> NDArray[np.float32]:
    """The matrix that `scipy.ndimage.gaussian_filter` applies to an axis."""
    return np.asarray(ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0), np.float32)


def lower_resolution(
    spec: LowResolution, image: ImageArray, rng: np.random.Generator
) -> ImageArray:
    """A scan of lower resolution: the nearest voxels of a coarser grid, and splines back."""
    if rng.random() >= spec.probability:
        return image
    channels = []
    for channel in image:
        if rng.random() < spec.channel_probability:
            channel = through_coarser_grid(channel, rng.uniform(*spec.zoom))
        channels.append(channel)
    return np.stack(channels)


def nearest_of_coarser(shape: Sequence[int], zoom: float) -> list[NDArray[np.intp]]:
    """Along each axis the voxels next to those of a grid of `zoom` times as many."""
    coarse = [max(1, round(size * zoom)) for size in shape]
    return [
        axis_operator(size, small, 0).argmax(axis=1)
        for size, small in zip(shape, coarse, strict=True)
    ]


def through_coarser_grid(channel: NDArray[np.float32], zoom: float) -> NDArray[np.float32]:
    """A channel (x, y, z) resampled to `zoom` times as many voxels along each axis and back.

    What scikit-image's `resize` does with order 0 on the way there and order 3 on the way back. An
    axis of a single voxel stays.
    """
    x, y, z = channel.shape
    small = channel[np.ix_(*nearest_of_coarser(channel.shape, zoom))]
    values = apply_operators(small, (x, y, z), (3, 3, 3))
    return np.clip(values, small.min(), small.max(), out=values)


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
