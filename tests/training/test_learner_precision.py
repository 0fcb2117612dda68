"""Half precision with a scaled loss, and compiled networks, in the learner."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.folder import FINAL
from autoseg.training import learner as module
from autoseg.training.learner import Learner, is_to_compile
from tests.making import tiny_plan
from tests.training.making import start, store_of, training_plan, without_pictures
from tests.training.test_learner import batch

CPU = torch.device("cpu")
PLAIN = {"optimizer": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}


def learner(**training: Any) -> Learner:
    return Learner(tiny_plan(training=training, network={"norm": "batch"}), CPU)


@pytest.fixture
def _float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU stand for a graphics card: it computes in float16 as well, but slowly."""
    monkeypatch.setattr(module, "autocast_type", lambda device, precision: torch.float16)


@pytest.mark.usefixtures("_float16")
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_scaled_loss_gives_the_plain_gradients(clip: float | None) -> None:
    half = learner(optimizer=PLAIN, gradient_clip=clip)
    assert half.scaler.is_enabled()
    half.scaler.load_state_dict(half.scaler.state_dict() | {"scale": 128.0})
    plain = learner(optimizer=PLAIN, gradient_clip=clip)
    plain.dtype = torch.float32
    plain.scaler = torch.amp.GradScaler("cpu", enabled=False)
    for pupil in (half, plain):
        pupil.step(batch(), 0.1)
    for name, tensor in plain.network.state_dict().items():
        found = half.network.state_dict()[name]
        torch.testing.assert_close(found, tensor, rtol=2e-2, atol=2e-3, msg=name)


@pytest.mark.usefixtures("_float16")
def test_a_step_that_overflows_is_left_out_and_the_scale_halved() -> None:
    pupil = learner(optimizer=PLAIN)
    before = {n: p.clone() for n, p in pupil.network.named_parameters()}
    pupil.scaler.load_state_dict(pupil.scaler.state_dict() | {"scale": 1e30})
    loss, _ = pupil.step(batch(), 0.1)
    assert math.isfinite(loss)
    assert all(torch.equal(p, before[n]) for n, p in pupil.network.named_parameters())
    assert pupil.scaler.get_scale() == pytest.approx(5e29)


@pytest.mark.usefixtures("_float16")
def test_the_scale_is_part_of_a_checkpoint() -> None:
    one, other = learner(), learner(seed=1)
    one.scaler.load_state_dict(one.scaler.state_dict() | {"scale": 64.0, "growth_interval": 3})
    for seed in range(2):
        one.step(batch(seed), 1e-2)
    other.load_tensors({name: tensor.clone() for name, tensor in one.tensors().items()})
    other.scaler.set_growth_interval(3)
    for seed in range(2, 5):
        assert torch.equal(one.step(batch(seed), 1e-2)[0], other.step(batch(seed), 1e-2)[0])
    assert one.scaler.get_scale() == other.scaler.get_scale() == 128.0  # grown after 3 steps


def test_other_precisions_have_no_scale() -> None:
    assert not [name for name in learner(precision="float32").tensors() if "scale" in name]


def test_float16_on_a_cpu_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_pictures(monkeypatch)
    plan = training_plan(epochs=1, precision="float16")
    start(plan, store_of(tmp_path, plan), tmp_path / "run")
    said = capsys.readouterr().err
    assert "float16 is supported on CUDA only" in said


def test_a_compiled_network_learns_the_same_and_keeps_its_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All of torch.compile but its C++ compiler, which takes half a minute.
    quick = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", quick)
    plain, compiled = (learner(precision="float32", compile=wish) for wish in (False, True))
    for seed in range(2):
        losses = [pupil.step(batch(seed), 1e-2)[0] for pupil in (plain, compiled)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    found, expected = compiled.tensors(), plain.tensors()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    compiled.load_tensors(expected)
    assert torch.equal(compiled.validate(batch(9))[0], plain.validate(batch(9))[0])


def test_a_failed_compilation_is_said_once_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "fx_graph_cache", False)
    without_pictures(monkeypatch)
    plans = [training_plan(epochs=1, compile=wish) for wish in (True, False)]
    for plan, name in zip(plans, ("compiled", "plain"), strict=True):
        start(plan, store_of(tmp_path, plan), tmp_path / name)
    said = capsys.readouterr().err
    assert said.count("torch.compile failed") == 1
    (tensors, about), (expected, other) = (
        load_checkpoint(tmp_path / name / FINAL) for name in ("compiled", "plain")
    )
    assert all(torch.equal(tensors[key], tensor) for key, tensor in expected.items())
    assert "no-such-compiler" in about["not_compiled"]
    assert "not_compiled" not in other


@pytest.mark.parametrize(
    ("device", "training", "expected"),
    [
        ("cuda", {"epochs": 1000, "steps_per_epoch": 250}, True),
        ("cpu", {"epochs": 1000, "steps_per_epoch": 250}, False),
        ("cuda", {"epochs": 10, "steps_per_epoch": 250}, False),  # over before it has gained
        ("cuda", {"epochs": 1000, "steps_per_epoch": 250, "seconds": 600.0}, False),
        ("cuda", {"epochs": 1000, "steps_per_epoch": 250, "compile": False}, False),
        ("cpu", {"epochs": 1, "compile": True}, True),
    ],
)
def test_long_runs_on_cuda_are_compiled(
    device: str, training: dict[str, Any], expected: bool
) -> None:
    plan = tiny_plan(training=training)
    assert is_to_compile(plan.training, torch.device(device)) is expected
