"""Augmentation of images by torch, on any device, from what a worker drew for them.

Given the same numbers the images are those of `spatial`, `intensity` and batchgenerators, but for
rounding; noise has the same distribution. The host never waits for the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from autoseg.augmentation.sampler import Border
from autoseg.augmentation.spatial import Warp, draw_warp, random_factor
from autoseg.augmentation.spline import Floats, prefilter
from autoseg.augmentation.transforms import blurring, change_previous, nearest_of_coarser
from autoseg.common.arrays import Triple
from autoseg.networks.devices import to_device
from autoseg.plan import augmentation as plans
from autoseg.preprocessing.resample import axis_operator

# What is drawn for an image that the training device will change: plain numbers and matrices.
#
# The distributions are those of `transforms`, which acts at once. The numbers come in another
# order from a sample's generator, so that the samples of the two differ.

Factors = tuple[float, ...]  # one for each channel
Operators = tuple[Floats, Floats, Floats]  # the matrices (new size, size) of x, y, z


@dataclass(frozen=True)
class Flip:
    """Turn these axes about."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class Noise:
    """Add normal noise."""

    deviation: float
    seed: int


@dataclass(frozen=True)
class Brightness:
    """Multiply each channel."""

    factors: Factors


@dataclass(frozen=True)
class Contrast:
    """Stretch each channel about its mean."""

    factors: Factors
    preserve_range: bool


@dataclass(frozen=True)
class Gamma:
    """Raise each channel, or its negative, to a power within its range."""

    powers: Factors
    invert: bool
    retain_statistics: bool


@dataclass(frozen=True)
class Blur:
    """Apply matrices to the axes of each channel; None: it stays."""

    channels: tuple[Operators | None, ...]


@dataclass(frozen=True)
class CoarseGrid:
    """The nearest voxels of a coarser grid along x, y, z, and the matrices back."""

    nearest: tuple[NDArray[np.intp], ...]
    back: Operators


@dataclass(frozen=True)
class LowResolution:
    """Take each channel through its coarser grid; None: it stays."""

    channels: tuple[CoarseGrid | None, ...]


Change = Warp | Flip | Noise | Brightness | Contrast | Gamma | Blur | LowResolution
Changing = (
    plans.Mirror
    | plans.GaussianNoise
    | plans.GaussianBlur
    | plans.Brightness
    | plans.Contrast
    | plans.LowResolution
    | plans.Gamma
)


def draw_change(
    spec: Changing, channels: int, size: Triple, rng: np.random.Generator
) -> Change | None:
    """Draw what a transform does to one image; None if nothing.

    Args:
        spec: the plan's chances and ranges.
        channels: of the image.
        size: of the patch (x, y, z).
        rng: the sample's random numbers.
    """
    if rng.random() >= spec.probability:
        return None
    match spec:
        case plans.Mirror():
            return Flip(tuple(axis for axis in sorted(set(spec.axes)) if rng.random() < 0.5))
        case plans.GaussianNoise():
            return Noise(rng.uniform(*spec.variance), int(rng.integers(2**63)))
        case plans.Brightness():
            return Brightness(tuple(rng.uniform(*spec.factor) for _ in range(channels)))
        case plans.Contrast():
            return Contrast(_factors(spec.factor, channels, rng), spec.preserve_range)
        case plans.Gamma():
            powers = _factors(spec.gamma, channels, rng)
            return Gamma(powers, spec.invert, spec.retain_statistics)
        case plans.GaussianBlur():
            sigmas = _some(spec.channel_probability, spec.sigma, channels, rng)
            return Blur(tuple(None if s is None else _blur(size, s) for s in sigmas))
        case plans.LowResolution():
            zooms = _some(spec.channel_probability, spec.zoom, channels, rng)
            return LowResolution(tuple(None if z is None else _coarse_grid(size, z) for z in zooms))


def _factors(limits: tuple[float, float], channels: int, rng: np.random.Generator) -> Factors:
    return tuple(random_factor(limits, rng) for _ in range(channels))


def _some(
    chance: float, limits: tuple[float, float], channels: int, rng: np.random.Generator
) -> list[float | None]:
    """A number for each channel that has the luck."""
    return [rng.uniform(*limits) if rng.random() < chance else None for _ in range(channels)]


def _blur(size: Triple, sigma: float) -> Operators:
    return _changed_along_axes(lambda axis: blurring(size[axis], sigma))


def _coarse_grid(size: Triple, zoom: float) -> CoarseGrid:
    nearest = nearest_of_coarser(size, zoom)
    back = _changed_along_axes(lambda axis: axis_operator(len(nearest[axis]), size[axis], 3))
    return CoarseGrid(tuple(nearest), back)


def _changed_along_axes(matrix: Callable[[int], Floats]) -> Operators:
    return matrix(0), matrix(1), matrix(2)


# Samples whose image is left to the training device; only what the device lacks is done at once.
#
# A worker draws, reads the box, and moves the labels, which are cheap: no interpolation, and the
# box has needed their places already. `on_device` does the rest.


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


@torch.no_grad()
def finish(samples: Sequence[Postponed], device: torch.device) -> Tensor:
    """Move images to the device and change them there: (B, C, X, Y, Z)."""
    images = []
    for sample in samples:
        image = to_device(sample.image, device)
        for change in sample.changes:
            image = changed(image, change)
        images.append(image)
    return torch.stack(images)


def changed(image: Tensor, change: Change) -> Tensor:
    """An image (C, X, Y, Z) after one change."""
    match change:
        case Warp():
            return warped(image, change)
        case Flip():
            return image.flip([1 + axis for axis in change.axes])
        case Noise():
            generator = torch.Generator(image.device).manual_seed(change.seed)
            noise = torch.randn(image.shape, generator=generator, device=image.device)
            return image + change.deviation * noise
        case Brightness():
            return image * _of_channels(change.factors, image)
        case Contrast():
            return _stretched(image, change)
        case Gamma():
            return _curved(image, change)
        case Blur() | LowResolution():
            pairs = zip(image, change.channels, strict=True)
            return torch.stack([_through(channel, by) for channel, by in pairs])


def _of_channels(factors: Factors, image: Tensor) -> Tensor:
    values = torch.tensor(factors, dtype=image.dtype)
    return to_device(values.numpy(), image.device).view(-1, 1, 1, 1)


def _stretched(image: Tensor, change: Contrast) -> Tensor:
    mean = image.mean((1, 2, 3), keepdim=True)
    stretched = (image - mean) * _of_channels(change.factors, image) + mean
    if not change.preserve_range:
        return stretched
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    return stretched.clamp(low, high)


def _curved(image: Tensor, change: Gamma) -> Tensor:
    """batchgenerators' gamma correction, its small constants included."""
    sign = -1 if change.invert else 1
    before = image * sign
    low = before.amin((1, 2, 3), keepdim=True)
    extent = before.amax((1, 2, 3), keepdim=True) - low + 1e-7
    powers = _of_channels(change.powers, image)
    curved = torch.pow((before - low) / extent, powers) * extent + low
    if change.retain_statistics:
        deviation, mean = torch.std_mean(before, (1, 2, 3), correction=0, keepdim=True)
        now, middle = torch.std_mean(curved, (1, 2, 3), correction=0, keepdim=True)
        curved = (curved - middle) / (now + 1e-8) * deviation + mean
    return curved * sign


def _through(channel: Tensor, by: Operators | CoarseGrid | None) -> Tensor:
    """A channel (X, Y, Z) after matrices along its axes, or through a coarser grid."""
    if by is None:
        return channel
    if not isinstance(by, CoarseGrid):
        return _along_axes(channel, by)
    for axis, nearest in enumerate(by.nearest):
        channel = channel.index_select(axis, to_device(nearest, channel.device))
    return _along_axes(channel, by.back).clamp(channel.amin(), channel.amax())


def _along_axes(channel: Tensor, operators: Operators) -> Tensor:
    for axis, operator in enumerate(operators):
        channel = _along(to_device(operator, channel.device), channel, axis)
    return channel


def _along(operator: Tensor, volume: Tensor, axis: int) -> Tensor:
    product: Tensor = torch.tensordot(operator, volume, ([1], [axis]))
    return product.movedim(0, axis)


def warped(image: Tensor, warp: Warp) -> Tensor:
    """What `Warp.image` makes of each channel: (C, *box_size) in, (C, *size) out."""
    points = _points(warp, image)
    order = warp.spec.image_order
    if order == 0:
        return _nearest(image, points)
    if order == 1:
        return _linear(image, points)
    for axis in warp.active:
        operator = to_device(prefilter(image.shape[1 + axis], order), image.device)
        image = _along(operator, image, 1 + axis)
    return _cubic(image, points, warp.active)


def _points(warp: Warp, image: Tensor) -> list[Tensor]:
    """Where the voxels of the patch look in the box, along x, y and z: (*size) each."""
    device = image.device
    lines = []
    for axis, size in enumerate(warp.size):
        line = torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2
        lines.append(line.view([-1 if other == axis else 1 for other in range(3)]))
    if warp.field is not None:
        field = to_device(warp.field, device)
        lines = [line + moved for line, moved in zip(lines, field, strict=True)]
    points = []
    for row, size in zip(warp.matrix.tolist(), image.shape[1:], strict=True):
        point = torch.full(warp.size, (size - 1) / 2, device=device)
        for factor, line in zip(row, lines, strict=True):
            if factor:
                point += factor * line
        points.append(point)
    return points


def _nearest(image: Tensor, points: list[Tensor]) -> Tensor:
    at = [(point + 0.5).long() for point in points]
    return image[:, at[0], at[1], at[2]]


def _linear(image: Tensor, points: list[Tensor]) -> Tensor:
    # torch counts from -1 to 1 and names the last axis first.
    scaled = [
        point * (2 / max(1, size - 1)) - 1
        for point, size in zip(points, image.shape[1:], strict=True)
    ]
    grid = torch.stack(scaled[::-1], dim=-1)
    return grid_sample(image[None], grid[None], padding_mode="border", align_corners=True)[0]


def _cubic(coefficients: Tensor, points: list[Tensor], axes: Sequence[int]) -> Tensor:
    """The cubic spline as a weighted sum of linear interpolations, two along each axis.

    Each stands for two neighbouring samples (Sigg and Hadwiger, GPU Gems 2, 2005, chapter 20).
    Along the other axes the points are samples.
    """
    pairs = [_pair(point) if axis in axes else [(None, point)] for axis, point in enumerate(points)]
    values = torch.zeros((), device=coefficients.device)
    for choice in itertools.product(*pairs):
        part = _linear(coefficients, [point for _, point in choice])
        for weight, _ in choice:
            part = part if weight is None else part * weight
        values = values + part
    return values


def _pair(point: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Weight and place of the two interpolations along an axis."""
    below = point.floor()
    t = point - below
    s = 1 - t
    first, last = s**3 / 6, t**3 / 6
    left = (4 - 3 * t**2 * (2 - t)) / 6 + first
    right = (4 - 3 * s**2 * (2 - s)) / 6 + last
    return [(left, below - first / left), (right, below + 1 + last / right)]
