from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from autoseg.networks.unet import Convolution

SIZES = [*itertools.product((2, 3, 4), repeat=3), (2, 2, 1), (1, 1, 1)]


def gradients(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and gradients of input and weights, for the same fixed gradient of the output."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        y = layer(x)
    if dtype is not torch.float32:
        assert y.dtype is dtype
    y.backward(torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype))
    weights = next(layer.parameters()).grad
    assert x.grad is not None
    assert weights is not None
    return y.detach(), x.grad, weights


def soil_memory() -> None:
    """Leave numbers in the memory that is given out next."""
    for size in (8, 12, 16, 18, 20):
        del [torch.full((1 << size,), 1e3) for _ in range(3)][:]


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_is_float32_rounded(size: tuple[int, int, int]) -> None:
    """Twice the same, and near float32; torch's own fails where the first axis has two voxels."""
    torch.manual_seed(0)
    layer = Convolution(8, 16, 3, padding=1)
    layer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    x = torch.randn(2, 8, *size).to(memory_format=torch.channels_last_3d)
    expected = gradients(layer, x, torch.float32)
    first = gradients(layer, x, torch.bfloat16)
    soil_memory()
    for name, once, again, right in zip(
        ("output", "input", "weights"), first, gradients(layer, x, torch.bfloat16), expected,
        strict=True,
    ):  # fmt: skip
        assert torch.equal(once, again), name
        assert torch.linalg.vector_norm(once.float() - right) < 0.02 * torch.linalg.vector_norm(
            right
        ), name


def test_float32_is_torchs_own() -> None:
    torch.manual_seed(0)
    own = Convolution(3, 4, 3, padding=1)
    plain = nn.Conv3d(3, 4, 3, padding=1)
    plain.load_state_dict(own.state_dict())
    x = torch.randn(1, 3, 2, 2, 2)
    for one, other in zip(
        gradients(own, x, torch.float32), gradients(plain, x, torch.float32), strict=True
    ):
        assert torch.equal(one, other)
