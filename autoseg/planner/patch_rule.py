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
from dataclasses import dataclass
from math import ceil, floor, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from autoseg.common.arrays import Triple
from autoseg.common.errors import PlanError
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Adam, CropToNonzero, Network, Optimizer, Resample, whole_sizes
from autoseg.planner.grid import times
from autoseg.planner.overrides import Layer, value_at

if TYPE_CHECKING:
    from autoseg.fingerprint import Fingerprint


# How much memory a training step takes: weights, gradients, optimiser, and activations.
#
# Per batch, in bytes, with n patches, f maps and v voxels at each stage, 4 bytes a float32 value
# and 2 a bfloat16 one:
#
# weights 4 x parameters, as much for the gradients, and for an average of the weights optimiser 4
# x parameters for a momentum, 8 x for Adam's two activations n x value bytes x (sum of what
# backward needs again)
#
# Backward needs of every convolution with normalisation and activation two tensors of f x v: the
# normalisation's input and the activated output, which is the next convolution's input. A decoder
# stage adds its concatenated input (2 f x v), a max pooling its output and 8 bytes an index, the
# short cut of a residual block its pooled and its convolved input. The loss keeps three float32
# tensors of classes x v at each supervised stage.
#
# What lives for a moment only, gradients of activations and the convolutions' workspaces, is
# taken as half of the activations. Measured, as peak of the process in units of what this model
# says is kept: on a processor 1.1 for the paper's network and patch in float32 (8.3 GB) and 1.2
# in bfloat16 (4.8 GB); 1.3 to 1.45 for steps of 1 GB in float32 and 1.6 to 2.0 in bfloat16 (half
# a GB), where the allocator's spare blocks weigh more. On a graphics card, as nnU-Net's
# documentation gives it: 7.7 GB for plans of which this model says 4.3 to 4.8 GB are kept (1.6 to
# 1.8), 22.7 GB where it says 15.0 to 17.3 GB (1.3 to 1.5).

FLOAT, HALF, INDEX = 4, 2, 8  # bytes
GB = 2**30  # as graphics cards count
LOSS_TENSORS = 3
PASSING_SHARE = 0.5  # of the activations: what lives for a moment


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step: what it keeps, and its peak."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def kept(self) -> int:
        """What backward and the optimiser need again, in bytes."""
        return self.parameters + self.gradients + self.optimizer + self.average + self.activations

    @property
    def peak(self) -> int:
        """What the step takes at its largest, in bytes."""
        return self.kept + round(PASSING_SHARE * self.activations)

    @property
    def peak_gb(self) -> float:
        """The peak in units of 2^30 bytes."""
        return self.peak / GB


def training_memory(plan: Plan, patch_size: Triple | None = None) -> TrainingMemory:
    """What training a plan takes of the memory.

    Args:
        plan: its precision `auto` counts as float32, because the device may be one without
            bfloat16.
        patch_size: in place of the plan's own, a multiple of the network's strides.
    """
    patch = patch_size or plan.sampling.patch_size
    channels, classes = plan.input_channels, plan.classes.outputs
    values = FLOAT * parameter_count(plan.network, channels, classes)
    value_bytes = HALF if plan.training.precision in ("bfloat16", "float16") else FLOAT
    one = _activations(plan.network, channels, classes, patch, value_bytes)
    weights_cast = values // 2 if value_bytes == HALF else 0
    return TrainingMemory(
        parameters=values + weights_cast,
        gradients=values,
        optimizer=values * _states(plan.training.optimizer),
        average=0 if plan.training.average_decay is None else values,
        activations=plan.sampling.batch_size * one,
    )


def parameter_count(network: Network, channels: int, classes: int) -> int:
    """How many numbers training adjusts; exactly those of the built network."""
    bias = int(network.convolution_bias)
    count = 0
    for inputs, outputs, kernel in _convolutions(network, channels):
        count += (inputs * prod(kernel) + bias) * outputs + 2 * outputs
    for inputs, outputs in _shortcuts(network):
        count += inputs * outputs + 2 * outputs
    for stage, width in enumerate(network.features[:-1]):
        count += width * (network.features[stage + 1] * prod(network.strides[stage + 1]) + 1)
    heads = network.features[: network.supervised]
    return count + sum((width + 1) * classes for width in heads)


def _states(optimizer: Optimizer) -> int:
    """Values that the optimiser keeps for each parameter."""
    if isinstance(optimizer, Adam):
        return 2
    return 1 if optimizer.momentum > 0 else 0


def _convolutions(network: Network, channels: int) -> list[tuple[int, int, Triple]]:
    """Inputs, outputs and kernel of every convolution that a normalisation follows."""
    features, kernels = network.features, network.kernels
    found: list[tuple[int, int, Triple]] = []
    inputs = channels
    if network.residual:
        found.append((channels, features[0], kernels[0]))
        inputs = features[0]
    for stage, width in enumerate(features):
        count = network.blocks_encoder[stage] * (2 if network.residual else 1)
        found.append((inputs, width, kernels[stage]))
        found += [(width, width, kernels[stage])] * (count - 1)
        inputs = width
    for stage, width in enumerate(features[:-1]):
        found.append((2 * width, width, kernels[stage]))
        found += [(width, width, kernels[stage])] * (network.blocks_decoder[stage] - 1)
    return found


def _shortcuts(network: Network) -> list[tuple[int, int]]:
    """Inputs and outputs of the convolutions in short cuts: where the width changes."""
    if not network.residual:
        return []
    pairs = zip(network.features, network.features[1:], strict=False)
    return [(inputs, outputs) for inputs, outputs in pairs if inputs != outputs]


def _activations(
    network: Network, channels: int, classes: int, patch: Triple, value_bytes: int
) -> int:
    """Bytes that backward needs again, for one patch."""
    voxels = prod(patch)
    total = channels * voxels * value_bytes
    for stage, width in enumerate(network.features):
        voxels //= prod(network.strides[stage])
        tensors = 2 * network.blocks_encoder[stage] * (2 if network.residual else 1)
        if network.residual and stage == 0:
            tensors += 2  # the stem
        if stage < len(network.features) - 1:
            tensors += 2 + 2 * network.blocks_decoder[stage]
        total += tensors * width * voxels * value_bytes
        if stage > 0:
            total += _on_the_way_down(network, stage, value_bytes) * voxels
        if stage < network.supervised:
            total += LOSS_TENSORS * classes * voxels * FLOAT
    return total


def _on_the_way_down(network: Network, stage: int, value_bytes: int) -> int:
    """Bytes a voxel that entering a stage keeps besides its convolutions."""
    inputs, width = network.features[stage - 1], network.features[stage]
    kept = 0
    if network.down == "max_pool":
        kept += inputs * (value_bytes + INDEX)
    if network.residual and inputs != width:
        shrunk = network.down == "strided" and network.strides[stage] != (1, 1, 1)
        kept += ((inputs if shrunk else 0) + width) * value_bytes
    return kept


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
