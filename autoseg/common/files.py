"""Atomic writing, strict JSON, dataclasses as JSON, and checksums of files."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from autoseg.common.errors import DENIED, AutosegError, DataError, raise_if

Made = TypeVar("Made")


LONGEST_NAME = 255  # bytes, on most file systems
UNFINISHED = ".tmp-"  # prefix of files that are being written
TEMPORARY = re.compile(rf"({re.escape(UNFINISHED)}(\d+)-)(.+)", re.DOTALL)
CHECKSUMS = "checksums.json"
OWN_NUMBER = f"{secrets.randbelow(10**6):06d}"  # as processes of containers may have one PID
BYTES_AT_ONCE = 1 << 20
NOT_FILES = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
NO_SUCH_FILE = "no such file"
SURROGATE = re.compile("[\ud800-\udfff]")  # stands for a byte that is not UTF-8
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# JSON escapes line breaks in strings: an actual line break is always layout.
PLAIN_LIST = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s*\]")
INDENT = re.compile(r"\n *")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block succeeds.

    Both names have the same ending, by which image writers choose the format. The file gets the
    permissions of any new file there (the umask, or the folder's default ACL), also where a library
    makes its files private.

    Raises:
        AutosegError: the file cannot be written.
    """
    if not is_utf8(path):
        raise AutosegError(f"cannot write {obstacle(path)}")
    temporary = temporary_for(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        check_guards(path)
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # in a read-only folder the first error matters
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, which replaces `folder` if the block succeeds."""
    temporary = temporary_for(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        check_guards(folder)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_GUARDS: list[tuple[str, Callable[[], None]]] = []  # folders, and what must not raise there


@contextmanager
def guarded(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Within the block, call `check` before a file of this process appears in the folder."""
    guard = (os.path.abspath(folder), check)
    _GUARDS.append(guard)
    try:
        yield
    finally:
        _GUARDS.remove(guard)


def check_guards(path: Path) -> None:
    """Raise what a guard of a folder of `path` raises: the process may no longer write there."""
    parents = {str(parent) for parent in Path(os.path.abspath(path)).parents}
    for folder, check in list(_GUARDS):
        if folder in parents:
            check()


def temporary_for(path: Path) -> Path:
    """The name under which this process writes `path`, with the same ending."""
    start = f"{UNFINISHED}{os.getpid()}{OWN_NUMBER}-"
    return path.with_name(start + end_of_name(path.name, LONGEST_NAME - len(start)))


def is_temporary(name: str, of: str) -> bool:
    """Whether `name` is the temporary name of the file `of`, in any process."""
    if (found := TEMPORARY.fullmatch(name)) is None:
        return False
    most_bytes = LONGEST_NAME - len(found[1])
    once = end_of_name(of, most_bytes)
    twice = end_of_name(found[1] + once, most_bytes)  # a writer inside a writer of the same file
    return found[3] in (once, twice)


def end_of_name(name: str, most_bytes: int) -> str:
    """A file name, shortened to a hash and its end if it is too long."""
    encoded = os.fsencode(name)
    if len(encoded) <= most_bytes:
        return name
    start = f"{hashlib.blake2b(encoded, digest_size=4).hexdigest()}-"
    return start + encoded[len(start) - most_bytes :].decode("utf-8", "ignore")


def unfinished_in(folder: Path) -> list[Path]:
    """Temporary files in a folder: being written now, or left by killed processes."""
    return list(folder.glob(f"{UNFINISHED}*"))


def remove_leftovers(folder: Path, of: Iterable[str]) -> None:
    """Delete the temporary files and folders of `of`; no process may be writing them."""
    names = list(of)
    for path in unfinished_in(folder):
        if any(is_temporary(path.name, name) for name in names):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def obstacle(path: Path) -> str:
    """The path and why it cannot be read; empty for a file or folder that can be read.

    Nothing is opened: opening a named pipe would wait for another process. ITK aborts the process
    on names that are not UTF-8, and a line break in a name would break lists and tables.
    """
    reason = _obstacle(path)
    return f"{printable(str(path))}: {reason}" if reason else ""


def _obstacle(path: Path) -> str:
    if not is_utf8(path):
        return "its name is not UTF-8; rename it"
    if CONTROL_CHARACTER.search(path.name):
        return "its name contains a control character, such as a line break; rename it"
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character
        if os.path.islink(path) and isinstance(error, FileNotFoundError):
            return f"a link to nothing ({os.readlink(path)}); fetch the file, or mount its folder"
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return NO_SUCH_FILE
        if isinstance(error, PermissionError):
            return DENIED
        if getattr(error, "errno", None) == errno.ELOOP:
            return "a link to itself; replace it by the file"
        return getattr(error, "strerror", "") or str(error)
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return f"{NOT_FILES.get(stat.S_IFMT(mode), 'a device')}, not a file; remove it"
    wanted = os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK
    effective = os.access in os.supports_effective_ids  # with the rights that opening it has
    return "" if os.access(path, wanted, effective_ids=effective) else DENIED


def printable(name: str) -> str:
    """A name with escapes for control characters and for what is not UTF-8."""
    name = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return CONTROL_CHARACTER.sub(lambda found: ascii(found[0])[1:-1], name)


def is_there(path: Path) -> bool:
    """Whether a file or folder exists.

    Raises:
        DataError: it exists, but cannot be read.
    """
    reason = obstacle(path)
    raise_if(reason and not reason.endswith(NO_SUCH_FILE), DataError(reason))
    return not reason


def is_utf8(path: Path | str) -> bool:
    """Whether the name of a file can be written as UTF-8."""
    return SURROGATE.search(str(path)) is None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(path: Path, error: Exception) -> AutosegError:
    """The error for a file that cannot be written."""
    advice = "choose a folder that is writable and has free space"
    if getattr(error, "errno", None) == errno.ENAMETOOLONG:
        advice = "use a shorter name"
    reason = getattr(error, "strerror", None) or error  # libraries raise their own errors
    return AutosegError(f"cannot write {path}: {reason}; {advice}")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """Format strict JSON (no NaN), indented, with lists of plain values on one line.

    The same value gives the same bytes.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return PLAIN_LIST.sub(lambda found: "[" + INDENT.sub(" ", found[1]) + "]", text) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as strict JSON, atomically."""
    write_text(path, to_json(value))


def read_text(path: Path) -> str:
    """Read a text file: UTF-8, or as the byte order mark says that Windows programs write."""
    content = path.read_bytes()
    return content.decode(json.detect_encoding(content))


def read_json(path: Path) -> Any:
    """Read strict JSON, in which duplicate keys are an error.

    Raises:
        AutosegError: the file is missing or not valid JSON; the message names the line.
    """
    raise_if(not is_there(path), AutosegError(f"{path} is missing"))
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise AutosegError(f"cannot read {path}: {error}") from error
    return parse_json(text, str(path))


def texts_in(path: Path) -> Callable[..., str]:
    """Fill in one of the texts (messages) of a JSON file by its key and the values it names."""
    texts = read_json(path)
    return lambda key, /, **values: texts[key].format(**values)


def parse_json(text: str, where: str) -> Any:
    """Parse strict JSON; messages begin with `where`."""

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise AutosegError(f"{where} contains the number {text[:20]}, which is not finite")
        return number

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(keys := dict(pairs)) < len(names := [name for name, _ in pairs]):
            twice = next(name for name in names if names.count(name) > 1)
            raise AutosegError(f"{where} has the key {twice!r} twice; keep one of them")
        return keys

    hooks: dict[str, Any] = {"parse_float": finite, "parse_constant": finite}  # Python accepts NaN
    try:
        return json.loads(text, object_pairs_hook=unique, **hooks)
    except RecursionError as error:
        raise AutosegError(f"{where} is nested too deeply") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise AutosegError(f"{where} is not valid JSON: {error.msg} in {place}") from error
    except AutosegError:
        raise
    except ValueError as error:  # an integer with thousands of digits
        raise AutosegError(f"{where} is not valid JSON: {error}") from error


# Dataclasses and JSON: `write_json(path, asdict(made))` writes one.


@cache
def _adapter(kind: Hashable) -> Any:
    import pydantic

    return pydantic.TypeAdapter(cast("Any", kind))


def dataclass_from_json(
    kind: type[Made],
    values: Any,
    where: Path | str,
    advice: str = "delete it",
    extra: Literal["forbid"] | None = "forbid",
) -> Made:
    """Build a dataclass, at any depth, from the JSON values of its `asdict`.

    Types must match: text is not a number. An unknown key is an error; with `extra=None`, it is
    ignored unless the type itself forbids it.

    Raises:
        DataError: the message names `where` and the key, and ends with `advice`.
    """
    import pydantic  # here: reading a scan does not need it, and it is slow to import

    try:
        text = json.dumps(values, allow_nan=False)
        made: Made = _adapter(cast("Hashable", kind)).validate_json(text, strict=True, extra=extra)
        return made
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        problem = first["msg"][:1].lower() + first["msg"][1:]
        raise DataError(f"{where}: {f'{key}: ' if key else ''}{problem}; {advice}") from error
    except ValueError as error:  # NaN
        raise DataError(f"{where}: {error}; {advice}") from error


TEXT = texts_in(Path(__file__).with_name("messages.json"))


def checksum(path: Path) -> str:
    """The CRC-32 of a file, in hexadecimal digits."""
    value = 0
    with path.open("rb") as file:
        while part := file.read(BYTES_AT_ONCE):
            value = zlib.crc32(part, value)
    return f"{value:08x}"


def write_checksums(folder: Path, names: Sequence[str]) -> None:
    """Store the checksums of some files of a folder in the folder."""
    write_json(folder / CHECKSUMS, {name: checksum(folder / name) for name in names})


def is_as_written(folder: Path, names: Sequence[str]) -> bool:
    """Whether the files still have their stored checksums."""
    with suppress(AutosegError, OSError):
        stored = read_json(folder / CHECKSUMS)
        return bool(stored == {name: checksum(folder / name) for name in names})
    return False
