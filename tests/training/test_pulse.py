"""The heartbeat of a run within an epoch: how far it is, and how long all epochs take."""

from __future__ import annotations

import time

import pytest

from autoseg.common.progress import progress
from autoseg.training.monitor import Heartbeat
from autoseg.training.state import PlateauState, State
from tests.common.test_progress import Clock

STATE = State("plan", 1000, PlateauState(0.01))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_a_slow_epoch_shows_its_steps(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training fold 0", 1000, every_seconds=0) as bar:
        heartbeat = Heartbeat(bar, 250)
        for done, seconds in enumerate((60, 25, 25), start=1):
            clock.seconds += seconds
            heartbeat.beat(STATE, done)
    assert capsys.readouterr().err.splitlines() == [
        "training fold 0: epoch 1 of 1000, step 1 of 250, 1 min 00 s a step, about 173 days 14 h "
        "left",
        "training fold 0: epoch 1 of 1000, step 2 of 250, 25 s a step, about 72 days 8 h left",
        # 25 seconds later it is silent: heartbeats become rarer
    ]


def test_fast_epochs_and_last_steps_are_silent(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("training fold 0", 1000, every_seconds=0) as bar:
        heartbeat = Heartbeat(bar, 2)
        for seconds, done in ((4, 1), (40, 2)):
            clock.seconds += seconds
            heartbeat.beat(STATE, done)
    assert capsys.readouterr().err == ""


def test_without_a_bar_nothing_is_printed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    heartbeat = Heartbeat(None, 3)
    clock.seconds += 100
    heartbeat.beat(STATE, 1)
    assert capsys.readouterr().err == ""
