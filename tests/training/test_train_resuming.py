"""A run that was interrupted and resumed equals an uninterrupted one, bit by bit."""

from typing import Any

import pytest
import torch

from autoseg.common.errors import AutosegError
from autoseg.models.checkpoint import load_checkpoint, save_checkpoint
from autoseg.models.folder import BEST, FINAL, LATEST
from autoseg.training import state
from autoseg.training import train as loop
from tests.training.making import assert_same_run, start, store_of, training_plan, without_pictures

SGD = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9}
ADAM = {"optimizer": "adam", "learning_rate": 1e-2}
PLATEAU = {"schedule": "plateau", "patience_epochs": 1, "min_delta": 10.0, "cooldown_epochs": 0}
RECIPES: dict[str, dict[str, Any]] = {
    "polynomial": {"schedule": {"schedule": "polynomial"}, "optimizer": SGD},
    "cosine": {
        "schedule": {"schedule": "cosine", "warmup": 0.5},
        "optimizer": ADAM | {"decoupled": True, "weight_decay": 0.1},
        "average_decay": 0.9,
    },
    "plateau": {
        "schedule": PLATEAU,
        "optimizer": ADAM,
        "keep": "best_training_loss",
        "augment_validation": True,
    },
    "budget": {"seconds": 1e6, "optimizer": SGD, "average_decay": 0.5},
}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):  # they take longer than the training
    without_pictures(monkeypatch)


class Stop(KeyboardInterrupt):
    pass


def interrupt(monkeypatch, after, saved):
    """Stop the run before epoch `after` + 1 is saved, or after epoch `after` was saved."""
    count = 0

    def save_or_stop(path, tensors, state):
        nonlocal count
        count += path.name == LATEST
        if path.name == LATEST and count > after and not saved:
            raise Stop
        save_checkpoint(path, tensors, state)
        if path.name == LATEST and count == after and saved:
            raise Stop

    monkeypatch.setattr(state, "save_checkpoint", save_or_stop)


@pytest.mark.parametrize(
    ("recipe", "after", "saved"),
    [*((recipe, 2, True) for recipe in RECIPES), ("cosine", 2, False), ("plateau", 4, True)],
)
def test_a_resumed_run_continues_to_the_bit(tmp_path, monkeypatch, recipe, after, saved):
    plan = training_plan(**RECIPES[recipe])
    if recipe == "budget":  # the clock must not decide here
        monkeypatch.setattr(loop, "epochs_within", lambda *_: 4)
    store = store_of(tmp_path, plan)
    full = start(plan, store, tmp_path / "full")
    with monkeypatch.context() as patched:
        interrupt(patched, after, saved)
        with pytest.raises(Stop):
            start(plan, store, tmp_path / "parts")
    assert not (tmp_path / "parts" / FINAL).exists()
    resumed = start(plan, store, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "full")
    assert resumed.done == full.done == 4
    assert resumed.progress == full.progress == pytest.approx(1)
    assert resumed.plateau == full.plateau
    assert (tmp_path / "parts" / "progress.png").exists()


def test_interrupted_twice(tmp_path, monkeypatch):
    plan = training_plan(**RECIPES["cosine"])
    store = store_of(tmp_path, plan)
    start(plan, store, tmp_path / "full")
    for resume in (False, True):
        with monkeypatch.context() as patched:
            interrupt(patched, after=1, saved=True)
            with pytest.raises(Stop):
                start(plan, store, tmp_path / "parts", resume=resume)
    start(plan, store, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "full")


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    plan = training_plan(keep="best_training_loss")
    store = store_of(tmp_path, plan)
    folder = tmp_path / "run"
    first = start(plan, store, folder)
    before = {name: load_checkpoint(folder / name) for name in (FINAL, BEST)}
    log = (folder / "log.jsonl").read_bytes()
    again = start(plan, store, folder, resume=True)
    assert again.history == first.history
    assert (folder / "log.jsonl").read_bytes() == log
    for name, (tensors, written) in before.items():
        found, found_state = load_checkpoint(folder / name)
        assert found_state == written
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize(("other", "recorded"), [(0, [1]), (1, [1, 2])])
def test_another_number_of_threads_is_said_and_recorded(tmp_path, capsys, other, recorded):
    plan = training_plan(epochs=1)
    store, folder = store_of(tmp_path, plan), tmp_path / "run"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        start(plan, store, folder)
        assert load_checkpoint(folder / FINAL)[1]["threads"] == [1]
        torch.set_num_threads(1 + other)
        longer = training_plan(epochs=2)
        start(longer, store, folder, resume=True)
    finally:
        torch.set_num_threads(before)
    assert load_checkpoint(folder / FINAL)[1]["threads"] == recorded
    assert ("OMP_NUM_THREADS=1" in capsys.readouterr().err) == bool(other)


def test_a_run_without_a_recorded_number_of_threads_is_resumed(tmp_path):
    plan = training_plan(epochs=1)
    store, folder = store_of(tmp_path, plan), tmp_path / "run"
    start(plan, store, folder)
    tensors, values = load_checkpoint(folder / LATEST)
    save_checkpoint(folder / LATEST, tensors, {k: v for k, v in values.items() if k != "threads"})
    found = start(training_plan(epochs=2), store, folder, resume=True)
    assert found.threads == [torch.get_num_threads()]


def test_resume_without_a_run_begins_one(tmp_path):
    plan = training_plan(epochs=1)
    assert start(plan, store_of(tmp_path, plan), tmp_path / "run", resume=True).done == 1


def test_an_existing_run_is_not_overwritten(tmp_path):
    plan = training_plan(epochs=1)
    store = store_of(tmp_path, plan)
    start(plan, store, tmp_path / "run")
    before = (tmp_path / "run" / LATEST).read_bytes()
    with pytest.raises(AutosegError, match=rf"run.*epoch 1 of 1.*{plan.id}.*--resume"):
        start(plan, store, tmp_path / "run")
    assert (tmp_path / "run" / LATEST).read_bytes() == before


def test_a_run_of_another_plan_is_not_resumed(tmp_path):
    plan, other = training_plan(epochs=1), training_plan(epochs=1, gradient_clip=1.0)
    store = store_of(tmp_path, plan)
    start(plan, store, tmp_path / "run")
    with pytest.raises(AutosegError, match=f"{LATEST}.*{plan.id}.*{other.id}"):
        start(other, store, tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_reported(tmp_path):
    plan = training_plan(epochs=1)
    store = store_of(tmp_path, plan)
    start(plan, store, tmp_path / "run")
    path = tmp_path / "run" / LATEST
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AutosegError, match=r"latest\.safetensors"):
        start(plan, store, tmp_path / "run", resume=True)


@pytest.mark.parametrize("missing", ["network.heads.0.weight", "plan_id", "history"])
def test_a_checkpoint_of_another_version_is_reported(tmp_path, missing):
    plan = training_plan(epochs=1, optimizer=ADAM)
    store = store_of(tmp_path, plan)
    start(plan, store, tmp_path / "run")
    path = tmp_path / "run" / LATEST
    tensors, state = load_checkpoint(path)
    tensors.pop(missing, None)
    state.pop(missing, None)
    save_checkpoint(path, tensors, state)
    with pytest.raises(AutosegError, match=r"latest\.safetensors"):
        start(plan, store, tmp_path / "run", resume=True)
