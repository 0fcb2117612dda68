"""What runs the networks of a model: torch, or OpenVINO where that is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoseg.common.errors import AutosegError
from autoseg.networks.devices import autocast, autocast_type, memory_format
from autoseg.networks.unet import UNet
from autoseg.plan.plan import Plan
from autoseg.prediction import openvino_network
from autoseg.prediction.openvino_network import OpenVinoNetwork

Run = Callable[[Tensor], Tensor]  # patches (B, channel, x, y, z) -> float32 logits (B, output, ...)

AUTO, TORCH, OPENVINO = "auto", "torch", "openvino"
BACKENDS = (AUTO, TORCH, OPENVINO)


@dataclass(frozen=True)
class Backend:
    """The networks of a model, ready to run."""

    name: str  # library, version and precision, such as `torch 2.13.0 bfloat16`
    networks: tuple[Run, ...]


def choose_backend(
    wanted: str, networks: Sequence[nn.Module], plan: Plan, device: torch.device
) -> Backend:
    """Make a model's networks ready in a library; `auto` takes OpenVINO where it can be used.

    Both compute in the plan's precision, so they differ by rounding alone.

    Args:
        wanted: one of `BACKENDS`.
        networks: in evaluation mode, on the device.
        plan: that they were trained by.
        device: where they run.

    Raises:
        AutosegError: no such backend, or OpenVINO is wanted where it cannot be used.
    """
    if wanted not in BACKENDS:
        raise AutosegError(f"backend {wanted!r} is unknown; choose from {', '.join(BACKENDS)}")
    obstacle = _obstacle(networks, device)
    if wanted == OPENVINO and obstacle:
        raise AutosegError(f"OpenVINO cannot be used: {obstacle}; or take the backend {TORCH}")
    precision = autocast_type(device, plan.training.precision)
    if wanted == TORCH or obstacle:
        name = f"torch {torch.__version__} {_in_words(precision)}"
        return Backend(name, tuple(TorchNetwork(each, device, precision) for each in networks))
    if not openvino_network.computes_bfloat16():
        precision = torch.float32
    name = f"openvino {openvino_network.version()} {_in_words(precision)}"
    patch = plan.sampling.patch_size
    nets = [each for each in networks if isinstance(each, UNet)]
    several = len(nets) > 1
    return Backend(name, tuple(OpenVinoNetwork(each, patch, precision, several) for each in nets))


def _obstacle(networks: Sequence[nn.Module], device: torch.device) -> str | None:
    """Why OpenVINO cannot run these networks; None if it can."""
    if device.type != "cpu":
        return f"it is for processors, and the device is {device}"
    if not openvino_network.is_installed():
        return "it is not installed (pip install 'autoseg[cpu]')"
    foreign = [type(network).__name__ for network in networks if not isinstance(network, UNet)]
    return f"it runs U-Nets, not {foreign[0]}" if foreign else None


def _in_words(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


class TorchNetwork:
    """A network in torch itself, in the type and the memory layout that its device is fast in."""

    def __init__(self, network: nn.Module, device: torch.device, precision: torch.dtype) -> None:
        self.device, self.precision, self.format = device, precision, memory_format(device)
        self.network = network.to(memory_format=self.format)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, patches: Tensor) -> Tensor:
        """Logits (B, output, x, y, z) in float32, on the device."""
        with autocast(self.device, self.precision):
            logits: Tensor = self.network(patches.to(memory_format=self.format))
        return logits.float()
