"""Signals between two steps; runs that they stop equal uninterrupted runs when resumed."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from autoseg.augmentation.loader import Batch
from autoseg.common.errors import ENDING, RunError, Stopped
from autoseg.models.checkpoint import load_checkpoint
from autoseg.models.folder import BEST, FINAL, LATEST
from autoseg.plan.plan import Plan
from autoseg.training import train as train_module
from autoseg.training.distributed import STOPPING, Group, StopRequested, StopSignals
from autoseg.training.learner import Learner
from tests.training.making import (
    assert_same_run,
    log_of,
    start,
    store_of,
    training_plan,
    without_pictures,
)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "Ctrl-C"), *((number, number.name) for number in ENDING)],
)
def test_a_signal_requests_a_stop(
    capfd: pytest.CaptureFixture[str], number: signal.Signals, name: str
) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, *ENDING)]
    with StopSignals() as stop:
        stop.check()
        send(number)
        assert stop.name == name
        assert capfd.readouterr().err == STOPPING
        with pytest.raises(StopRequested):
            stop.check()
    assert [signal.getsignal(n) for n in (signal.SIGINT, *ENDING)] == before


def test_a_signal_is_received_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int, text: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", fail)
    with StopSignals() as stop:
        send(signal.SIGTERM)
        assert stop.name == "SIGTERM"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_has_its_usual_effect(first: signal.Signals) -> None:
    with StopSignals():
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_second_sigterm_has_no_further_effect() -> None:
    with StopSignals() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.name == "SIGTERM"


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            send(signal.SIGINT)
            stop.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_nothing_is_caught_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter() -> None:
        with StopSignals() as stop:
            stop.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def stop_at(monkeypatch: pytest.MonkeyPatch, call: str, after: int, number: int) -> None:
    """Send this process a signal in the `after`-th call of a learner's method, before it acts."""
    method, count = getattr(Learner, call), 0

    def counted(self: Learner, *arguments: object) -> object:
        nonlocal count
        count += 1
        if count == after:
            send(number)
        return method(self, *arguments)

    monkeypatch.setattr(Learner, call, counted)


ADAM = {"optimizer": "adam", "learning_rate": 1e-2}
PLAN: dict[str, Any] = {
    "epochs": 3,
    "steps_per_epoch": 3,
    "validation_steps": 2,
    "optimizer": ADAM,
    "schedule": {"schedule": "cosine", "warmup": 0.2},
    "average_decay": 0.9,
    "keep": "best_training_loss",
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    folder = tmp_path_factory.mktemp("full")
    plan = training_plan(**PLAN)
    with pytest.MonkeyPatch.context() as patched:
        without_pictures(patched)
        start(plan, store_of(folder, plan), folder / "run")
    return plan, folder


@pytest.mark.parametrize(
    ("call", "after", "number", "name", "epochs", "steps"),
    [
        ("step", 1, signal.SIGTERM, "SIGTERM", 0, 1),
        ("step", 5, signal.SIGTERM, "SIGTERM", 1, 2),
        ("step", 3, signal.SIGINT, "Ctrl-C", 0, 3),
        ("validate", 3, signal.SIGTERM, "SIGTERM", 1, 3),
        ("weights", 1, signal.SIGTERM, "SIGTERM", 1, 0),  # best is saved
    ],
)
def test_a_stopped_run_continues_bit_by_bit(
    full: tuple[Plan, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    call: str,
    after: int,
    number: signal.Signals,
    name: str,
    epochs: int,
    steps: int,
) -> None:
    plan, folder = full
    store = store_of(folder, plan)
    reached = f"epoch {epochs}" + {0: "", 1: " and 1 step"}.get(steps, f" and {steps} steps")
    with monkeypatch.context() as patched:
        stop_at(patched, call, after, number)
        with pytest.raises(Stopped, match=f"{name}.*{reached};.*--resume") as stopped:
            start(plan, store, tmp_path / "run")
    assert stopped.value.status == 128 + number
    tensors, state = load_checkpoint(tmp_path / "run" / LATEST)
    assert (len(state["history"]), len(tensors.get("epoch.losses", ()))) == (epochs, steps)
    assert not (tmp_path / "run" / FINAL).exists()
    start(plan, store, tmp_path / "run", resume=True)
    assert f"{reached} of 3 epochs" in capsys.readouterr().err
    assert_same_run(tmp_path / "run", folder / "run")
    assert (tmp_path / "run" / BEST).exists()


def test_a_signal_at_the_very_end_is_not_lost(
    full: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = full
    stop_at(monkeypatch, "validate", 6, signal.SIGTERM)  # the last batch of all
    with pytest.raises(Stopped, match=r"SIGTERM after training.*--resume"):
        start(plan, store_of(folder, plan), tmp_path / "run")
    assert_same_run(tmp_path / "run", folder / "run")


def test_the_seconds_of_an_interrupted_epoch_are_added_up(
    full: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, folder = full
    with monkeypatch.context() as patched:
        stop_at(patched, "step", 2, signal.SIGTERM)
        with pytest.raises(Stopped):
            start(plan, store_of(folder, plan), tmp_path / "run")
    tensors, _ = load_checkpoint(tmp_path / "run" / LATEST)
    assert tensors["epoch.seconds"] > 0
    state = start(plan, store_of(folder, plan), tmp_path / "run", resume=True)
    assert state.history[0].seconds > float(tensors["epoch.seconds"])
    assert len(log_of(tmp_path / "run")) == 3


def test_a_worker_that_died_from_the_same_signal(
    full: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster sends the signal to all processes of a job: workers may end before the check."""
    plan, folder = full

    def ended(_: object) -> Batch:
        threading.Timer(0.05, send, [signal.SIGTERM]).start()
        raise RunError("an augmentation worker ended")

    monkeypatch.setattr(train_module, "next", ended, raising=False)
    with pytest.raises(Stopped, match="SIGTERM after epoch 0;"):
        start(plan, store_of(folder, plan), tmp_path / "run")


def test_the_largest_number_of_a_single_process() -> None:
    assert Group().largest(15) == 15
