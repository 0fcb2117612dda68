import hashlib

import pytest
import torch

from autoseg.common.errors import AutosegError
from autoseg.models.checkpoint import load_checkpoint, save_checkpoint
from autoseg.models.folder import FINAL, LATEST
from autoseg.networks.unet import build_network
from autoseg.training.transfer import read_pretrained
from tests.making import tiny_plan
from tests.training.making import start, store_of, training_plan, without_pictures


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
