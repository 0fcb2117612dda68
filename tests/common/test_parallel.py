from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from autoseg.common import parallel
from autoseg.common.errors import DataError, RunError
from autoseg.common.files import replacing
from autoseg.common.parallel import in_parallel, overlap

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


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
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def leave(number: int) -> int:
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
def test_a_worker_that_left_is_named_with_its_exit_status() -> None:
    with pytest.raises(RunError, match=r"survey: .*exit status 9"):
        in_parallel(leave, range(3), 2, "survey")


@pytest.mark.usefixtures("eager")
def test_a_killed_worker_is_explained() -> None:
    with pytest.raises(RunError, match=r"survey: .*killed.*fewer --processes"):
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
        with pytest.raises(RunError, match=r"squares: .*killed"):
            in_parallel(square, range(12), 4, "squares")
    finally:
        ended.set()
        killer.join()


def write_for_ever(folder: Path, number: int) -> None:
    if number:
        with replacing(folder / f"{number}.txt") as temporary:
            temporary.write_text("half")
            time.sleep(600)


ENDED = """
import sys; from pathlib import Path; from functools import partial
from autoseg.cli import common; from autoseg.common import parallel
from tests.common.test_parallel import write_for_ever

def command(arguments):
    write = partial(write_for_ever, Path(sys.argv[1]))
    parallel.in_parallel(write, range(5), 2, "writing")

if __name__ == "__main__":
    parallel.WORKER_START_SECONDS = 0.0
    common.spawn_workers()
    sys.exit(common.run(lambda: common.parser("writer", "Writes."), command, []))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="sends signals of Unix")
@pytest.mark.parametrize("to_all", [False, True])
def test_workers_end_with_a_command_that_is_ended(tmp_path: Path, to_all: bool) -> None:
    """Also if their part would take long, and if the workers receive the signal as well."""
    script, folder = tmp_path / "script.py", tmp_path / "written"
    script.write_text(ENDED)
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)], start_new_session=True, env=ENVIRONMENT
    )
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.05)
        assert process.poll() is None
    workers = psutil.Process(process.pid).children(recursive=True)
    started = time.monotonic()
    if to_all:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert time.monotonic() - started < 30
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills")
def test_workers_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "written"
    script.write_text(ENDED)
    folder.mkdir()
    process = subprocess.Popen([sys.executable, str(script), str(folder)], env=ENVIRONMENT)
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.05)
        assert process.poll() is None
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []


class Volume:
    """Stands for a large array; counts how many are alive at once."""

    alive = 0
    most = 0
    lock = threading.Lock()

    def __init__(self, number: int) -> None:
        self.number = number
        with Volume.lock:
            Volume.alive += 1
            Volume.most = max(Volume.most, Volume.alive)
        weakref.finalize(self, Volume._gone)

    @classmethod
    def _gone(cls) -> None:
        with cls.lock:
            cls.alive -= 1


@pytest.mark.parametrize("count", [0, 1, 2, 3, 30])
def test_every_item_goes_through_all_stages_in_order(count: int) -> None:
    found = overlap(
        iter(range(count)), lambda n: [n], lambda ns: [*ns, "computed"], lambda ns: [*ns, "done"]
    )
    assert list(found) == [[n, "computed", "done"] for n in range(count)]


@pytest.mark.parametrize("slow", ["prepare", "compute", "finish", "nothing"])
def test_at_most_one_item_a_stage_is_alive(slow: str) -> None:
    Volume.most = 0
    begun = itertools.count()

    def stage(name: str, volume: Volume) -> Volume:
        if name == slow:
            # The other stages run ahead as far as they can, until nothing changes.
            before = -1
            while before != Volume.most:
                before = Volume.most
                threading.Event().wait(0.005)
        return volume

    def prepare(number: int) -> Volume:
        next(begun)
        return stage("prepare", Volume(number))

    def finish(volume: Volume) -> int:
        return stage("finish", volume).number

    assert list(overlap(iter(range(40)), prepare, lambda v: stage("compute", v), finish)) == list(
        range(40)
    )
    assert next(begun) == 40
    assert Volume.most <= 3
    assert Volume.alive == 0


def test_the_three_stages_work_at_the_same_time() -> None:
    """Each waits for the other two, so one after the other they would block forever."""
    meeting = threading.Barrier(3, timeout=60)

    def meet(number: int) -> int:
        if number in meets:
            meeting.wait()
        return number

    def prepare(number: int) -> int:
        return number if number != 2 else meet(2)

    def compute(number: int) -> int:
        return number if number != 1 else meet(1)

    def finish(number: int) -> int:
        return number if number != 0 else meet(0)

    meets = {0, 1, 2}
    assert list(overlap(iter(range(5)), prepare, compute, finish)) == list(range(5))


@pytest.mark.parametrize("stage", range(4))
def test_an_error_ends_all_stages(stage: int) -> None:
    seen: list[int] = []

    def items() -> Iterator[int]:
        yield from range(10)
        if stage == 3:
            raise OSError("no more")

    def failing(index: int, number: int) -> int:
        if index == stage and number == 5:
            raise KeyError(number)
        return number

    threads = threading.active_count()
    results = overlap(
        items(), lambda n: failing(0, n), lambda n: failing(1, n), lambda n: failing(2, n)
    )
    with pytest.raises((KeyError, OSError)):  # noqa: PT012
        for number in results:
            seen.append(number)
    assert seen == list(range(len(seen)))
    assert len(seen) >= (8 if stage == 3 else 3)
    assert threading.active_count() == threads


def test_a_consumer_that_stops_ends_the_threads() -> None:
    threads = threading.active_count()
    results = overlap(itertools.count(), lambda n: n, lambda n: n, lambda n: n)
    assert next(results) == 0
    assert threading.active_count() == threads + 2
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


def test_items_are_taken_only_when_they_can_be_worked_on() -> None:
    """Another run can process the items that are not taken."""
    taken: list[int] = []
    results = overlap(
        iter(lambda: taken.append(0) or len(taken), None),  # type: ignore[func-returns-value]
        lambda n: n,
        lambda n: n,
        lambda n: n,
    )
    next(results)
    assert len(taken) <= 3


UNGUARDED = """
from autoseg.common import parallel
parallel.WORKER_START_SECONDS = 0
parallel.in_parallel(len, ["a", "bc", "def"], 2, "counting")
"""


def test_a_script_without_the_main_guard_is_told_the_two_lines(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 2  # the RunError and its cause; none of a worker
    assert 'if __name__ == "__main__":\n    main()' in done.stderr
    assert str(script) in done.stderr


def test_code_without_a_script_needs_no_guard() -> None:  # as in a notebook
    done = subprocess.run(
        [sys.executable, "-c", f"{UNGUARDED}\nprint('done')"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "done\n"
