"""Our own rules for the patch of a given network, and for the spacing and the window.

nnU-Net chooses patch and network together. Where a reference plan or the user gives the network,
this rule chooses the largest patch of which

* the sides are multiples of the network's reduction (2^depth),
* the sides are as equal in millimetres as these multiples allow: each is the largest multiple
  within a common length L, and L is as large as the memory allows,
* the sides are no longer than a median case, rounded down (an axis that reaches it stops growing),
* training uses at most `USABLE_SHARE` of the memory (see `training_memory`).

As a formula, with spacing s, reduction r and median shape m along each axis:

    side(L) = r x clip(floor(L / (s x r)), 1, max(1, floor(m / r)))
    L       = the largest with  peak(side(L)) <= USABLE_SHARE x memory

The spacing: from the median spacing, coarsened step by step as nnU-Net's low resolution is, until
this patch covers a quarter of a median case. The window: the 0.5 and 99.5 percentile of the
foreground in the median case in Hounsfield units, a quarter of their distance further on each side.
These two are not used by default; they are recorded beside the values of a reference plan.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, floor, prod
from typing import Any

import numpy as np

from autoseg.common.arrays import Triple
from autoseg.common.errors import PlanError
from autoseg.dataset.checks import HOUNSFIELD
from autoseg.fingerprint import Fingerprint
from autoseg.plan import sections
from autoseg.plan.plan import Plan
from autoseg.planner.grid import times
from autoseg.planner.overrides import Layer, value_at
from autoseg.planner.rules import LOWRES_COVERAGE, TEXT, coarsened

# Half of the memory stays free: libraries differ by nearly as much in the memory of the same step,
# and a card may be shared, for example with a display. 0.45 to 0.53 reproduce the one published
# choice that the rule can be compared with: 160 x 160 x 80 on 24 GB (Müller et al. 2021).
USABLE_SHARE = 0.5
Lengths = tuple[float, ...]
SOURCE = "own rule: largest patch for a given network"
FLOAT, HALF, INDEX = 4, 2, 8  # bytes
GB = 2**30  # as for graphics cards
LOSS_TENSORS = 3
WINDOW_MARGIN = 0.25
TRANSIENT_SHARE = 0.5  # of the activations: memory used only for a moment


def strides_without_patch(layers: Sequence[Layer]) -> Any:
    """The network's strides if a layer gives them and no layer gives the patch; else None."""
    strides = None
    for layer in layers:
        if value_at(layer.values, ("sampling", "patch_size")) is not None:
            return None
        given = value_at(layer.values, ("network", "strides"))
        strides = strides if given is None else given
    return strides


def whole_case_layer(fingerprint: Fingerprint, strides: Any) -> Layer:
    """A patch that fits the strides, to validate a plan before its patch is chosen."""
    factor = 2 ** len(strides) if isinstance(strides, list) else 1  # others are reported later
    sizes = fingerprint.shapes_after_crop.max(axis=0).tolist()
    return _layer([2 * factor * ceil(size / factor) for size in sizes], "")


def patch_layer(plan: Plan, fingerprint: Fingerprint, memory_gb: float) -> Layer:
    """The largest patch for the plan's network, and half of it as overlap.

    Args:
        plan: its own patch is ignored.
        fingerprint: of the data, for the median shape at the plan's spacing.
        memory_gb: of the graphics card.

    Raises:
        PlanError: even the smallest patch does not fit.
    """
    spacing, shape = median_grid(plan, fingerprint)
    patch = largest_patch(plan, spacing, shape, memory_gb)
    factors, sizes, mm = (times(each) for each in (plan.network.reduction, shape, spacing))
    found = {"factors": factors, "shape": sizes, "mm": mm, "batch": plan.sampling.batch_size}
    peak = training_memory(plan, patch).peak / GB
    return _layer(patch, TEXT("patch", **found, peak=peak, memory_gb=memory_gb))


def largest_patch(
    plan: Plan, spacing_mm: Sequence[float], median_shape: Sequence[float], memory_gb: float
) -> Triple:
    """Apply the rule that the module describes.

    Raises:
        PlanError: even the smallest patch does not fit.
    """
    factors, best = plan.network.reduction, None
    most = [max(1, floor(size / r)) for size, r in zip(median_shape, factors, strict=True)]
    steps = [spacing * r for spacing, r in zip(spacing_mm, factors, strict=True)]
    pairs = list(zip(steps, most, strict=True))
    for length in sorted({k * step for step, n in pairs for k in range(1, n + 1)}):  # mm
        # The tolerance covers lengths that floating-point error puts just below a multiple.
        counts = [min(max(floor(length / step * (1 + 1e-9)), 1), n) for step, n in pairs]
        x, y, z = (k * r for k, r in zip(counts, factors, strict=True))
        if plan.network.norm == "instance" and prod(counts) == 1:
            continue
        if training_memory(plan, (x, y, z)).peak > USABLE_SHARE * memory_gb * GB:
            break
        best = (x, y, z)
    if best is None:
        raise PlanError(TEXT("no patch", memory_gb=memory_gb, case=times(median_shape)))
    return best


def spacing_and_patch(
    plan: Plan, fingerprint: Fingerprint, memory_gb: float
) -> tuple[Lengths, Triple]:
    """Apply our rules for spacing and patch to the plan's network.

    Raises:
        PlanError: no patch fits the memory.
    """
    spacing = np.array(fingerprint.median_spacing_mm)
    while True:
        target = tuple(spacing.tolist())
        tried = plan.model_copy(update={"target_spacing_mm": target})
        _, shape = median_grid(tried, fingerprint)
        patch = largest_patch(tried, target, shape, memory_gb)
        if prod(patch) >= LOWRES_COVERAGE * prod(shape):
            return target, patch
        spacing = coarsened(spacing)


def foreground_window(fingerprint: Fingerprint, channel: int) -> list[float] | None:
    """Apply our rule for the window of a CT channel; None without cases in Hounsfield units."""
    found = [case.channels[channel] for case in fingerprint.cases.values()]
    inside = [each.foreground for each in found if each.scale == HOUNSFIELD and each.foreground]
    if not inside:
        return None
    low, high = np.median([(each.p00_5, each.p99_5) for each in inside], axis=0).tolist()
    margin = WINDOW_MARGIN * (high - low)
    return [round(low - margin), round(high + margin)]


def with_own_rules(plan: Plan, fingerprint: Fingerprint, memory_gb: float) -> Plan:
    """Record what our rules would choose in place of spacing, patch and window of other layers."""
    chosen: dict[str, Any] = {}
    provenance = dict(plan.provenance)
    if plan.resamples:
        with suppress(PlanError):
            spacing, patch = spacing_and_patch(plan, fingerprint, memory_gb)
            chosen["target_spacing_mm"] = [round(mm, 2) for mm in spacing]
            chosen["sampling.patch_size"] = list(patch)
    whole = provenance.get("preprocessing")
    for index, step in enumerate(plan.preprocessing):
        if isinstance(step, sections.Clip) and whole is not None and whole.rule_value:
            key, entry = f"preprocessing.{index}.window", f"preprocessing.{index}"
            chosen[key] = foreground_window(fingerprint, step.channel or 0)
            window = next((rule["window"] for rule in whole.rule_value if "window" in rule), None)
            origin = provenance.get(entry, whole)
            provenance[key] = origin.model_copy(update={"rule_value": window})
    for key, value in chosen.items():
        if key in provenance and provenance[key].rule_value is not None:
            provenance[key] = provenance[key].model_copy(update={"own_rule": value})
    return plan.model_copy(update={"provenance": provenance})


def median_grid(plan: Plan, fingerprint: Fingerprint) -> tuple[Lengths, Lengths]:
    """Spacing (mm) and median shape (voxels) of the cases after the plan's preprocessing."""
    shapes = fingerprint.shapes_after_crop
    if not any(isinstance(step, sections.CropToNonzero) for step in plan.preprocessing):
        shapes = np.array([case.shape for case in fingerprint.cases.values()], dtype=np.int64)
    resampling = (step for step in plan.preprocessing if isinstance(step, sections.Resample))
    if (resample := next(resampling, None)) is None:
        return fingerprint.median_spacing_mm, tuple(np.median(shapes, axis=0).tolist())
    spacings = fingerprint.spacings_mm
    targets = np.array([plan.target_spacing_of(spacing) for spacing in spacings.tolist()])
    whole = sections.whole_sizes(shapes * spacings / targets, resample.rounding)
    median_mm = plan.target_spacing_of(fingerprint.median_spacing_mm)
    return median_mm, tuple(np.median(whole, axis=0).tolist())


def _layer(patch: Sequence[int], evidence: str) -> Layer:
    overlap = [size // 2 for size in patch]
    values = {"sampling": {"patch_size": list(patch)}, "inference": {"overlap": overlap}}
    return Layer(SOURCE, values, evidence)


# Memory of a training step: weights, gradients, optimiser and activations.
#
# In bytes, with n patches, f feature maps and v voxels per stage, 4 bytes per float32 value and 2
# per bfloat16 value:
#
#   weights       4 x parameters; the same for the gradients, and for an average of the weights
#   optimiser     4 x parameters for momentum, 8 x parameters for Adam
#   activations   n x bytes per value x (values saved for the backward pass)
#
# For each convolution with normalisation and activation, two tensors of f x v are saved: the input
# of the normalisation and the activated output, which is the input of the next convolution. A
# decoder stage adds its concatenated input (2 f x v); max pooling adds its output and 8 bytes per
# index; the shortcut of a residual block adds its pooled input and the input of its convolution.
# The loss saves three float32 tensors of classes x v per supervised stage.
#
# Transient memory (gradients of activations, workspaces of convolutions) is taken as half of the
# activations. Measured peak of the process, relative to the saved memory of this model: on a CPU
# 1.1 for the paper's network and patch in float32 (8.3 GB) and 1.2 in bfloat16 (4.8 GB); 1.3 to
# 1.45 for steps of 1 GB in float32 and 1.6 to 2.0 in bfloat16 (0.5 GB), where spare blocks of the
# allocator weigh more. On a graphics card, according to nnU-Net's documentation: 7.7 GB for plans
# of which this model saves 4.3 to 4.8 GB (1.6 to 1.8), 22.7 GB for 15.0 to 17.3 GB (1.3 to 1.5).


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of one training step in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def kept(self) -> int:
        """Bytes that the backward pass and the optimiser need."""
        return self.parameters + self.gradients + self.optimizer + self.average + self.activations

    @property
    def peak(self) -> int:
        """Peak memory of the step in bytes."""
        return self.kept + round(TRANSIENT_SHARE * self.activations)


def training_memory(
    plan: Plan, patch_size: Triple | None = None, value_bytes: int | None = None
) -> TrainingMemory:
    """Estimate the memory of a training step of a plan.

    Args:
        plan: of any precision.
        patch_size: replaces that of the plan; a multiple of the network's strides.
        value_bytes: of an activation, where the device is known. Without it precision `auto`
            counts as float32, as the device may lack bfloat16.
    """
    patch = patch_size or plan.sampling.patch_size
    channels, classes = plan.input_channels, plan.classes.outputs
    optimizer = plan.training.optimizer
    states = 2 if isinstance(optimizer, sections.Adam) else int(optimizer.momentum > 0)
    weights = FLOAT * parameter_count(plan.network, channels, classes)
    if value_bytes is None:
        value_bytes = HALF if plan.training.precision in ("bfloat16", "float16") else FLOAT
    per_patch = _activations(plan.network, channels, classes, patch, value_bytes)
    return TrainingMemory(
        parameters=weights + (weights // 2 if value_bytes == HALF else 0),  # autocast keeps copies
        gradients=weights,
        optimizer=weights * states,
        average=0 if plan.training.average_decay is None else weights,
        activations=plan.sampling.batch_size * per_patch,
    )


def parameter_count(network: sections.Network, channels: int, classes: int) -> int:
    """The exact number of trainable parameters of the built network."""
    bias = int(network.convolution_bias)
    count = 0
    for inputs, outputs, kernel in _convolutions(network, channels):
        count += (inputs * prod(kernel) + bias) * outputs + 2 * outputs
    for inputs, outputs in zip(network.features, network.features[1:], strict=False):
        if network.residual and inputs != outputs:  # a shortcut where the width changes
            count += inputs * outputs + 2 * outputs
    for stage, width in enumerate(network.features[:-1]):
        count += width * (network.features[stage + 1] * prod(network.strides[stage + 1]) + 1)
    heads = network.features[: network.supervised]
    return count + sum((width + 1) * classes for width in heads)


def _convolutions(network: sections.Network, channels: int) -> list[tuple[int, int, Triple]]:
    """Input maps, output maps and kernel of every convolution followed by a normalisation."""
    features, kernels = network.features, network.kernels
    stem: list[tuple[int, int, Triple]] = [(channels, features[0], kernels[0])]
    found = stem if network.residual else []
    inputs = features[0] if network.residual else channels
    for stage, width in enumerate(features):
        count = network.blocks_encoder[stage] * (2 if network.residual else 1)
        found.append((inputs, width, kernels[stage]))
        found += [(width, width, kernels[stage])] * (count - 1)
        inputs = width
    for stage, width in enumerate(features[:-1]):
        found.append((2 * width, width, kernels[stage]))
        found += [(width, width, kernels[stage])] * (network.blocks_decoder[stage] - 1)
    return found


def _activations(
    network: sections.Network, channels: int, classes: int, patch: Triple, value_bytes: int
) -> int:
    """Bytes saved for the backward pass, for one patch."""
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
            total += _entry_bytes(network, stage, value_bytes) * voxels
        if stage < network.supervised:
            total += LOSS_TENSORS * classes * voxels * FLOAT
    return total


def _entry_bytes(network: sections.Network, stage: int, value_bytes: int) -> int:
    """Bytes per voxel saved on entering a stage, besides its convolutions."""
    inputs, width = network.features[stage - 1], network.features[stage]
    kept = 0
    if network.down == "max_pool":
        kept += inputs * (value_bytes + INDEX)
    if network.residual and inputs != width:
        shrunk = network.down == "strided" and network.strides[stage] != (1, 1, 1)
        kept += ((inputs if shrunk else 0) + width) * value_bytes
    return kept
