"""Rules of our own, beside nnU-Net's: the patch for a network whose depth is given.

nnU-Net chooses patch and network together. Where a reference plan or the user gives the network,
the patch must follow. It is the largest whose

* sides are multiples of the network's reduction (2^depth),
* sides are as equal in millimetres as these multiples allow: each is the largest multiple within
  the same length L, and L is as large as the memory allows,
* sides are not longer than a median case, rounded down (an axis that is whole stops growing),
* training takes no more than `USABLE_SHARE` of the memory (see `memory`).

In a formula, with spacing s, reduction r and median shape m along each axis:

    side(L) = r x clip(floor(L / (s x r)), 1, max(1, floor(m / r)))
    L       = the largest with  peak(side(L)) <= USABLE_SHARE x memory
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from autoseg.common.arrays import Triple
from autoseg.common.errors import PlanError
from autoseg.plan.plan import Plan
from autoseg.plan.sections import CropToNonzero, Resample, whole_sizes
from autoseg.planning.grid import times
from autoseg.planning.layers import Layer, value_at
from autoseg.planning.memory import GB, training_memory

if TYPE_CHECKING:
    from autoseg.fingerprint import Fingerprint

# Half is left free: libraries differ by nearly as much in what the same step takes, and a card
# serves its screen and others, too. 0.45 to 0.53 give the one published choice that the rule can be
# held against: 160 x 160 x 80 on 24 GB (Müller et al. 2021).
USABLE_SHARE = 0.5
SOURCE = "own rule: largest patch for a given network"


def strides_without_patch(layers: Sequence[Layer]) -> Any:
    """The network's strides where a layer gives them and none the patch; else None."""
    strides = None
    for layer in layers:
        if value_at(layer.values, ("sampling", "patch_size")) is not None:
            return None
        given = value_at(layer.values, ("network", "strides"))
        strides = strides if given is None else given
    return strides


def whole_case_layer(fingerprint: Fingerprint, strides: Any) -> Layer:
    """A patch that surely fits the strides, to check a plan with before its patch is chosen."""
    factors = _reduction(strides)
    most = fingerprint.shapes_after_crop.max(axis=0).tolist()
    sides = [2 * factor * ceil(size / factor) for size, factor in zip(most, factors, strict=True)]
    return _layer(sides, "")


def patch_layer(plan: Plan, fingerprint: Fingerprint, memory_gb: float) -> Layer:
    """The largest patch for the plan's network, and half of it as overlap.

    Args:
        plan: everything but the patch.
        fingerprint: gives the median shape at the plan's spacing.
        memory_gb: of the graphics card.

    Raises:
        PlanError: not even the smallest patch fits.
    """
    spacing, shape = median_grid(plan, fingerprint)
    patch = largest_patch(plan, spacing, shape, memory_gb)
    peak = training_memory(plan, patch).peak_gb
    evidence = (
        f"multiples of {times(plan.network.reduction)}, equal sides in mm, within the median shape "
        f"{times(shape)} at {times(spacing)} mm; a batch of {plan.sampling.batch_size} takes "
        f"{peak:.3g} GB, half of {memory_gb:g} GB may be used"
    )
    return _layer(patch, evidence)


def largest_patch(
    plan: Plan, spacing_mm: Sequence[float], median_shape: Sequence[float], memory_gb: float
) -> Triple:
    """The rule itself; see the module.

    Raises:
        PlanError: not even the smallest patch fits.
    """
    factors = plan.network.reduction
    most = [max(1, floor(size / r)) for size, r in zip(median_shape, factors, strict=True)]
    steps = [spacing * r for spacing, r in zip(spacing_mm, factors, strict=True)]  # mm
    lengths = sorted(
        {k * step for step, n in zip(steps, most, strict=True) for k in range(1, n + 1)}
    )
    best = None
    for length in lengths:
        # A length is a multiple of a step: without the small addition it may lie just below it.
        counts = [
            min(max(floor(length / step * (1 + 1e-9)), 1), n)
            for step, n in zip(steps, most, strict=True)
        ]
        x, y, z = (k * r for k, r in zip(counts, factors, strict=True))
        if plan.network.norm == "instance" and prod(counts) == 1:
            continue
        if training_memory(plan, (x, y, z)).peak > USABLE_SHARE * memory_gb * GB:
            break
        best = (x, y, z)
    if best is None:
        raise PlanError(
            f"no patch for this network fits {memory_gb:g} GB and cases of {times(median_shape)} "
            "voxels; give more --memory, fewer features or fewer stages, or set "
            "sampling.patch_size"
        )
    return best


def median_grid(
    plan: Plan, fingerprint: Fingerprint
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Spacing (mm) and median shape (voxels) of the cases after the plan's preprocessing."""
    cropped = any(isinstance(step, CropToNonzero) for step in plan.preprocessing)
    shapes = fingerprint.shapes_after_crop
    if not cropped:
        shapes = np.array([case.shape for case in fingerprint.cases.values()], dtype=np.int64)
    resample = next((step for step in plan.preprocessing if isinstance(step, Resample)), None)
    if resample is None:
        return fingerprint.median_spacing_mm, tuple(np.median(shapes, axis=0).tolist())
    spacings = fingerprint.spacings_mm
    targets = np.array([plan.target_spacing_of(spacing) for spacing in spacings.tolist()])
    exact = shapes * spacings / targets
    whole = whole_sizes(exact, resample.rounding)
    median_mm = plan.target_spacing_of(fingerprint.median_spacing_mm)
    return median_mm, tuple(np.median(whole, axis=0).tolist())


def _layer(patch: Sequence[int], evidence: str) -> Layer:
    values = {
        "sampling": {"patch_size": list(patch)},
        "inference": {"overlap": [size // 2 for size in patch]},
    }
    return Layer(SOURCE, values, evidence)


def _reduction(strides: Any) -> Triple:
    """Of strides that nobody has checked yet; what is wrong with them is told later."""
    try:
        x, y, z = (prod(along) for along in zip(*strides, strict=True))
    except (TypeError, ValueError):
        return 1, 1, 1
    return max(1, int(x)), max(1, int(y)), max(1, int(z))
