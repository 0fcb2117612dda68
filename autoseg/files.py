"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autoseg.errors import AutosegError, RunError

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
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys(path))
    except FileNotFoundError as error:
        raise AutosegError(f"{path} is missing") from error
    except RecursionError as error:
        raise AutosegError(f"{path} is nested too deeply to be one of our files") from error
    except json.JSONDecodeError as error:
        raise AutosegError(
            f"{path} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise AutosegError(f"cannot read {path}: {error}") from error


def _unique_keys(path: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise AutosegError(f"{path} has the key {twice!r} twice; keep one of them")
        return keys

    return build


@contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path` for the block; if it is held, wait for it or say who holds it.

    A lock left by a killed process on this machine is taken over.

    Raises:
        AutosegError: the folder is not writable.
        RunError: another living process holds the lock, and `wait` is false.
    """
    mine = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text(str(os.getpid()))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        _take(path, mine, what, wait)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        mine.unlink(missing_ok=True)


def _take(path: Path, mine: Path, what: str, wait: bool) -> None:
    while True:
        try:
            os.link(mine, path)  # appears whole, with its holder's number in it
            return
        except FileExistsError:
            holder = _read_holder(path)
        if holder is None or not _is_alive(holder):
            path.with_name(f"{path.name}.{holder}").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        elif wait:
            time.sleep(0.2)
        else:
            raise RunError(
                f"{what} is in use by process {holder}; wait for it, or stop it and delete {path}"
            )


def _read_holder(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
