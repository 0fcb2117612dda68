"""The network in a plan."""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from autoseg.common.arrays import Triple
from autoseg.planning.part import Part, Positive, Share

Stride = Literal[1, 2]
Kernel = Literal[1, 3]


Blocks = Annotated[int, Field(ge=1, le=100)]
Maps = Annotated[int, Field(ge=1, le=2**16)]
MOST_STAGES = 100


class Network(Part):
    """A U-Net; stage 0 has the full resolution."""

    features: tuple[Maps, ...] = Field(description="feature maps per stage")
    strides: tuple[tuple[Stride, Stride, Stride], ...] = Field(
        description="reduction on entering each stage; the first is 1, 1, 1"
    )
    kernels: tuple[tuple[Kernel, Kernel, Kernel], ...]
    blocks_encoder: tuple[Blocks, ...] = Field(
        description="convolutions or residual blocks a stage"
    )
    blocks_decoder: tuple[Blocks, ...] = Field(description="convolutions a stage, finest first")
    residual: bool = False
    down: Literal["strided", "max_pool"] = "strided"
    norm: Literal["instance", "batch"] = "instance"
    norm_momentum: Share = Field(0.1, description="in torch's sense, for batch normalisation")
    norm_epsilon: Positive = 1e-5
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    activation_first: bool = Field(False, description="activation before the normalisation")
    convolution_bias: bool = True
    initialisation: Literal["he", "glorot"] = Field(
        "he", description="He's normal or Glorot's uniform distribution of the first weights"
    )
    deep_supervision: bool = True

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        stages = len(self.features)
        if stages < 2:
            raise ValueError("a U-Net has at least two stages; give features for each")
        if stages > MOST_STAGES:
            raise ValueError(f"features has {stages} stages; give at most {MOST_STAGES}")
        for key in ("strides", "kernels", "blocks_encoder"):
            if len(getattr(self, key)) != stages:
                raise ValueError(
                    f"{key} has {len(getattr(self, key))} entries for {stages} stages of features"
                )
        if len(self.blocks_decoder) != stages - 1:
            raise ValueError(f"blocks_decoder needs {stages - 1} entries, one less than features")
        if self.strides[0] != (1, 1, 1):
            raise ValueError("the first stage keeps the full resolution: its stride is 1, 1, 1")
        return self

    @property
    def supervised(self) -> int:
        """How many stages have a head, the finest first; training learns from all of them."""
        return max(1, len(self.features) - 2) if self.deep_supervision else 1

    @property
    def reduction(self) -> Triple:
        """Voxels of the finest stage per voxel of the coarsest, along x, y, z."""
        x, y, z = (prod(axis) for axis in zip(*self.strides, strict=True))
        return x, y, z
