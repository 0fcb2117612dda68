"""Downloads over HTTP: resumed after a broken connection, verified, and complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from autoseg import __version__
from autoseg.common.errors import RunError
from autoseg.common.files import read_json, write_json
from autoseg.common.progress import in_words, progress, say

MEGABYTE = 1 << 20
TRIES = 6  # in a row without new bytes
WHOLE_TRIES = 2  # downloads that end with a wrong checksum
TIMEOUT_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 60.0
LARGEST_ANSWER = 4 * MEGABYTE  # of JSON; files have no limit
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
CANNOT_CONTINUE = 416

Wait = Callable[[float], None]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Remote:
    """A file to fetch; `checksum` is written as Zenodo does, `md5:HEX`, and `size` is in bytes."""

    url: str
    size: int
    checksum: str


class Interrupted(Exception):  # noqa: N818
    """The download may be tried again, after `seconds` if the server requested a wait."""

    def __init__(self, text: str, seconds: float | None = None) -> None:
        super().__init__(text)
        self.seconds = seconds


class CannotContinue(Interrupted):
    """The server does not have this part of the file."""


def checksum(path: Path, algorithm: str) -> str:
    """The file's checksum as `algorithm:HEX`."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{found.hexdigest()}"


def has_checksum(path: Path, expected: str) -> bool:
    """Whether a file is there and has this checksum (`algorithm:HEX`)."""
    return path.is_file() and checksum(path, expected.partition(":")[0]) == expected.lower()


def fetch_json(url: str, wait: Wait = time.sleep) -> Any:
    """The JSON answer of a server, after up to six tries.

    Raises:
        RunError: there is no valid answer.
    """

    def ask() -> bytes:
        with _opened(url) as response, _interruptions():
            answer = response.read(LARGEST_ANSWER)
        if len(answer) < (_whole(response.headers.get("Content-Length")) or 0):
            raise Interrupted(f"the answer broke off after {len(answer):,} bytes")
        return answer

    answer = _tried(ask, url, lambda: 0, wait)
    try:
        return json.loads(answer)
    except ValueError as error:
        raise RunError(f"{url} answered something that is not JSON: {answer[:60]!r}") from error


def fetch(remote: Remote, path: Path, wait: Wait = time.sleep) -> None:
    """Download to `path`, which appears once it is complete and has the right checksum.

    Received bytes are kept in `path` + `.part`, from which a later try or call continues. It gives
    up after six tries in a row without new bytes, with waits of 1, 2, 4, ... seconds between them.

    Raises:
        RunError: the file does not exist, the connection breaks repeatedly, or the checksum is
            wrong twice.
    """
    if has_checksum(path, remote.checksum):
        return
    part = _Part(path.with_name(path.name + ".part"))
    for _ in range(WHOLE_TRIES):
        _tried(lambda: _receive(remote, part), remote.url, lambda: part.size, wait)
        if has_checksum(part.path, remote.checksum):
            part.become(path)
            return
        found = checksum(part.path, remote.checksum.partition(":")[0])
        part.drop()
    raise RunError(
        f"{remote.url}: the checksum is {found}, not {remote.checksum}, twice; "
        "try again later, or download the file in another way"
    )


class _Part:
    """The received part of a file, and the server's mark of the file version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark_path = path.with_name(path.name + ".json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def mark(self) -> str | None:
        mark = read_json(self.mark_path) if self.mark_path.is_file() else None
        return mark if isinstance(mark, str) else None

    def begin(self, mark: str | None) -> None:
        self.drop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if mark is not None:
            write_json(self.mark_path, mark)

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.mark_path.unlink(missing_ok=True)

    def become(self, path: Path) -> None:
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(path)
        self.mark_path.unlink(missing_ok=True)


def _tried(attempt: Callable[[], Answer], url: str, size: Callable[[], int], wait: Wait) -> Answer:
    """The result of an attempt, which is repeated after interruptions; `size`: received bytes."""
    most, failures = size(), 0
    while True:
        try:
            return attempt()
        except Interrupted as error:
            failures = 1 if size() > most else failures + 1
            most = max(most, size())
            if failures == TRIES:
                kept = f"; {size():,} bytes are kept; run it again to continue" if size() else ""
                raise RunError(f"{url}: {error} ({TRIES} times in a row){kept}") from error
            pause = 2.0 ** (failures - 1) if error.seconds is None else error.seconds
            pause = min(pause, LONGEST_WAIT_SECONDS)
            say(f"{url}: {error}; trying again in {in_words(pause)}")
            wait(pause)


def _receive(remote: Remote, part: _Part) -> None:
    """Download the missing rest.

    Raises:
        Interrupted: it is still incomplete.
    """
    if part.size > remote.size:
        part.drop()
    if part.size == remote.size > 0:
        return  # stopped before the checksum was taken
    try:
        with _opened(remote.url, _continuing(part)) as response:
            _check_start(response, remote, part)
            _append(response, remote, part)
    except CannotContinue:
        part.drop()
        raise
    if part.size < remote.size:
        raise Interrupted(f"broke off at {part.size:,} of {remote.size:,} bytes")


def _continuing(part: _Part) -> dict[str, str]:
    """Headers that request the rest, if the file on the server has not changed."""
    if part.size == 0:
        return {}
    headers = {"Range": f"bytes={part.size}-"}
    return headers if part.mark is None else headers | {"If-Range": part.mark}


def _check_start(response: HTTPResponse, remote: Remote, part: _Part) -> None:
    """Check what the server sends: the rest, or the complete file (then the part is restarted).

    Raises:
        Interrupted: neither, or the file has another length than expected.
    """
    start, total = 0, _whole(response.headers.get("Content-Length"))
    if response.status == 206:
        found = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
        )
        start, total = (int(found[1]), _whole(found[2])) if found else (-1, None)
    if total not in (None, remote.size):
        raise Interrupted(f"the server sends {total:,} bytes, not {remote.size:,}")
    if start == 0:
        part.begin(_mark(response))
    elif start != part.size:
        part.drop()
        raise Interrupted("the server sends another part of the file than requested")


def _append(response: HTTPResponse, remote: Remote, part: _Part) -> None:
    steps = max(1, remote.size // MEGABYTE)
    name = part.path.name.removesuffix(".part")
    done = part.size // MEGABYTE
    with part.path.open("ab") as file, progress(f"{name} (MB)", steps, done) as shown:
        while chunk := _read(response):
            file.write(chunk)
            file.flush()  # a killed run keeps it
            while done < min(steps, part.size // MEGABYTE):
                shown.advance()
                done += 1
            if part.size > remote.size:
                raise Interrupted(f"the server sends more than {remote.size:,} bytes")


def _read(response: HTTPResponse) -> bytes:
    with _interruptions():
        return response.read1(MEGABYTE)


@contextmanager
def _interruptions() -> Iterator[None]:
    """Turn the errors of a broken connection into `Interrupted`."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise Interrupted(f"the connection broke ({str(error) or type(error).__name__})") from error


@contextmanager
def _opened(url: str, headers: dict[str, str] | None = None) -> Iterator[HTTPResponse]:
    """The server's answer.

    Raises:
        Interrupted: there is none at present.
        RunError: the request is not valid.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise RunError(f"{url} is not the address of a web server")
    # "identity": lengths and ranges are those of the file, not of a compressed copy
    common = {"User-Agent": f"autoseg/{__version__}", "Accept-Encoding": "identity"}
    request = Request(url, headers=common | (headers or {}))
    try:
        response = urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        raise _refusal(url, error) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise Interrupted(f"no connection ({reason})") from error
    with response:
        yield response


def _refusal(url: str, error: HTTPError) -> Exception:
    """The error for an answer such as 404 or 503."""
    with error:
        answer = f"the server answers {error.code} {error.reason}"
        if error.code in TEMPORARY:
            seconds = _whole(error.headers.get("Retry-After"))
            return Interrupted(answer, None if seconds is None else float(seconds))
    if error.code == CANNOT_CONTINUE:
        return CannotContinue(answer)
    return RunError(f"{url}: {answer}; check the address")


def _mark(response: HTTPResponse) -> str | None:
    """What identifies this version of the file: a strong ETag, else its date."""
    tag = response.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return response.headers.get("Last-Modified")


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None
