import json
import math
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from autoseg.augmentation.loader import PatchSampler, Position
from autoseg.common.errors import RunError, Stopped
from autoseg.dataset.splits import Split
from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.folder import BEST, FINAL, LATEST
from autoseg.models.log import Epoch, write_log
from autoseg.training import monitor
from autoseg.training import state as state_module
from autoseg.training import train as module
from autoseg.training.monitor import Monitor, draw_progress
from autoseg.training.state import EpochSoFar, PlateauState, State
from tests.making import store_case
from tests.training.making import SPLIT, log_of, start, store_of, training_plan, without_pictures

FAST = {"optimizer": "adam", "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):  # they take longer than the training
    without_pictures(monkeypatch)


def test_a_run_leaves_weights_log_and_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(monitor, "draw_progress", draw_progress)
    plan = training_plan()
    folder = tmp_path / "fold_0 é"
    state = start(plan, store_of(tmp_path, plan), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        FINAL,
        LATEST,
        "log.jsonl",
        "progress.png",
    ]
    weights, about = load_checkpoint(folder / FINAL)
    assert (about["plan_id"], about["fold"], about["epoch"]) == (plan.id, 0, 3)
    latest, saved = load_checkpoint(folder / LATEST)
    assert all(torch.equal(latest[f"network.{name}"], weights[name]) for name in weights)
    assert State.from_json(saved).history == state.history
    log = log_of(folder)
    assert [line["epoch"] for line in log] == [0, 1, 2, 3]
    assert list(log[0]["training_dice"]) == list(plan.labels)
    assert all(line["validation_loss"] > 0 for line in log)
    with Image.open(folder / "progress.png") as drawn:
        assert drawn.format == "PNG"
    assert "4/4" in capsys.readouterr().err


def test_learning_rates_follow_the_schedule(tmp_path):
    plan = training_plan(optimizer=FAST, schedule={"schedule": "polynomial", "exponent": 1.0})
    start(plan, store_of(tmp_path, plan), tmp_path / "run")
    rates = [line["learning_rate"] for line in log_of(tmp_path / "run")]
    assert rates == pytest.approx([1e-2 * (1 - share) for share in (1 / 8, 3 / 8, 5 / 8, 7 / 8)])


def test_a_plateau_lowers_the_rate(tmp_path):
    schedule = {"schedule": "plateau", "patience_epochs": 1, "min_delta": 10, "cooldown_epochs": 0}
    plan = training_plan(optimizer=FAST, schedule=schedule | {"floor": 1e-4})
    start(plan, store_of(tmp_path, plan), tmp_path / "run")
    rates = [line["learning_rate"] for line in log_of(tmp_path / "run")]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4])


def test_training_learns(tmp_path):
    plan = training_plan(optimizer=FAST, epochs=12, steps_per_epoch=4)
    state = start(plan, store_of(tmp_path, plan), tmp_path / "run")
    assert state.history[-1].training_loss < 0.8 * state.history[0].training_loss


def test_folds_see_other_patches(tmp_path):
    plan = training_plan(epochs=1)
    store = store_of(tmp_path, plan)
    first = [start(plan, store, tmp_path / f"fold_{k}", fold=k).history[0] for k in (0, 1)]
    assert first[0].training_loss != first[1].training_loss


def test_all_cases_without_validation(tmp_path):
    plan = training_plan(epochs=1)
    everything = Split((*SPLIT.train, *SPLIT.validation), ())
    state = start(plan, store_of(tmp_path, plan), tmp_path / "fold_all", everything, fold=999_999)
    assert state.history[0].validation_loss is None
    assert log_of(tmp_path / "fold_all")[0]["validation_dice"] == {}


def test_validation_patches_stay_the_same_unless_augmented(tmp_path):
    losses = {}
    for augmented in (False, True):
        # So slow that the weights stay as they are; batch norm would still follow the data.
        still = {"optimizer": "sgd", "learning_rate": 1e-30, "weight_decay": 0.0}
        plan = training_plan(
            norm="instance", optimizer=still, augment_validation=augmented, epochs=2
        )
        state = start(plan, store_of(tmp_path, plan), tmp_path / str(augmented))
        losses[augmented] = [epoch.validation_loss for epoch in state.history]
    assert losses[False][0] == losses[False][1]
    assert losses[True][0] != losses[True][1]


def test_validation_patches_are_not_mixed(tmp_path):
    losses = {}
    for share in (0.0, 1.0):
        still = {"optimizer": "sgd", "learning_rate": 1e-30, "weight_decay": 0.0}
        plan = training_plan(norm="instance", optimizer=still, epochs=1)
        sampling = plan.sampling.model_copy(update={"mix_probability": share})
        plan = plan.model_copy(update={"sampling": sampling})
        (epoch,) = start(plan, store_of(tmp_path, plan), tmp_path / str(share)).history
        losses[share] = epoch
    assert losses[0.0].training_loss != losses[1.0].training_loss
    assert losses[0.0].validation_loss == losses[1.0].validation_loss is not None


def spoil(store, name, value=np.inf):
    label = np.ones((12, 12, 12), np.int16)
    store_case(store, name, np.full((1, 12, 12, 12), value), label)


def test_an_infinite_loss_names_epoch_and_batch(tmp_path):
    plan = training_plan(steps_per_epoch=1, validation_steps=0)
    split = Split(("case_0", "case_1", "case_2", "case_3"), ())
    store = store_of(tmp_path, plan)
    sampler = PatchSampler(store, split.train, plan.sampling, steps_per_epoch=1)
    second = Position(plan.training.seed, 0, epoch=1, batch=0, place=0)
    spoil(store, sampler.name_at(second))
    names = [sampler.name_at(replace(second, place=place)) for place in (0, 1)]
    with pytest.raises(RunError, match=rf"epoch 2, batch 1 \({names[0]}, {names[1]}\)"):
        start(plan, store, tmp_path / "run", split)
    assert [line["epoch"] for line in log_of(tmp_path / "run")] == [0]
    assert not (tmp_path / "run" / FINAL).exists()


def test_an_infinite_loss_names_the_batch_of_a_longer_epoch(tmp_path):
    plan = training_plan(steps_per_epoch=2, validation_steps=0)
    split = Split(("case_0", "case_1", "case_2", "case_3"), ())
    store = store_of(tmp_path, plan)
    sampler = PatchSampler(store, split.train, plan.sampling, steps_per_epoch=2)
    last = Position(plan.training.seed, 0, epoch=0, batch=1, place=1)
    spoil(store, sampler.name_at(last))
    with pytest.raises(RunError, match=r"epoch 1, batch 2 \(case_"):
        start(plan, store, tmp_path / "run", split)


def test_an_infinite_validation_loss_is_reported(tmp_path):
    plan = training_plan()
    store = store_of(tmp_path, plan)
    spoil(store, "case_3")
    with pytest.raises(RunError, match=r"validation loss.*epoch 1;"):
        start(plan, store, tmp_path / "run")


def falling_then_rising(losses):
    """Replace an epoch's mean loss, but not its training steps."""
    given = iter(losses)
    means = EpochSoFar.means

    def replaced(*arguments):
        _, dice = means(*arguments)
        return next(given), dice

    return replaced


def test_early_stopping(tmp_path, monkeypatch):
    plan = training_plan(epochs=9, early_stopping_epochs=3)
    losses = [3.0, 1.0, 2.0, 1.0, 1.5, 0.1, 0.1]
    monkeypatch.setattr(EpochSoFar, "means", falling_then_rising(losses))
    state = start(plan, store_of(tmp_path, plan), tmp_path / "run")
    assert [epoch.training_loss for epoch in state.history] == losses[:5]
    assert (state.best_epoch, state.best_loss) == (1, 1.0)
    assert load_checkpoint(tmp_path / "run" / FINAL)[1]["epoch"] == 4


def test_the_best_weights_are_kept(tmp_path, monkeypatch):
    plan = training_plan(keep="best_training_loss", optimizer=FAST)
    seen = []

    def remember(monitor, state):
        seen.append(monitor.learner.weights()["heads.0.weight"].clone())

    monkeypatch.setattr(Monitor, "after_epoch", remember)
    monkeypatch.setattr(EpochSoFar, "means", falling_then_rising([3.0, 1.0, 2.0, 1.0]))
    start(plan, store_of(tmp_path, plan), tmp_path / "run")
    weights, about = load_checkpoint(tmp_path / "run" / FINAL)
    assert about["epoch"] == 1
    assert load_checkpoint(tmp_path / "run" / BEST)[1] == {"epoch": 1}
    assert torch.equal(weights["heads.0.weight"], seen[1])
    assert not torch.equal(weights["heads.0.weight"], seen[3])


class Clock:
    """Seconds that pass only while an epoch is trained."""

    def __init__(self, monkeypatch, seconds):
        self.now = 0.0
        means = EpochSoFar.means

        def slow(*arguments):
            self.now += seconds
            return means(*arguments)

        monkeypatch.setattr(EpochSoFar, "means", slow)
        words = {"strftime": time.strftime, "localtime": time.localtime}
        stopped = SimpleNamespace(monotonic=lambda: self.now, **words)
        for where in (module, state_module):
            monkeypatch.setattr(where, "time", stopped)


@pytest.mark.parametrize("planned", [4, 9, 40])
def test_epochs_are_recounted_for_the_time_budget(tmp_path, monkeypatch, planned):
    clock = Clock(monkeypatch, seconds=10)
    plan = training_plan(epochs=planned, steps_per_epoch=1, seconds=100.0)
    state = start(plan, store_of(tmp_path, plan), tmp_path / "run", started=0.0)
    assert state.done == state.epochs == 9  # 90 s, and 3 s for what follows
    assert clock.now == 90
    assert state.progress == pytest.approx(1)  # the schedule came to its end


def test_a_planned_number_that_fits_the_budget_stays(tmp_path, monkeypatch):
    Clock(monkeypatch, seconds=10)
    plan = training_plan(epochs=4, steps_per_epoch=1, seconds=45.0)
    assert start(plan, store_of(tmp_path, plan), tmp_path / "run", started=0.0).done == 4


def test_a_budget_counts_what_earlier_starts_used(tmp_path, monkeypatch):
    plan = training_plan(epochs=9, steps_per_epoch=1, seconds=100.0)
    store = store_of(tmp_path, plan)
    clock = Clock(monkeypatch, seconds=10)

    def stop_after_four(path, history):
        write_log(path, history)
        if len(history) == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(monitor, "write_log", stop_after_four)
        with pytest.raises(Stopped):
            start(plan, store, tmp_path / "run", started=0.0)
    clock.now = 5000.0  # the next morning, and 25 seconds to start
    state = start(plan, store, tmp_path / "run", resume=True, started=4975.0)
    assert state.done == 6  # 40 s before, 25 s to start, 3 s for what follows: 2 epochs fit
    assert clock.now == 5020.0


EPOCH = Epoch(0, 3, 0.1, 1.0, {"a": 0.5}, 2.0, None, {"a": None})


@pytest.mark.parametrize(
    "state",
    [
        State("id", 3, PlateauState(0.1)),
        State("id", 3, PlateauState(0.1, 0.5, 2, 1), 0.1 + 0.2, 0.7, 1, 12.5, [EPOCH]),
        State("id", 3, PlateauState(0.1), history=[EPOCH, replace(EPOCH, epoch=1)]),
    ],
)
def test_state_comes_back_from_strict_json(state):
    text = json.dumps(state.to_json(), allow_nan=False)
    found = State.from_json(json.loads(text))
    assert found == state
    assert found.done == len(state.history)
    assert math.isinf(found.best_loss) == math.isinf(state.best_loss)
