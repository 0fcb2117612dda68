"""Checkpoints: a safetensors file with a JSON state in its header, written atomically."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn

from autoseg.common.errors import AutosegError
from autoseg.common.files import cannot_write, is_there, replacing
from autoseg.models.archive import TEXT

Tensors = dict[str, Tensor]
DAMAGES = (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError)


def save_checkpoint(path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write tensors and a JSON state, atomically.

    Raises:
        AutosegError: the file cannot be written.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(stored, temporary, {"state": json.dumps(state, allow_nan=False)})
        except SafetensorError as error:  # such as a full disk
            raise cannot_write(path, error) from error


def load_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises:
        AutosegError: missing or damaged.
    """
    if not is_there(path):
        raise AutosegError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            state = _state_of((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except DAMAGES as error:
        raise _damaged(path, error) from error


def parse_checkpoint(content: bytes, path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The same for the content of a file; `path` appears in messages.

    Raises:
        AutosegError: damaged.
    """
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return load(content), _state_of(header["__metadata__"]["state"])
    except DAMAGES as error:
        raise _damaged(path, error) from error


def _state_of(text: str) -> dict[str, Any]:
    state = json.loads(text)
    if not isinstance(state, dict):
        raise TypeError("its state is not a JSON object")
    return state


def _damaged(path: Path, error: Exception) -> AutosegError:
    return AutosegError(f"{path} is damaged ({error}); delete it, or copy it again from its source")


def load_weights(network: nn.Module, tensors: Tensors, path: Path, assign: bool = False) -> None:
    """Load weights into a network with exactly these shapes and types.

    Args:
        network: its parameters are replaced.
        tensors: the weights by name.
        path: the file that they come from, for messages.
        assign: use the tensors without copying, as a network on the device `meta` requires.

    Raises:
        AutosegError: a tensor is missing, or has another shape or type.
    """
    for name, wanted in network.state_dict().items():
        if name in tensors and tensors[name].dtype != wanted.dtype:
            about = {"found": tensors[name].dtype, "wanted": wanted.dtype}
            raise AutosegError(TEXT("weights", path=path, name=name, **about))
    try:
        network.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise AutosegError(f"{path} does not fit the plan: {reason}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The tensors of an optimiser under flat names: `optimizer.PARAMETER.KEY`."""
    return {
        f"optimizer.{index}.{key}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """The reverse of `optimizer_tensors`."""
    groups = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            parameter = parameters[int(index)]
            if tensor.shape == parameter.shape:  # fused optimisers rely on its memory layout
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            entries.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors under `prefix.NAME`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors that `with_prefix` renamed, under their original names."""
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
