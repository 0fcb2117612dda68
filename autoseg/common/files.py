"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import TypeAdapter, ValidationError

from autoseg.common.errors import AutosegError, DataError

Made = TypeVar("Made")


# Processes of this machine.


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs here."""
    try:
        return bool(psutil.pid_exists(pid))
    except OverflowError:  # none has a number that large
        return False


LONGEST_NAME = 255  # bytes that most file systems allow
UNFINISHED = ".tmp-"  # begins the names of what is not whole yet
TEMPORARY = re.compile(rf"({re.escape(UNFINISHED)}(\d+)-)(.+)", re.DOTALL)

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
        raise cannot_write(path, error) from error
    temporary = temporary_for(path)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # of a folder that is read-only: the first error is to be told
            temporary.unlink(missing_ok=True)


def temporary_for(path: Path) -> Path:
    """Where `path` is written before it is whole; it ends like the real one."""
    start = f"{UNFINISHED}{os.getpid()}-"
    return path.with_name(start + end_of_name(path.name, LONGEST_NAME - len(start)))


def is_temporary(name: str, of: str) -> bool:
    """Is this what a process, perhaps another one, calls the file `of` before it is whole?"""
    found = TEMPORARY.fullmatch(name)
    if found is None:
        return False
    most_bytes = LONGEST_NAME - len(found[1])
    once = end_of_name(of, most_bytes)
    twice = end_of_name(found[1] + once, most_bytes)  # a writer in a writer of the same file
    return found[3] in (once, twice)


def end_of_name(name: str, most_bytes: int) -> str:
    """A file's name, or if it is too long a hash of it and its end, in whole letters."""
    encoded = os.fsencode(name)
    if len(encoded) <= most_bytes:
        return name
    start = f"{hashlib.blake2b(encoded, digest_size=4).hexdigest()}-"
    return start + encoded[len(start) - most_bytes :].decode("utf-8", "ignore")


def unfinished_in(folder: Path) -> list[Path]:
    """What is being written there now, and what killed processes have left."""
    return list(folder.glob(f"{UNFINISHED}*"))


def remove_leftovers(folder: Path, of: Iterable[str]) -> None:
    """Delete what killed processes have left of these files; nobody may be writing them."""
    names = list(of)
    for path in unfinished_in(folder):
        if any(is_temporary(path.name, name) for name in names):
            path.unlink(missing_ok=True)


def remove_leftovers_of_dead(path: Path) -> None:
    """Delete what dead processes have left of a file or folder that a living one may be writing.

    A process of another machine that shares the folder is not seen to live.
    """
    for left in unfinished_in(path.parent):
        if is_temporary(left.name, path.name) and not is_alive(_writer_of(left.name)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):
                    left.unlink(missing_ok=True)


def _writer_of(temporary: str) -> int:
    found = TEMPORARY.fullmatch(temporary)
    assert found is not None
    return int(found[2])


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(path: Path, error: Exception) -> AutosegError:
    """What to tell of a file that cannot be written."""
    advice = "choose a folder that is writable and has free space"
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        advice = "use a shorter name"
    reason = getattr(error, "strerror", None) or error  # libraries raise errors of their own
    return AutosegError(f"cannot write {path}: {reason}; {advice}")


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


# Dataclasses and JSON: `write_json(path, asdict(made))` writes one.

_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def dataclass_from_json(
    kind: type[Made], values: Any, where: Path | str, advice: str = "delete it"
) -> Made:
    """Build a dataclass, at any depth, from the JSON values of its `asdict`.

    Types must match: text is not a number, and an unknown key is an error.

    Raises:
        DataError: the message names `where` and the key, and ends with `advice`.
    """
    try:
        text = json.dumps(values, allow_nan=False)
        made: Made = _adapter(kind).validate_json(text, strict=True, extra="forbid")
        return made
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        problem = first["msg"][:1].lower() + first["msg"][1:]
        raise DataError(f"{where}: {f'{key}: ' if key else ''}{problem}; {advice}") from error
    except ValueError as error:  # NaN
        raise DataError(f"{where}: {error}; {advice}") from error


# Checksums of files: what a disk or a copy has changed is noticed, whatever reads the file.

CHECKSUMS = "checksums.json"
BYTES_AT_ONCE = 1 << 20


def checksum(path: Path) -> str:
    """The CRC-32 of a file's bytes, in hexadecimal."""
    value = 0
    with path.open("rb") as file:
        while part := file.read(BYTES_AT_ONCE):
            value = zlib.crc32(part, value)
    return f"{value:08x}"


def write_checksums(folder: Path, names: Sequence[str]) -> None:
    """Keep the checksums of files of a folder, in the folder."""
    write_json(folder / CHECKSUMS, {name: checksum(folder / name) for name in names})


def is_as_written(folder: Path, names: Sequence[str]) -> bool:
    """Do the files have the checksums that were kept, so that nothing in them has changed?"""
    try:
        kept = read_json(folder / CHECKSUMS)
        return bool(kept == {name: checksum(folder / name) for name in names})
    except (AutosegError, OSError):
        return False
