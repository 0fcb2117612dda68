"""A run that was interrupted and resumed equals an uninterrupted one, bit by bit."""

import itertools
import threading
from typing import Any

import pytest
import torch

from autoseg.common.errors import AutosegError, RunError
from autoseg.models.checkpoint import load_checkpoint, save_checkpoint
from autoseg.models.folder import BEST, FINAL, LATEST
from autoseg.training import train as loop
from autoseg.training.learner import Learner
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


def interrupt(monkeypatch, after, saved=True):
    """Stop the run before it saves its state for the `after` + 1st time, or after the `after`-th.

    With `save_seconds=0` it saves after each step and each epoch: three times in an epoch.
    """
    count = 0

    def save_or_stop(path, tensors, state):
        nonlocal count
        count += path.name == LATEST
        if path.name == LATEST and count > after and not saved:
            raise Stop
        save_checkpoint(path, tensors, state)
        if path.name == LATEST and count == after and saved:
            raise Stop

    monkeypatch.setattr(loop, "save_checkpoint", save_or_stop)


@pytest.mark.parametrize(
    ("recipe", "after", "saved"),
    [
        *((recipe, 6, True) for recipe in RECIPES),  # after epoch 2
        ("plateau", 4, True),  # after a step of epoch 2
        ("budget", 5, True),  # before its validation
        ("cosine", 6, False),
        ("plateau", 12, True),  # after the last epoch
    ],
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
            start(plan, store, tmp_path / "parts", save_seconds=0.0)
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
            interrupt(patched, after=4)
            with pytest.raises(Stop):
                start(plan, store, tmp_path / "parts", resume=resume, save_seconds=0.0)
    start(plan, store, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", tmp_path / "full")


def test_a_killed_run_continues_where_it_was_saved(tmp_path, monkeypatch, capsys):
    plan = training_plan(**RECIPES["plateau"])
    store, folder = store_of(tmp_path, plan), tmp_path / "parts"
    start(plan, store, tmp_path / "full")
    with monkeypatch.context() as patched:
        interrupt(patched, after=7)  # a step after epoch 2
        with pytest.raises(Stop):
            start(plan, store, folder, save_seconds=0.0)
    found, values = load_checkpoint(folder / LATEST)
    assert (len(values["history"]), len(found["epoch.losses"])) == (2, 1)
    log = (tmp_path / "full" / "log.jsonl").read_bytes()
    (folder / "log.jsonl").write_bytes(log)  # of epochs after the checkpoint
    capsys.readouterr()
    start(plan, store, folder, resume=True)
    said = capsys.readouterr().err
    assert "resuming after epoch 2 and 1 step of 4 epochs, saved 20" in said
    assert "2 later epochs of log.jsonl" in said
    assert_same_run(folder, tmp_path / "full")


def test_a_short_run_is_saved_once_and_a_slow_disk_delays_no_step(tmp_path, monkeypatch):
    saved = []
    plan = training_plan(keep="best_training_loss")
    store = store_of(tmp_path, plan)
    monkeypatch.setattr(loop, "save_checkpoint", lambda path, *_: saved.append(path.name))
    monkeypatch.setattr(loop, "save_final", lambda *_: None)
    start(plan, store, tmp_path / "once")
    assert saved == [BEST, LATEST]
    may_write, main = threading.Event(), threading.get_ident()
    wrapped, numbers = Learner.step, itertools.count(1)

    def slow(path, tensors, values):
        assert threading.get_ident() != main
        assert may_write.wait(20)
        save_checkpoint(path, tensors, values)

    def step(learner, *arguments):
        if next(numbers) == 2:
            may_write.set()  # the first state is not written yet
        return wrapped(learner, *arguments)

    monkeypatch.setattr(loop, "save_checkpoint", slow)
    monkeypatch.setattr(Learner, "step", step)
    start(training_plan(epochs=1), store, tmp_path / "slow", save_seconds=0.0)


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def full(path, *_):
        raise AutosegError(f"cannot write {path}: no space left")

    plan = training_plan(epochs=1)
    monkeypatch.setattr(loop, "save_checkpoint", full)
    with pytest.raises(AutosegError, match=LATEST):
        start(plan, store_of(tmp_path, plan), tmp_path / "run")


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    plan = training_plan(epochs=1)
    step = Learner.step
    nan = torch.tensor(float("nan"))
    monkeypatch.setattr(Learner, "step", lambda *given: (nan, step(*given)[1]))
    with pytest.raises(RunError, match="NaN"):
        start(plan, store_of(tmp_path, plan), tmp_path / "run", save_seconds=0.0)
    assert not (tmp_path / "run" / LATEST).exists()


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
