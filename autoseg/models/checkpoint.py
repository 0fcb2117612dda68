"""Checkpoints: one safetensors file with its JSON state in the header, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn

from autoseg.common.errors import AutosegError
from autoseg.common.files import cannot_write, replacing

Tensors = dict[str, Tensor]
DAMAGES = (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError)


def save_checkpoint(path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write tensors and a JSON state, atomically.

    Raises:
        AutosegError: the file cannot be written.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(whole, temporary, {"state": json.dumps(state, allow_nan=False)})
        except SafetensorError as error:  # such as a full disk
            raise cannot_write(path, error) from error


def load_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises:
        AutosegError: missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = _state_of((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except FileNotFoundError as error:
        raise AutosegError(f"{path} is missing") from error
    except DAMAGES as error:
        raise _damaged(path, error) from error


def parse_checkpoint(content: bytes, path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The same for a file's content; `path` is named in messages.

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
        raise TypeError("its state is no object")
    return state


def _damaged(path: Path, error: Exception) -> AutosegError:
    return AutosegError(
        f"{path} is damaged ({error}); delete it, or copy it anew from where it came"
    )


def load_weights(network: nn.Module, tensors: Tensors, path: Path, assign: bool = False) -> None:
    """Put weights into a network of exactly these shapes and types.

    Args:
        network: whose parameters are replaced.
        tensors: by name.
        path: where they come from, for messages.
        assign: take the tensors themselves, as for a network on the device `meta`, which has none.

    Raises:
        AutosegError: a tensor is missing, or has another shape or type.
    """
    for name, wanted in network.state_dict().items():
        if name in tensors and tensors[name].dtype != wanted.dtype:
            raise AutosegError(
                f"{path} does not fit the plan's network: {name} holds {tensors[name].dtype}, "
                f"not {wanted.dtype}"
            )
    try:
        network.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise AutosegError(f"{path} does not fit the plan's network: {reason}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's tensors under flat names: `optimizer.PARAMETER.KEY`."""
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
            like = parameters[int(index)]
            entries.setdefault(int(index), {})[key] = _laid_out_like(like, tensor)
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _laid_out_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The same values in the parameter's memory layout, which fused optimisers rely on."""
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors under `prefix.NAME`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """Those tensors that `with_prefix` named, under their own names."""
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
