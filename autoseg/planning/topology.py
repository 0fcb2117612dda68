"""The shape of a U-Net: which axes it halves at which stage, with which kernels and feature maps.

The rules are nnU-Net's (Isensee et al., Nature Methods 2021). Nothing here depends on the order of
the axes, as long as spacing and patch use the same one; there are two or three axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_FEATURES = 32
MOST_FEATURES = {2: 512, 3: 320}  # by the number of axes
COMPARABLE_SPACING = 2.0  # an axis this many times coarser than the finest one has to wait


@dataclass(frozen=True)
class Topology:
    """Strides and kernels of each stage, from the full resolution down to the bottleneck.

    Attributes:
        strides: one entry per stage and axis, 1 or 2; the first stage has 1 everywhere.
        kernels: one entry per stage and axis, 1 or 3.
        patch: voxels along each axis; a multiple of the product of that axis' strides.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    patch: tuple[int, ...]

    @property
    def stages(self) -> int:
        """How many resolutions the network has."""
        return len(self.strides)

    @property
    def divisors(self) -> tuple[int, ...]:
        """The product of the strides along each axis."""
        return _products(self.strides)

    @property
    def features(self) -> tuple[int, ...]:
        """Feature maps of each stage: doubled from stage to stage, up to the cap."""
        most = MOST_FEATURES[len(self.patch)]
        return tuple(min(FIRST_FEATURES * 2**stage, most) for stage in range(self.stages))

    @property
    def voxels(self) -> tuple[int, ...]:
        """Voxels of one feature map of each stage."""
        counts = []
        voxels = math.prod(self.patch)
        for stride in self.strides:
            voxels //= math.prod(stride)
            counts.append(voxels)
        return tuple(counts)


def pool_and_kernels(
    spacing: Sequence[float], patch: Sequence[float], min_feature_map: int = 4
) -> Topology:
    """Choose the strides and kernels of a U-Net for a patch, and pad the patch to fit them.

    Each further stage halves the axes that are at least twice `min_feature_map` long and whose
    spacing, after the halvings so far, is less than twice the finest one among these axes: coarse
    axes wait until the fine ones have caught up. The stages end when no axis is long enough, or
    when only one is halved and it is shorter than three times `min_feature_map`.

    An axis gets kernels of 3 from the stage on where its spacing is less than twice the finest of
    all axes, and kernels of 1 before; the bottleneck has kernels of 3 everywhere.

    Args:
        spacing: voxel spacing in mm, two or three axes.
        patch: wished patch size in voxels, same axes; fractions count, as in a median of shapes.
        min_feature_map: the shortest side, in voxels, that a halved axis may reach.

    Returns:
        The topology; its patch is `patch`, each axis padded up to a multiple of its strides.
    """
    size, spacing = list(patch), list(spacing)
    kernel = [1] * len(size)
    strides, kernels = [(1,) * len(size)], []
    while halved := _halved_axes(size, spacing, min_feature_map):
        for axis in _comparable(range(len(size)), spacing):
            kernel[axis] = 3
        kernels.append(tuple(kernel))
        for axis in halved:
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(size))))
    kernels.append((3,) * len(size))
    padded = (
        math.ceil(wished / divisor) * divisor
        for wished, divisor in zip(patch, _products(strides), strict=True)
    )
    return Topology(tuple(strides), tuple(kernels), tuple(padded))


def feature_map_voxels(
    topology: Topology,
    encoder_blocks: Sequence[int],
    decoder_blocks: Sequence[int],
    residual: bool,
    label_count: int,
) -> int:
    """Count the values in all feature maps of one patch: nnU-Net's measure of a network's memory.

    Counted are the outputs of the convolutions of encoder and decoder, of the decoder's transposed
    convolutions and of the last 1 x 1 x 1 convolution. A residual encoder has a stem, two
    convolutions per block, and a projection at each stage below the first. Left out are the input,
    the heads of deep supervision, the weights and the optimiser.

    Args:
        topology: strides and patch of the network.
        encoder_blocks: blocks per stage; a plain block is one convolution.
        decoder_blocks: convolutions per decoder stage, the finest first; one stage fewer.
        residual: whether the encoder is residual.
        label_count: maps of the last layer, the background's included.
    """
    maps = [features * voxels for features, voxels in _pairs(topology.features, topology.voxels)]
    decoder = sum((blocks + 1) * size for blocks, size in _pairs(decoder_blocks, maps[:-1]))
    if residual:
        convolutions = [2 * blocks + 1 for blocks in encoder_blocks]  # the first stage's 1: stem
    else:
        convolutions = list(encoder_blocks)
    encoder = sum(count * size for count, size in _pairs(convolutions, maps))
    return encoder + decoder + label_count * topology.voxels[0]


def _halved_axes(
    size: Sequence[float], spacing: Sequence[float], min_feature_map: int
) -> list[int]:
    """The axes that the next stage halves; none if the network is deep enough."""
    long = [axis for axis in range(len(size)) if size[axis] >= 2 * min_feature_map]
    halved = _comparable(long, spacing)
    if len(halved) == 1 and size[halved[0]] < 3 * min_feature_map:
        return []
    return halved


def _comparable(axes: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """Those of the axes whose spacing is less than twice the finest one among them."""
    finest = min((spacing[axis] for axis in axes), default=0.0)
    return [axis for axis in axes if spacing[axis] / finest < COMPARABLE_SPACING]


def _products(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))


def _pairs(first: Sequence[int], second: Sequence[int]) -> zip[tuple[int, int]]:
    return zip(first, second, strict=True)
