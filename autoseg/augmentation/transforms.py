"""Augmentation of one sample: the transforms of the plan, in order.

Brightness, contrast and gamma correction are transforms of batchgenerators. Its slower ones, and
mirroring, are replaced, here and in `spatial`, by others that draw from the same distributions and
give the same image for the same draws.

batchgenerators uses the global generators of NumPy and Python; `seeded` sets and restores both, so
that a sample depends on its position only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from batchgenerators.transforms import color_transforms as batchgenerators
from numpy.typing import NDArray
from scipy import ndimage

from autoseg.augmentation.spatial import Border, Warp, draw_warp
from autoseg.augmentation.spline import along
from autoseg.common import arrays
from autoseg.common.arrays import Array, Floats, Mask, Triple
from autoseg.plan import augmentation as plans
from autoseg.plan.plan import Plan
from autoseg.preprocessing.resample import apply_operators, axis_operator
from autoseg.preprocessing.steps import IGNORED

ImageArray = NDArray[np.float32]  # (channel, x, y, z)
LabelArray = NDArray[np.int16]  # (label, x, y, z)
Sample = tuple[ImageArray, LabelArray]


@dataclass(frozen=True)
class Augmenter:
    """Draws the augmentation of each sample."""

    specs: Sequence[plans.Transform]
    patch_size: Triple
    sides: Sides | None = None

    def draw(self, rng: np.random.Generator) -> Augmentation:
        """Draw the warps of the sample that `rng` belongs to, which decide what has to be read."""
        size = self.patch_size
        border: Border = "constant"
        steps: list[plans.Transform | Warp] = []
        for spec in reversed(self.specs):
            if not isinstance(spec, plans.Spatial):
                steps.append(spec)
            elif (warp := draw_warp(spec, size, rng)) is not None:
                size, border = warp.box_size, spec.border
                steps.append(warp)
        return Augmentation(size, border, tuple(reversed(steps)), rng, self.sides)


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of one sample.

    Attributes:
        box_size: voxels to read: those of the patch, or more if it is warped.
        border: padding beyond the case: zero, or the nearest voxel.
        steps: warps that are drawn, and transforms that are not.
        rng: random generator of the sample.
        sides: labels to exchange when left and right are mirrored; None for none.
    """

    box_size: Triple
    border: Border
    steps: tuple[plans.Transform | Warp, ...]
    rng: np.random.Generator
    sides: Sides | None = None

    def __call__(self, image: ImageArray, label: NDArray[np.int16]) -> Sample:
        """Augment what was read, and return image and label of the patch size.

        Args:
            image: (channel, *box_size); may be modified.
            label: box_size, or (2, *box_size) for a cascade; may be modified.
        """
        labels = label.reshape(-1, *label.shape[-3:])
        with seeded(self.rng):
            for step in self.steps:
                image, labels = _apply(step, image, labels, self.rng, self.sides)
        label = labels[0] if label.ndim == 3 else labels
        return np.ascontiguousarray(image), np.ascontiguousarray(label)


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed the global generators of NumPy and Python from `rng` for the block."""
    before, before_python = np.random.get_state(), random.getstate()
    np.random.seed(rng.integers(2**32, size=4, dtype=np.uint32))
    random.seed(int(rng.integers(2**63)))  # batchgenerators uses both
    try:
        yield
    finally:
        np.random.set_state(before)
        random.setstate(before_python)


def _apply(
    step: plans.Transform | Warp,
    image: ImageArray,
    labels: LabelArray,
    rng: np.random.Generator,
    sides: Sides | None,
) -> Sample:
    match step:
        case Warp():
            image = np.stack([step.image(channel) for channel in image])
            return image, np.stack([step.label(label) for label in labels])
        case plans.GaussianNoise():
            return add_noise(step, image, rng), labels
        case plans.GaussianBlur():
            return blur(step, image, rng), labels
        case plans.LowResolution():
            return lower_resolution(step, image, rng), labels
        case plans.PreviousMorphology() | plans.PreviousRemoval():
            return image, np.stack([labels[0], corrupt_previous(labels[1], step, rng)])
        case plans.Mirror():
            return mirror(step, image, labels, sides)
    batch = _of_batchgenerators(step)(data=image[None], seg=labels[None])
    return batch["data"][0], batch["seg"][0]


def _of_batchgenerators(spec: plans.Transform) -> Any:
    match spec:
        case plans.Brightness():
            make, options = batchgenerators.BrightnessMultiplicativeTransform, {}
        case plans.Contrast():
            make = batchgenerators.ContrastAugmentationTransform
            options = {"preserve_range": spec.preserve_range}
        case plans.Gamma():
            make = batchgenerators.GammaTransform
            options = {"invert_image": spec.invert, "retain_stats": spec.retain_statistics}
            return make(spec.gamma, per_channel=True, p_per_sample=spec.probability, **options)
        case _:
            raise AssertionError(spec)
    return make(spec.factor, p_per_sample=spec.probability, **options)


# Mirroring.


@dataclass(frozen=True)
class Sides:
    """The labels of the left and the right side.

    Attributes:
        axis: 0, 1 or 2: from one side to the other.
        parts: the class index that each class index becomes on the other side.
        exchanged: one entry for each exchange, of all samples.
    """

    axis: int
    parts: tuple[int, ...]
    exchanged: list[bool] = field(default_factory=list, compare=False)

    @staticmethod
    def of(plan: Plan) -> Sides | None:
        """Those of a plan; None if it does not exchange labels."""
        if plan.left_right is None or not plan.mirrored_labels:
            return None
        return Sides(plan.left_right, plan.exchanged_parts)

    def exchange(self, labels: NDArray[np.int16]) -> NDArray[np.int16]:
        """Give each voxel the class of the other side; ignored voxels stay ignored."""
        self.exchanged.append(True)
        table = np.array([*self.parts, IGNORED], np.int16)
        return np.asarray(table[labels])  # IGNORED is -1, the last entry


def flip_label(
    label: NDArray[np.int16], axes: Sequence[int], sides: Sides | None
) -> NDArray[np.int16]:
    """Flip the last three axes of labels, and exchange those of left and right."""
    flipped = np.flip(label, tuple(label.ndim - 3 + axis for axis in axes))
    return sides.exchange(flipped) if sides is not None and sides.axis in axes else flipped


def mirror(
    spec: plans.Mirror, image: ImageArray, labels: LabelArray, sides: Sides | None
) -> Sample:
    """Flip along each axis with probability one half; draws as batchgenerators does."""
    if not spec.axes or np.random.uniform() >= spec.probability:
        return image, labels
    axes = [axis for axis in sorted(set(spec.axes)) if np.random.uniform() < 0.5]
    # In place: the sums of later transforms depend on the memory layout.
    image[...] = np.flip(image, tuple(1 + axis for axis in axes))
    labels[...] = flip_label(labels, axes, sides)
    return image, labels


# Noise, blur and low resolution.


def add_noise(spec: plans.GaussianNoise, image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Add Gaussian noise; as in batchgenerators, `variance` is its standard deviation."""
    if rng.random() >= spec.probability:
        return image
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= rng.uniform(*spec.variance)
    noise += image
    return noise


def blur(spec: plans.GaussianBlur, image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Blur each selected channel with a Gaussian of its own sigma."""
    return _per_channel(spec, spec.sigma, _gaussian_filter, image, rng)


def _gaussian_filter(channel: Floats, sigma: float) -> Floats:
    for axis, size in enumerate(channel.shape):
        channel = along(blur_operator(size, sigma), channel, axis)
    return channel


def blur_operator(size: int, sigma: float) -> Floats:
    """Return the matrix that `scipy.ndimage.gaussian_filter` applies to an axis."""
    return np.asarray(ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0), np.float32)


def lower_resolution(
    spec: plans.LowResolution, image: ImageArray, rng: np.random.Generator
) -> ImageArray:
    """Simulate a scan of lower resolution, in each selected channel with a zoom of its own."""
    return _per_channel(spec, spec.zoom, through_coarser_grid, image, rng)


def _per_channel(
    spec: plans.GaussianBlur | plans.LowResolution,
    limits: tuple[float, float],
    function: Callable[[Floats, float], Floats],
    image: ImageArray,
    rng: np.random.Generator,
) -> ImageArray:
    """Call the function with each selected channel and a number drawn for it."""
    if rng.random() >= spec.probability:
        return image
    chance = spec.channel_probability
    changed = (function(c, rng.uniform(*limits)) if rng.random() < chance else c for c in image)
    return np.stack(list(changed))


def through_coarser_grid(channel: Floats, zoom: float) -> Floats:
    """Resample a channel (x, y, z) to `zoom` times as many voxels along each axis, and back.

    Equals scikit-image's `resize` with order 0, then with order 3. An axis of one voxel is kept.
    """
    x, y, z = channel.shape
    small = channel[np.ix_(*coarse_indices(channel.shape, zoom))]
    values = apply_operators(small, (x, y, z), (3, 3, 3))
    return np.clip(values, small.min(), small.max(), out=values)


def coarse_indices(shape: Sequence[int], zoom: float) -> list[NDArray[np.intp]]:
    """Return along each axis the voxels nearest to those of a grid with `zoom` times as many."""
    return [axis_operator(size, max(1, round(size * zoom)), 0).argmax(axis=1) for size in shape]


# Errors in the segmentation of a cascade's previous stage, so that the cascade learns to correct
# them. They are nnU-Net's, applied to a map of class indices (x, y, z) instead of one mask per
# class: a voxel still has at most one class.

Operator = Callable[[Mask, int], Mask]


def corrupt_previous(
    segmentation: Array,
    spec: plans.PreviousMorphology | plans.PreviousRemoval,
    rng: np.random.Generator,
) -> Array:
    """Return the segmentation, modified with the probability of the transform."""
    if rng.random() >= spec.probability:
        return segmentation
    if isinstance(spec, plans.PreviousMorphology):
        return _apply_morphology(segmentation, spec, rng)
    return _remove_components(segmentation, spec, rng)


def _apply_morphology(
    segmentation: Array, spec: plans.PreviousMorphology, rng: np.random.Generator
) -> Array:
    """Apply a random operator to each class; a growing class replaces the others."""
    out = segmentation.copy()
    for index in rng.permutation(_foreground(segmentation)):
        operator = OPERATORS[rng.integers(len(OPERATORS))]
        mask = out == index
        modified = operator(mask, int(rng.integers(spec.radius[0], spec.radius[1] + 1)))
        out[mask] = 0
        out[modified] = index
    return out


def _remove_components(
    segmentation: Array, spec: plans.PreviousRemoval, rng: np.random.Generator
) -> Array:
    """Remove one component of each class, chosen uniformly from those that are small enough."""
    out = segmentation.copy()
    for index in _foreground(segmentation):
        components, count = arrays.connected_components(out == index)
        sizes = arrays.count_values(components, count + 1)[1:]
        small = 1 + np.flatnonzero(sizes < spec.largest_share * out.size)
        if len(small):
            out[components == small[rng.integers(len(small))]] = 0
    return out


def _foreground(segmentation: Array) -> Array:
    return np.unique(segmentation[segmentation > 0])


def dilated(mask: Mask, radius: int) -> Mask:
    """Return all voxels within a radius (in voxels) of the mask.

    The outside of the patch is unknown: it neither dilates nor erodes the mask.
    """
    if (box := arrays.bounding_box(mask)) is None:
        return mask
    box = tuple(slice(max(0, side.start - radius), side.stop + radius) for side in box)
    out = np.zeros_like(mask)
    out[box] = ndimage.distance_transform_edt(~mask[box]) <= radius
    return out


def eroded(mask: Mask, radius: int) -> Mask:
    """Return the voxels of the mask that are further than a radius from all others."""
    return ~dilated(~mask, radius)


def opened(mask: Mask, radius: int) -> Mask:
    """Erode, then dilate: parts thinner than the ball are removed."""
    return dilated(eroded(mask, radius), radius)


def closed(mask: Mask, radius: int) -> Mask:
    """Dilate, then erode: gaps thinner than the ball are filled."""
    return eroded(dilated(mask, radius), radius)


OPERATORS: tuple[Operator, ...] = (dilated, eroded, opened, closed)
