"""Worker processes that the system kills: told with the cause, and the next run ends as ever."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from autoseg.models.folder import LATEST
from tests.faults.jobs import JOBS, TASK, Undisturbed, assert_all_whole
from tests.faults.killing import attempt, finish
from tests.faults.limits import eager_workers
from tests.forking import spawn_workers
from tests.training.making import log_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc")

TWO = ["--processes", "2"]


def workers_of(pid: int) -> list[int]:
    """The worker processes that a process has spawned."""
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in listed.read_text(encoding="ascii").split():
            words = Path(f"/proc/{child}/cmdline").read_bytes()
            found += [int(child)] if b"spawn_main" in words else []
    return found


def kill_a_worker(process: BaseProcess, when: Callable[[], bool] = lambda: True) -> None:
    """Kill the first worker that is there when it is time, unless the process ends before."""
    assert process.pid is not None
    while process.is_alive():
        try:
            workers = workers_of(process.pid)
            if workers and when():
                os.kill(workers[0], signal.SIGKILL)
                return
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            pass
        time.sleep(0.002)


@pytest.mark.parametrize(("name", "job"), [("plan", "survey"), ("train", "preprocessing")])
def test_a_killed_worker_is_told_and_the_next_run_ends(
    undisturbed: Undisturbed, tmp_path: Path, name: str, job: str
) -> None:
    root = undisturbed.prepare(name, tmp_path)
    words = JOBS[name].words(root)
    ended = attempt(name, [*words, *TWO], eager_workers, kill_a_worker)
    assert ended.error.startswith(f"error: {job}: a worker process was killed (SIGKILL), ")
    assert "fewer --processes" in ended.error
    assert ended.status == 1
    assert_all_whole(root)
    finish(name, words)
    undisturbed.assert_same(name, root)


def test_a_killed_augmentation_worker_loses_no_epoch(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    root = undisturbed.prepare("train", tmp_path)
    folder = root / "models" / TASK / "default" / "fold_0"
    after_an_epoch = partial(kill_a_worker, when=(folder / "log.jsonl").exists)
    words = JOBS["train"].words(root)
    ended = attempt("train", words, spawn_workers, after_an_epoch)
    assert "an augmentation worker was killed (SIGKILL)" in ended.error
    assert (folder / LATEST).is_file()
    epochs = len(log_of(folder))
    finish("train", words)
    undisturbed.assert_same("train", root)
    assert epochs >= 1
