"""Attempts in processes of their own: killed, stopped, continued, and refused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoseg.common.errors import RunError
from autoseg.common.locks import locked
from autoseg.experiments.attempt import RunOrder
from autoseg.experiments.local import RunProcess
from autoseg.experiments.runs import StudyRun, prepare_plans, runs_of
from autoseg.experiments.slurm import RunJob
from autoseg.experiments.status import LOCK, held_by, is_finished, read_record, status_of
from autoseg.workflow.workspace import Workspace
from tests.experiments.studying import longer, study, write_task
from tests.forking import ForkedRun

EPOCHS = 7
STUDY = study(overrides=longer(EPOCHS))

pytestmark = pytest.mark.skipif(not hasattr(os, "kill"), reason="needs signals")

Start = Callable[..., RunProcess]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = write_task(tmp_path_factory.mktemp("work"))
    prepare_plans([STUDY], made, 1, "cpu")
    return made


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes, which are killed when the test ends."""
    started: list[RunProcess] = []

    def begin(order: RunOrder, kind: type[RunProcess] = ForkedRun) -> RunProcess:
        started.append(kind(order, 1))
        return started[-1]

    yield begin
    for process in started:
        process.process.kill()
        process.wait()


def order(run: StudyRun, workspace: Workspace) -> RunOrder:
    log = workspace.root / f"{run.fold}.log"
    return RunOrder(workspace=workspace.root, run=run, device="cpu", log=log)


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def epochs(folder: Path) -> int:
    log = folder / "log.jsonl"
    return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


def test_a_run_is_killed_stopped_and_continued_to_its_end(
    workspace: Workspace, start: Start
) -> None:
    run = runs_of(STUDY, workspace)[0]
    folder = run.folder(workspace)
    mine = order(run, workspace)

    process = start(mine, RunProcess)  # an interpreter of its own
    wait_until(lambda: epochs(folder) >= 1)
    os.kill(process.process.pid, signal.SIGKILL)
    process.wait()
    assert process.outcome.state == "failed"
    assert "SIGKILL" in process.outcome.reason
    assert status_of(run, workspace).state == "stopped"
    assert not held_by(run, workspace)

    reached = epochs(folder)
    process = start(mine)
    wait_until(lambda: epochs(folder) > reached)
    assert status_of(run, workspace).state == "running"
    process.stop()  # as when the process of the study is killed
    process.wait()
    assert process.outcome.state == "stopped"
    assert "SIGTERM" in process.outcome.reason
    assert status_of(run, workspace).state == "stopped"
    assert epochs(folder) < EPOCHS

    process = start(mine)
    process.wait()
    assert process.outcome.state == "done"
    assert is_finished(run, workspace)
    assert epochs(folder) == EPOCHS
    # The killed run had not written a checkpoint yet; the stopped one had.
    assert mine.log.read_text(encoding="utf-8").count("resuming after epoch") == 1
    record = read_record(folder)
    assert record is not None
    assert (record.state, record.attempts) == ("done", 3)
    _finished_and_held_runs_are_left_alone(mine, workspace, start)


def _finished_and_held_runs_are_left_alone(
    mine: RunOrder, workspace: Workspace, start: Start
) -> None:
    folder = mine.run.folder(workspace)
    before = read_record(folder)
    assert RunJob(1)(mine.model_dump_json()) == "done"
    assert read_record(folder) == before
    with locked(folder / LOCK, "the run of the test"):
        process = start(mine)
        process.wait()
        assert process.outcome.state == "elsewhere"


def test_an_impossible_run_fails_with_its_reason(workspace: Workspace, start: Start) -> None:
    run = StudyRun("Task001_Würfel", "default-k2", 7)
    mine = order(run, workspace)
    process = start(mine)
    process.wait()
    assert process.outcome.state == "failed"
    assert "fold '7' does not exist" in process.outcome.reason
    assert process.process.returncode == 2
    with pytest.raises(RunError, match=r"fold '7' does not exist.*7\.log"):
        RunJob(1)(mine.model_dump_json())


def test_an_absent_device_is_the_reason_of_a_failure(workspace: Workspace, start: Start) -> None:
    mine = order(runs_of(STUDY, workspace)[1], workspace)
    process = start(mine.model_copy(update={"device": "cuda:77"}))
    process.wait()
    assert "cuda:77" in process.outcome.reason


def test_a_run_with_other_initial_weights_is_not_continued(
    workspace: Workspace, start: Start
) -> None:
    run = runs_of(STUDY, workspace)[1]
    folder = run.folder(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.safetensors").touch()
    pretrained = StudyRun(run.task, run.plan, run.fold, pretrained="models/x")
    process = start(order(pretrained, workspace))
    process.wait()
    assert process.outcome.state == "failed"
    assert str(folder) in process.outcome.reason
    assert "without a pretrained model" in process.outcome.reason
