"""Worker processes that fail, die or are interrupted; a fault would hang or leave processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pytest

from autoseg.augmentation.loader import live_with_parent, worker_stream
from autoseg.common.errors import RunError

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
pytestmark = pytest.mark.timeout(100)
LARGER_THAN_A_PIPE = 1 << 20


class Counting:
    """Sends (worker, number); leaves a file for each item that it has made."""

    def __init__(self, folder, size=1, deadly=None):
        self.folder, self.size, self.deadly = folder, size, deadly
        self.number, self.thread_id = -1, 0

    def set_thread_id(self, thread_id):
        self.thread_id = thread_id
        live_with_parent()

    def __next__(self):
        self.number += 1
        if self.number == self.deadly:
            os._exit(7)
        (self.folder / f"made {self.number}").touch()
        return self.thread_id, self.number, np.zeros(self.size, np.uint8)


def made(folder, number, process):
    while not (folder / f"made {number}").exists():
        assert not wait([process.sentinel], timeout=0.02)


def test_items_come_from_the_workers_in_turn_and_all_end(tmp_path):
    with worker_stream(Counting(tmp_path), workers=2) as stream:
        found = [item[:2] for item in islice(stream, 5)]
    assert found == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert not multiprocessing.active_children()


def test_a_worker_that_exits_is_reported_with_its_status(tmp_path):
    with (
        worker_stream(Counting(tmp_path, deadly=2), workers=1) as stream,
        pytest.raises(RunError, match="exit status 7"),
    ):
        list(stream)
    assert not multiprocessing.active_children()


@posix
@pytest.mark.parametrize(
    ("name", "expected"),
    [("SIGKILL", "SIGKILL.*memory"), ("SIGSEGV", "SIGSEGV")],
)
def test_a_worker_killed_while_it_sends_is_reported_with_the_signal(tmp_path, name, expected):
    with worker_stream(Counting(tmp_path, LARGER_THAN_A_PIPE), workers=1) as stream:
        next(stream)
        (victim,) = multiprocessing.active_children()
        # The second is half in the pipe, the third behind it, and the fourth waits for its place.
        made(tmp_path, 3, victim)
        assert victim.pid is not None
        os.kill(victim.pid, getattr(signal, name))
        with pytest.raises(RunError, match=expected):
            list(stream)
    assert not multiprocessing.active_children()


@posix
def test_a_worker_killed_before_its_first_item_is_reported(tmp_path):
    with worker_stream(Counting(tmp_path), workers=1) as stream:
        (victim,) = multiprocessing.active_children()
        victim.kill()
        with pytest.raises(RunError, match="SIGKILL"):
            next(stream)


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from autoseg.augmentation.loader import worker_stream
from tests.augmentation.test_loader_workers import Counting

def main(way):
    loader = Counting(Path(sys.argv[2]))
    if way == "abandoned":  # the block is never left
        stream = worker_stream(loader, 1)
        kept.append(stream)
        print(next(stream.__enter__())[:2])
        return
    signalled = []
    if way == "signalled":
        signal.signal(signal.SIGTERM, lambda *_: signalled.append(1))
        signal.signal(signal.SIGINT, lambda *_: signalled.append(1))
    with worker_stream(loader, 1) as stream:
        next(stream)
        print("ready", flush=True)
        while way != "signalled":
            time.sleep(0.01)
            next(stream)
        while len(signalled) < 2:
            time.sleep(0.01)
        time.sleep(0.1)
        for _ in range(12):
            next(stream)  # more than it had made before
    print("done")

kept = []
if __name__ == "__main__":
    main(sys.argv[1])
"""


def start(folder, way):
    """A process of its own group; its workers share its output, which ends with the last one."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), way, str(folder)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """What is left of its output, once it and all its workers are gone."""
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def wait_until_ready(process):
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@posix
def test_ctrl_c_ends_all_and_no_worker_prints(tmp_path):
    process = start(tmp_path, "interrupted")
    wait_until_ready(process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = finish(process)
    assert process.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1  # the script's own
    assert "producer" not in errors


@posix
def test_signals_to_the_group_leave_the_workers_to_the_parent(tmp_path):
    process = start(tmp_path, "signalled")
    wait_until_ready(process)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = finish(process)
    assert (output, errors, process.returncode) == ("done\n", "", 0)


@posix
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    process = start(tmp_path, "killed")
    wait_until_ready(process)
    process.kill()
    _, errors = finish(process)
    assert "Traceback" not in errors


@posix
def test_an_unclosed_stream_does_not_keep_the_process_alive(tmp_path):
    process = start(tmp_path, "abandoned")
    output, errors = finish(process)
    assert (output, errors, process.returncode) == ("(0, 0)\n", "", 0)
