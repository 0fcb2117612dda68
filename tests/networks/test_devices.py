from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from autoseg.common.errors import AutosegError
from autoseg.networks.devices import (
    autocast,
    autocast_type,
    describe,
    fast_convolutions,
    pick_device,
    place,
)
from autoseg.networks.unet import build_network
from tests.making import tiny_plan

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def machine(monkeypatch: pytest.MonkeyPatch, cards: int = 0, apple: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)


@pytest.mark.parametrize(
    ("has", "name", "expected"),
    [
        ({}, None, "cpu"),
        ({}, "cpu", "cpu"),
        ({"cards": 2}, None, "cuda:0"),
        ({"cards": 2}, "cuda", "cuda:0"),
        ({"cards": 2}, "cuda:1", "cuda:1"),
        ({"cards": 2}, "cpu", "cpu"),
        ({"apple": True}, None, "mps"),
        ({"apple": True}, "cpu", "cpu"),
    ],
)
def test_picks_the_named_device_or_the_best(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, Any], name: str | None, expected: str
) -> None:
    machine(monkeypatch, **has)
    assert pick_device(name) == torch.device(expected)


@pytest.mark.parametrize(
    ("has", "name", "available"),
    [
        ({}, "cuda", "cpu"),
        ({}, "mps", "cpu"),
        ({}, "gpu", "cpu"),
        ({"cards": 1}, "cuda:1", "cuda:0, cpu"),
        ({"apple": True}, "cuda", "mps, cpu"),
    ],
)
def test_a_missing_device_is_an_error_that_lists_the_available_ones(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, Any], name: str, available: str
) -> None:
    machine(monkeypatch, **has)
    with pytest.raises(AutosegError, match=f"--device {name}.* {available}$"):
        pick_device(name)


@pytest.mark.parametrize(
    ("has_bfloat16", "has_tiles", "precision", "expected"),
    [
        (False, False, "auto", torch.float32),
        (True, False, "auto", torch.bfloat16),
        (False, True, "auto", torch.bfloat16),
        (True, True, "float32", torch.float32),
        (False, False, "bfloat16", torch.bfloat16),
        (True, False, "float16", torch.bfloat16),  # float16 is supported on CUDA only
        (False, False, "float16", torch.float32),
    ],
)
def test_precision_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
    has_bfloat16: bool,
    has_tiles: bool,
    precision: str,
    expected: torch.dtype,
) -> None:
    cpu: Any = torch.cpu
    monkeypatch.setattr(cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16, raising=False)
    monkeypatch.setattr(cpu, "_is_amx_tile_supported", lambda: has_tiles, raising=False)
    assert autocast_type(CPU, precision) is expected


def test_a_torch_that_cannot_tell_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu: Any = torch.cpu
    monkeypatch.delattr(cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(cpu, "_is_amx_tile_supported", raising=False)
    assert autocast_type(CPU, "auto") is torch.float32


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_precision_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert autocast_type(CUDA, "auto") is expected
    assert autocast_type(CUDA, "float32") is torch.float32
    assert autocast_type(CUDA, "float16") is torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_lasts_for_its_block_and_warns_of_nothing(dtype: torch.dtype) -> None:
    layer, values = torch.nn.Linear(3, 2), torch.ones(1, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with autocast(CPU, dtype):
            assert layer(values).dtype is dtype
    assert layer(values).dtype is torch.float32


def test_convolutions_are_timed_within_the_block_and_on_cuda_only() -> None:
    before = torch.backends.cudnn.benchmark
    with fast_convolutions(CPU):
        assert torch.backends.cudnn.benchmark == before
    with fast_convolutions(CUDA):
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.parametrize(
    ("norm", "device", "layout", "in_place"),
    [
        ("batch", "cpu", torch.channels_last_3d, True),
        ("instance", "cpu", torch.channels_last_3d, True),
        ("batch", "meta", torch.contiguous_format, True),
    ],
)
def test_layout_of_volumes(
    norm: str, device: str, layout: torch.memory_format, in_place: bool
) -> None:
    network = build_network(tiny_plan(network={"norm": norm}))
    assert place(network, torch.device(device)) is layout
    assert {m.inplace for m in network.modules() if isinstance(m, nn.LeakyReLU)} == {in_place}


def test_describes_the_processor() -> None:
    assert f"{torch.get_num_threads()} threads, cpu" in describe(CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
def test_describes_the_graphics_card() -> None:
    assert describe(pick_device("cuda")) == torch.cuda.get_device_name(0)
