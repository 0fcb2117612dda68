from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autoseg.common import locks
from autoseg.common.errors import InUse, RunError
from autoseg.common.locks import LOST_SECONDS, Holder, holder_of, locked


def test_a_lock_keeps_others_out_and_says_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    taken = (
        "import sys; from pathlib import Path; from autoseg.common.locks import locked\n"
        "with locked(Path(sys.argv[1]), 'the model'): pass"
    )
    with locked(lock, "the model"):
        other = subprocess.run(
            [sys.executable, "-c", taken, str(lock)],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[1],
        )
    assert f"the model is in use by process {os.getpid()}" in other.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "lock", "it"):
        raise KeyError
    with locked(tmp_path / "lock", "it"):
        pass


def test_a_lock_cannot_be_taken_twice(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", "it"),
        pytest.raises(RunError, match="wait for it, or stop it"),
        locked(tmp_path / "lock", "it"),
    ):
        pass


def test_locks_need_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    lock = tmp_path / "lock"
    for _ in range(2):
        with locked(lock, "it"):
            assert lock.read_text(encoding="utf-8").split()[0] == str(os.getpid())
            with pytest.raises(InUse), locked(lock, "it"):
                pass
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("holder", ["dead", "", "nonsense"])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, holder: str) -> None:
    if holder == "dead":
        finished = subprocess.Popen([sys.executable, "-c", ""])
        finished.wait()
        holder = str(finished.pid)
    (tmp_path / "lock").write_text(holder)
    with locked(tmp_path / "lock", "it"):
        assert (tmp_path / "lock").read_text(encoding="utf-8").split()[0] == str(os.getpid())


def test_a_waiting_process_gets_the_lock_when_it_is_free(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lock.write_text(str(holder.pid))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(_take_and_release, lock)
        assert not waiting.done()
        holder.communicate(b"\n")
        assert waiting.result(timeout=60).split()[0] == str(os.getpid())


def _take_and_release(lock: Path) -> str:
    with locked(lock, "it", wait=True):
        return lock.read_text(encoding="utf-8")


def test_the_lock_of_another_machine_is_kept_while_it_is_touched(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("1 elsewhere")
    with pytest.raises(InUse, match="in use by process 1 on elsewhere"), locked(lock, "it"):
        pass
    assert holder_of(lock) == Holder(1, "elsewhere")
    past = lock.stat().st_mtime - LOST_SECONDS - 60
    os.utime(lock, (past, past))
    assert holder_of(lock) is None
    with locked(lock, "it"):
        assert holder_of(lock) == Holder(os.getpid(), platform.node())
    assert list(tmp_path.iterdir()) == []


def test_a_held_lock_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    lock = tmp_path / "lock"
    with locked(lock, "it"):
        os.utime(lock, (0, 0))
        while lock.stat().st_mtime == 0:
            pass


def test_who_comes_second_does_not_remove_the_lock_of_who_came_first(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("1 elsewhere")  # taken over from the dead process 2 a moment ago
    locks._remove_left(lock, Holder(2, platform.node()))
    assert lock.read_text(encoding="utf-8") == "1 elsewhere"
    assert list(tmp_path.iterdir()) == [lock]


def test_a_lock_from_the_future_is_taken_over_when_nobody_touches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was set back after the other machine had died."""
    lock = tmp_path / "lock"
    lock.write_text("1 elsewhere")
    future = time.time() + 1e8
    os.utime(lock, (future, future))
    assert holder_of(lock) == Holder(1, "elsewhere")
    monkeypatch.setattr(locks, "LOST_SECONDS", 0.5)
    begun = time.monotonic()
    with locked(lock, "it", wait=True):
        assert time.monotonic() - begun > 0.5
        assert holder_of(lock) == Holder(os.getpid(), platform.node())


@pytest.mark.parametrize("wait", [False, True])
def test_locks_may_have_the_longest_name(tmp_path: Path, wait: bool) -> None:
    lock = tmp_path / ("ü" * 127)
    lock.write_text("1 elsewhere")
    os.utime(lock, (0, 0))
    with locked(lock, "it", wait):
        pass
    assert list(tmp_path.iterdir()) == []
