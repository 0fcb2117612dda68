"""The networks' convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEWEST = 3  # voxels along each axis that bfloat16 is right with


class Convolution(nn.Conv3d):
    """A convolution that computes very small volumes in float32 on a processor.

    Where an axis has two voxels, torch 2.13's bfloat16 gradient of a 3x3x3 convolution's weights
    (oneDNN) reads memory that is not its own: it differs from run to run and is now and then NaN.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if (
            torch.is_autocast_enabled("cpu")
            and x.device.type == "cpu"
            and min(x.shape[2:]) < FEWEST
        ):
            dtype = torch.get_autocast_dtype("cpu")
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(dtype)
        return super().forward(x)
