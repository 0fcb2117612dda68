"""A network as an ONNX file, and its execution in onnxruntime; an extra that may be missing."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from autoseg.common.arrays import Triple
from autoseg.networks.unet import UNet
from autoseg.prediction.backends import INPUT, OUTPUT

NEEDS = ("onnx", "onnxruntime", "onnxscript")  # torch's exporter is built on onnxscript


def is_installed() -> bool:
    """Whether all that it needs can be imported; imports nothing."""
    return all(importlib.util.find_spec(name) for name in NEEDS)


def write_onnx(network: UNet, patch: Triple, path: Path) -> None:
    """Write `patches` (any B, channel, x, y, z) to `logits` in float32, as one file.

    Args:
        network: in evaluation mode, on the CPU.
        patch: the patch size (x, y, z).
        path: ends with `.onnx`.
    """
    import onnx

    first = next(layer for layer in network.modules() if isinstance(layer, torch.nn.Conv3d))
    example = torch.zeros(2, first.in_channels, *patch)  # a batch of 1 would be taken for fixed
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # they name source files of this machine
    onnx.save(proto, path)


def run_onnx(path: Path, patches: Tensor) -> Tensor:
    """Logits of patches, by onnxruntime in float32 on as many threads as torch has."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run([OUTPUT], {INPUT: patches.numpy()})
    return torch.from_numpy(logits)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says of packages that it could use, and of its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
