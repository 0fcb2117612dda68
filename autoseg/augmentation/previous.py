"""Random faults in what a cascade's previous stage found, so that the cascade learns to mend them.

nnU-Net's two, on part numbers instead of one mask a part: a voxel still has one part at most.
Segmentations are (x, y, z), 0 for background.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.plan.augmentation import PreviousMorphology, PreviousRemoval

Mask = NDArray[np.bool_]
Operator = Callable[[Mask, int], Mask]


def change_previous(
    segmentation: NDArray[Any],
    spec: PreviousMorphology | PreviousRemoval,
    rng: np.random.Generator,
) -> NDArray[Any]:
    """The segmentation, with the transform's chance changed."""
    if rng.random() >= spec.probability:
        return segmentation
    if isinstance(spec, PreviousMorphology):
        return _morphed(segmentation, spec, rng)
    return _without_components(segmentation, spec, rng)


def dilated(mask: Mask, radius: int) -> Mask:
    """All voxels within a radius (voxels) of the mask; beyond the patch nothing is known."""
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        return mask
    box = _box_around(mask, radius)
    out = np.zeros_like(mask)
    out[box] = distance_transform_edt(~mask[box]) <= radius
    return out


def eroded(mask: Mask, radius: int) -> Mask:
    """The voxels of the mask that are further than a radius from all others."""
    return ~dilated(~mask, radius)


def opened(mask: Mask, radius: int) -> Mask:
    """Eroded, then dilated: what is thinner than the ball goes."""
    return dilated(eroded(mask, radius), radius)


def closed(mask: Mask, radius: int) -> Mask:
    """Dilated, then eroded: gaps thinner than the ball are filled."""
    return eroded(dilated(mask, radius), radius)


OPERATORS: tuple[Operator, ...] = (dilated, eroded, opened, closed)


def _morphed(
    segmentation: NDArray[Any], spec: PreviousMorphology, rng: np.random.Generator
) -> NDArray[Any]:
    """One random operator for each part; where a part grows, the others give way."""
    out = segmentation.copy()
    for part in rng.permutation(_parts(segmentation)):
        operator = OPERATORS[rng.integers(len(OPERATORS))]
        mask = out == part
        changed = operator(mask, int(rng.integers(spec.radius[0], spec.radius[1] + 1)))
        out[mask] = 0
        out[changed] = part
    return out


def _without_components(
    segmentation: NDArray[Any], spec: PreviousRemoval, rng: np.random.Generator
) -> NDArray[Any]:
    """Each part without one of its components, chosen evenly among those that are small enough."""
    import cc3d

    out = segmentation.copy()
    for part in _parts(segmentation):
        components, count = cc3d.connected_components(out == part, return_N=True)
        sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
        small = 1 + np.flatnonzero(sizes < spec.largest_share * out.size)
        if len(small):
            out[components == small[rng.integers(len(small))]] = 0
    return out


def _parts(segmentation: NDArray[Any]) -> NDArray[Any]:
    return np.unique(segmentation[segmentation > 0])


def _box_around(mask: Mask, margin: int) -> tuple[slice, ...]:
    """The box of the mask, and a margin on every side as far as the array reaches."""
    from scipy.ndimage import find_objects

    (box,) = find_objects(mask.view(np.uint8))
    return tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
