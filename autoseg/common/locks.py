"""Lock files: at most one living process holds a lock, also where machines share a folder.

A lock file is a lease of filelock: it names its holder by host, boot, PID namespace, PID and start
time, and its time of modification is a heartbeat. The holder also has the kernel's lock (flock) on
the file, and says so in it: so processes of other containers on this machine, whose PIDs mean
nothing here, and processes that are suspended are known to live, and to be dead once it is free.
Other machines, and file systems without such locks, are judged by the heartbeat alone.
A process that lost its lock while it was suspended writes nothing more (see `files.guarded`).
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import psutil
from filelock import LeaseCompromise, OwnerRecord, SoftFileLease, Timeout

from autoseg.common import files
from autoseg.common.errors import AutosegError, InUse
from autoseg.common.progress import say

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed either
    fcntl = None

HEARTBEAT_SECONDS = 1.0
SURE_SECONDS = 2.0  # without a heartbeat: dead, if the kernel's lock that it had is free
SOON_SECONDS = 5.0  # the same, if the file does not say that it had that lock
LEASE_SECONDS = 25.0  # without a heartbeat: dead, whoever it was
POLL_SECONDS = 0.1
QUIET_SECONDS = 2.0  # of waiting before the user reads what for
SUFFIX_BYTES = 80  # that filelock appends to a name while it takes a lock over
NAMESPACE = "?pidns-"  # follows the host name where filelock sees a container's PID namespace
OPENING = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # not on Windows
READABLE = 0o644  # by other users, whatever the umask: they read who holds the lock
SINCE = re.compile(r"^since=(.+)$", re.MULTILINE)
FLOCK = "flock={0.st_dev}:{0.st_ino}\n"  # of a file that the kernel has locked, as seen from here
OF_0_1_0 = re.compile(r"(\d+) (\S+)")

_DEAD: set[tuple[str, int, int | None]] = set()  # host, PID and start of holders found dead


@contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` for the block; if it is held, wait for it or name its holder.

    A lock of a dead process is taken over: `SURE_SECONDS` after its last heartbeat or earlier if it
    ran on this machine, after `LEASE_SECONDS` otherwise. A call without `wait` ends as soon
    as the holder is known to live. If another process takes the lock over within the block (this
    one was suspended, or could not reach the folder), files in the folder can no longer be written.

    Args:
        path: the lock file; its folder is made if it is missing.
        what: what the lock protects, for messages.
        wait: wait until the lock is free.

    Raises:
        AutosegError: the folder is not writable.
        InUse: another living process holds the lock, and `wait` is false.
    """
    options: Any = {"lease_duration": LEASE_SECONDS, "heartbeat_interval": HEARTBEAT_SECONDS}
    options |= {"on_compromise": _say_lost, "thread_local": False, "mode": READABLE}
    lease = SoftFileLease(_marker(path), **options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _acquire(lease, _marker(path), what, wait)
    except OSError as error:
        raise files.cannot_write(path, error) from error
    token = lease.token

    def check() -> None:
        holder = lease.owner
        if holder is not None and holder.token != token:
            by = _name_of(holder, _marker(path))
            raise InUse(files.TEXT("taken over", what=what, by=by))

    try:
        with files.guarded(path.parent, check):
            yield
    finally:
        lease.release()
        if file is not None:
            os.close(file)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Hold a lock for writing one file or folder, without what killed processes left of it."""
    with locked(out.with_name(f".{out.name}.lock"), str(out), wait=True):
        files.remove_leftovers(out.parent, (out.name,))
        yield


def holder_of(path: Path) -> str | None:
    """The living process that holds a lock, and since when; None if nobody does."""
    watch = _Watch(_marker(path))
    with suppress(OSError):
        if watch.look(remove=False) == "dead":
            return None
        unseen = abs(time.time() - watch.path.stat().st_mtime) > LEASE_SECONDS
        return None if watch.state == "unknown" and unseen else watch.name
    return None


def _marker(path: Path) -> Path:
    return path.with_name(files.end_of_name(path.name, files.LONGEST_NAME - SUFFIX_BYTES))


def _acquire(lease: SoftFileLease, path: Path, what: str, wait: bool) -> int | None:
    """Wait for the lock; returns the open file on which the kernel holds its own lock."""
    started, watch, quiet = time.monotonic(), _Watch(path), True
    while True:
        if not os.path.lexists(path):
            with suppress(Timeout):
                lease.acquire(blocking=False)
                return _hold(path)
        with suppress(FileNotFoundError):  # released at this moment
            state = watch.look()
            if state == "alive" and not wait:
                raise InUse(f"{what} is in use by {watch.name}; wait for it, or stop it ({path})")
            if state == "dead":
                continue
        if quiet and time.monotonic() - started > QUIET_SECONDS:
            quiet = False
            seconds = LEASE_SECONDS + SOON_SECONDS
            say(files.TEXT("waiting", what=what, watch=watch, seconds=seconds))
        time.sleep(POLL_SECONDS)


def _hold(path: Path) -> int | None:
    """Take the kernel's lock on our own lock file, and write since when and whether we have it."""
    if fcntl is None:
        return None
    with suppress(OSError):
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        end = time.monotonic() + QUIET_SECONDS
        while (is_locked := _flock(file)) is False and time.monotonic() < end:
            time.sleep(POLL_SECONDS / 10)  # another process looks at it
        said = time.strftime("since=%Y-%m-%d %H:%M:%S%z\n")
        with suppress(OSError):
            os.write(file, (said + FLOCK.format(os.fstat(file)) * bool(is_locked)).encode())
        return file
    return None


def _flock(file: int) -> bool | None:
    """Try to lock an open file: whether it succeeded, None if that is not known here."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks; NFS, where this file is not ours to write
        return None
    return True


class _Watch:
    """Watches a lock file of another process.

    Attributes:
        holder: who wrote the file; None if that cannot be read.
        state: `alive`, `dead` or, until it is known, `unknown`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, "unknown"
        self.holder: OwnerRecord | None = None
        self._seen: tuple[int, int] | None = None
        self._since, self._has_beaten = 0.0, False

    @property
    def name(self) -> str:
        """The holder, and since when it holds the lock."""
        return _name_of(self.holder, self.path)

    def look(self, remove: bool = True) -> str:
        """Look whether the holder lives; remove the file of a dead one. Returns the new state.

        Raises:
            FileNotFoundError: the lock has been released.
            AutosegError: the file of a dead holder cannot be removed.
        """
        with _opened(self.path) as file:
            is_free = None if file is None else _flock(file)
            found = os.lstat(self.path) if file is None else os.fstat(file)
            if (seen := (found.st_ino, found.st_mtime_ns)) != self._seen:
                self._has_beaten = self._seen is not None and seen[0] == self._seen[0]
                self._seen, self._since = seen, time.monotonic()
            self.holder = _read_holder(self.path)
            self.state = self._judge(is_free, found)
            if self.state == "dead" and remove and os.lstat(self.path).st_ino == found.st_ino:
                try:
                    self.path.unlink()  # we have the kernel's lock on it: no other process does so
                except PermissionError as error:
                    raise AutosegError(files.TEXT("left", watch=self)) from error
        return self.state

    def _judge(self, is_free: bool | None, found: os.stat_result) -> str:
        silence, patience = time.monotonic() - self._since, LEASE_SECONDS
        holder, here = self.holder, _here()
        known = None if holder is None else (holder.hostname, holder.pid, holder.start)
        if is_free is False:
            return "alive"
        if holder is not None and here is not None and _boot(holder) == _boot(here) is not None:
            silence = max(silence, time.time() - found.st_mtime)  # by the same clock
            if is_free:
                had_it = FLOCK.format(found) in _text(self.path)
                patience = SURE_SECONDS if had_it else SOON_SECONDS
            if holder.hostname == here.hostname and not psutil.pid_exists(holder.pid):
                patience = 0.0
        if silence >= patience or (known in _DEAD and not self._has_beaten):
            if known is not None:
                _DEAD.add(known)  # its other locks need not be waited for
            return "dead"
        return "alive" if self._has_beaten else "unknown"


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """Open a lock file, for writing if possible, as NFS locks need it; None without permission."""
    file = None
    for flags in (os.O_RDWR, os.O_RDONLY) if fcntl is not None else ():
        with suppress(PermissionError):
            file = os.open(path, flags | OPENING)
            break
    try:
        yield file
    finally:
        if file is not None:
            os.close(file)


def _read_holder(path: Path) -> OwnerRecord | None:
    """The holder that a lock file names; those of 0.1.0 name the PID and host only."""
    if (holder := SoftFileLease(path).owner) is not None:
        return holder
    if found := OF_0_1_0.fullmatch(_text(path)):
        return OwnerRecord(int(found[1]), found[2], "unknown")
    return None


def _text(path: Path) -> str:
    """The content of a lock file; empty if it cannot be read."""
    with suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8")
    return ""


def _name_of(holder: OwnerRecord | None, path: Path) -> str:
    """Process, host, user and time, as far as they are known and not those of this process."""
    name, here = "another process", _here()
    if holder is not None:
        host, _, namespace = holder.hostname.partition(NAMESPACE)
        name = f"process {holder.pid}"
        if here is None or holder.hostname != here.hostname:
            name += f" on {host}" + (" (in a container)" if namespace else "")
    with suppress(OSError, KeyError, NotImplementedError, AttributeError):  # on Windows
        if path.stat().st_uid != os.getuid():
            name += f" of user {path.owner()}"
    if since := SINCE.search(_text(path)):
        name += f" since {since[1]}"
    return name


def _boot(record: OwnerRecord) -> int | None:
    """The id of the boot that a process belongs to; None if it is hidden."""
    return (record.start or 0) >> 64 or None


def _say_lost(lost: LeaseCompromise) -> None:
    say(files.TEXT("lost", lost=lost))


@cache
def _here() -> OwnerRecord | None:
    """How filelock names this process: host, PID namespace and boot; None if that is unknown."""
    with (
        suppress(OSError),
        TemporaryDirectory() as folder,
        SoftFileLease(Path(folder) / "lock") as lease,
    ):
        return lease.owner
    return None
