"""The network weights of an untrusted PyTorch checkpoint, read in a process of its own.

`read_untrusted` starts this file as a program without network and with limits on memory, time and
files. That program calls `torch.load(weights_only=True)`, where NumPy's types are replaced by empty
ones, and writes nothing but the network's weights, as safetensors, and a few checked facts. The
checkpoint is opened nowhere else.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

if sys.platform != "win32":
    import resource

TIME_LIMIT_SECONDS = 900
MEMORY_BYTES = 2**30  # besides the file's size
MOST_TENSORS, MOST_AXES, LONGEST_TEXT = 20_000, 5, 200
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMPY_NAMES = ["numpy.dtype", "numpy.ndarray", *(f"{each}.scalar" for each in MULTIARRAY)]
NUMPY_NAMES += [f"{each}._reconstruct" for each in MULTIARRAY]
COPIES = (".all_modules.", "decoder.encoder.")  # nnU-Net stores these weights twice
KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class CheckpointError(Exception):
    """Why a checkpoint is refused, in one line."""


@cache
def without_network() -> tuple[str, ...]:
    """A command prefix that cuts a program off from the network; empty if there is none."""
    options = ("--map-root-user", "--net")
    if (tool := shutil.which("unshare")) is None:
        return ()
    tried = subprocess.run([tool, *options, "true"], capture_output=True, check=False)
    return (tool, *options) if tried.returncode == 0 else ()


def read_untrusted(path: Path, target: Path) -> None:
    """Write the weights in a checkpoint to `target` as safetensors, with `state` in its header.

    The state has `trainer_name`, `configuration`, `mirror_axes` (or null) and `epochs`.

    Raises:
        CheckpointError: it is refused, or not read within the limits.
    """
    kept = ("SYSTEMROOT", "LD_LIBRARY_PATH")
    environment = {key: os.environ[key] for key in kept if key in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": os.defpath}
    command = [*without_network(), sys.executable, "-I", __file__, str(path), str(target)]
    limits: Any = {"stdin": subprocess.DEVNULL, "timeout": TIME_LIMIT_SECONDS, "env": environment}
    try:
        done = subprocess.run(command, capture_output=True, check=False, **limits)
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"was not read within {TIME_LIMIT_SECONDS} s") from None
    if done.returncode == 0 and target.is_file():
        return
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    reason = said[-1] if said and done.returncode == 2 else "was not read within the limits"
    raise CheckpointError(reason)


# What runs in the other process.


class _Ignored:
    """Takes the place of a NumPy value: none is needed, and none is made."""

    def __init__(self, *values: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def limit_resources(file_bytes: int) -> None:
    """Limit memory, time, written files and processes, where the system can."""
    if sys.platform == "win32":
        return
    limits = dict.fromkeys((resource.RLIMIT_NPROC, resource.RLIMIT_CORE), 0)
    limits[resource.RLIMIT_CPU] = TIME_LIMIT_SECONDS
    limits[resource.RLIMIT_FSIZE] = MEMORY_BYTES + 2 * file_bytes
    if (statm := Path("/proc/self/statm")).exists():
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = used + MEMORY_BYTES + 6 * file_bytes
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


def load(path: Path) -> dict[str, Any]:
    """The checkpoint: tensors, numbers, texts and containers of them."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # other formats are older than nnU-Net v2
            raise CheckpointError("is not a zip file of torch.save")
    torch.set_num_threads(1)
    ignored: Any = [(_Ignored, name) for name in NUMPY_NAMES]
    with torch.serialization.safe_globals(ignored):
        found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, dict) or "network_weights" not in found:
        raise CheckpointError("has no network_weights; it is not a checkpoint of nnU-Net v2")
    return found


def checked_weights(weights: Any, file_bytes: int) -> dict[str, torch.Tensor]:
    """The weights in float32, without copies, if they are plain tensors of a plausible size."""
    if not isinstance(weights, Mapping) or not 0 < len(weights) <= MOST_TENSORS:
        raise CheckpointError("has network_weights that are not a table of tensors")
    found, total = {}, 0
    for name, tensor in weights.items():
        if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_TEXT:
            raise CheckpointError("has a weight without a plain name")
        if any(copy in name for copy in COPIES):
            continue
        counter = name.endswith("num_batches_tracked")
        plain = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
        plain = plain and tensor.device.type == "cpu" and tensor.ndim <= MOST_AXES
        if not plain or tensor.dtype not in ((torch.int64,) if counter else KINDS):
            raise CheckpointError(f"has {name!r}, which is not a dense tensor of floats")
        total += tensor.numel() * 2  # bytes, in the shortest type
        if total > file_bytes:  # such as one number that is repeated by strides of zero
            raise CheckpointError(f"has {name!r} of {list(tensor.shape)}, larger than its file")
        values = tensor if counter else tensor.to(torch.float32)
        if not counter and not bool(torch.isfinite(values).all()):
            raise CheckpointError(f"has {name!r} with values that are not finite")
        found[name] = values.detach().contiguous().clone()
    return found


def checked_state(found: Mapping[str, Any]) -> dict[str, Any]:
    """The facts about the training that prediction needs."""
    about = found.get("init_args")
    configuration = about.get("configuration") if isinstance(about, Mapping) else None
    trainer, axes = found.get("trainer_name"), found.get("inference_allowed_mirroring_axes")
    for text in (configuration, trainer):
        if not isinstance(text, str) or not text.isprintable() or len(text) > LONGEST_TEXT:
            raise CheckpointError("does not name its trainer and configuration")
    if axes is not None:
        axes = list(axes) if isinstance(axes, list | tuple) else [None]
        if any(axis not in (0, 1, 2) or isinstance(axis, bool) for axis in axes):
            raise CheckpointError("has inference_allowed_mirroring_axes that are not axes")
    epochs = found.get("current_epoch")
    is_count = type(epochs) is int and 0 < epochs < 10**6
    state = {"trainer_name": trainer, "configuration": configuration, "mirror_axes": axes}
    return state | {"epochs": epochs if is_count else None}


def main() -> int:
    """Convert one file; returns the exit status."""
    path, target = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        size = path.stat().st_size
        limit_resources(size)
        found = load(path)
        weights = checked_weights(found["network_weights"], size)
        save_file(weights, target, {"state": json.dumps(checked_state(found))})
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 2
    except BaseException as error:  # whatever a damaged file causes
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"asks for {asked[1]}" if asked else f"is damaged ({type(error).__name__})"
        print(f"{reason}; it is not a checkpoint of nnU-Net v2"[:LONGEST_TEXT], file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
