"""What runs the networks of a model: torch, or OpenVINO (optional) on a CPU."""

import importlib.util
import operator
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from autoseg.common.arrays import Floats, Triple
from autoseg.common.errors import AutosegError, install_hint
from autoseg.common.files import cannot_write
from autoseg.networks.devices import autocast, autocast_type, place
from autoseg.networks.unet import UNet
from autoseg.plan.plan import Plan

Run = Callable[[Tensor], Tensor]  # patches (B, channel, x, y, z) -> float32 logits (B, output, ...)

BACKENDS = (AUTO, TORCH, OPENVINO) = ("auto", "torch", "openvino")


class Backend(NamedTuple):
    """The networks of a model, ready to run."""

    name: str  # library, version and precision, such as `torch 2.13.0 bfloat16`
    networks: tuple[Run, ...]


def choose_backend(
    wanted: str, networks: Sequence[nn.Module], plan: Plan, device: torch.device
) -> Backend:
    """Prepare a model's networks for a library; `auto` is OpenVINO wherever it can be used.

    Both compute in the plan's precision, so they differ only by rounding.

    Args:
        wanted: one of `BACKENDS`.
        networks: in evaluation mode, on the device.
        plan: that they were trained by.
        device: where they run.

    Raises:
        AutosegError: the backend is unknown, or OpenVINO is wanted where it cannot be used.
    """
    if wanted not in BACKENDS:
        raise AutosegError(f"backend {wanted!r} is unknown; choose from {', '.join(BACKENDS)}")
    obstacle = _obstacle(networks, device)
    if wanted == OPENVINO and obstacle:
        raise AutosegError(f"OpenVINO cannot be used: {obstacle}; use --backend {TORCH}")
    precision = autocast_type(device, plan.training.precision)
    if wanted == TORCH or obstacle:
        runs: list[Run] = [torch_network(each, device, precision) for each in networks]
        library = f"torch {torch.__version__}"
    else:
        if not computes_bfloat16():
            precision = torch.float32
        unets = [each for each in networks if isinstance(each, UNet)]
        patch, several = plan.sampling.patch_size, len(unets) > 1
        runs = [OpenVinoNetwork(each, patch, precision, several) for each in unets]
        library = f"openvino {version()}"
    return Backend(f"{library} {str(precision).removeprefix('torch.')}", tuple(runs))


def _obstacle(networks: Sequence[nn.Module], device: torch.device) -> str | None:
    """Why OpenVINO cannot run these networks; None if it can."""
    if device.type != "cpu":
        return f"it runs on CPUs, and the device is {device}"
    if not is_installed():
        return f"it is not installed ({install_hint('cpu')})"
    foreign = [type(network).__name__ for network in networks if not isinstance(network, UNet)]
    return f"it runs U-Nets, not {foreign[0]}" if foreign else None


def torch_network(network: nn.Module, device: torch.device, precision: torch.dtype) -> Run:
    """A network in torch, in the precision and memory format that are fast on its device."""
    layout = place(network, device)

    @torch.inference_mode()
    def run(patches: Tensor) -> Tensor:
        with autocast(device, precision):
            logits: Tensor = network(patches.to(memory_format=layout))
        return logits.float()

    return run


class OpenVinoNetwork:
    """A network in OpenVINO, on as many threads as torch uses.

    Args:
        network: a U-Net in evaluation mode.
        patch: the patch size (x, y, z).
        precision: float32, or bfloat16 if the CPU supports it, see `computes_bfloat16`.
        frees: whether to release the memory of its feature maps after each call, which takes about
            3 % of its time; several networks would keep theirs all at once.
    """

    def __init__(self, network: UNet, patch: Triple, precision: torch.dtype, frees: bool) -> None:
        self.precision, self.frees = precision, frees
        self.graph = to_openvino(openvino(), network, patch)
        self.ready: dict[int, tuple[Any, Lock]] = {}

    def compiled(self) -> tuple[Any, Lock]:
        """The graph, compiled for this CPU, and its lock: it refuses a second call meanwhile.

        Each process compiles its own at the first use: a fork does not have OpenVINO's threads.
        """
        process = os.getpid()
        if process not in self.ready:
            made = _compile(self.graph, self.precision, NUM_STREAMS=1)
            self.ready.setdefault(process, (made, Lock()))
        return self.ready[process]

    def __call__(self, patches: Tensor) -> Tensor:
        """Logits (B, output, x, y, z) in float32 of patches (B, channel, x, y, z)."""
        array = patches.contiguous().numpy()
        compiled, lock = self.compiled()
        with lock:
            logits = torch.from_numpy(compiled(array, share_inputs=True)[0])
            if self.frees:
                compiled.release_memory()
        return logits


# OpenVINO itself.

TELEMETRY = "openvino_telemetry"


def is_installed() -> bool:
    """Whether OpenVINO can be imported; does not import it."""
    return importlib.util.find_spec("openvino") is not None


@cache
def openvino() -> ModuleType:
    """The package, imported without its telemetry.

    A plain `import openvino` starts `openvino_telemetry`, which sends an event to a server and
    stores an identifier in the home folder. OpenVINO runs without that package if it is missing.
    """
    hidden = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # makes its import an ImportError
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[TELEMETRY]
        if hidden is not None:
            sys.modules[TELEMETRY] = hidden


@cache
def core_of(process: int) -> Any:
    """OpenVINO's runtime, shared by all networks of this process."""
    return openvino().Core()


def version() -> str:
    """Such as `2026.4.1`."""
    return str(openvino().__version__).split("-")[0]


def computes_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    return "BF16" in core_of(os.getpid()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _compile(graph: Any, precision: torch.dtype, **settings: Any) -> Any:
    hint, threads = "bf16" if precision is torch.bfloat16 else "f32", torch.get_num_threads()
    settings |= {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    return core_of(os.getpid()).compile_model(graph, "CPU", settings)


def write_openvino(network: UNet, patch: Triple, path: Path) -> None:
    """Write `patches` (any B, channel, x, y, z) -> `logits` in float32, as `.xml` and `.bin`.

    Args:
        network: in evaluation mode.
        patch: the patch size (x, y, z).
        path: ends with `.xml`; the weights are written beside it.

    Raises:
        AutosegError: a file cannot be written.
    """
    graph = to_openvino(openvino(), network, patch)
    try:
        openvino().save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:  # such as "iostream error" if the disk is full
        raise cannot_write(path, error) from error


def run_openvino(path: Path, patches: Tensor) -> Tensor:
    """Logits of patches by a file of `write_openvino`, in float32."""
    compiled = _compile(core_of(os.getpid()).read_model(path), torch.float32)
    return torch.from_numpy(compiled(patches.numpy())[0])


# A U-Net as an OpenVINO graph, built layer by layer from a `torch.fx` trace. OpenVINO's own
# `convert_model` gives the same numbers, but runs the network, which takes seconds for each fold.

Node = Any  # of OpenVINO, which may not be installed
INPUT, OUTPUT = "patches", "logits"


def to_openvino(openvino: ModuleType, network: UNet, patch: Triple) -> Any:
    """An `openvino.Model` in float32: `patches` (any B, channel, x, y, z) -> `logits`.

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
    """Traces into everything but layers, including layers derived from torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layers = nn.Conv3d | nn.InstanceNorm3d
        return isinstance(m, layers) or super().is_leaf_module(m, module_qualified_name)


class _Translator(fx.Interpreter):
    """Runs the network's `forward` on nodes of a graph instead of tensors."""

    def __init__(self, network: UNet, ops: ModuleType) -> None:
        super().__init__(fx.GraphModule(network, _Tracer().trace(network)))
        self.ops = ops

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        """The node that joins two branches."""
        if target is torch.cat:
            return self.ops.concat(args[0], axis=kwargs["dim"])
        assert target is operator.add, target
        return self.ops.add(*args)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Node:
        """The nodes of a layer."""
        ops, x = self.ops, args[0]
        match layer := self.fetch_attr(target):
            case nn.Conv3d() | nn.ConvTranspose3d():
                weight, stride = _constant(_array(layer.weight)), list(layer.stride)
                if isinstance(layer, nn.Conv3d):
                    padding = [int(size) for size in layer.padding]
                    x = ops.convolution(x, weight, stride, padding, padding, [1, 1, 1])
                else:
                    x = ops.convolution_backprop_data(x, weight, stride)
                return x if layer.bias is None else ops.add(x, _per_map(_array(layer.bias)))
            case nn.BatchNorm3d():
                statistics = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
                weight, bias, mean, variance = (_array(v).astype(np.float64) for v in statistics)
                scale = weight / np.sqrt(variance + layer.eps)
                return _scaled(ops, x, scale, bias - mean * scale)
            case nn.InstanceNorm3d():
                x = ops.mvn(x, np.array([2, 3, 4], np.int64), True, layer.eps, "inside_sqrt")
                return _scaled(ops, x, _array(layer.weight), _array(layer.bias))
            case nn.ReLU():
                return ops.relu(x)
            case nn.LeakyReLU():
                return ops.prelu(x, np.array([layer.negative_slope], np.float32))
            case nn.MaxPool3d():
                size: Any = list(layer.kernel_size)  # type: ignore[arg-type]
                found = ops.max_pool(x, size, [1, 1, 1], [0, 0, 0], [0, 0, 0], size)
                return found.output(0)  # the other output holds the indices of the maxima
            case nn.AvgPool3d():
                size = list(layer.kernel_size)  # type: ignore[arg-type]
                return ops.avg_pool(x, size, [0, 0, 0], [0, 0, 0], size, exclude_pad=True)
        raise AssertionError(f"the U-Net has a new layer: {layer}")


def _scaled(ops: ModuleType, x: Node, scale: NDArray[Any], offset: NDArray[Any]) -> Node:
    return ops.add(ops.multiply(x, _per_map(scale)), _per_map(offset))


def _array(values: Tensor | None) -> Floats:
    assert values is not None
    return values.detach().cpu().contiguous().numpy()


def _per_map(values: NDArray[Any]) -> Node:
    """One number for each feature map of (B, map, x, y, z)."""
    return _constant(values.astype(np.float32).reshape(1, -1, 1, 1, 1))


def _constant(values: Floats) -> Node:
    # An operation that is given an array makes a list of it first: 3 s for the paper's network.
    return importlib.import_module("openvino.op").Constant(values)
