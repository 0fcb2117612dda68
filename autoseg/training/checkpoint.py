"""Checkpoints: one safetensors file with its JSON state in the header, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from autoseg.errors import AutosegError
from autoseg.files import replacing

Tensors = dict[str, Tensor]


def save_checkpoint(path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """Write tensors and a JSON state, atomically."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(whole, temporary, {"state": json.dumps(state, allow_nan=False)})


def load_checkpoint(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read what `save_checkpoint` wrote.

    Raises:
        AutosegError: missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except FileNotFoundError as error:
        raise AutosegError(f"{path} is missing") from error
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise AutosegError(
            f"{path} is damaged ({error}); delete it, or copy it anew from where it came"
        ) from error


def load_weights(network: nn.Module, tensors: Tensors, path: Path) -> None:
    """Put weights into a network of exactly this shape."""
    try:
        network.load_state_dict(tensors)
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
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            entries.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(
        {"state": entries, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors under `prefix.NAME`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """Those tensors that `with_prefix` named, under their own names."""
    start = f"{prefix}."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
