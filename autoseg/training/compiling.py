"""torch.compile, where a plan asks for it: what it compiles, and what is said when it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from autoseg.common.errors import RunError


def compiled(network: nn.Module) -> nn.Module:
    """A call of the network that the first step compiles; the network itself stays as it is."""
    module = torch.compile(network)
    assert isinstance(module, nn.Module)
    return module


@contextmanager
def failures_told() -> Iterator[None]:
    """Turn a failed compilation within the block into one line.

    Raises:
        RunError: torch could not compile.
    """
    try:
        yield
    except RuntimeError as error:
        compiler = sys.modules.get("torch._dynamo.exc")  # loaded by what compiles, and slowly
        if compiler is None or not isinstance(error, compiler.TorchDynamoException):
            raise
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"training.compile: torch could not compile the network ({reason}); plan with "
            "training.compile=false, or install what is missing, most often a C++ compiler"
        ) from error
