"""The 3D U-Net of a plan: plain or residual, with the variants of Müller et al. 2021.

Shapes: B batch, C channels, X, Y, Z voxels; stage s has features[s] feature maps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoseg.common.arrays import Triple
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Network

ONE = (1, 1, 1)  # a stride
SMALLEST_AXIS = 3  # voxels that bfloat16 convolutions compute correctly


def build_network(plan: Plan) -> "UNet":
    """The network of a plan, with one output per class (background included) or per region."""
    return UNet(plan.network, channels=plan.input_channels, classes=plan.classes.outputs)


def with_masks(image: Tensor, segmentation: Tensor, parts: int) -> Tensor:
    """The input of a cascade's second stage: the image, and one 0/1 mask per part of the first.

    Args:
        image: (B, C, X, Y, Z).
        segmentation: of the first stage, (B, X, Y, Z) with 0 for background and 1 to `parts`.
        parts: the number of masks.

    Returns:
        (B, C + parts, X, Y, Z), with the type of the image.
    """
    indices = torch.arange(1, parts + 1, device=image.device).view(1, -1, 1, 1, 1)
    masks = segmentation[:, None] == indices
    return torch.cat([image, masks.to(image.dtype)], dim=1)


class Convolution(nn.Conv3d):
    """A convolution that computes very small volumes in float32 on a CPU.

    If an axis has two voxels, the bfloat16 weight gradient of a 3x3x3 convolution in torch 2.13
    (oneDNN) reads out of bounds: it differs from run to run and is sometimes NaN.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        is_cast = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if is_cast and min(x.shape[2:]) < SMALLEST_AXIS:
            dtype = torch.get_autocast_dtype("cpu")
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(dtype)
        return super().forward(x)


class InstanceNorm(nn.InstanceNorm3d):
    """Instance normalisation that keeps the memory layout in training steps on a CPU.

    `nn.InstanceNorm3d` converts a channels-last input to the contiguous layout and back, forward
    and backward: a tenth of a step. Batch normalisation of a single sample is equivalent.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        is_last = x.is_contiguous(memory_format=torch.channels_last_3d)
        if not self.training or x.device.type != "cpu" or not is_last:
            return super().forward(x)
        # No running statistics; those of the sample.
        options = (None, None, self.weight, self.bias, True, 0.0, self.eps)
        return torch.cat([functional.batch_norm(sample, *options) for sample in x.split(1)])


class ConvBlock(nn.Sequential):
    """Convolution, normalisation and activation, or activation before normalisation."""

    def __init__(
        self, plan: Network, inputs: int, outputs: int, kernel: Triple, stride: Triple = ONE
    ) -> None:
        layers = [_normalisation(plan, outputs), _activation(plan)]
        layers = layers[::-1] if plan.activation_first else layers
        super().__init__(_convolution(plan, inputs, outputs, kernel, stride), *layers)


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut connection."""

    def __init__(
        self, plan: Network, inputs: int, outputs: int, kernel: Triple, stride: Triple = ONE
    ) -> None:
        super().__init__()
        self.first = ConvBlock(plan, inputs, outputs, kernel, stride)
        norm = _normalisation(plan, outputs)
        self.second = nn.Sequential(_convolution(plan, outputs, outputs, kernel), norm)
        self.shortcut = nn.Sequential()
        if stride != (1, 1, 1):
            self.shortcut.append(nn.AvgPool3d(stride, stride, ceil_mode=True))
        if inputs != outputs:
            self.shortcut.append(nn.Conv3d(inputs, outputs, 1, bias=False))
            self.shortcut.append(_normalisation(plan, outputs))
        self.activation = _activation(plan)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        activated: Tensor = self.activation(self.second(self.first(x)) + self.shortcut(x))
        return activated


class UNet(nn.Module):
    """Encoder, decoder and one 1x1x1 head per supervised resolution.

    `forward` takes (B, C, X, Y, Z) and returns logits (B, classes, X, Y, Z). In training mode with
    deep supervision it returns a list of logits, the finest first, each coarser by the stride of
    its stage.
    """

    def __init__(self, plan: Network, channels: int, classes: int) -> None:
        super().__init__()
        features, strides, kernels = plan.features, plan.strides, plan.kernels
        self.deep_supervision = plan.deep_supervision
        block = ResidualBlock if plan.residual else ConvBlock
        self.stem = ConvBlock(plan, channels, features[0], kernels[0]) if plan.residual else None

        self.encoder = nn.ModuleList()
        inputs = features[0] if plan.residual else channels
        for stage, outputs in enumerate(features):
            stride, kernel = strides[stage], kernels[stage]
            pools = plan.down == "max_pool" and stage > 0
            layers: list[nn.Module] = [nn.MaxPool3d(stride, stride)] if pools else []
            layers.append(block(plan, inputs, outputs, kernel, ONE if pools else stride))
            for _ in range(plan.blocks_encoder[stage] - 1):
                layers.append(block(plan, outputs, outputs, kernel))
            self.encoder.append(nn.Sequential(*layers))
            inputs = outputs

        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()  # coarsest first
        for stage in reversed(range(len(features) - 1)):
            width, stride = features[stage], strides[stage + 1]
            self.up.append(nn.ConvTranspose3d(features[stage + 1], width, stride, stride))
            widths = [2 * width] + [width] * (plan.blocks_decoder[stage] - 1)
            blocks = [ConvBlock(plan, maps, width, kernels[stage]) for maps in widths]
            self.decoder.append(nn.Sequential(*blocks))

        self.heads = nn.ModuleList(nn.Conv3d(f, classes, 1) for f in features[: plan.supervised])
        _initialise(self, plan)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:  # noqa: D102
        if self.stem is not None:
            x = self.stem(x)
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()

        logits: list[Tensor] = []
        for up, convolutions in zip(self.up, self.decoder, strict=True):
            x = convolutions(torch.cat([up(x), skips.pop()], dim=1))
            stage_index = len(skips)
            wanted = self.training and self.deep_supervision
            if stage_index == 0 or (wanted and stage_index < len(self.heads)):
                logits.append(self.heads[stage_index](x))
        return logits[::-1] if self.training and self.deep_supervision else logits[0]


def _convolution(
    plan: Network, inputs: int, outputs: int, kernel: Triple, stride: Triple = ONE
) -> nn.Conv3d:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return Convolution(inputs, outputs, kernel, stride, padding, bias=plan.convolution_bias)


def _normalisation(plan: Network, features: int) -> nn.Module:
    if plan.norm == "batch":
        return nn.BatchNorm3d(features, plan.norm_epsilon, plan.norm_momentum)
    return InstanceNorm(features, plan.norm_epsilon, affine=True)


def _activation(plan: Network) -> nn.Module:
    # In place only after the normalisation: the gradient of batch normalisation needs its input.
    in_place = not plan.activation_first
    if plan.activation == "relu":
        return nn.ReLU(in_place)
    return nn.LeakyReLU(plan.negative_slope, in_place)


def _initialise(network: nn.Module, plan: Network) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            if plan.initialisation == "glorot":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
