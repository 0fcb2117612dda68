"""The device that runs the network, its precision and its memory layout."""

import multiprocessing
import os
import platform
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from autoseg.common.arrays import Array
from autoseg.common.errors import AutosegError
from autoseg.common.parallel import THREAD_LIMITS, cores, free_memory
from autoseg.common.progress import nearest, note

NO_CUDA = "this PyTorch is built without CUDA (install another: pytorch.org/get-started)"
PROCESS = os.getpid()  # that imported this module: another one was forked from it


def pick_device(name: str | None) -> torch.device:
    """The named device, or by default the best one of this machine.

    Raises:
        AutosegError: the device is unknown or not available.
    """
    available = ["cpu"]
    if torch.cuda.is_available():
        available = [*(f"cuda:{i}" for i in range(torch.cuda.device_count())), "cpu"]
    elif torch.backends.mps.is_available():
        available = ["mps", "cpu"]
    found = {None: available[0], "gpu": available[0], "cuda": "cuda:0"}.get(name, name)
    if found not in available or (name == "gpu" and found == "cpu"):
        why = nearest(name or "", (*available, "gpu", "cuda"))
        if available == ["cpu"] and str(found).startswith(("cuda", "cpu")):
            why = ": no card is found; check nvidia-smi" if torch.version.cuda else f": {NO_CUDA}"
        raise AutosegError(f"--device {name} is not available{why}; choose {', '.join(available)}")
    limit_torch()
    return torch.device(found)


def limit_torch() -> None:
    """Compute with at most `cores()` threads; in a forked process with one.

    A fork copies the state of torch's OpenMP threads, but not the threads, and would wait for them
    for ever.
    """
    kind = type(multiprocessing.current_process()).__name__
    if os.getpid() != PROCESS or kind == "ForkProcess":
        note("this process was forked: torch computes with one thread")
        torch.set_num_threads(1)
    elif THREAD_LIMITS[0] not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())


def autocast_type(device: torch.device, precision: str) -> torch.dtype:
    """The type the network computes in: bfloat16 if the device supports it in hardware.

    Older cards, such as V100 and T4, compute in float16 instead. float16 is supported on CUDA
    only; elsewhere it has the effect of `auto`, `nnunet` of float32.
    """
    if precision in ("float16", "nnunet") and device.type == "cuda":
        return torch.float16
    if precision in ("float32", "nnunet"):
        return torch.float32
    if precision == "bfloat16" or _computes_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Of processors those with AVX512-BF16 or AMX; torch without these functions counts as no.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks: list[Any] = [getattr(torch.cpu, name, None) for name in names]
    return device.type == "cpu" and any(check() for check in checks if check is not None)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Run the network in `dtype` within the block, for float32 without autocast."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)


@contextmanager
def fast_convolutions(device: torch.device) -> Iterator[None]:
    """On CUDA, within the block: cuDNN benchmarks its algorithms and uses the fastest one.

    That one may change from run to run and add in another order. Also, float32 convolutions use
    TensorFloat-32 (the default of torch, 10 bits of mantissa). So a run is reproducible bit by bit
    on a CPU; on CUDA with the same patches and learning rates, but other rounding errors.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def place(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Move a network to a device, in the memory layout in which it is fastest there.

    Returns:
        the layout that its inputs should have.
    """
    # On a card, torch's instance normalisation brings its input into the other layout, and
    # activations in place on the result are copied back (tests/pretended_card: 49 GB against 33 GB
    # a step).
    layers = list(network.modules())
    copies = device.type == "cuda" and any(isinstance(layer, nn.InstanceNorm3d) for layer in layers)
    for layer in layers if copies else ():
        if isinstance(layer, nn.ReLU | nn.LeakyReLU):
            layer.inplace = False
    # Speed-up of training steps on one core (scripts/bench_training.py, processor time): float32
    # 1.17 with batch and 1.04 with instance normalisation, bfloat16 1.00 and 0.95.
    is_faster = device.type in ("cpu", "cuda") and not copies
    layout = torch.channels_last_3d if is_faster else torch.contiguous_format
    network.to(device, memory_format=layout)  # type: ignore[call-overload]
    return layout


def to_device(array: Array | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy an array, or a tensor in page-locked memory, to a device without waiting for it."""
    if not isinstance(array, torch.Tensor):
        array = torch.from_numpy(array)
        if device.type == "cuda":  # a copy of pageable memory would wait
            array = array.pin_memory()
    return array.to(device, non_blocking=True)


@contextmanager
def received_ahead(
    stream: Iterator[dict[str, Any]], device: torch.device
) -> Iterator[Iterator[dict[str, Any]]]:
    """For CUDA: a thread receives the next batch, in page-locked memory, during the present one."""
    if device.type != "cuda":
        yield stream
        return

    def receive() -> dict[str, Any]:
        batch = next(stream)
        arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
        return batch | {key: torch.from_numpy(each).pin_memory() for key, each in arrays.items()}

    def following() -> dict[str, Any]:
        coming.append(thread.submit(receive))
        return coming.popleft().result()

    with ThreadPoolExecutor(1) as thread:
        coming = deque([thread.submit(receive)])
        yield iter(following, None)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one core: for small operations, whose threads would wait for each other.

    It takes a sixth of the time where another process is busy, and sums do not depend on the
    number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_bytes(device: torch.device) -> int:
    """The free memory of a card, with what torch keeps of it; else of this machine."""
    if device.type != "cuda":
        return free_memory()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return kept + torch.cuda.mem_get_info(device)[0]


def describe(device: torch.device) -> str:
    """A description of the device, for logs and measured plans."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} with {cores()} cores, {threads} threads, {device.type}"
