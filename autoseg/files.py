"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.errors import AutosegError, InUse

BEAT_SECONDS = 20.0
LOST_SECONDS = 300.0

# Within strings JSON writes a line break as two characters: a real one is always layout.
PLAIN_LIST = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s*\]")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The temporary name ends like the real one: image writers choose the format by the ending.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> AutosegError:
    return AutosegError(
        f"cannot write {path}: {error.strerror or error}; choose a folder that is writable "
        "and has free space"
    )


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """Strict JSON (no NaN) for people: indented, lists of plain values on one line.

    The same value gives the same bytes.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return PLAIN_LIST.sub(_on_one_line, text) + "\n"


def _on_one_line(found: re.Match[str]) -> str:
    lines = found[1].split("\n")
    return f"[{' '.join(line.strip() for line in lines)}]"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as strict JSON, atomically."""
    write_text(path, to_json(value))


def read_json(path: Path) -> Any:
    """Read strict JSON; duplicate keys are an error, as they hide a mistake.

    Raises:
        AutosegError: the file is missing or not JSON; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise AutosegError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise AutosegError(f"cannot read {path}: {error}") from error
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """The same for text that is read already; `where` is named in messages."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique_keys(where),
            parse_float=_finite(where),
            parse_constant=_finite(where),
        )
    except RecursionError as error:
        raise AutosegError(f"{where} is nested too deeply to be one of our files") from error
    except json.JSONDecodeError as error:
        raise AutosegError(
            f"{where} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from error
    except AutosegError:
        raise
    except ValueError as error:  # a number with thousands of digits
        raise AutosegError(f"{where} is not valid JSON: {error}") from error


def _finite(where: str) -> Callable[[str], float]:
    """Reads a number; NaN and infinity are no JSON, though Python writes and reads them."""

    def read(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise AutosegError(f"{where} holds the number {text[:20]}, which is not finite")
        return number

    return read


def _unique_keys(where: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise AutosegError(f"{where} has the key {twice!r} twice; keep one of them")
        return keys

    return build


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
    mine = path.with_name(f"{path.name}.{me.pid}-{me.machine}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text(f"{me.pid} {me.machine}", encoding="utf-8")
    except OSError as error:
        raise _cannot_write(path, error) from error
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


def _take(path: Path, mine: Path, what: str, wait: bool) -> None:
    while True:
        try:
            os.link(mine, path)  # appears whole, with its holder's number in it
            return
        except FileExistsError:
            holder = _read_holder(path)
        mine.touch()
        with suppress(FileNotFoundError):  # released in this moment
            if holder is None or _is_left(path, holder, mine.stat().st_mtime):
                _remove_left(path, holder)
                continue
        if holder is not None and not wait:
            raise InUse(
                f"{what} is in use by process {holder}; wait for it, or stop it and delete {path}"
            )
        time.sleep(0.2 if wait else 0)


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


def _is_left(path: Path, holder: Holder, now: float) -> bool:
    """Has the holder ended without releasing its lock?"""
    if holder.machine == platform.node():
        return not _is_alive(holder.pid)
    return now - path.stat().st_mtime > LOST_SECONDS


def _remove_left(path: Path, holder: Holder | None) -> None:
    """Remove a lock that was left, unless somebody else has taken it over in this moment."""
    aside = path.with_name(f"{path.name}.left-{os.getpid()}-{platform.node()}")
    with suppress(FileNotFoundError):
        path.rename(aside)
    if aside.exists() and _read_holder(aside) != holder:
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
    if holder is not None:
        path.with_name(f"{path.name}.{holder.pid}-{holder.machine}").unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
