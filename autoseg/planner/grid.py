"""The grid that a configuration works on: target spacing and median shape, from the data.

This module holds the planner's order of the axes: the lowest-resolution axis first, then the others
as z, y, x. nnU-Net settles ties between axes in that order, so the rules compute in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoseg.common.errors import PlanError
from autoseg.common.progress import by_axis

ANISOTROPY_FACTOR = 3
FINE_PERCENTILE = 10  # of an anisotropic axis' spacings


@dataclass(frozen=True, eq=False)
class DataFigures:
    """What the rules look at.

    Attributes:
        spacings_mm: (cases, 3), x, y, z.
        shapes: (cases, 3) voxels along x, y, z after cropping to the non-zero part.
        channels: names of the channels, which decide the normalization.
        label_count: names among the labels, background and an ignore label included.
        relative_size_after_cropping: median over the cases of cropped voxels / all voxels.
    """

    spacings_mm: ArrayLike
    shapes: ArrayLike
    channels: tuple[str, ...]
    label_count: int
    relative_size_after_cropping: float

    @cached_property
    def cases(self) -> int:
        """How many cases there are."""
        return len(self.spacings_zyx)

    @cached_property
    def spacings_zyx(self) -> NDArray[np.float64]:
        """Spacings in mm, (cases, 3)."""
        return _reversed_table(self.spacings_mm)

    @cached_property
    def shapes_zyx(self) -> NDArray[np.float64]:
        """Shapes in voxels, (cases, 3)."""
        return _reversed_table(self.shapes)


@dataclass(frozen=True)
class Grid:
    """Spacing and median shape of the resampled cases, two or three axes in the planner's order.

    Attributes:
        axes: which axis (0 = x, 1 = y, 2 = z) each entry stands for.
        spacing_mm: target spacing.
        median_shape: median voxels along each axis after resampling.
        voxels: voxels of a median case, all three axes.
        evidence: the figures that the spacing was chosen by.
    """

    axes: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    voxels: float
    evidence: str

    def ascending(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Bring one value per axis from the planner's order into x, y, z order."""
        return tuple(values[self.axes.index(axis)] for axis in sorted(self.axes))


def planner_axes(figures: DataFigures) -> tuple[int, int, int]:
    """nnU-Net's `transpose_forward`: the planner's order as axis numbers of z, y, x arrays."""
    return _planner_axes(_target_spacing_zyx(figures)[0])


def full_grid(figures: DataFigures) -> Grid:
    """The grid of full resolution.

    The spacing is the median of the cases' spacings. If the coarsest axis is more than three times
    as coarse as the others and has less than a third of their voxels, it gets the 10th percentile
    of its spacings instead, but stays coarser than the others.
    """
    target, evidence = _target_spacing_zyx(figures)
    resampled = np.rint(figures.spacings_zyx / target * figures.shapes_zyx)
    median_shape = np.maximum(np.median(resampled, axis=0), 1)
    order = _planner_axes(target)
    return Grid(
        axes=tuple(2 - axis for axis in order),
        spacing_mm=tuple(target[list(order)].tolist()),
        median_shape=tuple(median_shape[list(order)].tolist()),
        voxels=float(np.prod(median_shape)),
        evidence=evidence,
    )


def in_plane(full: Grid) -> Grid:
    """The grid of the slices across the lowest-resolution axis."""
    return Grid(
        axes=full.axes[1:],
        spacing_mm=full.spacing_mm[1:],
        median_shape=full.median_shape[1:],
        voxels=full.voxels,
        evidence=f"{full.evidence}; slices across {'xyz'[full.axes[0]]}, the coarsest axis",
    )


def coarser(full: Grid, spacing_mm: NDArray[np.float64], evidence: str) -> Grid:
    """The grid of `full`, resampled to another spacing (the planner's order)."""
    shape = np.divide(full.spacing_mm, spacing_mm) * full.median_shape
    return Grid(
        axes=full.axes,
        spacing_mm=tuple(spacing_mm.tolist()),
        median_shape=tuple(np.maximum(np.rint(shape), 1).tolist()),
        voxels=float(np.prod(shape)),
        evidence=evidence,
    )


def _target_spacing_zyx(figures: DataFigures) -> tuple[NDArray[np.float64], str]:
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
    evidence += (
        f"; anisotropic along {'zyx'[worst]}: median shape {times(shape[::-1])}; "
        f"{FINE_PERCENTILE}th percentile there {fine:.6g} mm"
    )
    return target, evidence


def _planner_axes(target_zyx: NDArray[np.float64]) -> tuple[int, int, int]:
    worst = int(np.argmax(target_zyx))
    first, second = (axis for axis in range(3) if axis != worst)
    return worst, first, second


def _reversed_table(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    assert table.shape == (max(len(table), 1), 3), table.shape
    return table[:, ::-1]


def times(values: Any) -> str:
    """Figures along the axes, as people write them: `160 x 160 x 80`."""
    return by_axis(values, ".6g")


# The planners: which family of U-Nets a plan is made for, and how large it may be.

REFERENCE_BATCH = {2: 12, 3: 2}  # the batch sizes that the references below are meant for
PLAIN_BLOCKS = 2
RESIDUAL_BLOCKS = (1, 3, 4, 6)  # from the fourth stage on: the last number


@dataclass(frozen=True)
class Planner:
    """A family of U-Nets and the largest of them that fits a graphics card.

    The references are nnU-Net's: the feature map values of one patch (see
    `topology.feature_map_voxels`) of a network whose training with a batch of 12 (two axes) or 2
    (three axes) fills a card of `memory_gb`.

    Attributes:
        name: how the user chooses it.
        residual: residual encoder, else plain convolutions.
        memory_gb: the memory that the references are meant for.
        reference_2d: feature map values with two axes.
        reference_3d: feature map values with three axes.
        coverage: the share of all voxels of the data set that one batch may hold.
    """

    name: str
    residual: bool
    memory_gb: float
    reference_2d: float
    reference_3d: float
    coverage: float

    def budget(self, dimensions: int, memory_gb: float) -> float:
        """Feature map values that one patch may need, by the reference batch size."""
        reference = self.reference_3d if dimensions == 3 else self.reference_2d
        return reference * (memory_gb / self.memory_gb)

    def limit(self, dimensions: int, memory_gb: float) -> float:
        """Feature map values above which the patch is made smaller.

        Plain networks may sink to a batch of 2 before that; residual ones keep the reference batch.
        """
        batch = REFERENCE_BATCH[dimensions] if self.residual else 2
        return self.budget(dimensions, memory_gb) * REFERENCE_BATCH[dimensions] / batch

    def encoder_blocks(self, stages: int) -> tuple[int, ...]:
        """Blocks per encoder stage: residual blocks, or single convolutions."""
        if not self.residual:
            return (PLAIN_BLOCKS,) * stages
        last = RESIDUAL_BLOCKS[-1]
        return (RESIDUAL_BLOCKS + (last,) * stages)[:stages]

    def decoder_blocks(self, stages: int) -> tuple[int, ...]:
        """Convolutions per decoder stage, the finest first; the bottleneck has no decoder."""
        return (1 if self.residual else PLAIN_BLOCKS,) * (stages - 1)


PLANNERS = (
    Planner("default", False, 8.0, 85e6, 560e6, 0.05),
    Planner("resenc_m", True, 8.0, 135e6, 680e6, 1.0),
    Planner("resenc_l", True, 24.0, 380e6, 2100e6, 1.0),
    Planner("resenc_xl", True, 40.0, 560e6, 3600e6, 1.0),
)


def find_planner(name: str) -> Planner:
    """The planner of that name.

    Raises:
        PlanError: there is none; the message lists the choices.
    """
    for planner in PLANNERS:
        if planner.name == name:
            return planner
    choices = ", ".join(planner.name for planner in PLANNERS)
    raise PlanError(f"there is no planner {name!r}; choose one of {choices}")


# The shape of a U-Net: which axes it halves at which stage, with which kernels and feature maps.
#
# The rules are nnU-Net's (Isensee et al., Nature Methods 2021). Nothing here depends on the order
# of the axes, as long as spacing and patch use the same one; there are two or three axes.

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
