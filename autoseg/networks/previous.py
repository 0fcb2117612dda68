"""What a cascade's network sees of its previous stage: one mask for each part of a segmentation."""

from __future__ import annotations

import torch
from torch import Tensor


def with_masks(image: Tensor, segmentation: Tensor, parts: int) -> Tensor:
    """Channels of an image, then one 0/1 mask for each part.

    Args:
        image: (B, C, X, Y, Z).
        segmentation: (B, X, Y, Z) with 0 for background and 1 to `parts`.
        parts: how many masks.

    Returns:
        (B, C + parts, X, Y, Z) of the image's type.
    """
    indices = torch.arange(1, parts + 1, device=image.device).view(1, -1, 1, 1, 1)
    masks = segmentation[:, None] == indices
    return torch.cat([image, masks.to(image.dtype)], dim=1)
