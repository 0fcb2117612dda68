"""The planners: which family of U-Nets a plan is made for, and how large it may be."""

from __future__ import annotations

from dataclasses import dataclass

from autoseg.common.errors import PlanError

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
