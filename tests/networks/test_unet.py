"""The U-Net: plans, shapes, number of parameters, its convolution, and the masks of a cascade."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoseg.networks.unet import Convolution, InstanceNorm, build_network, with_masks
from autoseg.planner.overrides import find_reference
from autoseg.planner.patch_rule import parameter_count, training_memory
from tests.making import CASCADE, REGIONS, count_parameters, tiny_plan


def network_of(channels=1, **network):
    torch.manual_seed(0)
    names = [f"channel {number}" for number in range(channels)]
    return build_network(tiny_plan(channels=names, network=network))


def three_stages(**others):
    stages = {
        "features": [2, 3, 4],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "kernels": [[3, 3, 3]] * 3,
        "blocks_encoder": [1, 2, 1],
        "blocks_decoder": [2, 1],
    }
    return stages | others


def image(channels=1, shape=(8, 8, 8), batch=2):
    torch.manual_seed(1)
    return torch.randn(batch, channels, *shape)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"residual": True},
    "max pool": {"down": "max_pool"},
    "residual max pool": {"residual": True, "down": "max_pool"},
    "batch norm": {"norm": "batch"},
    "activation first": {"norm": "batch", "activation_first": True, "activation": "relu"},
    "residual activation first": {"residual": True, "activation_first": True},
    "no bias": {"convolution_bias": False},
    "glorot": {"initialisation": "glorot"},
    "no deep supervision": {"deep_supervision": False},
    "flat kernels": {"kernels": [[3, 3, 1], [3, 3, 1], [3, 3, 3]]},
    "anisotropic": {"strides": [[1, 1, 1], [2, 2, 1], [2, 1, 2]]},
    "anisotropic residual": {"strides": [[1, 1, 1], [2, 2, 1], [1, 1, 1]], "residual": True},
    "anisotropic max pool": {"strides": [[1, 1, 1], [2, 2, 1], [2, 1, 2]], "down": "max_pool"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_variant_has_an_output_per_class_and_gradients_everywhere(variant, channels):
    network = network_of(channels, **three_stages(**VARIANTS[variant]))
    network.train()
    outputs = network(image(channels))
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    assert outputs[0].shape == (2, 3, 8, 8, 8)
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    # A bias before a normalisation has no effect; everything else has.
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(g is not None and g.any() for n, g in gradients.items() if n.endswith("weight"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_gives_one_tensor(variant):
    network = network_of(**three_stages(**VARIANTS[variant])).eval()
    with torch.no_grad():
        output = network(image(batch=1))
    assert isinstance(output, torch.Tensor)
    assert output.shape == (1, 3, 8, 8, 8)


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_deep_supervision_leaves_out_the_two_coarsest_stages(stages):
    network = network_of(
        features=[2] * stages,
        strides=[[1, 1, 1]] + [[2, 2, 1]] * (stages - 1),
        kernels=[[3, 3, 3]] * stages,
        blocks_encoder=[1] * stages,
        blocks_decoder=[1] * (stages - 1),
    )
    outputs = network.train()(image())
    shapes = [tuple(output.shape[2:]) for output in outputs]
    assert shapes == [(8 >> s, 8 >> s, 8) for s in range(max(1, stages - 2))]


def test_supervised_outputs_begin_with_what_evaluation_gives():
    network = network_of(**three_stages(norm="instance")).train()
    outputs = network(image())
    assert isinstance(outputs, list)
    assert torch.allclose(network.eval()(image()), outputs[0], atol=1e-6)


def test_coarser_heads_see_coarser_stages():
    network = network_of(
        features=[2, 3, 4, 5],
        strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 1, 1]],
        kernels=[[3, 3, 3]] * 4,
        blocks_encoder=[1] * 4,
        blocks_decoder=[1] * 3,
    )
    assert [head.in_channels for head in network.heads] == [2, 3]


def test_order_of_normalisation_and_activation():
    usual = network_of(norm="batch").encoder[0][0]
    assert [type(layer) for layer in usual] == [Convolution, nn.BatchNorm3d, nn.LeakyReLU]
    keras = network_of(norm="batch", activation_first=True, activation="relu").encoder[0][0]
    assert [type(layer) for layer in keras] == [Convolution, nn.ReLU, nn.BatchNorm3d]


def test_normalisation_takes_the_numbers_of_the_plan():
    network = network_of(norm="batch", norm_momentum=0.01, norm_epsilon=1e-3)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm3d)]
    assert len(norms) == 3
    assert {(norm.momentum, norm.eps, norm.affine) for norm in norms} == {(0.01, 1e-3, True)}
    running = network.state_dict()["encoder.0.0.1.running_mean"].clone()
    network.train()(image())
    first = network.encoder[0][0][0](image())
    expected = 0.99 * running + 0.01 * first.mean((0, 2, 3, 4))
    found = network.state_dict()["encoder.0.0.1.running_mean"]
    assert torch.allclose(found, expected, atol=1e-6)
    instance = network_of(norm_epsilon=1e-3).encoder[0][0][1]
    assert isinstance(instance, nn.InstanceNorm3d)
    assert (instance.eps, instance.affine, instance.track_running_stats) == (1e-3, True, False)


def test_first_weights_follow_the_plan():
    sizes = {"features": [16, 32]}
    he = network_of(**sizes, initialisation="he").encoder[1][0][0].weight
    fan_in = 16 * 27
    assert he.std().item() == pytest.approx((2 / (1 + 0.01**2) / fan_in) ** 0.5, rel=0.05)
    glorot = network_of(**sizes, initialisation="glorot").encoder[1][0][0].weight
    limit = (6 / (16 * 27 + 32 * 27)) ** 0.5
    assert glorot.abs().max().item() == pytest.approx(limit, rel=0.01)
    assert glorot.abs().max() <= limit
    for kind in ("he", "glorot"):
        network = network_of(initialisation=kind)
        biases = [m.bias for m in network.modules() if isinstance(m, nn.Conv3d)]
        assert all(bias is not None and not bias.any() for bias in biases)


def test_bias_follows_the_plan():
    convolutions = network_of(convolution_bias=False).encoder[0][0]
    assert convolutions[0].bias is None
    assert network_of().encoder[0][0][0].bias is not None


def test_residual_short_cut_by_hand():
    block = network_of(**three_stages(residual=True)).encoder[1][0].eval()
    x = torch.randn(1, 2, 4, 4, 4)
    pooled = nn.functional.avg_pool3d(x, 2)
    short = block.shortcut[2](nn.functional.conv3d(pooled, block.shortcut[1].weight))
    expected = nn.functional.leaky_relu(block.second(block.first(x)) + short, 0.01)
    assert torch.allclose(block(x), expected, atol=1e-6)


def test_a_flat_patch_passes():
    flat = three_stages(
        strides=[[1, 1, 1], [2, 2, 1], [2, 2, 1]], kernels=[[3, 3, 1]] * 3, norm="batch"
    )
    outputs = network_of(**flat).train()(image(shape=(8, 12, 1)))
    assert outputs[0].shape == (2, 3, 8, 12, 1)


def test_a_voxel_reaches_only_its_sample_in_the_batch():
    network = network_of(**three_stages()).eval()
    both = image()
    changed = both.clone()
    changed[1] += 1
    assert torch.equal(network(both)[0], network(changed)[0])


CLASSES = {"background": [0], "left": [1], "right": [2], "infection": [3]}


def paper_plan():
    reference = find_reference("Task001_COVID")
    assert reference is not None
    (layer,) = reference.layers
    return tiny_plan(labels=CLASSES, **layer.values)


def test_the_papers_network_has_its_number_of_parameters():
    plan = paper_plan()
    assert (len(plan.channels), len(plan.labels)) == (1, 4)
    with torch.device("meta"):  # counts without memory
        assert count_parameters(build_network(plan)) == 22_581_316


def test_counts_only_what_training_adjusts():
    network = build_network(tiny_plan(network={"norm": "batch"}))
    by_hand = 0
    by_hand += (27 * 1 * 2 + 2) + 2 * 2  # convolution with bias, normalisation
    by_hand += (27 * 2 * 4 + 4) + 2 * 4
    by_hand += 8 * 4 * 2 + 2  # transposed convolution
    by_hand += (27 * 4 * 2 + 2) + 2 * 2
    by_hand += 2 * 3 + 3  # head
    assert count_parameters(network) == by_hand
    network.heads.requires_grad_(False)
    assert count_parameters(network) == by_hand - 9


def test_one_input_per_channel_and_one_output_per_class():
    network = build_network(tiny_plan(channels=["CT", "PET"], labels=CLASSES))
    weights = network.state_dict()
    assert weights["encoder.0.0.0.weight"].shape == (2, 2, 3, 3, 3)
    assert weights["heads.0.weight"].shape == (4, 2, 1, 1, 1)


@pytest.mark.parametrize(
    ("changes", "inputs", "outputs"),
    [({}, 1, 3), (CASCADE, 3, 3), (REGIONS, 1, 3), (REGIONS | CASCADE, 4, 3)],
)
def test_regions_and_cascades(changes: dict[str, Any], inputs: int, outputs: int) -> None:
    plan = tiny_plan(**changes)
    network = build_network(plan).eval()
    assert network(torch.zeros(1, inputs, 8, 8, 8)).shape == (1, outputs, 8, 8, 8)
    assert count_parameters(network) == parameter_count(plan.network, inputs, outputs)
    kept = training_memory(plan)
    assert kept.gradients == 4 * count_parameters(network)


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


def test_every_part_becomes_a_channel_after_the_images() -> None:
    image = torch.randn(2, 2, 3, 4, 5)
    numbers = torch.randint(0, 4, (2, 3, 4, 5), dtype=torch.int16)
    made = with_masks(image, numbers, 3)
    assert made.shape == (2, 5, 3, 4, 5)
    assert made.dtype == image.dtype
    assert torch.equal(made[:, :2], image)
    for part in (1, 2, 3):
        assert torch.equal(made[:, 1 + part], (numbers == part).float())


def test_numbers_may_be_floats_as_they_are_in_a_patch_of_a_scan() -> None:
    numbers = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1)
    made = with_masks(torch.zeros(1, 1, 3, 1, 1), numbers, 2)
    assert made[0, 1:, :, 0, 0].tolist() == [[0, 1, 0], [0, 0, 1]]


def test_a_part_that_is_nowhere_has_an_empty_mask() -> None:
    made = with_masks(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2), 4)
    assert made.shape[1] == 5
    assert not made.any()


def test_instance_normalisation_equals_torch_and_keeps_channels_last() -> None:
    layer = InstanceNorm(5, 1e-4, affine=True)
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    plain = nn.InstanceNorm3d(5, 1e-4, affine=True)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(3, 5, 4, 6, 7).to(memory_format=torch.channels_last_3d)
    assert layer(x).is_contiguous(memory_format=torch.channels_last_3d)
    for one, other in zip(
        gradients(layer, x, torch.float32), gradients(plain, x, torch.float32), strict=True
    ):
        torch.testing.assert_close(one, other)
    assert torch.equal(layer.eval()(x), plain.eval()(x))
