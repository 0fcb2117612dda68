from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.networks.unet import UNet, build_network
from autoseg.plan.plan import Plan
from autoseg.prediction import backends
from autoseg.prediction.backends import to_openvino
from tests.making import tiny_plan

pytestmark = pytest.mark.skipif(
    not backends.is_installed(), reason="OpenVINO is not installed (extra cpu)"
)

SWITCHES = st.fixed_dictionaries(
    {
        "residual": st.booleans(),
        "down": st.sampled_from(["strided", "max_pool"]),
        "norm": st.sampled_from(["batch", "instance"]),
        "norm_epsilon": st.sampled_from([1e-5, 1e-3]),
        "activation": st.sampled_from(["relu", "leaky_relu"]),
        "activation_first": st.booleans(),
        "convolution_bias": st.booleans(),
        "deep_supervision": st.booleans(),
    }
)
FLAT: dict[str, Any] = {
    "features": [2, 4, 4],
    "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]],
    "kernels": [[3, 3, 1], [3, 3, 1], [3, 3, 3]],
    "blocks_encoder": [1, 2, 1],
    "blocks_decoder": [2, 1],
}
SLICES: dict[str, Any] = {
    "strides": [[1, 1, 1], [2, 2, 1]],
    "kernels": [[3, 3, 1], [3, 3, 1]],
}


def stirred(plan: Plan, seed: int) -> UNet:
    """A network none of whose parameters and statistics is 0 or 1."""
    torch.manual_seed(seed)
    network = build_network(plan).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, statistic in network.named_buffers():
            if "running" in name:
                statistic.copy_(torch.rand_like(statistic) + 0.5)
    return network


def check(plan: Plan, seed: int = 0) -> None:
    """OpenVINO's float32 is torch's float64 but for rounding, at any batch."""
    network, patch = stirred(plan, seed), plan.sampling.patch_size
    run = backends.OpenVinoNetwork(network, patch, torch.float32, frees=False)
    exact = stirred(plan, seed).double()
    for batch in (1, 3):
        patches = torch.randn(batch, plan.input_channels, *patch)
        expected = exact(patches.double())
        got = run(patches)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


@settings(max_examples=12, deadline=None)
@given(SWITCHES, st.integers(0, 2**31))
def test_every_network_of_a_plan_gives_what_torch_gives(network: dict[str, Any], seed: int) -> None:
    check(tiny_plan(network=network), seed)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("down", ["strided", "max_pool"])
def test_axes_may_be_treated_differently(residual: bool, down: str) -> None:
    network = FLAT | {"residual": residual, "down": down}
    check(tiny_plan(sampling={"patch_size": [8, 12, 6]}, network=network))


def test_slices_and_several_channels() -> None:
    overlap = {"overlap": [4, 4, 0]}
    sampling = {"patch_size": [12, 16, 1]}
    two = {"channels": ["CT", "MRI"], "configuration": "2d"}
    check(tiny_plan(sampling=sampling, network=SLICES, inference=overlap, **two))


def test_input_and_output_have_names() -> None:
    network = build_network(tiny_plan()).eval()
    graph = to_openvino(backends.openvino(), network, (8, 8, 8))
    assert graph.input("patches").get_partial_shape().to_string() == "[?,1,8,8,8]"
    assert graph.output("logits").get_partial_shape().to_string() == "[?,3,8,8,8]"
