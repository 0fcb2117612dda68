"""Augmentation of images by PyTorch, on any device.

A worker draws the augmentation, reads the patch and transforms its labels (`postpone`), which is
cheap without interpolation. The image is augmented on the device by `finish`, and the host never
waits for it.

Given the same draws the images equal those of `transforms` except for rounding; noise has the same
distribution. The draws of a sample come in another order, so that samples differ from `transforms`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from autoseg.augmentation import transforms
from autoseg.augmentation.spatial import Warp, random_factor
from autoseg.augmentation.spline import prefilter
from autoseg.augmentation.transforms import Augmentation, Sides
from autoseg.common.arrays import Floats, Triple
from autoseg.networks.devices import to_device
from autoseg.plan import augmentation as plans
from autoseg.preprocessing.resample import axis_operator


@dataclass(frozen=True)
class PostponedImage:
    """An image as it was read, and the operations to be applied.

    Attributes:
        image: (channel, *box_size).
        operations: in order; their result has the patch size.
    """

    image: Floats
    operations: tuple[Operation, ...]


def postpone(
    augmentation: Augmentation, image: Floats, label: NDArray[np.int16]
) -> tuple[PostponedImage, NDArray[np.int16]]:
    """Augment the label, and return the image with the operations that remain.

    Args:
        augmentation: of the sample.
        image: (channel, *box_size).
        label: box_size, or (2, *box_size) for a cascade.
    """
    labels = list(label.reshape(-1, *label.shape[-3:]))
    operations: list[Operation] = []
    for step in augmentation.steps:
        if isinstance(step, plans.PreviousMorphology | plans.PreviousRemoval):
            labels[1] = transforms.corrupt_previous(labels[1], step, augmentation.rng)
            continue
        x, y, z = labels[0].shape
        operation = draw_operation(step, len(image), (x, y, z), augmentation.rng)
        if operation is not None:
            operations.append(operation)
            labels = [_apply_to_label(operation, one, augmentation.sides) for one in labels]
    stacked = np.stack(labels) if label.ndim == 4 else np.ascontiguousarray(labels[0])
    # Copies of the warps are sent without their cached coordinates.
    return PostponedImage(image, tuple(replace(one) for one in operations)), stacked


def _apply_to_label(
    operation: Operation, label: NDArray[np.int16], sides: Sides | None
) -> NDArray[np.int16]:
    if isinstance(operation, Warp):
        return operation.label(label)
    return (
        transforms.flip_label(label, operation.axes, sides)
        if isinstance(operation, Flip)
        else label
    )


# Operations on an image, with everything drawn: plain numbers and matrices.

Operators = tuple[Floats, ...]  # matrices (new size, size) of x, y, z


@dataclass(frozen=True)
class Flip:
    """Reverse these axes."""

    axes: tuple[int, ...]


@dataclass(frozen=True)
class AddNoise:
    """Add Gaussian noise of a standard deviation."""

    std: float
    seed: int


@dataclass(frozen=True)
class AdjustIntensity:
    """Apply a factor (brightness, contrast) or a power (gamma correction) to each channel."""

    spec: plans.Brightness | plans.Contrast | plans.Gamma
    factors: tuple[float, ...]


@dataclass(frozen=True)
class CoarseGrid:
    """The voxels nearest to a coarser grid along x, y, z, and the matrices back."""

    nearest: tuple[NDArray[np.intp], ...]
    back: Operators


@dataclass(frozen=True)
class ApplyOperators:
    """Apply matrices along the axes of each channel, or a coarser grid; None keeps a channel."""

    channels: tuple[Operators | CoarseGrid | None, ...]


Operation = Warp | Flip | AddNoise | AdjustIntensity | ApplyOperators


def draw_operation(
    spec: plans.Transform | Warp, channels: int, size: Triple, rng: np.random.Generator
) -> Operation | None:
    """Draw what a transform does to one image; None if it is not applied.

    Args:
        spec: probabilities and ranges of the plan; a warp is drawn already.
        channels: number of channels of the image.
        size: of the patch (x, y, z).
        rng: random generator of the sample.
    """
    if isinstance(spec, Warp):
        return spec
    assert not isinstance(spec, plans.Spatial), "its warp is drawn"
    if rng.random() >= spec.probability:
        return None
    match spec:
        case plans.Mirror():
            return Flip(tuple(axis for axis in sorted(set(spec.axes)) if rng.random() < 0.5))
        case plans.GaussianNoise():
            return AddNoise(rng.uniform(*spec.variance), int(rng.integers(2**63)))
        case plans.Brightness():
            return AdjustIntensity(spec, tuple(rng.uniform(*spec.factor) for _ in range(channels)))
        case plans.Contrast() | plans.Gamma():
            limits = spec.factor if isinstance(spec, plans.Contrast) else spec.gamma
            return AdjustIntensity(spec, tuple(random_factor(limits, rng) for _ in range(channels)))
        case plans.GaussianBlur():
            sigmas = _draw_some(spec.channel_probability, spec.sigma, channels, rng)
            return ApplyOperators(tuple(None if s is None else _blur(size, s) for s in sigmas))
        case plans.LowResolution():
            zooms = _draw_some(spec.channel_probability, spec.zoom, channels, rng)
            return ApplyOperators(
                tuple(None if z is None else _coarse_grid(size, z) for z in zooms)
            )
    raise AssertionError(spec)


def _draw_some(
    probability: float, limits: tuple[float, float], channels: int, rng: np.random.Generator
) -> list[float | None]:
    """Draw a number for each selected channel."""
    return [rng.uniform(*limits) if rng.random() < probability else None for _ in range(channels)]


def _blur(size: Triple, sigma: float) -> Operators:
    return tuple(transforms.blur_operator(length, sigma) for length in size)


def _coarse_grid(size: Triple, zoom: float) -> CoarseGrid:
    nearest = transforms.coarse_indices(size, zoom)
    pairs = zip(nearest, size, strict=True)
    return CoarseGrid(tuple(nearest), tuple(axis_operator(len(at), n, 3) for at, n in pairs))


# The operations on the device.


@torch.no_grad()
def finish(samples: Sequence[PostponedImage], device: torch.device) -> Tensor:
    """Move images to the device and augment them there: (B, C, X, Y, Z)."""
    images = (to_device(sample.image, device) for sample in samples)
    pairs = zip(images, samples, strict=True)
    return torch.stack([reduce(apply, sample.operations, image) for image, sample in pairs])


def apply(image: Tensor, operation: Operation) -> Tensor:
    """Apply one operation to an image (C, X, Y, Z)."""
    match operation:
        case Warp():
            return _warp(image, operation)
        case Flip():
            return image.flip([1 + axis for axis in operation.axes])
        case AddNoise():
            generator = torch.Generator(image.device).manual_seed(operation.seed)
            noise = torch.randn(image.shape, generator=generator, device=image.device)
            return image + operation.std * noise
        case AdjustIntensity():
            values = np.array(operation.factors, np.float32)
            factors = to_device(values, image.device).view(-1, 1, 1, 1)
            match operation.spec:
                case plans.Brightness():
                    return image * factors
                case plans.Contrast():
                    return _stretch_contrast(image, factors, operation.spec.preserve_range)
                case plans.Gamma():
                    return _correct_gamma(image, factors, operation.spec)
        case ApplyOperators():
            pairs = zip(image, operation.channels, strict=True)
            return torch.stack([_resample(channel, by) for channel, by in pairs])


def _stretch_contrast(image: Tensor, factors: Tensor, preserve_range: bool) -> Tensor:
    mean = image.mean((1, 2, 3), keepdim=True)
    stretched = (image - mean) * factors + mean
    if not preserve_range:
        return stretched
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    return stretched.clamp(low, high)


def _correct_gamma(image: Tensor, powers: Tensor, spec: plans.Gamma) -> Tensor:
    """Apply the gamma correction of batchgenerators, including its small constants."""
    sign = -1 if spec.invert else 1
    before = image * sign
    low = before.amin((1, 2, 3), keepdim=True)
    extent = before.amax((1, 2, 3), keepdim=True) - low + 1e-7
    after = torch.pow((before - low) / extent, powers) * extent + low
    if spec.retain_statistics:
        std, mean = torch.std_mean(before, (1, 2, 3), correction=0, keepdim=True)
        new_std, new_mean = torch.std_mean(after, (1, 2, 3), correction=0, keepdim=True)
        after = (after - new_mean) / (new_std + 1e-8) * std + mean
    return after * sign


def _resample(channel: Tensor, by: Operators | CoarseGrid | None) -> Tensor:
    """Apply matrices along the axes of a channel (X, Y, Z), or a coarser grid."""
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


def _warp(image: Tensor, warp: Warp) -> Tensor:
    """Apply `Warp.image` to each channel: (C, *box_size) in, (C, *size) out."""
    points = _points(warp, image)
    order = warp.spec.image_order
    if order == 0:
        x, y, z = [(point + 0.5).long() for point in points]
        return image[:, x, y, z]
    if order == 1:
        return _linear(image, points)
    for axis in warp.active:
        operator = to_device(prefilter(image.shape[1 + axis], order), image.device)
        image = _along(operator, image, 1 + axis)
    return _cubic(image, points, warp.active)


def _points(warp: Warp, image: Tensor) -> list[Tensor]:
    """Return the positions in the box that the voxels of the patch are taken from.

    Returns:
        positions along x, y and z: (*size) each.
    """
    device = image.device
    lines = []
    for axis, size in enumerate(warp.size):
        line = torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2
        lines.append(line.view([-1 if other == axis else 1 for other in range(3)]))
    if warp.field is not None:
        field = to_device(warp.field, device)
        lines = [line + shift for line, shift in zip(lines, field, strict=True)]
    points = []
    for row, size in zip(warp.matrix.tolist(), image.shape[1:], strict=True):
        point = torch.full(warp.size, (size - 1) / 2, device=device)
        for factor, line in zip(row, lines, strict=True):
            if factor:
                point += factor * line
        points.append(point)
    return points


def _linear(image: Tensor, points: list[Tensor]) -> Tensor:
    # grid_sample expects coordinates from -1 to 1, with the last axis first.
    pairs = zip(points, image.shape[1:], strict=True)
    scaled = [point * (2 / max(1, size - 1)) - 1 for point, size in pairs]
    grid = torch.stack(scaled[::-1], dim=-1)
    return grid_sample(image[None], grid[None], padding_mode="border", align_corners=True)[0]


def _cubic(coefficients: Tensor, points: list[Tensor], axes: Sequence[int]) -> Tensor:
    """Evaluate the cubic spline as a weighted sum of linear interpolations, two along each axis.

    Each covers two neighbouring samples (Sigg and Hadwiger, GPU Gems 2, 2005, chapter 20). Along
    the other axes the points coincide with samples.
    """
    numbered = enumerate(points)
    pairs = [_weighted_pair(point) if i in axes else [(None, point)] for i, point in numbered]
    values = torch.zeros((), device=coefficients.device)
    for choice in itertools.product(*pairs):
        part = _linear(coefficients, [point for _, point in choice])
        for weight, _ in choice:
            part = part if weight is None else part * weight
        values = values + part
    return values


def _weighted_pair(point: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return weight and position of the two interpolations along an axis."""
    below = point.floor()
    t = point - below
    s = 1 - t
    first, last = s**3 / 6, t**3 / 6
    left = (4 - 3 * t**2 * (2 - t)) / 6 + first
    right = (4 - 3 * s**2 * (2 - s)) / 6 + last
    return [(left, below - first / left), (right, below + 1 + last / right)]
