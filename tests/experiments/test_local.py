"""The queue looks after runs that other processes work on."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import NoReturn

import pytest

from autoseg.common.locks import locked
from autoseg.experiments import local
from autoseg.experiments.local import Answer, Hand, Progress, run_here
from autoseg.experiments.runs import StudyRun
from autoseg.experiments.status import LOCK, in_short, status_of
from autoseg.workflow.workspace import Workspace
from tests.making import tiny_plan

RUN = StudyRun("Task001_Tiny", "default", 0)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    for room in (made.preprocessed, made.models):
        tiny_plan().save(room(RUN.task, RUN.plan) / "plan.json")
    return made


def finish(workspace: Workspace, run: StudyRun = RUN) -> None:
    folder = run.folder(workspace)
    (folder / "validation").mkdir(parents=True)
    (folder / "final.safetensors").touch()
    (folder / "validation" / "summary.json").write_text('{"foreground_mean": {"Dice": 0.5}}')


@pytest.mark.parametrize("name", [LOCK, ".lock"])
def test_what_another_process_works_on_is_waited_for(workspace: Workspace, name: str) -> None:
    progress = Progress(deque([RUN]))
    hands: list[Hand] = [Hand(0, 1, None)]  # type: ignore[arg-type]
    with locked(RUN.folder(workspace) / name, "another process"):
        local._give_out(progress, workspace, hands, _never)
        local._look_after_others(progress, workspace)
        assert (progress.elsewhere, progress.running, progress.done) == ([RUN], {}, 0)
        assert status_of(RUN, workspace).state == "running"
    local._look_after_others(progress, workspace)  # it was given up there: it is ours
    assert (progress.elsewhere, list(progress.waiting)) == ([], [RUN])
    progress = Progress(deque(), elsewhere=[RUN])
    finish(workspace)
    local._look_after_others(progress, workspace)
    assert (progress.is_over, progress.done) == (True, 1)


def _never(run: StudyRun, slot: int) -> NoReturn:
    raise AssertionError(f"{run} is given out")


def test_nothing_is_started_where_nothing_is_missing(workspace: Workspace) -> None:
    finish(workspace)
    assert run_here([RUN], workspace, 4, 1, _never) == {}


def test_a_finished_run_of_another_plan_is_none(workspace: Workspace) -> None:
    finish(workspace)
    status = status_of(RUN, workspace, {str(RUN): "12_3"})
    assert (status.state, status.dice, status.job) == ("done", 0.5, "12_3")
    tiny_plan(splits={"folds": 3}).save(workspace.preprocessed(RUN.task, RUN.plan) / "plan.json")
    status = status_of(RUN, workspace, {str(RUN): "12_3"})
    assert (status.state, status.dice, status.note) == ("submitted", None, "job 12_3")


def test_the_outcome_of_runs_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [StudyRun("t", "p", fold) for fold in range(4)]
    progress = Progress(deque())
    for run, state in zip(runs, ("done", "failed", "stopped", "elsewhere"), strict=True):
        local._note(progress, run, Answer(state, "a reason; do this"), 4)  # type: ignore[arg-type]
    assert (progress.done, list(progress.failed), progress.elsewhere) == (1, runs[1:3], [runs[3]])
    assert capsys.readouterr().err.splitlines() == [
        "p fold 0: done (1 of 4 done, 3 to go)",
        "p fold 1: failed: a reason; do this (1 of 4 done, 2 to go)",
        "p fold 2: stopped: a reason; do this (1 of 4 done, 1 to go)",
        "p fold 3: a reason; waiting for it",
    ]


def test_counts_of_nothing() -> None:
    assert in_short([]) == "no run"
