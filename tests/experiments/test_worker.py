"""Worker processes: several runs in one, killed, stopped, and left alone by their queue."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoseg.common.locks import locked
from autoseg.experiments.attempt import Order
from autoseg.experiments.local import Answer, Event, Hand, how_it_ended
from autoseg.experiments.runs import StudyRun, prepare_plans, runs_of
from autoseg.experiments.status import LOCK, is_finished, is_held, read_record, status_of
from autoseg.workflow.workspace import Workspace
from tests.experiments.studying import longer, study, write_task

EPOCHS = 10
STUDY = study(overrides=longer(EPOCHS))

pytestmark = pytest.mark.skipif(not hasattr(os, "kill"), reason="needs signals")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = write_task(tmp_path_factory.mktemp("work"))
    prepare_plans([STUDY], made, 1, "cpu")
    return made


@pytest.fixture
def hand() -> Iterator[Hand]:
    made = Hand(0, 1, queue.SimpleQueue())
    yield made
    made.kill()
    made.wait()


def order(run: StudyRun, workspace: Workspace) -> Order:
    return Order(
        workspace=str(workspace.root),
        task=run.task,
        plan=run.plan,
        fold=run.fold,
        device="cpu",
        log=str(workspace.root / f"{run.fold}.log"),
    )


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def epochs(folder: Path) -> int:
    log = folder / "log.jsonl"
    return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


def test_a_run_that_is_killed_is_told_and_goes_on_in_a_new_process(
    workspace: Workspace, hand: Hand
) -> None:
    """Killed for its memory, then left by its queue, then to the end."""
    run = runs_of(STUDY, workspace)[0]
    folder = run.folder(workspace)

    hand.give(order(run, workspace))
    wait_until(lambda: epochs(folder) >= 1)
    assert hand.process is not None
    first = hand.process.pid
    os.kill(first, signal.SIGKILL)
    answer = hand.events.get(timeout=60).answer
    assert answer.state == "failed"
    assert "ended by SIGKILL, most often because memory ran out" in answer.text
    assert status_of(run, workspace).state == "stopped"
    assert not is_held(run, workspace)

    reached = epochs(folder)
    hand.give(order(run, workspace))
    wait_until(lambda: epochs(folder) > reached)
    assert hand.process.pid != first
    assert status_of(run, workspace).state == "running"
    hand.stop()  # as when the queue is killed: nothing more can come
    hand.wait()
    assert status_of(run, workspace).state == "stopped"
    assert epochs(folder) < EPOCHS

    _ends(hand, order(run, workspace), workspace)
    assert epochs(folder) == EPOCHS
    log = Path(order(run, workspace).log).read_text(encoding="utf-8")
    assert log.count("resuming after epoch") == 2
    record = read_record(folder)
    assert record is not None
    assert (record.state, record.attempts) == ("done", 3)


def _ends(hand: Hand, wanted: Order, workspace: Workspace) -> None:
    """Let a new worker do the run to its end, and again, and one that is impossible."""
    try:
        while not hand.events.empty():
            hand.events.get()
        hand.give(wanted)
        assert hand.events.get(timeout=120) == Event(0, Answer("done"))
        assert is_finished(wanted.run, workspace)
        assert hand.process is not None
        process = hand.process.pid
        hand.give(wanted)
        assert hand.events.get(timeout=60).answer.state == "done"
        with locked(wanted.run.folder(workspace) / LOCK, "the test's run"):
            hand.give(wanted)
            assert hand.events.get(timeout=60).answer.state == "elsewhere"
        hand.give(wanted.model_copy(update={"fold": 7}))
        answer = hand.events.get(timeout=60).answer
        assert answer.state == "failed"
        assert "fold '7' does not exist" in answer.text
        assert hand.process.pid == process
    finally:
        hand.stop()
        hand.wait()
        assert hand.process is not None
        assert hand.process.returncode == 0


def test_a_run_that_began_otherwise_is_not_gone_on_with(workspace: Workspace, hand: Hand) -> None:
    run = runs_of(STUDY, workspace)[1]
    run.folder(workspace).mkdir(parents=True, exist_ok=True)
    (run.folder(workspace) / "latest.safetensors").touch()
    hand.give(order(run, workspace).model_copy(update={"pretrained": "models/x"}))
    answer = hand.events.get(timeout=60).answer
    assert answer.state == "failed"
    assert "was trained without a pretrained model, unlike the study says" in answer.text


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (3, "its process ended with exit status 3"),
        (-11, "its process was ended by SIGSEGV"),
        (-9, "its process was ended by SIGKILL, most often because memory ran out"),
        (-200, "its process was ended by signal 200"),
    ],
)
def test_how_a_process_ended(status: int, told: str) -> None:
    assert how_it_ended(status) == told
