from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from filelock import OwnerRecord, SoftFileLease

from autoseg.common import locks
from autoseg.common.errors import AutosegError, InUse
from autoseg.common.files import write_text
from autoseg.common.locks import LEASE_SECONDS, holder_of, locked
from tests.making import dead_process

TAKE = (
    "import sys; from pathlib import Path; from autoseg.common import locks\n"
    "names = 'LEASE_SECONDS', 'SOON_SECONDS', 'SURE_SECONDS', 'HEARTBEAT_SECONDS'\n"
    "vars(locks).update(zip(names, map(float, sys.argv[2:])))\n"
    "with locks.locked(Path(sys.argv[1]), 'the model'): print('taken', flush=True); input()\n"
)
UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def owner(path: Path) -> OwnerRecord:
    found = SoftFileLease(path).owner
    assert found is not None
    return found


def write_marker(lock: Path, like: OwnerRecord, **changes: object) -> None:
    """The lock file that another process would have written."""
    values = like._replace(token="0123")._asdict() | {"lease_duration": locks.LEASE_SECONDS}
    values |= changes
    names = {"hostname": "host", "lease_duration": "duration"}
    lines = [f"{names.get(name, name)}={value}" for name, value in values.items()]
    lock.write_text("\n".join(["filelock/2", *lines, ""]), encoding="utf-8")


@pytest.fixture
def me(tmp_path: Path) -> OwnerRecord:
    with locked(tmp_path / "mine", "it"):
        return owner(tmp_path / "mine")


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(locks, "SOON_SECONDS", 0.5)
    monkeypatch.setattr(locks, "SURE_SECONDS", 0.2)
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(locks, "_DEAD", set())


def command(lock: Path) -> list[str]:
    seconds = (locks.LEASE_SECONDS, locks.SOON_SECONDS, locks.SURE_SECONDS, locks.HEARTBEAT_SECONDS)
    return [sys.executable, "-c", TAKE, str(lock), *map(str, seconds)]


def holding(lock: Path, *before: str) -> subprocess.Popen[str]:
    """A process that holds a lock until it reads a line."""
    process = subprocess.Popen(
        [*before, *command(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    return process


def test_a_lock_keeps_others_out_and_names_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock, "the model"):
        other = subprocess.run(command(lock), capture_output=True, text=True, check=False)
    assert f"the model is in use by process {os.getpid()} since " in other.stderr
    assert str(lock) in other.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "lock", "it"):
        raise KeyError
    with locked(tmp_path / "lock", "it"):
        pass


def test_a_lock_cannot_be_taken_twice(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock", "it"),
        pytest.raises(InUse, match=str(os.getpid())),
        locked(tmp_path / "lock", "it"),
    ):
        pass


def test_a_lock_in_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(AutosegError, match=r"cannot write .*lock"),
        locked(tmp_path / "file" / "lock", "it"),
    ):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = holding(lock)
    assert owner(lock).pid == holder.pid
    holder.kill()
    holder.wait()
    assert holder_of(lock) is None
    started = time.monotonic()
    with locked(lock, "it"):
        assert owner(lock).pid == os.getpid()
    assert time.monotonic() - started < 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("content", ["", "nonsense", "1234567", "1 elsewhere", "filelock/2\npid=1"])
def test_a_damaged_or_older_lock_file_is_taken_over(
    tmp_path: Path, content: str, wait: bool
) -> None:
    lock = tmp_path / "lock"
    lock.write_text(content, encoding="utf-8")
    with locked(lock, "it", wait):
        assert owner(lock).pid == os.getpid()


@pytest.mark.usefixtures("short_lease")
def test_the_pid_of_a_holder_is_not_enough(tmp_path: Path, me: OwnerRecord) -> None:
    """A container that is started again has the same PIDs, perhaps even this process's own."""
    lock = tmp_path / "lock"
    assert me.start is not None
    for start in (me.start - 1, me.start ^ (1 << 64)):  # an earlier process; an earlier boot
        write_marker(lock, me, start=start)
        with locked(lock, "it"):
            assert owner(lock).token != "0123"


def test_a_waiting_process_gets_the_lock_when_it_is_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "QUIET_SECONDS", 0.1)
    lock = tmp_path / "lock"
    holder = holding(lock)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(_take_and_release, lock)
        time.sleep(0.5)
        assert not waiting.done()
        holder.communicate("\n")
        assert waiting.result(timeout=60) == os.getpid()
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in ("waiting for it", str(holder.pid), str(lock)))


def _take_and_release(lock: Path) -> int:
    with locked(lock, "it", wait=True):
        return owner(lock).pid


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work(_: int) -> None:
        with locked(tmp_path / "lock", "it", wait=True):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert most == [1]


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("host", ["elsewhere", "elsewhere?pidns-f0000abc"])
def test_the_lock_of_another_host_is_respected_while_it_has_a_heartbeat(
    tmp_path: Path, me: OwnerRecord, host: str
) -> None:
    lock = tmp_path / "lock"
    write_marker(lock, me, hostname=host, start=other_boot(me))
    with beating(lock):
        assert owner(lock).hostname == host
        with pytest.raises(InUse, match=f"{me.pid} on elsewhere"), locked(lock, "it"):
            pass


@pytest.mark.usefixtures("short_lease")
def test_another_machine_of_the_same_name_is_no_earlier_start_of_this_one(
    tmp_path: Path, me: OwnerRecord
) -> None:
    lock = tmp_path / "lock"
    write_marker(lock, me, pid=dead_process(), start=other_boot(me))
    with beating(lock), pytest.raises(InUse), locked(lock, "it"):
        pass


@pytest.mark.usefixtures("short_lease")
def test_a_running_0_1_0_keeps_its_lock_and_a_dead_one_loses_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("4321 elsewhere", encoding="utf-8")
    with beating(lock), pytest.raises(InUse, match="process 4321 on elsewhere"), locked(lock, "it"):
        pass
    with locked(lock, "it"):
        assert owner(lock).pid == os.getpid()


def other_boot(me: OwnerRecord) -> int:
    assert me.start is not None
    return me.start ^ (1 << 70)


@contextmanager
def beating(lock: Path) -> Iterator[None]:
    """A heartbeat of the lock's holder."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            os.utime(lock)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("clock", [0.0, -1e6, 1e6])
@pytest.mark.parametrize("host", ["elsewhere", "{me}?pidns-f0000abc"])
def test_the_lock_of_another_host_is_taken_over_without_a_heartbeat(
    tmp_path: Path, me: OwnerRecord, host: str, clock: float, wait: bool
) -> None:
    """Whatever its clock says."""
    lock = tmp_path / "lock"
    write_marker(lock, me, hostname=host.format(me=me.hostname), start=other_boot(me))
    os.utime(lock, (time.time() + clock,) * 2)
    started = time.monotonic()
    with locked(lock, "it", wait):
        assert 0.9 < time.monotonic() - started < 5
        assert owner(lock).hostname == me.hostname
    assert list(tmp_path.iterdir()) == []


def test_a_holder_without_a_heartbeat_is_not_told(tmp_path: Path, me: OwnerRecord) -> None:
    lock = tmp_path / "lock"
    write_marker(lock, me, hostname="elsewhere")
    assert holder_of(lock) is not None
    past = time.time() - LEASE_SECONDS - 1
    os.utime(lock, (past, past))
    assert holder_of(lock) is None
    write_marker(lock, me, pid=dead_process())
    assert holder_of(lock) is None


def test_dead_holders_are_waited_for_less_than_half_a_minute() -> None:
    assert 4 * locks.HEARTBEAT_SECONDS < LEASE_SECONDS < 30


@pytest.mark.usefixtures("short_lease")
def test_a_held_lock_has_a_heartbeat(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock, "it"):
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 60
        while lock.stat().st_mtime == 0:
            assert time.monotonic() < deadline


@pytest.mark.usefixtures("short_lease")
def test_a_lost_lock_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(tmp_path / "lock", "it"):
        (tmp_path / "lock").unlink()
        time.sleep(1.0)
    assert str(tmp_path / "lock") in capsys.readouterr().err


def test_locks_need_no_writable_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, me: OwnerRecord
) -> None:
    locks._here.cache_clear()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    try:
        with (
            locked(tmp_path / "lock", "it"),
            pytest.raises(InUse, match=str(me.pid)),
            locked(tmp_path / "lock", "it"),
        ):
            pass
    finally:
        locks._here.cache_clear()


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("host", ["{me}?pidns-f0000abc", "renamed"])
def test_a_dead_holder_of_this_boot_is_replaced_soon_whatever_its_host_is_called(
    tmp_path: Path, me: OwnerRecord, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """A container that is started anew has another namespace, and often another host name."""
    monkeypatch.setattr(locks, "LEASE_SECONDS", 60.0)
    monkeypatch.setattr(locks, "SOON_SECONDS", 60.0)
    lock = tmp_path / "lock"
    write_marker(lock, me, hostname=host.format(me=me.hostname))
    _say_flocked(lock)
    started = time.monotonic()
    with locked(lock, "it"):
        assert time.monotonic() - started < 10
        assert owner(lock).pid == os.getpid()


def _say_flocked(lock: Path, ino: int | None = None) -> None:
    """What a holder adds that has the kernel's lock on the file."""
    found = lock.stat()
    with lock.open("a") as file:
        file.write(f"flock={found.st_dev}:{ino or found.st_ino}\n")


@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("flocked", [False, True])
def test_a_kernel_lock_that_the_holder_never_had_says_nothing(
    tmp_path: Path, me: OwnerRecord, flocked: bool
) -> None:
    """As through two mounts of one FUSE file system, which lock apart from each other."""
    lock = tmp_path / "lock"
    write_marker(lock, me, hostname=f"{me.hostname}?pidns-f0000abc")
    if flocked:
        _say_flocked(lock, ino=1)
    started = time.monotonic()
    with locked(lock, "it"):
        assert time.monotonic() - started > 0.9 * locks.SOON_SECONDS


def test_a_holder_says_that_the_kernel_has_locked_its_file(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", "it"):
        found = (tmp_path / "lock").stat()
        assert f"flock={found.st_dev}:{found.st_ino}" in (tmp_path / "lock").read_text().split()


@pytest.mark.usefixtures("short_lease")
def test_all_locks_of_a_dead_holder_are_waited_for_once(tmp_path: Path, me: OwnerRecord) -> None:
    for name in "abcde":
        write_marker(tmp_path / name, me, hostname="elsewhere", start=other_boot(me))
    started = time.monotonic()
    for name in "abcde":
        with locked(tmp_path / name, "it"):
            pass
    assert time.monotonic() - started < 2 * locks.LEASE_SECONDS


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process")
@pytest.mark.usefixtures("short_lease")
def test_a_suspended_process_keeps_its_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = holding(lock)
    holder.send_signal(signal.SIGSTOP)
    time.sleep(1.5 * locks.LEASE_SECONDS)
    with pytest.raises(InUse, match=str(holder.pid)), locked(lock, "it"):
        pass
    holder.send_signal(signal.SIGCONT)
    assert owner(lock).pid == holder.pid
    holder.communicate("\n")
    assert holder.returncode == 0
    assert not lock.exists()


def test_who_lost_a_lock_to_another_process_writes_nothing_more(
    tmp_path: Path, me: OwnerRecord
) -> None:
    folder = tmp_path / "fold"
    with locked(folder / "lock", "fold 0"):
        write_text(folder / "weights", "old")
        (folder / "lock").unlink()
        write_text(folder / "weights", "mine")  # nobody has taken the lock
        write_marker(folder / "lock", me, hostname="elsewhere", pid=99)
        with pytest.raises(InUse, match="99 on elsewhere"):
            write_text(folder / "weights", "too late")
        with pytest.raises(InUse):
            write_text(folder / "inside" / "weights", "too late")
        write_text(tmp_path / "other", "elsewhere")
    assert (folder / "weights").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["inside", "lock", "weights"]
    assert owner(folder / "lock").pid == 99


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can write into; pytest's own are closed to others."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def refused_as_nobody(lock: Path) -> str:
    """What another user reads who tries to take the lock."""
    words = command(lock)
    words[2] = TAKE.replace("with", "import os, pwd; locks._here(); os.setuid(65534)\nwith")
    other = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "InUse" in other.stderr, other
    return other.stderr


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="changes the user")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_locks_of_another_user_name_process_and_user(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with locked(folder / "lock", "it"):
            other = refused_as_nobody(folder / "lock")
    finally:
        os.umask(before)
    assert f"process {os.getpid()} of user root since" in other


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="changes the user")
def test_a_lock_that_cannot_be_read_is_held_while_it_has_a_heartbeat(folder: Path) -> None:
    (folder / "lock").touch(0o600)
    with beating(folder / "lock"):
        other = refused_as_nobody(folder / "lock")
    assert "another process of user root" in other


@pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode != 0,
    reason="makes PID namespaces",
)
@pytest.mark.usefixtures("short_lease")
def test_containers_of_one_host_name_exclude_each_other(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    inside = holding(lock, *UNSHARE)
    try:
        with pytest.raises(InUse, match="container"), locked(lock, "it"):
            pass
    finally:
        inside.kill()
        inside.wait()
    again = holding(lock, *UNSHARE)  # restarted: another process 1, in another namespace
    again.communicate("\n")
    assert again.returncode == 0


@pytest.mark.parametrize("wait", [False, True])
def test_locks_may_have_the_longest_name(tmp_path: Path, wait: bool) -> None:
    lock = tmp_path / ("ü" * 127)
    holder = holding(lock)
    with pytest.raises(InUse), locked(lock, "it"):
        pass
    holder.kill()
    holder.wait()
    with locked(lock, "it", wait):
        pass
    assert list(tmp_path.iterdir()) == []
