"""A U-Net as an OpenVINO graph, built layer by layer from a `torch.fx` trace.

OpenVINO's own `convert_model` gives the same numbers, but runs the network to trace it, which takes
some seconds for each fold; this takes a fraction of one.
"""

from __future__ import annotations

import importlib
import operator
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from autoseg.common.arrays import Triple
from autoseg.networks.unet import UNet

Node = Any  # of OpenVINO, which may not be installed
INPUT, OUTPUT = "patches", "logits"


def to_openvino(openvino: ModuleType, network: UNet, patch: Triple) -> Any:
    """An `openvino.Model` in float32: `patches` (any B, channel, x, y, z) to `logits`.

    Args:
        openvino: the package.
        network: in evaluation mode.
        patch: the patch size (x, y, z).
    """
    assert not network.training
    ops = importlib.import_module("openvino.opset8")
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv3d))
    patches = ops.parameter([-1, first.in_channels, *patch], np.float32)
    logits = ops.result(_Translator(network, ops).run(patches))
    patches.output(0).set_names({INPUT})
    logits.output(0).set_names({OUTPUT})
    return openvino.Model([logits], [patches], "autoseg")


class _Tracer(fx.Tracer):
    """Looks into everything but layers; a class derived from torch's is a layer, too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv3d) or super().is_leaf_module(m, module_qualified_name)


class _Translator(fx.Interpreter):
    """Runs the network's `forward` on nodes of a graph instead of tensors."""

    def __init__(self, network: UNet, ops: ModuleType) -> None:
        super().__init__(fx.GraphModule(network, _Tracer().trace(network)))
        self.ops = ops

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        """The nodes of a layer."""
        return _layer(self.ops, self.fetch_attr(target), args[0])

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        """The node of what joins two branches."""
        if target is torch.cat:
            return self.ops.concat(args[0], axis=kwargs["dim"])
        assert target is operator.add, target
        return self.ops.add(*args)


def _layer(ops: ModuleType, layer: Any, x: Node) -> Node:
    match layer:
        case nn.Conv3d():
            return _convolution(ops, layer, x)
        case nn.ConvTranspose3d():
            return _transposed_convolution(ops, layer, x)
        case nn.BatchNorm3d():
            return _batch_norm(ops, layer, x)
        case nn.InstanceNorm3d():
            return _instance_norm(ops, layer, x)
        case nn.ReLU():
            return ops.relu(x)
        case nn.LeakyReLU():
            return ops.prelu(x, np.array([layer.negative_slope], np.float32))
        case nn.MaxPool3d():
            return _max_pool(ops, layer, x)
        case nn.AvgPool3d():
            return _average_pool(ops, layer, x)
    raise AssertionError(f"the U-Net has a new layer: {layer}")


def _convolution(ops: ModuleType, layer: nn.Conv3d, x: Node) -> Node:
    padding = [int(size) for size in layer.padding]
    weight = _constant(_array(layer.weight))
    found = ops.convolution(x, weight, list(layer.stride), padding, padding, [1, 1, 1])
    return _with_bias(ops, layer, found)


def _transposed_convolution(ops: ModuleType, layer: nn.ConvTranspose3d, x: Node) -> Node:
    found = ops.convolution_backprop_data(x, _constant(_array(layer.weight)), list(layer.stride))
    return _with_bias(ops, layer, found)


def _with_bias(ops: ModuleType, layer: nn.Conv3d | nn.ConvTranspose3d, x: Node) -> Node:
    return x if layer.bias is None else ops.add(x, _for_maps(_array(layer.bias)))


def _batch_norm(ops: ModuleType, layer: nn.BatchNorm3d, x: Node) -> Node:
    weight, bias, mean, variance = (
        _array(values).astype(np.float64)
        for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
    )
    gain = weight / np.sqrt(variance + layer.eps)
    return _scaled(ops, x, gain, bias - mean * gain)


def _instance_norm(ops: ModuleType, layer: nn.InstanceNorm3d, x: Node) -> Node:
    space = np.array([2, 3, 4], np.int64)
    found = ops.mvn(x, space, True, layer.eps, "inside_sqrt")
    return _scaled(ops, found, _array(layer.weight), _array(layer.bias))


def _scaled(ops: ModuleType, x: Node, gain: NDArray[Any], offset: NDArray[Any]) -> Node:
    return ops.add(ops.multiply(x, _for_maps(gain)), _for_maps(offset))


def _max_pool(ops: ModuleType, layer: nn.MaxPool3d, x: Node) -> Node:
    size: Any = layer.kernel_size
    found = ops.max_pool(x, list(size), [1, 1, 1], [0, 0, 0], [0, 0, 0], list(size))
    return found.output(0)  # the other one tells where the maxima were


def _average_pool(ops: ModuleType, layer: nn.AvgPool3d, x: Node) -> Node:
    size: Any = layer.kernel_size
    return ops.avg_pool(x, list(size), [0, 0, 0], [0, 0, 0], list(size), exclude_pad=True)


def _array(values: Tensor | None) -> NDArray[np.float32]:
    assert values is not None
    return values.detach().cpu().contiguous().numpy()


def _for_maps(values: NDArray[Any]) -> Node:
    """One number for each feature map of (B, map, x, y, z)."""
    return _constant(values.astype(np.float32).reshape(1, -1, 1, 1, 1))


def _constant(values: NDArray[np.float32]) -> Node:
    # An operation that is given an array makes a list of it first: 3 s for the paper's network.
    return importlib.import_module("openvino.op").Constant(values)
