"""Transfer learning: finding weights, adapting layers, and runs that start from them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.common.errors import AutosegError
from autoseg.models.checkpoint import Tensors, load_checkpoint, save_checkpoint
from autoseg.models.folder import FINAL, LATEST
from autoseg.networks.unet import build_network
from autoseg.training import monitor
from autoseg.training.learner import Learner
from autoseg.training.transfer import (
    Pretrained,
    Transfer,
    adapt_channels,
    first_convolution,
    read_pretrained,
    start_from,
    transfer,
)
from tests.making import tiny_plan
from tests.training.making import start, store_of, training_plan, without_pictures

LUNGS = {"background": [0], "left lung": [1], "right lung": [2]}
CPU = torch.device("cpu")


def pretrained(plan, seed=1):
    torch.manual_seed(seed)
    return Pretrained(dict(build_network(plan).state_dict()), plan, {"sha256": "1"})


def moved(old: dict[str, Any], new: dict[str, Any]) -> tuple[Tensors, Tensors, Transfer]:
    """Old weights, new random weights, and the transfer between two tiny plans."""
    before = pretrained(tiny_plan(**old))
    plan = tiny_plan(**new)
    torch.manual_seed(2)
    network = build_network(plan)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    done = transfer(before, plan, network)
    network.load_state_dict(done.tensors)  # it fits
    return before.tensors, start, done


def test_the_same_network_is_loaded_completely():
    old, start, done = moved({"network": {"norm": "batch"}}, {"network": {"norm": "batch"}})
    assert all(torch.equal(done.tensors[name], old[name]) for name in start)
    assert done.loaded == tuple(start)
    assert (done.not_loaded, done.unused) == ({}, ())
    count = len(start)
    assert str(done) == f"{count} of {count} tensors loaded; head: all classes loaded"


def test_the_network_that_is_given_stays_as_it_is():
    plan = tiny_plan()
    network = build_network(plan)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    done = transfer(pretrained(plan), plan, network)
    assert all(torch.equal(tensor, before[n]) for n, tensor in network.state_dict().items())
    assert not torch.equal(done.tensors["heads.0.weight"], before["heads.0.weight"])


def test_classes_are_loaded_by_their_names():
    new = {"background": [0], "right lung": [1], "tumour": [2], "left lung": [3]}
    old, start, done = moved({"labels": LUNGS}, {"labels": new})
    for kind in ("weight", "bias"):
        name = f"heads.0.{kind}"
        head = done.tensors[name]
        for there, here in ((0, 0), (1, 3), (2, 1)):
            assert torch.equal(head[here], old[name][there])
        assert torch.equal(head[2], start[name][2])
    assert str(done).endswith("head: right lung, left lung loaded, tumour new")
    assert done.not_loaded == {}


def test_equally_many_classes_of_other_names_are_new():
    new = {"background": [0], "liver": [1], "spleen": [2]}
    old, start, done = moved({"labels": LUNGS}, {"labels": new})
    assert torch.equal(done.tensors["heads.0.weight"][0], old["heads.0.weight"][0])
    assert torch.equal(done.tensors["heads.0.weight"][1:], start["heads.0.weight"][1:])
    assert str(done).endswith("head: only background loaded, liver, spleen new")


def test_every_head_of_deep_supervision_is_adapted():
    network = {
        "features": [2, 3, 4, 5],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 1, 1]],
        "kernels": [[3, 3, 3]] * 4,
        "blocks_encoder": [1] * 4,
        "blocks_decoder": [1] * 3,
    }
    new = LUNGS | {"infection": [3]}
    old, _, done = moved({"labels": LUNGS, "network": network}, {"labels": new, "network": network})
    for head in ("heads.0", "heads.1"):
        assert torch.equal(done.tensors[f"{head}.weight"][:3], old[f"{head}.weight"])


def test_the_heads_of_regions_are_other_heads():
    regions = {"labels": LUNGS, "regions_class_order": [1, 2]}
    _, start, done = moved({"labels": LUNGS}, regions)
    assert torch.equal(done.tensors["heads.0.weight"], start["heads.0.weight"])
    assert done.not_loaded["heads.0.bias"] == "no class of the same name"
    assert "head: new; not loaded: heads.0.weight, heads.0.bias" in str(done)
    old, _, done = moved(regions, regions)
    assert torch.equal(done.tensors["heads.0.weight"], old["heads.0.weight"])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 4), (2, 1), (3, 2)])
def test_other_numbers_of_channels(residual, old, new):
    names = [f"channel {n}" for n in range(4)]
    network = {"residual": residual}
    before, start, done = moved(
        {"channels": names[:old], "network": network}, {"channels": names[:new], "network": network}
    )
    first = "stem.0.weight" if residual else "encoder.0.0.0.weight"
    mean = before[first].double().mean(1)
    for channel in range(new):
        expected = (mean * old / new).float()
        assert torch.allclose(done.tensors[first][:, channel], expected, atol=1e-7)
    assert done.loaded == tuple(start)
    channels = "channel" if new == 1 else "channels"
    assert f"first convolution adapted from {old} to {new} {channels};" in str(done)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_equal_images_in_all_channels_get_the_response_that_they_had(old, new, seed):
    torch.manual_seed(seed)
    weight, image = torch.randn(3, old, 3, 3, 3), torch.randn(1, 1, 5, 5, 5)
    names = [[f"{kind}{n}" for n in range(count)] for kind, count in (("o", old), ("n", new))]
    adapted = adapt_channels(weight, *names)
    conv = torch.nn.functional.conv3d
    before = conv(image.repeat(1, old, 1, 1, 1), weight)
    assert torch.allclose(conv(image.repeat(1, new, 1, 1, 1), adapted), before, atol=1e-4)


def test_channels_in_another_order_are_found_by_their_names():
    old, _, done = moved({"channels": ["T1", "T2"]}, {"channels": ["T2", "T1"]})
    first = "encoder.0.0.0.weight"
    assert torch.equal(done.tensors[first], old[first][:, [1, 0]])
    assert "channels reordered" in str(done)
    old, _, done = moved({"channels": ["T1", "T2"]}, {"channels": ["CT", "PET"]})
    assert torch.equal(done.tensors[first], old[first])


def test_the_masks_of_a_cascade_are_no_image_channels():
    cascade = {"configuration": "3d_cascade_fullres", "previous_stage": "low"}
    first = "encoder.0.0.0.weight"
    old, start, done = moved({"labels": LUNGS}, {"labels": LUNGS} | cascade)
    assert torch.equal(done.tensors[first][:, :1], old[first])
    assert torch.equal(done.tensors[first][:, 1:], start[first][:, 1:])
    old, _, done = moved({"labels": LUNGS} | cascade, {"labels": LUNGS} | cascade)
    assert torch.equal(done.tensors[first], old[first])


def test_a_layer_is_loaded_completely_or_not_at_all():
    old, start, done = moved({}, {"network": {"features": [2, 5]}})
    assert torch.equal(done.tensors["encoder.0.0.0.weight"], old["encoder.0.0.0.weight"])
    # The transposed convolution's bias has the old shape, but its weights have not.
    assert old["up.0.bias"].shape == start["up.0.bias"].shape
    assert {"up.0.weight", "up.0.bias"} <= done.not_loaded.keys()
    assert torch.equal(done.tensors["up.0.weight"], start["up.0.weight"])
    assert "up.0.weight is (4, 2, 2, 2, 2) in the pretrained model, (5, 2," in str(done.not_loaded)
    assert set(done.loaded) | done.not_loaded.keys() == set(start)
    assert "up.0.weight" in done.unused


def test_networks_that_have_nothing_in_common_are_refused():
    with pytest.raises(
        AutosegError, match=r"no convolution of .*\(2-4 feature maps\) fits .*3-6 f"
    ):
        moved({"network": {"norm": "batch"}}, {"network": {"norm": "batch", "features": [3, 6]}})


def test_the_first_convolution_of_a_network():
    for residual, name in ((False, "encoder.0.0.0.weight"), (True, "stem.0.weight")):
        network = build_network(tiny_plan(network={"residual": residual}))
        assert first_convolution(network) == name


@pytest.mark.parametrize("decay", [None, 0.9])
def test_a_learner_and_its_average_start_from_the_weights(tmp_path, decay, capsys):
    model(tmp_path / "old")
    file = tmp_path / "old" / "fold_0" / FINAL
    learner = Learner(tiny_plan(training={"average_decay": decay}), CPU)
    source = start_from(file, learner, tmp_path / "run")
    expected, _ = load_checkpoint(file)
    for found in (learner.weights(), dict(learner.network.state_dict())):
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pretrained on Task001_Tiny default, plan {source['plan_id']}: ")
    written = json.loads((tmp_path / "run" / "pretrained.json").read_text(encoding="utf-8"))
    assert written["sha256"] == source["sha256"]
    assert sorted(written["loaded"]) == sorted(expected)
    assert (written["not_loaded"], written["unused"]) == ({}, [])


def test_a_run_records_its_source_and_a_resumed_one_keeps_it(tmp_path, monkeypatch, capsys):
    without_pictures(monkeypatch)
    plan = training_plan(epochs=2, validation_steps=0)
    store = store_of(tmp_path, plan)
    model(tmp_path / "old", plan=training_plan())
    with monkeypatch.context() as patched:
        patched.setattr(monitor, "write_log", lambda *_: 1 / 0)  # dies after its first epoch
        with pytest.raises(ZeroDivisionError):
            start(plan, store, tmp_path / "run", pretrained=tmp_path / "old", save_seconds=0.0)
    capsys.readouterr()
    start(plan, store, tmp_path / "run", pretrained=tmp_path / "gone", resume=True)
    assert f"--pretrained {tmp_path / 'gone'} is ignored" in capsys.readouterr().err
    source = load_checkpoint(tmp_path / "run" / LATEST)[1]["pretrained"]
    assert source["plan_id"] == training_plan().id
    assert len(source["sha256"]) == 64
    assert load_checkpoint(tmp_path / "run" / FINAL)[1]["pretrained"] == source
    start(plan, store, tmp_path / "whole", pretrained=tmp_path / "old")
    start(plan, store, tmp_path / "random")
    weights = {n: load_checkpoint(tmp_path / n / FINAL)[0] for n in ("run", "whole", "random")}
    name = "heads.0.weight"
    assert torch.equal(weights["run"][name], weights["whole"][name])
    assert not torch.equal(weights["whole"][name], weights["random"][name])
    assert "pretrained" not in load_checkpoint(tmp_path / "random" / FINAL)[1]


def model(folder, folds=("0",), plan=None):
    """Random weights as a finished model."""
    plan = plan or tiny_plan()
    plan.save(folder / "plan.json")
    for number, fold in enumerate(folds):
        torch.manual_seed(number)
        about = {"plan_id": plan.id, "fold": number, "epoch": 1}
        save_checkpoint(
            folder / f"fold_{fold}" / FINAL, dict(build_network(plan).state_dict()), about
        )
    return plan


def assert_from(found, file):
    expected, _ = load_checkpoint(file)
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.source["sha256"] == digest


def test_a_model_a_fold_and_a_file_are_the_same(tmp_path):
    plan = model(tmp_path / "modèle")
    file = tmp_path / "modèle" / "fold_0" / FINAL
    for path in (tmp_path / "modèle", file.parent, file):
        found = read_pretrained(path)
        assert_from(found, file)
        assert found.plan == plan
        assert found.source | {"sha256": ""} == {
            "task": "Task001_Tiny",
            "plan": "default",
            "plan_id": plan.id,
            "sha256": "",
        }


def test_a_file_with_its_plan_in_the_same_folder(tmp_path):
    plan = model(tmp_path / "model")
    (tmp_path / "model" / "fold_0" / FINAL).rename(tmp_path / "model" / "lungs.safetensors")
    assert read_pretrained(tmp_path / "model" / "lungs.safetensors").plan == plan


def test_the_fold_of_all_cases_goes_before_the_others(tmp_path):
    model(tmp_path, folds=("0", "1", "all"))
    assert_from(read_pretrained(tmp_path), tmp_path / "fold_all" / FINAL)
    assert_from(read_pretrained(tmp_path / "fold_1"), tmp_path / "fold_1" / FINAL)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_of_a_run_that_is_not_finished_the_weights_that_prediction_would_use(
    tmp_path, decay, monkeypatch
):
    without_pictures(monkeypatch)
    plan = training_plan(epochs=1, validation_steps=0, average_decay=decay)
    plan.save(tmp_path / "plan.json")
    start(plan, store_of(tmp_path, plan), tmp_path / "fold_0")
    found = read_pretrained(tmp_path / "fold_0" / LATEST).tensors
    expected, _ = load_checkpoint(tmp_path / "fold_0" / FINAL)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_several_folds_are_listed(tmp_path):
    model(tmp_path, folds=("0", "1"))
    with pytest.raises(AutosegError, match=r"fold_0, fold_1.*fold_0$"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["gone", "gone.safetensors", "empty", "notes.txt", "fold_1"])
def test_what_is_not_a_model_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(AutosegError, match=r"^--pretrained .*models/TASK/PLAN"):
        read_pretrained(tmp_path / name)


def test_without_its_plan_a_file_says_nothing(tmp_path):
    model(tmp_path)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(AutosegError, match=r"plan\.json.*final\.safetensors"):
        read_pretrained(tmp_path)


def test_another_plan_beside_the_weights_is_refused(tmp_path):
    plan = model(tmp_path)
    other = tiny_plan(training={"epochs": 7})
    other.save(tmp_path / "plan.json")
    with pytest.raises(AutosegError, match=f"{plan.id}.*plan.json is {other.id}"):
        read_pretrained(tmp_path)


def test_damaged_weights_are_reported(tmp_path):
    model(tmp_path)
    (tmp_path / "fold_0" / FINAL).write_bytes(b"\x00" * 100)
    with pytest.raises(AutosegError, match=r"final\.safetensors"):
        read_pretrained(tmp_path)
