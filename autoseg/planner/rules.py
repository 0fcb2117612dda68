"""nnU-Net's rules for spacing, patch, network and batch, from figures of the data.

The rule: take the median spacing; start with a patch of equal sides in mm, no larger than a median
case; build the U-Net for it; shrink the patch along the axis that covers most of a median case
until the network fits the memory; fill the remaining memory with a larger batch. Where the patch
covers too little of a median case, a low resolution is planned as well, and a cascade.

The results equal those of nnU-Net 2.8.1 (Isensee et al., Nature Methods 2021). Inside, axes are in
the planner's order (see `grid`); `_finished` brings everything to x, y, z order.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoseg.common.arrays import Doubles
from autoseg.common.errors import PlanError
from autoseg.common.files import read_json, texts_in
from autoseg.planner import grid as grids
from autoseg.planner.grid import DataFigures, Grid, Topology, times

TABLES = read_json(Path(__file__).with_name("rules.json"))
TEXT = texts_in(Path(__file__).with_name("messages.json"))
LARGEST_SIDE = {2: 2048, 3: 256}  # of the initial patch, before it is fitted to data and memory
SMALLEST_BATCH = 2
LOWRES_COVERAGE = 0.25  # if a patch covers less of the median case, a low resolution is planned
LOWRES_STEP = 1.03
LOWRES_GAIN = 2  # a low resolution must have at least this many times fewer voxels
MASK_BELOW = 0.75  # of the median relative size after cropping to non-zero
NORMALIZATIONS: dict[str, str] = TABLES["normalizations"]  # channel in lower case -> scheme
PER_CASE = "ZScoreNormalization"  # all other channels; the only scheme that can use the mask
REFERENCE_BATCH = {2: 12, 3: 2}  # number of axes -> the batch size of a planner's references
PLAIN_BLOCKS = 2
RESIDUAL_BLOCKS = (1, 3, 4, 6)  # all later stages have as many as the last


@dataclass(frozen=True)
class Configuration:
    """One way to segment the data; entries per axis are in x, y, z order.

    Attributes:
        name: "2d", "3d_fullres", "3d_lowres" or "3d_cascade_fullres" (refines 3d_lowres).
        axes: the axes (0 = x, 1 = y, 2 = z) of the entries; "2d" lacks the coarsest one.
        spacing_mm: target spacing.
        median_shape: median number of voxels of the cases after resampling.
        patch_size: voxels of a training patch.
        batch_size: patches per batch.
        features: feature maps of each stage.
        strides: per stage and axis.
        kernels: per stage and axis.
        blocks_encoder: per stage; residual blocks, or single convolutions.
        blocks_decoder: convolutions per decoder stage, finest first; one stage fewer.
        residual: whether the encoder is residual.
        batch_dice: whether the Dice loss treats the batch as one volume.
        normalization: nnU-Net's name of each channel's scheme.
        use_mask: per channel, whether only the non-zero region is normalized.
        evidence: name of an attribute -> the figures that the rule used.
    """

    name: str
    axes: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    patch_size: tuple[int, ...]
    batch_size: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    blocks_encoder: tuple[int, ...]
    blocks_decoder: tuple[int, ...]
    residual: bool
    batch_dice: bool
    normalization: tuple[str, ...]
    use_mask: tuple[bool, ...]
    evidence: dict[str, str]


@dataclass(frozen=True)
class Planner:
    """A family of U-Nets, and the largest of them that fits a graphics card.

    The references are nnU-Net's: the feature map values (see `grid.feature_map_voxels`) of one
    patch of a network that fills a card of `memory_gb` when it is trained with `REFERENCE_BATCH`.

    Attributes:
        name: as the user selects it.
        residual: residual encoder instead of plain convolutions.
        memory_gb: the memory that the references are meant for.
        reference: number of axes -> feature map values.
        coverage: the largest share of all voxels of the data set in one batch.
    """

    name: str
    residual: bool
    memory_gb: float
    reference: Mapping[int, float]
    coverage: float

    def budget(self, dimensions: int, memory_gb: float) -> float:
        """The feature map values that one patch of a reference batch may need."""
        return self.reference[dimensions] * (memory_gb / self.memory_gb)

    def limit(self, dimensions: int, memory_gb: float) -> float:
        """The feature map values above which the patch is made smaller.

        Plain networks first reduce the batch to 2; residual ones keep the reference batch.
        """
        batch = REFERENCE_BATCH[dimensions] if self.residual else 2
        return self.budget(dimensions, memory_gb) * REFERENCE_BATCH[dimensions] / batch

    def encoder_blocks(self, stages: int) -> tuple[int, ...]:
        """Blocks per encoder stage: residual blocks, or single convolutions."""
        if not self.residual:
            return (PLAIN_BLOCKS,) * stages
        return (RESIDUAL_BLOCKS + RESIDUAL_BLOCKS[-1:] * stages)[:stages]

    def decoder_blocks(self, stages: int) -> tuple[int, ...]:
        """Convolutions per decoder stage, finest first; the bottleneck has no decoder."""
        return (1 if self.residual else PLAIN_BLOCKS,) * (stages - 1)


PLANNERS = (
    Planner("default", False, 8.0, {2: 85e6, 3: 560e6}, 0.05),
    Planner("resenc_m", True, 8.0, {2: 135e6, 3: 680e6}, 1.0),
    Planner("resenc_l", True, 24.0, {2: 380e6, 3: 2100e6}, 1.0),
    Planner("resenc_xl", True, 40.0, {2: 560e6, 3: 3600e6}, 1.0),
)


def find_planner(name: str) -> Planner:
    """The planner with this name.

    Raises:
        PlanError: the name is unknown.
    """
    planners = {planner.name: planner for planner in PLANNERS}
    if name not in planners:
        raise PlanError(f"no planner {name!r}; choose one of {', '.join(planners)}")
    return planners[name]


@dataclass(frozen=True)
class _Task:
    """What all configurations have in common."""

    figures: DataFigures
    planner: Planner
    memory_gb: float


@dataclass(frozen=True)
class _Draft:
    """An unfinished configuration, in the planner's order of axes."""

    grid: Grid
    first_patch: tuple[float, ...]
    topology: Topology
    cost: int


def decide(
    figures: DataFigures, planner: str = "default", memory_gb: float | None = None
) -> dict[str, Configuration]:
    """Plan every configuration that is useful for the data.

    Args:
        figures: of the data set.
        planner: "default" (plain U-Net), "resenc_m", "resenc_l" or "resenc_xl" (residual encoder).
        memory_gb: memory of the graphics card; by default, what the planner is meant for.

    Returns:
        "2d" always; "3d_fullres" unless the cases are single slices; "3d_lowres" and
        "3d_cascade_fullres" if a patch of "3d_fullres" covers too little of a median case.

    Raises:
        PlanError: the planner is unknown, or the memory is too small for any patch.
    """
    chosen = find_planner(planner)
    task = _Task(figures, chosen, chosen.memory_gb if memory_gb is None else memory_gb)
    if not 0 < task.memory_gb < math.inf:
        raise PlanError(f"memory of {memory_gb} GB is not valid; give a finite number above 0")
    grid = grids.full_grid(figures)
    found = {"2d": _finished("2d", _draft(grids.in_plane(grid), task), task, low=None)}
    if grid.median_shape[0] == 1:
        return found
    full = _draft(grid, task)
    if (low := _low_resolution(full, task)) is not None:
        found["3d_lowres"] = _finished("3d_lowres", low, task, low)
    found["3d_fullres"] = _finished("3d_fullres", full, task, low)
    if low is not None:
        found["3d_cascade_fullres"] = replace(found["3d_fullres"], name="3d_cascade_fullres")
    return found


def _draft(grid: Grid, task: _Task) -> _Draft:
    """Find the largest patch that fits the data and the memory, and its network."""
    first = _first_patch(grid)
    limit = task.planner.limit(len(first), task.memory_gb)
    topology = grids.pool_and_kernels(grid.spacing_mm, first)
    while (cost := _cost(topology, task)) > limit:
        if (patch := _smaller_patch(grid, topology)) is None:
            raise PlanError(TEXT("memory", task=task))
        topology = grids.pool_and_kernels(grid.spacing_mm, patch)
    return _Draft(grid, first, topology, cost)


def _first_patch(grid: Grid) -> tuple[float, ...]:
    """A patch of equal sides in mm, no larger than a median case."""
    density = 1 / np.array(grid.spacing_mm)
    voxels = LARGEST_SIDE[dimensions := len(density)] ** dimensions
    sides = np.rint(density * (voxels / np.prod(density)) ** (1 / dimensions))
    return tuple(np.minimum(np.maximum(sides, 1), grid.median_shape).tolist())


def _smaller_patch(grid: Grid, topology: Topology) -> list[int] | None:
    """Shrink the axis that covers most of a median case by one step; None if no axis can shrink.

    Of equal axes, the last one in the planner's order is shrunk.
    """
    patch = list(topology.patch)
    if not (shrinkable := [axis for axis, size in enumerate(patch) if size > 1]):
        return None
    axis = max(shrinkable, key=lambda axis: (patch[axis] / grid.median_shape[axis], axis))
    smaller = list(patch)
    smaller[axis] -= topology.divisors[axis]
    patch[axis] -= grids.pool_and_kernels(grid.spacing_mm, smaller).divisors[axis]
    return patch


def _cost(topology: Topology, task: _Task) -> int:
    planner, labels = task.planner, task.figures.label_count
    blocks = planner.encoder_blocks(topology.stages), planner.decoder_blocks(topology.stages)
    return grids.feature_map_voxels(topology, *blocks, planner.residual, labels)


def _low_resolution(full: _Draft, task: _Task) -> _Draft | None:
    """Coarsen the spacing until a patch covers enough of a median case.

    None if the result has too many voxels to be useful.
    """
    low, steps = full, 0
    spacing = np.array(full.grid.spacing_mm)
    while math.prod(low.topology.patch) / low.grid.voxels < LOWRES_COVERAGE:
        spacing = coarsened(spacing)
        steps += 1
        evidence = TEXT("coarsened", n=steps, step=LOWRES_STEP - 1, coverage=LOWRES_COVERAGE)
        low = _draft(grids.coarser(full.grid, spacing, evidence), task)
    return low if full.grid.voxels / low.grid.voxels >= LOWRES_GAIN else None


def coarsened(spacing: Doubles) -> Doubles:
    """One step: the axes less than half as coarse as the coarsest one, or else all."""
    fine = spacing.max() / spacing > 2
    return spacing * np.where(fine if fine.any() else True, LOWRES_STEP, 1)


def _batch(draft: _Draft, task: _Task) -> tuple[int, str]:
    """As many patches as fit the memory, up to the planner's share of the data set."""
    dimensions = len(draft.topology.patch)
    budget = task.planner.budget(dimensions, task.memory_gb)
    by_memory = round(budget / draft.cost * REFERENCE_BATCH[dimensions])
    voxels = draft.grid.voxels * task.figures.cases
    by_data = round(task.planner.coverage * voxels / math.prod(draft.topology.patch))
    evidence = TEXT("batch", task=task, fit=by_memory, share=by_data, least=SMALLEST_BATCH)
    return max(min(by_memory, by_data), SMALLEST_BATCH), evidence


def _finished(name: str, draft: _Draft, task: _Task, low: _Draft | None) -> Configuration:
    """Bring a draft to x, y, z order and add what does not depend on the axes."""
    grid, topology, figures = draft.grid, draft.topology, task.figures
    batch_size, batch_evidence = _batch(draft, task)
    schemes = tuple(NORMALIZATIONS.get(name.casefold(), PER_CASE) for name in figures.channels)
    masked = figures.relative_size_after_cropping < MASK_BELOW
    return Configuration(
        name=name,
        axes=grid.ascending(grid.axes),
        spacing_mm=grid.ascending(grid.spacing_mm),
        median_shape=grid.ascending(grid.median_shape),
        patch_size=grid.ascending(topology.patch),
        batch_size=batch_size,
        features=topology.features,
        strides=tuple(grid.ascending(stride) for stride in topology.strides),
        kernels=tuple(grid.ascending(kernel) for kernel in topology.kernels),
        blocks_encoder=task.planner.encoder_blocks(topology.stages),
        blocks_decoder=task.planner.decoder_blocks(topology.stages),
        residual=task.planner.residual,
        # A small patch of a large case often lacks a class, which makes its own Dice meaningless.
        batch_dice=name == "2d" or (name == "3d_fullres" and low is not None),
        normalization=schemes,
        use_mask=tuple(masked and scheme == PER_CASE for scheme in schemes),
        evidence=_evidence(draft, task, low) | {"batch_size": batch_evidence},
    )


def _evidence(draft: _Draft, task: _Task, low: _Draft | None) -> dict[str, str]:
    """The figures behind each value, in x, y, z order."""
    grid, topology = draft.grid, draft.topology
    sizes = (draft.first_patch, grid.median_shape, grid.spacing_mm, topology.patch)
    first, median, spacing, patch = (times(grid.ascending(each)) for each in sizes)
    figures: dict[str, Any] = {"grid": grid, "topology": topology, "task": task}
    figures |= {"first": first, "median": median, "spacing": spacing, "patch": patch}
    figures |= {"millions": draft.cost / 1e6, "channels": ", ".join(task.figures.channels)}
    most = grids.MOST_FEATURES[len(grid.axes)]
    figures |= {"first_features": grids.FIRST_FEATURES, "most_features": most}
    figures["mask_below"] = MASK_BELOW
    figures |= {"share": math.prod(topology.patch) / grid.voxels, "low": "a" if low else "no"}
    found = {name: text.format(**figures) for name, text in TABLES["evidence"].items()}
    if len(grid.axes) == 2:
        found["batch_dice"] = "slices: a batch is one sample"
    return found
