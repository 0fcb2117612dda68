"""How much memory a training step takes: weights, gradients, optimiser, and activations.

Per batch, in bytes, with n patches, f maps and v voxels at each stage, 4 bytes a float32 value and
2 a bfloat16 one:

    weights      4 x parameters, as much for the gradients, and for an average of the weights
    optimiser    4 x parameters for a momentum, 8 x for Adam's two
    activations  n x value bytes x (sum of what backward needs again)

Backward needs of every convolution with normalisation and activation two tensors of f x v: the
normalisation's input and the activated output, which is the next convolution's input. A decoder
stage adds its concatenated input (2 f x v), a max pooling its output and 8 bytes an index, the
short cut of a residual block its pooled and its convolved input. The loss keeps three float32
tensors of classes x v at each supervised stage.

What lives for a moment only, gradients of activations and the convolutions' workspaces, is taken
as half of the activations. Measured, as peak of the process in units of what this model says is
kept: on a processor 1.1 for the paper's network and patch in float32 (8.3 GB) and 1.2 in bfloat16
(4.8 GB); 1.3 to 1.45 for steps of 1 GB in float32 and 1.6 to 2.0 in bfloat16 (half a GB), where
the allocator's spare blocks weigh more.
On a graphics card, as nnU-Net's documentation gives it: 7.7 GB for plans of which this model says
4.3 to 4.8 GB are kept (1.6 to 1.8), 22.7 GB where it says 15.0 to 17.3 GB (1.3 to 1.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from autoseg.common.arrays import Triple
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Adam, Network, Optimizer

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
