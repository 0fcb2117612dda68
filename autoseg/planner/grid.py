"""The grid that a configuration works on, and the U-Net for a patch on it.

The rules are nnU-Net's (Isensee et al., Nature Methods 2021). The target spacing is the median
spacing of the cases; if the coarsest axis is more than three times as coarse as the others and has
less than a third of their voxels, its 10th percentile is used instead. A U-Net halves the axes
until they are short; coarse axes wait until the fine ones have caught up.

nnU-Net breaks ties between axes in its own order: the axis with the lowest resolution first, then
the others as z, y, x. The rules use this planner's order, too.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from autoseg.common.arrays import Doubles
from autoseg.common.progress import by_axis

Lengths = Sequence[float]
ANISOTROPY_FACTOR = 3
FINE_PERCENTILE = 10  # of the spacings of an anisotropic axis
FIRST_FEATURES = 32
MOST_FEATURES = {2: 512, 3: 320}  # by the number of axes
COMPARABLE_SPACING = 2.0  # an axis this many times coarser than the finest one is not halved yet


@dataclass(frozen=True, eq=False)
class DataFigures:
    """The figures of the data set that the rules use.

    Attributes:
        spacings_mm: (cases, 3), along x, y, z.
        shapes: (cases, 3) voxels along x, y, z after cropping to the non-zero region.
        channels: channel names, which determine the normalization.
        label_count: number of labels, including the background and an ignore label.
        relative_size_after_cropping: median over the cases of cropped voxels / all voxels.
    """

    spacings_mm: ArrayLike
    shapes: ArrayLike
    channels: tuple[str, ...]
    label_count: int
    relative_size_after_cropping: float

    @cached_property
    def cases(self) -> int:
        """The number of cases."""
        return len(self.spacings_zyx)

    @cached_property
    def spacings_zyx(self) -> Doubles:
        """Spacings in mm, (cases, 3)."""
        return _reversed_table(self.spacings_mm)

    @cached_property
    def shapes_zyx(self) -> Doubles:
        """Shapes in voxels, (cases, 3)."""
        return _reversed_table(self.shapes)


@dataclass(frozen=True)
class Grid:
    """Spacing and median shape of the resampled cases, two or three axes in the planner's order.

    Attributes:
        axes: the axis (0 = x, 1 = y, 2 = z) of each entry.
        spacing_mm: target spacing.
        median_shape: median number of voxels along each axis after resampling.
        voxels: voxels of a median case, along all three axes.
        evidence: the figures behind the spacing.
    """

    axes: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    voxels: float
    evidence: str

    def ascending(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Bring one value per axis from the planner's order to x, y, z order."""
        return tuple(values[self.axes.index(axis)] for axis in sorted(self.axes))


def full_grid(figures: DataFigures) -> Grid:
    """The grid of full resolution; an anisotropic axis stays coarser than the others."""
    target, evidence = _target_spacing_zyx(figures)
    resampled = np.rint(figures.spacings_zyx / target * figures.shapes_zyx)
    median_shape = np.maximum(np.median(resampled, axis=0), 1)
    worst = int(np.argmax(target))
    order = [worst, *(axis for axis in range(3) if axis != worst)]  # nnU-Net's `transpose_forward`
    sizes = (tuple(target[order].tolist()), tuple(median_shape[order].tolist()))
    return Grid(tuple(2 - axis for axis in order), *sizes, float(np.prod(median_shape)), evidence)


def in_plane(full: Grid) -> Grid:
    """The grid of the slices perpendicular to the axis with the lowest resolution."""
    evidence = f"{full.evidence}; slices across {'xyz'[full.axes[0]]}, the coarsest axis"
    inside = (full.axes[1:], full.spacing_mm[1:], full.median_shape[1:])
    return Grid(*inside, full.voxels, evidence)


def coarser(full: Grid, spacing_mm: Doubles, evidence: str) -> Grid:
    """The grid of `full` resampled to another spacing (in the planner's order)."""
    shape = np.divide(full.spacing_mm, spacing_mm) * full.median_shape
    median = tuple(np.maximum(np.rint(shape), 1).tolist())
    return Grid(full.axes, tuple(spacing_mm.tolist()), median, float(np.prod(shape)), evidence)


def _target_spacing_zyx(figures: DataFigures) -> tuple[Doubles, str]:
    target = np.percentile(figures.spacings_zyx, 50, axis=0)
    shape = np.percentile(figures.shapes_zyx, 50, axis=0)
    evidence = f"median spacing {times(target[::-1])} mm of {figures.cases} cases"
    worst = int(np.argmax(target))
    others = float(np.delete(target, worst).max())
    coarse = target[worst] > ANISOTROPY_FACTOR * others
    short = shape[worst] * ANISOTROPY_FACTOR < np.delete(shape, worst).min()
    if not (coarse and short):
        return target, f"{evidence}; not anisotropic"
    fine = float(np.percentile(figures.spacings_zyx[:, worst], FINE_PERCENTILE))
    target[worst] = fine if fine >= others else others + 1e-5
    evidence += f"; anisotropic along {'zyx'[worst]}: median shape {times(shape[::-1])}"
    return target, f"{evidence}; {FINE_PERCENTILE}th percentile there {fine:.6g} mm"


def _reversed_table(values: ArrayLike) -> Doubles:
    table = np.asarray(values, dtype=np.float64)
    assert table.shape == (max(len(table), 1), 3), table.shape
    return table[:, ::-1]


def times(values: Iterable[float]) -> str:
    """One number per axis as text: `160 x 160 x 80`."""
    return by_axis(values, ".6g")


# The U-Net for a patch. Spacing and patch have two or three axes, in any common order.


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
        """The number of resolutions of the network."""
        return len(self.strides)

    @property
    def divisors(self) -> tuple[int, ...]:
        """The product of the strides along each axis."""
        return _products(self.strides)

    @property
    def features(self) -> tuple[int, ...]:
        """Feature maps of each stage: doubled from stage to stage up to a maximum."""
        most = MOST_FEATURES[len(self.patch)]
        return tuple(min(FIRST_FEATURES * 2**stage, most) for stage in range(self.stages))

    @property
    def voxels(self) -> tuple[int, ...]:
        """Voxels of one feature map of each stage."""
        reductions = accumulate((math.prod(stride) for stride in self.strides), operator.mul)
        return tuple(math.prod(self.patch) // reduction for reduction in reductions)


def pool_and_kernels(spacing: Lengths, patch: Lengths, min_feature_map: int = 4) -> Topology:
    """Choose the strides and kernels of a U-Net for a patch, and pad the patch to fit them.

    Each further stage halves the axes that have at least `2 * min_feature_map` voxels and whose
    spacing, after the previous halvings, is less than twice the finest one among these axes. There
    is no further stage if no axis is long enough, or if only one would be halved and it has less
    than `3 * min_feature_map` voxels.

    The kernel size along an axis is 3 from the first stage at which its spacing is less than twice
    the finest of all axes, and 1 before; in the bottleneck it is 3 along every axis.

    Args:
        spacing: voxel spacing in mm, two or three axes.
        patch: desired patch size in voxels, same axes; may be fractional, as a median of shapes is.
        min_feature_map: the smallest size, in voxels, of a halved axis.

    Returns:
        The topology; its patch is `patch` with each axis padded to a multiple of its strides.
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
    pairs = zip(patch, _products(strides), strict=True)
    padded = (math.ceil(side / factor) * factor for side, factor in pairs)
    return Topology(tuple(strides), tuple(kernels), tuple(padded))


def feature_map_voxels(
    topology: Topology,
    encoder_blocks: Sequence[int],
    decoder_blocks: Sequence[int],
    residual: bool,
    label_count: int,
) -> int:
    """Count the values in all feature maps of one patch, nnU-Net's estimate of memory.

    This includes the outputs of the convolutions of encoder and decoder, of the transposed
    convolutions of the decoder and of the last 1 x 1 x 1 convolution. A residual encoder has a
    stem, two convolutions per block, and a projection at each stage below the first. The input, the
    outputs for deep supervision, the weights and the optimiser are not included.

    Args:
        topology: strides and patch of the network.
        encoder_blocks: blocks per stage; a plain block is one convolution.
        decoder_blocks: convolutions per decoder stage, finest first; one stage fewer.
        residual: whether the encoder is residual.
        label_count: maps of the last layer, including the background.
    """
    maps = np.multiply(topology.features, topology.voxels)
    # Plus one: the stem in the first stage, the projection in the others; the transposed one.
    encoder = [2 * blocks + 1 if residual else blocks for blocks in encoder_blocks]
    decoder = [blocks + 1 for blocks in decoder_blocks]
    total = np.dot(encoder, maps) + np.dot(decoder, maps[:-1])
    return int(total) + label_count * topology.voxels[0]


def _halved_axes(size: Lengths, spacing: Lengths, min_feature_map: int) -> list[int]:
    """The axes that the next stage halves; none if there is no further stage."""
    long = [axis for axis in range(len(size)) if size[axis] >= 2 * min_feature_map]
    halved = _comparable(long, spacing)
    return [] if len(halved) == 1 and size[halved[0]] < 3 * min_feature_map else halved


def _comparable(axes: Sequence[int], spacing: Lengths) -> list[int]:
    """The axes whose spacing is less than twice the finest one among them."""
    finest = min((spacing[axis] for axis in axes), default=0.0)
    return [axis for axis in axes if spacing[axis] / finest < COMPARABLE_SPACING]


def _products(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))
