"""Two processes with half of every batch each, against one with the whole of it."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from autoseg.common.errors import AutosegError
from autoseg.models.checkpoint import Tensors, with_prefix, without_prefix
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan
from autoseg.preprocessing.steps import IGNORED
from autoseg.training.distributed import ALONE, Group, SharedBatchNorm, joined, share_batch_norm
from autoseg.training.learner import Learner
from tests.making import REGIONS, tiny_plan
from tests.training.sharing import in_two_processes

CPU = torch.device("cpu")
PLAIN = {"optimizer": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    "batch": {"norm": "batch", "loss": {"loss": "dice_cross_entropy", "batch_dice": True}},
    "instance": {"norm": "instance", "loss": {"loss": "dice_cross_entropy"}},
    "tversky": {"norm": "batch", "loss": {"loss": "tversky_cross_entropy"}},
    "regions": {"norm": "batch", "loss": {"loss": "dice_cross_entropy", "batch_dice": True}},
}


def plan_of(recipe: str) -> Plan:
    network = {"norm": RECIPES[recipe]["norm"], "deep_supervision": True}
    training = {"optimizer": PLAIN, "loss": RECIPES[recipe]["loss"], "gradient_clip": None}
    labels = REGIONS if recipe == "regions" else {}
    size = {"sampling": {"batch_size": 4}}
    return tiny_plan(network=network, training=training | {"average_decay": 0.5}, **size, **labels)


def batch(places: range, seed: int) -> dict[str, Any]:
    """Four samples that differ in size of classes and number of unknown voxels, or some of them."""
    rng = np.random.default_rng(seed)
    label = (rng.random((4, 8, 8, 8)) * np.array([1, 2, 3, 3])[:, None, None, None]).astype(
        np.int16
    )
    image = label[:, None] + rng.normal(0, 0.5, (4, 1, 8, 8, 8))
    label[0, :5] = IGNORED
    rows = list(places)
    return {"data": image[rows].astype(np.float32), "label": label[rows]}


def learn(group: Group) -> Tensors:
    """Loss, Dice, gradients and state of each recipe after two steps."""
    found: Tensors = {}
    for recipe in RECIPES:
        learner = Learner(plan_of(recipe), CPU, group)
        for seed in (0, 1):
            loss, dice = learner.step(batch(group.places(4), seed), 0.1)
        with torch.no_grad():
            brought = {"loss": group.mean(loss), "dice": group.mean(dice)}
        for name, parameter in learner.network.named_parameters():
            assert parameter.grad is not None
            brought[f"gradient.{name}"] = parameter.grad
        found |= with_prefix(recipe, brought | learner.tensors())
    return found


def exchange(group: Group) -> Tensors:
    """The small things that processes tell each other."""
    mine = torch.tensor([1.0 + group.rank, 10.0], requires_grad=True)
    (group.sum(mine) ** 2).sum().backward()
    assert mine.grad is not None
    text = group.shared("Grüße" if group.leads else "not this")
    group.wait()
    return {
        "sum": group.sum(mine).detach(),
        "gradient": mine.grad,
        "mean": group.mean(mine.detach()),
        "largest": torch.tensor(group.largest(7 * group.rank)),
        "text": torch.tensor(list(text.encode())),
    }


def resume(group: Group) -> Tensors:
    """The state after four steps, and after two that are saved and two of another learner."""
    plan = plan_of("batch")
    whole, first, second = (Learner(plan, CPU, group) for _ in range(3))
    for seed in range(4):
        whole.step(batch(group.places(4), seed), 0.1)
    for seed in range(4):
        if seed == 2:
            second.load_tensors(first.tensors())
        (first if seed < 2 else second).step(batch(group.places(4), seed), 0.1)
    return with_prefix("whole", whole.tensors()) | with_prefix("resumed", second.tensors())


def both(group: Group) -> Tensors:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = with_prefix("learn", learn(group)) | with_prefix("resume", resume(group))
        return found | with_prefix("exchange", exchange(group))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Tensors]:
    return in_two_processes(both, tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_learn_what_one_does(pair: list[Tensors], recipe: str) -> None:
    alone = without_prefix(recipe, learn(ALONE))
    first, second = (without_prefix(f"learn.{recipe}", each) for each in pair)
    assert first.keys() == second.keys() == alone.keys()
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        if not (recipe == "regions" and name == "dice"):  # its background is a mean of samples
            torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_two_processes_resume_to_the_bit(pair: list[Tensors]) -> None:
    for each in pair:
        whole, resumed = (without_prefix(f"resume.{name}", each) for name in ("whole", "resumed"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_what_processes_tell_each_other(pair: list[Tensors]) -> None:
    for each in pair:
        found = without_prefix("exchange", each)
        assert found["sum"].tolist() == [3.0, 20.0]
        assert found["gradient"].tolist() == [12.0, 80.0]  # both processes' 2 x sum
        assert found["mean"].tolist() == [1.5, 10.0]
        assert found["largest"] == 7
        assert bytes(found["text"].tolist()).decode() == "Grüße"


def test_a_process_alone_needs_nobody() -> None:
    tensor = torch.ones(2)
    assert ALONE.sum(tensor) is tensor
    assert ALONE.mean(tensor) is tensor
    assert ALONE.shared("é") == "é"
    assert ALONE.leads
    assert not ALONE.is_shared
    ALONE.wait()


@pytest.mark.parametrize(
    ("size", "batch_size", "shares"),
    [(1, 3, [[0, 1, 2]]), (2, 4, [[0, 1], [2, 3]]), (3, 3, [[0], [1], [2]])],
)
def test_a_batch_is_shared_in_order(size: int, batch_size: int, shares: list[list[int]]) -> None:
    found = [list(Group(rank, size).places(batch_size)) for rank in range(size)]
    assert found == shares


@pytest.mark.parametrize(("size", "batch_size"), [(2, 3), (4, 2)])
def test_a_batch_that_cannot_be_shared(size: int, batch_size: int) -> None:
    with pytest.raises(AutosegError, match=f"batch_size={batch_size} .* {size} processes"):
        Group(0, size).places(batch_size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_normalisation_of_one_process_is_batch_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    reference = nn.BatchNorm3d(3, momentum=0.2)
    nn.init.normal_(reference.weight)
    shared = SharedBatchNorm(reference, ALONE)
    for training in (True, True, False):
        reference.train(training)
        shared.train(training)
        x = torch.randn(2, 3, 4, 5, 6).mul(3).add(7).to(dtype)
        one, other = (x.clone().requires_grad_() for _ in range(2))
        expected, found = reference(one), shared(other)
        assert found.dtype == expected.dtype == dtype
        close: dict[str, Any] = (
            {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        )
        torch.testing.assert_close(found, expected, **close)
        weight = torch.randn_like(expected)
        (expected * weight).sum().backward()
        (found * weight).sum().backward()
        torch.testing.assert_close(other.grad, one.grad, **close)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_on_cuda_torch_shares_the_normalisation() -> None:
    network = build_network(plan_of("batch"))
    names = list(network.state_dict())
    share_batch_norm(network, Group(0, 2), torch.device("cuda"))
    norms = [
        each for each in network.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)
    ]
    assert norms
    assert all(isinstance(each, nn.SyncBatchNorm) for each in norms)
    assert list(network.state_dict()) == names


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):  # as a cluster may set them
        monkeypatch.setenv(name, "4")
    assert "TORCHELASTIC_RUN_ID" not in os.environ
    with joined("cpu") as (group, device):
        assert group == ALONE
        assert device == CPU


def test_where_processes_share_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(AutosegError, match="cuda:1"), joined(None):
        pass
    with (
        pytest.raises(AutosegError, match="--device cuda:0: torchrun"),
        joined("cuda:0"),
    ):
        pass
