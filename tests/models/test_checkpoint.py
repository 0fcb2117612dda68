import math

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from autoseg.common.errors import AutosegError
from autoseg.models import checkpoint
from autoseg.models.checkpoint import (
    load_checkpoint,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from autoseg.networks.unet import build_network
from autoseg.training.learner import build_optimizer
from tests.making import tiny_plan

OPTIMIZERS = [
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "sgd", "momentum": 0.0, "nesterov": False},
    {"optimizer": "adam"},
    {"optimizer": "adam", "decoupled": True, "weight_decay": 0.1},
]


def network_and_optimizer(spec, seed=0):
    torch.manual_seed(seed)
    plan = tiny_plan(training={"optimizer": spec})
    network = build_network(plan)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network, build_optimizer(plan.training.optimizer, network)


def step(network, optimizer, seed):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    network.train()(torch.randn(2, 1, 8, 8, 8))[0].square().mean().backward()
    optimizer.step()


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_tensors_and_state_come_back_to_the_bit(tmp_path):
    tensors = {
        "float": torch.tensor([1.0, -0.0, 1e-45, math.inf]),
        "half": torch.randn(3).bfloat16(),
        "count": torch.tensor(3),
        "empty": torch.zeros(0, 2),
        "strided": torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d),
        "slice": torch.arange(10)[::3],
        "with gradient": torch.randn(2, requires_grad=True),
    }
    state = {"epoch": 3, "loss": 0.1 + 0.2, "name": "é", "list": [1, None, {"a": True}]}
    path = tmp_path / "a folder é" / "latest.safetensors"
    save_checkpoint(path, tensors, state)
    found, found_state = load_checkpoint(path)
    assert_equal(found, tensors)
    assert found_state == state


@pytest.mark.parametrize("spec", OPTIMIZERS)
def test_an_optimizer_continues_to_the_bit(spec, tmp_path):
    network, optimizer = network_and_optimizer(spec)
    for seed in range(3):
        step(network, optimizer, seed)
    path = tmp_path / "latest.safetensors"
    save_checkpoint(path, network.state_dict() | optimizer_tensors(optimizer), {})

    other, other_optimizer = network_and_optimizer(spec, seed=1)
    tensors, _ = load_checkpoint(path)
    load_weights(other, {k: v for k, v in tensors.items() if "optimizer." not in k}, path)
    load_optimizer(other_optimizer, tensors)
    assert_equal(optimizer_tensors(other_optimizer), optimizer_tensors(optimizer))
    for seed in range(3, 6):
        step(network, optimizer, seed)
        step(other, other_optimizer, seed)
    assert_equal(other.state_dict(), network.state_dict())
    assert_equal(optimizer_tensors(other_optimizer), optimizer_tensors(optimizer))


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_damaged(tmp_path, share):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"a": torch.randn(100)}, {"epoch": 1})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(AutosegError, match=r"a\.safetensors is damaged .*; delete it"):
        load_checkpoint(path)


def test_other_files_are_damaged_or_missing(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(AutosegError, match="is missing"):
        load_checkpoint(path)
    path.write_text("not a checkpoint at all")
    with pytest.raises(AutosegError, match="is damaged"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(2)}, path)  # without a state
    with pytest.raises(AutosegError, match="is damaged"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(2)}, path, {"state": '{"half'})
    with pytest.raises(AutosegError, match="is damaged"):
        load_checkpoint(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(AutosegError, match="is damaged"):
        load_checkpoint(tmp_path / "folder")


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_failure_while_writing_leaves_the_old_file(tmp_path, monkeypatch, kind):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"a": torch.ones(3)}, {"epoch": 1})

    def half(tensors, target, metadata):
        target.write_bytes(b"half")
        raise kind(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", half)
        with pytest.raises(AutosegError, match="No space left"):
            save_checkpoint(path, {"a": torch.zeros(3)}, {"epoch": 2})
    found, state = load_checkpoint(path)
    assert torch.equal(found["a"], torch.ones(3))
    assert state == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_json_lacks_is_refused_before_anything_is_lost(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {}, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(path, {}, {"loss": math.nan})
    assert load_checkpoint(path)[1] == {"loss": 1.0}


def test_weights_of_another_network_are_refused(tmp_path):
    network = build_network(tiny_plan())
    other = build_network(tiny_plan(network={"features": [3, 4]}))
    with pytest.raises(AutosegError, match=r"does not fit the plan: .*size mismatch"):
        load_weights(network, other.state_dict(), tmp_path / "a")


def test_prefixes():
    tensors = {"a.b": torch.ones(1), "c": torch.zeros(1)}
    both = with_prefix("net", tensors) | with_prefix("network", {"d": torch.ones(2)})
    assert set(both) == {"net.a.b", "net.c", "network.d"}
    assert_equal(without_prefix("net", both), tensors)
