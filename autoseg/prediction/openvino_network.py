"""OpenVINO, which runs a U-Net on a processor; an extra that may be missing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from autoseg.common.arrays import Triple
from autoseg.common.files import cannot_write
from autoseg.networks.unet import UNet
from autoseg.prediction.openvino_graph import to_openvino

TELEMETRY = "openvino_telemetry"


def is_installed() -> bool:
    """Whether OpenVINO can be imported; does not import it."""
    return importlib.util.find_spec("openvino") is not None


@cache
def openvino() -> ModuleType:
    """The package, imported without the part that reports its use to its maker.

    A plain `import openvino` starts `openvino_telemetry`, which sends an event to a server and
    keeps an identifier in the home folder. OpenVINO does without where that package is missing.
    """
    hidden = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # makes its import an ImportError
    try:
        return importlib.import_module("openvino")
    finally:
        if hidden is None:
            del sys.modules[TELEMETRY]
        else:
            sys.modules[TELEMETRY] = hidden


@cache
def core() -> Any:
    """OpenVINO's devices; one for all networks."""
    return openvino().Core()


def version() -> str:
    """Such as `2026.4.1`."""
    return str(openvino().__version__).split("-")[0]


def computes_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoNetwork:
    """A network that OpenVINO runs, on as many threads as torch has.

    Args:
        network: a U-Net in evaluation mode.
        patch: the patch size (x, y, z).
        precision: float32, or bfloat16 where the processor has it, see `computes_bfloat16`.
        frees: gives the memory for its feature maps back after each call, for about 3 % of its
            time: several networks would keep theirs all at once.
    """

    def __init__(self, network: UNet, patch: Triple, precision: torch.dtype, frees: bool) -> None:
        self.precision, self.frees = precision, frees
        self.graph = to_openvino(openvino(), network, patch)
        self.lock = Lock()  # OpenVINO refuses a second scan while a first one is computed

    @cached_property
    def compiled(self) -> Any:
        """The graph, compiled for this processor at its first use."""
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision is torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        return core().compile_model(self.graph, "CPU", settings)

    def __call__(self, patches: Tensor) -> Tensor:
        """Logits (B, output, x, y, z) in float32 of patches (B, channel, x, y, z)."""
        array = patches.contiguous().numpy()
        with self.lock:
            logits = torch.from_numpy(self.compiled(array, share_inputs=True)[0])
            if self.frees:
                self.compiled.release_memory()
        return logits


def write_openvino(network: UNet, patch: Triple, path: Path) -> None:
    """Write `patches` (any B, channel, x, y, z) to `logits` in float32, as `.xml` and `.bin`.

    Args:
        network: in evaluation mode.
        patch: the patch size (x, y, z).
        path: ends with `.xml`; the weights go beside it.

    Raises:
        AutosegError: they cannot be written.
    """
    graph = to_openvino(openvino(), network, patch)
    try:
        openvino().save_model(graph, path, compress_to_fp16=False)
    except RuntimeError as error:  # such as "iostream error" on a full disk
        raise cannot_write(path, error) from error


def run_openvino(path: Path, patches: Tensor) -> Tensor:
    """Logits of patches by a file of `write_openvino`, in float32."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core().compile_model(core().read_model(path), "CPU", settings)
    return torch.from_numpy(compiled(patches.numpy())[0])
