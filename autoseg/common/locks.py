"""Lock files: at most one living process holds a lock, also where machines share a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import LeaseCompromise, OwnerRecord, SoftFileLease, Timeout

from autoseg.common.errors import InUse
from autoseg.common.files import LONGEST_NAME, cannot_write, end_of_name, is_alive
from autoseg.common.progress import say

HEARTBEAT_SECONDS = 2.0
LEASE_SECONDS = 25.0  # without a heartbeat, after which a lock is taken over
POLL_SECONDS = 0.1
QUIET_SECONDS = 2.0  # of waiting before the user reads what for
SUFFIX_BYTES = 80  # that filelock appends to a name while it takes a lock over
NAMESPACE = "?pidns-"  # follows the host name where filelock sees a container's PID namespace


@contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` for the block; if it is held, wait for it or name its holder.

    The file names its holder by host, boot, PID namespace, PID and start time. A lock of a dead
    process of this host is taken over at once. A process of another host or container cannot be
    seen: it is dead if its lock has no heartbeat for `LEASE_SECONDS`, and alive as soon as one is
    seen, which is what a call without `wait` then waits for.

    Args:
        path: the lock file; its folder is made if it is missing.
        what: what the lock protects, for messages.
        wait: wait until the lock is free.

    Raises:
        AutosegError: the folder is not writable.
        InUse: another living process holds the lock, and `wait` is false.
    """
    lease = _lease(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lease, Path(lease.lock_file), what, wait)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield
    finally:
        lease.release()


def holder_of(path: Path) -> OwnerRecord | None:
    """The living process that holds a lock, or None."""
    lease = _lease(path)
    holder = lease.owner
    try:
        if holder is None or time.time() - os.stat(lease.lock_file).st_mtime > LEASE_SECONDS:
            return None
    except FileNotFoundError:
        return None
    dead = holder.hostname == _this_host() and not is_alive(holder.pid)
    return None if dead else holder


def _lease(path: Path) -> SoftFileLease:
    return SoftFileLease(
        path.with_name(end_of_name(path.name, LONGEST_NAME - SUFFIX_BYTES)),
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=HEARTBEAT_SECONDS,
        on_compromise=_say_lost,
        thread_local=False,
    )


def _acquire(lease: SoftFileLease, path: Path, what: str, wait: bool) -> None:
    started, first_seen, quiet = time.monotonic(), None, True
    while True:
        try:
            lease.acquire(blocking=False)
            return
        except Timeout:
            pass
        except PermissionError:  # the lock of another user, or a folder that is not writable
            if lease.owner is None:
                raise
        holder = lease.owner
        with suppress(FileNotFoundError):  # released at this moment
            if holder is None:
                _mark_as_damaged(path)
            else:
                seen = holder.token, path.stat().st_mtime_ns
                first_seen = first_seen or seen
                if not wait and (holder.hostname == _this_host() or seen != first_seen):
                    raise InUse(
                        f"{what} is in use by process {_name_of(holder)}; wait for it, or stop it "
                        f"and delete {path}"
                    )
        if quiet and time.monotonic() - started > QUIET_SECONDS:
            quiet = False
            by = "another process" if holder is None else f"process {_name_of(holder)}"
            say(f"waiting for {what}, in use by {by} ({path})")
        time.sleep(POLL_SECONDS)


def _mark_as_damaged(path: Path) -> None:
    """Let filelock take over an empty lock file, which it otherwise never does.

    A process that is just creating the lock overwrites the mark.
    """
    with path.open("r+b") as file:
        if not os.fstat(file.fileno()).st_size:
            file.write(b"?")


def _say_lost(lost: LeaseCompromise) -> None:
    say(
        f"warning: this process has lost its lock {lost.lock_file} ({lost.reason}); another "
        "process may be writing the same files"
    )


def _name_of(holder: OwnerRecord) -> str:
    host, _, namespace = holder.hostname.partition(NAMESPACE)
    if holder.hostname == _this_host():
        return str(holder.pid)
    return f"{holder.pid} on {host}" + (" (in a container)" if namespace else "")


@cache
def _this_host() -> str | None:
    """The name that filelock gives to this host and PID namespace; None if it is unknown."""
    with (
        suppress(OSError),
        TemporaryDirectory() as folder,
        SoftFileLease(Path(folder) / "lock") as lease,
    ):
        return None if lease.owner is None else lease.owner.hostname
    return None
