"""Which device runs the network, and in which precision."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from numpy.typing import NDArray

from autoseg.common.errors import AutosegError


def pick_device(name: str | None) -> torch.device:
    """The named device, or the best one that this machine has.

    Raises:
        AutosegError: unknown or absent.
    """
    there = ["cpu"]
    if torch.cuda.is_available():
        there = [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), "cpu"]
    elif torch.backends.mps.is_available():
        there = ["mps", "cpu"]
    wanted = name or there[0]
    wanted = "cuda:0" if wanted == "cuda" else wanted
    if wanted not in there:
        raise AutosegError(f"--device {wanted} is not on this machine; there: {', '.join(there)}")
    return torch.device(wanted)


def autocast_type(device: torch.device, precision: str) -> torch.dtype:
    """The type the network computes in: bfloat16 where the device has it in hardware.

    float16 is for CUDA; elsewhere it is what `auto` is there.
    """
    if precision == "float32":
        return torch.float32
    if precision == "float16" and device.type == "cuda":
        return torch.float16
    if precision == "bfloat16" or _computes_bfloat16(device):
        return torch.bfloat16
    return torch.float32


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return _processor_computes_bfloat16()
    return False


def _processor_computes_bfloat16() -> bool:
    """Ask torch; an older torch that cannot tell is taken for a no."""
    ask: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    ask_tiles: Any = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return any(question() for question in (ask, ask_tiles) if question is not None)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Run the network in `dtype` within the block; plain float32 if that is the type."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


@contextmanager
def fast_convolutions(device: torch.device) -> Iterator[None]:
    """On CUDA, for the block: cuDNN times its algorithms and takes the fastest.

    That one may add in another order from run to run, and in float32 convolutions multiply in
    TensorFloat-32 (torch's own default, 10 bits of mantissa). So a run repeats to the bit on a CPU,
    and on CUDA but for rounding: the same patches, batches and learning rates, other last digits.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout of 3D tensors that convolutions are fastest in."""
    # Training steps on one core (scripts/bench_training.py, processor time): float32 1.17 times
    # faster with batch and 1.04 times with instance normalisation, bfloat16 1.00 and 0.95 times.
    # Not measured on a graphics card.
    if device.type in ("cpu", "cuda"):
        return torch.channels_last_3d
    return torch.contiguous_format


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy an array to a device, without waiting for what the device is doing."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # the copy of pageable memory would wait for the device
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def describe(device: torch.device) -> str:
    """The device in words, for logs and for measured plans."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} with {os.cpu_count()} cores, {threads} threads, {device.type}"
