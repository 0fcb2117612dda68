from typing import Any

import pytest
import torch

from autoseg.networks.unet import build_network
from autoseg.planner.overrides import find_reference
from autoseg.planner.patch_rule import parameter_count, training_memory
from tests.making import CASCADE, REGIONS, count_parameters, tiny_plan

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
