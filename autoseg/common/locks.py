"""Lock files: one living process at a time holds one, also where machines share a folder."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from autoseg.common.errors import InUse
from autoseg.common.files import LONGEST_NAME, cannot_write, end_of_name, is_alive

BEAT_SECONDS = 20.0
LOST_SECONDS = 300.0
BIRTH_SECONDS = 2.0  # within which a lock without a holder may be one that is just being written


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    machine: str

    def __str__(self) -> str:
        here = self.machine == platform.node()
        return str(self.pid) if here else f"{self.pid} on {self.machine}"


@contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` for the block; if it is held, wait for it or say who holds it.

    A lock left by a killed process on this machine is taken over. The processes of other machines,
    which may share the folder, cannot be seen: a lock is touched every `BEAT_SECONDS`, and one
    that was not touched for `LOST_SECONDS` (by the clock of the file's own system) is taken over.

    Raises:
        AutosegError: the folder is not writable.
        InUse: another living process holds the lock, and `wait` is false.
    """
    me = Holder(os.getpid(), platform.node())
    mine = _own(path, me)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text(f"{me.pid} {me.machine}", encoding="utf-8")
    except OSError as error:
        with suppress(OSError):
            mine.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    try:
        _take(path, mine, what, wait)
        try:
            with _touching(path):
                yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        mine.unlink(missing_ok=True)


def holder_of(path: Path) -> Holder | None:
    """The living process that holds a lock; None if nobody does."""
    holder = _read_holder(path)
    try:
        return None if holder is None or _is_left(path, holder, time.time()) else holder
    except FileNotFoundError:
        return None


def _own(path: Path, holder: Holder) -> Path:
    """A process's own file, which becomes the lock when its turn comes."""
    return path.with_name(end_of_name(f"{path.name}.{holder.pid}-{holder.machine}", LONGEST_NAME))


def _take(path: Path, mine: Path, what: str, wait: bool) -> None:
    watch = _Watch()
    while True:
        try:
            _appear(mine, path)
            return
        except FileExistsError:
            holder = _read_holder(path)
        mine.touch()
        with suppress(FileNotFoundError):  # released in this moment
            if _is_left(path, holder, mine.stat().st_mtime) or watch.sees_no_touch(path, holder):
                _remove_left(path, holder)
                continue
        if holder is not None and not wait:
            raise InUse(
                f"{what} is in use by process {holder}; wait for it, or stop it and delete {path}"
            )
        time.sleep(0.2 if wait else 0.01)


def _appear(mine: Path, path: Path) -> None:
    """Make the lock out of a process's own file; raises FileExistsError if there is one."""
    try:
        os.link(mine, path)  # appears whole, with its holder's number in it
    except FileExistsError:
        raise
    except OSError:  # a file system without links, as on many memory sticks
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(mine.read_text(encoding="utf-8"))
        except FileExistsError:
            raise
        except OSError as error:
            raise cannot_write(path, error) from error


class _Watch:
    """Notices a lock that nobody touches any more also where the clock was set back meanwhile."""

    def __init__(self) -> None:
        self._seen: tuple[Holder | None, int] | None = None
        self._since = 0.0

    def sees_no_touch(self, path: Path, holder: Holder | None) -> bool:
        """Has a lock of nobody here been as it is for so long as this has been called?"""
        now, seen = time.monotonic(), (holder, path.stat().st_mtime_ns)
        if seen != self._seen:
            self._seen, self._since = seen, now
        if holder is None:
            return now - self._since > BIRTH_SECONDS
        return holder.machine != platform.node() and now - self._since > LOST_SECONDS


@contextmanager
def _touching(path: Path) -> Iterator[None]:
    """Show the block's life to other machines."""
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _read_holder(path: Path) -> Holder | None:
    try:
        pid, _, machine = path.read_text(encoding="utf-8").partition(" ")
        return Holder(int(pid), machine or platform.node())
    except (OSError, ValueError):
        return None


def _is_left(path: Path, holder: Holder | None, now: float) -> bool:
    """Has the holder ended without releasing its lock?"""
    if holder is None:
        return now - path.stat().st_mtime > BIRTH_SECONDS
    if holder.machine == platform.node():
        return not is_alive(holder.pid)
    return now - path.stat().st_mtime > LOST_SECONDS


def _remove_left(path: Path, holder: Holder | None) -> None:
    """Remove a lock that was left, unless somebody else has taken it over in this moment."""
    aside = path.with_name(
        end_of_name(f"{path.name}.left-{os.getpid()}-{platform.node()}", LONGEST_NAME)
    )
    with suppress(FileNotFoundError):
        path.rename(aside)
    if aside.exists() and _read_holder(aside) != holder:
        with suppress(FileExistsError):
            _appear(aside, path)
    aside.unlink(missing_ok=True)
    if holder is not None:
        _own(path, holder).unlink(missing_ok=True)
