"""Augmentation of images by torch, on any device, from what a worker drew for them.

Given the same numbers the images are those of `spatial`, `intensity` and batchgenerators, but for
rounding; noise has the same distribution. The host never waits for the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from autoseg.augmentation.changes import (
    Blur,
    Brightness,
    Change,
    CoarseGrid,
    Contrast,
    Factors,
    Flip,
    Gamma,
    LowResolution,
    Noise,
    Operators,
)
from autoseg.augmentation.postponed import Postponed
from autoseg.augmentation.spatial import Warp
from autoseg.augmentation.spline import prefilter
from autoseg.networks.devices import to_device


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
