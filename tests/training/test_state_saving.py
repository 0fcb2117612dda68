"""Saved runs: their description, and plans that extend them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autoseg.common.errors import AutosegError
from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.folder import BEST, FINAL, LATEST
from autoseg.models.log import Epoch
from autoseg.training.state import PlateauState, State, describe, extended
from tests.making import tiny_plan
from tests.training.making import log_of, start, store_of, training_plan, without_pictures

RATE = 1e-2
LINEAR: dict[str, Any] = {
    "optimizer": {"optimizer": "adam", "learning_rate": RATE},
    "schedule": {"schedule": "polynomial", "exponent": 1.0},
    "steps_per_epoch": 1,
}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)


def test_a_finished_run_is_extended_by_a_longer_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, longer = (training_plan(**LINEAR, epochs=epochs) for epochs in (2, 4))
    store, folder = store_of(tmp_path, plan), tmp_path / "run"
    start(plan, store, folder)
    first = log_of(folder)
    state = start(longer, store, folder, resume=True)
    assert "extended from 2 to 4 epochs by plan" in capsys.readouterr().err
    assert (state.plan_id, state.done, state.epochs) == (longer.id, 4, 4)
    log = log_of(folder)
    assert log[:2] == first
    rates = [line["learning_rate"] for line in log]
    # 0 of 2 and 1 of 2 done; then 2 of 4: back up to half-way, and down again.
    assert rates == pytest.approx([RATE * (1 - share) for share in (0, 1 / 2, 2 / 4, 3 / 4)])
    about = load_checkpoint(folder / FINAL)[1]
    assert (about["plan_id"], about["fold"], about["epoch"]) == (longer.id, 0, 3)
    before = (folder / FINAL).read_bytes()
    start(longer, store, folder, resume=True)
    assert "training is finished already: 4 of 4 epochs done" in capsys.readouterr().err
    assert (folder / FINAL).read_bytes() == before


def test_an_extension_is_reproducible(tmp_path: Path) -> None:
    plan, longer = (training_plan(**LINEAR, epochs=epochs) for epochs in (1, 2))
    store = store_of(tmp_path, plan)
    for name in ("one", "other"):
        start(plan, store, tmp_path / name)
        start(longer, store, tmp_path / name, resume=True)
    weights = [load_checkpoint(tmp_path / name / FINAL)[0] for name in ("one", "other")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_run_that_stopped_early_continues_with_more_patience(tmp_path: Path) -> None:
    still: dict[str, Any] = {
        "optimizer": {"optimizer": "sgd", "learning_rate": 1e-30},
        "validation_steps": 0,
    }
    hasty = training_plan(**still, epochs=9, early_stopping_epochs=1)
    store = store_of(tmp_path, hasty)
    done = start(hasty, store, tmp_path / "run").done
    assert done < 9
    patient = training_plan(**still, epochs=9)
    assert start(patient, store, tmp_path / "run", resume=True).done == 9


def state_of(done: int, epochs: int, **values: Any) -> State:
    epoch = Epoch(0, epochs, 0.1, 1.0, {"a": 0.5}, 2.0)
    return State("old", epochs, PlateauState(0.1), history=[epoch] * done, **values)


@pytest.mark.parametrize(
    ("done", "seconds", "training", "epochs"),
    [
        (30, 100.0, {"epochs": 60}, 60),
        (10, 100.0, {"epochs": 20}, 20),  # shorter, but not than what is done
        (30, 100.0, {"epochs": 30, "seconds": 250.0}, 75),  # at the pace so far
        (30, 100.0, {"epochs": 90, "seconds": 250.0}, 90),
        (0, 0.0, {"epochs": 40, "seconds": 250.0}, 40),
    ],
)
def test_epochs_and_progress_of_an_extended_run(
    done: int, seconds: float, training: dict[str, Any], epochs: int
) -> None:
    plan = tiny_plan(training=training)
    found = extended(state_of(done, 30, seconds=seconds, progress=0.7), plan, Path("run"))
    assert (found.plan_id, found.epochs) == (plan.id, epochs)
    assert found.progress == pytest.approx(done / epochs)


def test_a_plan_with_fewer_epochs_than_are_done() -> None:
    with pytest.raises(AutosegError, match=r"30 epochs.*20 \(training\.epochs\)"):
        extended(state_of(30, 30), tiny_plan(training={"epochs": 20}), Path("run"))


def test_a_model_without_its_run_is_not_overwritten(tmp_path: Path) -> None:
    plan = training_plan(epochs=1)
    store, folder = store_of(tmp_path, plan), tmp_path / "run"
    start(plan, store, folder)
    assert describe(folder / LATEST).startswith("epoch 1 of 1, saved 20")
    (folder / LATEST).unlink()
    before = (folder / FINAL).read_bytes()
    for resume in (False, True):
        with pytest.raises(AutosegError, match=r"final\.safetensors.*latest\.safetensors"):
            start(plan, store, folder, resume=resume)
    assert (folder / FINAL).read_bytes() == before


def test_best_weights_without_a_checkpoint_are_not_a_run(tmp_path: Path) -> None:
    """A run that died while it saved its first epoch."""
    plan = training_plan(epochs=1, keep="best_training_loss")
    store, folder = store_of(tmp_path, plan), tmp_path / "run"
    folder.mkdir()
    (folder / BEST).write_bytes(b"")
    assert start(plan, store, folder).done == 1
