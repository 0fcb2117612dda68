from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from functools import partial

import pytest

from autoseg.common import parallel
from autoseg.common.errors import DataError, RunError
from autoseg.common.parallel import in_parallel


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes pay, however short the job."""
    monkeypatch.setattr(parallel, "WORKER_START_SECONDS", 0.0)


def square(number: int) -> int:
    return number * number


def number_and_process(number: int) -> tuple[int, int]:
    return number, os.getpid()


def refuse(bad: int, number: int) -> int:
    if number == bad:
        raise DataError(f"case {number}: broken")
    return number


def vanish(number: int) -> int:
    if number:
        os._exit(9)
    return number


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    items = list(range(count))[::-1]
    assert in_parallel(square, items, 2, "squares") == [n * n for n in items]


@pytest.mark.usefixtures("eager")
def test_workers_take_all_but_the_first_item_and_keep_the_order() -> None:
    found = in_parallel(number_and_process, range(6), 2, "numbers")
    assert [number for number, _ in found] == list(range(6))
    assert found[0][1] == os.getpid()
    assert os.getpid() not in {process for _, process in found[1:]}


def test_short_jobs_start_no_process() -> None:
    found = in_parallel(number_and_process, range(5), 2, "numbers")
    assert {process for _, process in found} == {os.getpid()}


@pytest.mark.usefixtures("eager")
def test_one_process_means_this_one() -> None:
    found = in_parallel(number_and_process, range(5), 1, "numbers")
    assert {process for _, process in found} == {os.getpid()}


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_comes_through_as_it_is(bad: int, processes: int) -> None:
    with pytest.raises(DataError, match=f"case {bad}: broken"):
        in_parallel(partial(refuse, bad), range(4), processes, "cases")


@pytest.mark.usefixtures("eager")
def test_a_killed_worker_is_explained() -> None:
    with pytest.raises(RunError, match=r"survey: a worker process was killed.*fewer --processes"):
        in_parallel(vanish, range(3), 2, "survey")


def test_progress_counts_every_item(capsys: pytest.CaptureFixture[str]) -> None:
    in_parallel(square, range(4), 1, "squares")
    assert "squares: 4/4" in capsys.readouterr().err


@pytest.mark.usefixtures("eager")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("delay", [0.0, 0.002, 0.02])
def test_a_worker_killed_at_its_birth_leaves_nobody_waiting(delay: float) -> None:
    """While others are being started, the pool itself may wait for ever, or its thread may fail."""
    ended = threading.Event()

    def kill_first() -> None:
        while not ended.is_set():
            for worker in multiprocessing.active_children():
                time.sleep(delay)
                worker.kill()
                return

    killer = threading.Thread(target=kill_first)
    killer.start()
    try:
        with pytest.raises(RunError, match="a worker process was killed"):
            in_parallel(square, range(12), 4, "squares")
    finally:
        ended.set()
        killer.join()
