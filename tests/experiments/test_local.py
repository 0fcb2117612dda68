"""The queue of runs, and how it treats runs that other processes work on."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from autoseg.common.locks import locked
from autoseg.experiments.attempt import RunOrder
from autoseg.experiments.local import Outcome, RunQueue, choose_threads, describe_exit, run_all
from autoseg.experiments.runs import StudyRun
from autoseg.experiments.status import LOCK, in_short, recorded, status_of
from autoseg.workflow.workspace import FOLD_LOCK, Workspace
from tests.making import tiny_plan

RUN = StudyRun("Task001_Tiny", "default", 0)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    for folder in (made.preprocessed, made.models):
        tiny_plan().save(folder(RUN.task, RUN.plan) / "plan.json")
    return made


def order(workspace: Workspace, run: StudyRun = RUN) -> RunOrder:
    return RunOrder(workspace=workspace.root, run=run, log=workspace.root / "log")


def finish(workspace: Workspace, run: StudyRun = RUN) -> None:
    folder = run.folder(workspace)
    (folder / "validation").mkdir(parents=True)
    (folder / "final.safetensors").touch()
    (folder / "validation" / "summary.json").write_text('{"foreground_mean": {"Dice": 0.5}}')


@pytest.mark.parametrize("name", [LOCK, FOLD_LOCK])
def test_runs_of_other_processes_are_waited_for(workspace: Workspace, name: str) -> None:
    mine = order(workspace)
    todo = RunQueue(workspace, 1, deque([mine]))
    with locked(RUN.folder(workspace) / name, "another process"):
        assert todo.next_free() is None
        todo.update_held()
        assert (todo.held, todo.is_empty, todo.done) == ([mine], False, 0)
        assert status_of(RUN, workspace).state == "running"
    todo.update_held()  # released before it was finished
    assert (todo.held, list(todo.waiting)) == ([], [mine])
    assert todo.next_free() is mine
    todo = RunQueue(workspace, 1, deque(), held=[mine])
    finish(workspace)
    todo.update_held()
    assert (todo.is_empty, todo.done) == (True, 1)


def test_no_process_is_started_when_all_runs_are_finished(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(workspace)
    monkeypatch.setattr("autoseg.experiments.local.RunProcess", None)
    assert run_all([order(workspace)], workspace, 4, 1) == {}


def test_runs_get_the_number_of_threads_of_earlier_runs(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autoseg.experiments.local.cores", lambda: 8)
    others = [StudyRun(RUN.task, RUN.plan, fold) for fold in range(3)]
    assert choose_threads(others, workspace, 2) == 4
    assert capsys.readouterr().err == ""
    for run, threads in zip(others, (3, 3, None), strict=True):
        run.folder(workspace).mkdir(parents=True)
        with recorded(run.folder(workspace), "log", None) as update:
            update(threads=threads)
    assert choose_threads(others, workspace, 2) == 3
    assert "3 threads" in capsys.readouterr().err


def test_a_finished_run_of_another_plan_does_not_count(workspace: Workspace) -> None:
    finish(workspace)
    status = status_of(RUN, workspace, {str(RUN): "12_3"})
    assert (status.state, status.dice, status.job) == ("done", 0.5, "12_3")
    tiny_plan(splits={"folds": 3}).save(workspace.preprocessed(RUN.task, RUN.plan) / "plan.json")
    status = status_of(RUN, workspace, {str(RUN): "12_3"})
    assert (status.state, status.dice, status.note) == ("submitted", None, "job 12_3")


def test_the_outcome_of_runs_is_printed(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = [order(workspace, StudyRun("t", "p", fold)) for fold in range(4)]
    todo = RunQueue(workspace, 4, deque())
    outcomes = [
        Outcome("done"),
        Outcome("failed", "a reason"),
        Outcome("stopped", "SIGTERM"),
        Outcome("elsewhere", "in use"),
    ]
    for each, outcome in zip(orders, outcomes, strict=True):
        todo.note(each, outcome)
    assert (todo.done, todo.held) == (1, [orders[3]])
    assert todo.failed == {orders[1].run: "a reason", orders[2].run: "SIGTERM"}
    assert capsys.readouterr().err.splitlines() == [
        "p fold 0: done (1 of 4 done, 3 to go)",
        "p fold 1: failed: a reason (1 of 4 done, 2 to go)",
        "p fold 2: stopped: SIGTERM (1 of 4 done, 1 to go)",
        "p fold 3: in use; waiting for it",
    ]


def test_counts_of_nothing() -> None:
    assert in_short([]) == "no run"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3, ["exit status 3"]),
        (-11, ["SIGSEGV"]),
        (-9, ["SIGKILL", "memory"]),
        (-200, ["signal 200"]),
    ],
)
def test_an_exit_status_is_described(status: int, words: list[str]) -> None:
    assert all(word in describe_exit(status) for word in words)
