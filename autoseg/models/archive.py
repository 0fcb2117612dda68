"""A zip of a few files that come from a stranger: every one is checked before it is used.

`manifest.json` in it lists all other files with their sizes and SHA-256. Nothing is unpacked to
disk, and only what can do no harm is read: JSON, text and safetensors. The sums tell damage; they
do not tell who made the archive, for whoever changes a file can change the manifest, too.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.common.errors import AutosegError
from autoseg.common.files import parse_json, replacing, to_json

ENDING = ".zip"
MANIFEST = "manifest.json"
FORMAT, FORMAT_VERSION = "autoseg model", 1
WEIGHTS = ".safetensors"
TEXTS = (".json", ".md")
# Generous bounds: no model comes near them.
MOST_FILES = 1000
MOST_TEXT_BYTES = 2**28
MOST_BYTES = 2**36
HIGHEST_RATIO = 100  # of JSON and weights deflate saves far less
PART = re.compile(r"\w[\w.-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
CHUNK = 2**20
ADVICE = "get it anew from where it came"
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)

Content = bytes | Path


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Archive:
    """A checked archive; it is opened for each reading, and what is read is checked again."""

    path: Path
    about: dict[str, Any]
    entries: dict[str, Entry]

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            AutosegError: there is no such file, or it has been changed since the archive was
                opened.
        """
        if name not in self.entries:
            raise AutosegError(f"{self.path / name} is missing")
        with _opened(self.path) as file:
            return b"".join(_checked(file, self.path, name, self.entries[name]))


def is_archive(path: Path) -> bool:
    """Whether a path is to be read as an archive: by its name, so that a broken one is told so."""
    return path.suffix.lower() == ENDING and not path.is_dir()


def write_archive(path: Path, about: Mapping[str, Any], files: Mapping[str, Content]) -> None:
    """Write files and their manifest, atomically; the same content gives the same bytes.

    Nothing is compressed, for weights hardly shrink and no two zlibs give the same bytes.

    Args:
        path: the archive.
        about: more for the manifest, in JSON values.
        files: name in the archive -> its content, or the file that holds it.
    """
    entries: dict[str, dict[str, Any]] = {}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        for name, content in sorted(files.items()):
            assert _is_safe(name), name
            entries[name] = _add(file, name, content)
        kind = {"format": FORMAT, "format_version": FORMAT_VERSION}
        _add(file, MANIFEST, to_json({**kind, **about, "files": entries}).encode())


def _add(file: zipfile.ZipFile, name: str, content: Content) -> dict[str, Any]:
    """Add one file; its entry in the manifest."""
    info = zipfile.ZipInfo(name)  # of 1980: the time of packing would change the bytes
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.create_system = 3  # Unix, whose attributes these are, on every machine
    info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
    digest, size = hashlib.sha256(), 0
    with file.open(info, "w") as target:
        for chunk in _chunks(content):
            target.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def _chunks(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def open_archive(path: Path) -> Archive:
    """Check a whole archive: what is in it, every size and every SHA-256.

    Raises:
        AutosegError: it is none, is damaged, or holds what no archive of ours holds.
    """
    with _opened(path) as file:
        _check_members(file, path)
        archive = _read_manifest(file, path)
        _check_listed(file, archive)
        for name, entry in archive.entries.items():
            for _ in _checked(file, path, name, entry):
                pass
    return archive


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip, whatever is wrong with which is told in one line."""
    try:
        with zipfile.ZipFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise AutosegError(f"{path}: no such file") from error
    except AutosegError:
        raise
    except BROKEN as error:
        raise AutosegError(f"{path} is no whole zip file ({error}); {ADVICE}") from error


def _check_members(file: zipfile.ZipFile, path: Path) -> None:
    """What the zip itself says of its files, before any is read."""
    infos = file.infolist()
    if len(infos) > MOST_FILES:
        raise _refused(path, f"holds {len(infos)} files")
    seen: set[str] = set()
    for info in infos:
        if reason := _why_refused(info):
            raise _refused(path, f"holds {info.orig_filename!r}, {reason}")
        if info.filename in seen:
            raise _refused(path, f"holds {info.filename!r} twice")
        seen.add(info.filename)
    total = sum(info.file_size for info in infos)
    packed = sum(info.compress_size for info in infos)
    if total > MOST_BYTES or packed > path.stat().st_size:
        raise _refused(path, f"says that it holds {total} bytes, more than it can")
    if infos and min(info.header_offset for info in infos) > 0:
        raise _refused(path, "has something before its first file")


def _why_refused(info: zipfile.ZipInfo) -> str:
    """What is wrong with a file by its entry in the zip; nothing if it may be read."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    name = info.orig_filename
    if not _is_safe(name):
        return "which is no plain name inside of its folder"
    if kind not in (0, stat.S_IFREG):
        return "which is a link or another special file"
    if info.flag_bits & 1:
        return "which is encrypted"
    if not name.endswith((*TEXTS, WEIGHTS)):
        return f"but only {', '.join((*TEXTS, WEIGHTS))} are read, never a pickle"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "which is neither stored nor deflated"
    if info.file_size > HIGHEST_RATIO * max(info.compress_size, 1):
        return f"which swells from {info.compress_size} to {info.file_size} bytes"
    if name.endswith(TEXTS) and info.file_size > MOST_TEXT_BYTES:
        return f"which has {info.file_size} bytes, too many for a text"
    return ""


def _is_safe(name: str) -> bool:
    """Is this a relative path of plain names? `..`, drives, backslashes and the like are none."""
    return all(PART.fullmatch(part) for part in name.split("/"))


def _read_manifest(file: zipfile.ZipFile, path: Path) -> Archive:
    where = str(path / MANIFEST)
    if MANIFEST not in file.namelist():
        raise _refused(path, f"has no {MANIFEST}")
    about = parse_json(_text(file.read(MANIFEST), where), where)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise _refused(path, f"is not of the format {FORMAT!r}")
    if about.get("format_version") != FORMAT_VERSION:
        raise AutosegError(
            f"{path} has format {about.get('format_version')!r}; this autoseg reads format "
            f"{FORMAT_VERSION}: pack the model again"
        )
    try:
        entries = {name: _entry(found) for name, found in about.pop("files").items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AutosegError(f'{where}: "files" is broken ({error}); {ADVICE}') from error
    return Archive(path, about, entries)


def _entry(found: dict[str, Any]) -> Entry:
    size, digest = found["size"], found["sha256"]
    if type(size) is not int or not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise ValueError(f"no size and SHA-256: {found!r}"[:80])
    return Entry(size, digest)


def _check_listed(file: zipfile.ZipFile, archive: Archive) -> None:
    """Compare what the manifest lists with what is there."""
    sizes = {info.filename: info.file_size for info in file.infolist()}
    del sizes[MANIFEST]
    if missing := sorted(archive.entries.keys() - sizes.keys()):
        raise _refused(archive.path, f"lacks {missing[0]!r}, which its {MANIFEST} lists")
    if extra := sorted(sizes.keys() - archive.entries.keys()):
        raise _refused(archive.path, f"holds {extra[0]!r}, which its {MANIFEST} does not list")
    for name, entry in archive.entries.items():
        if sizes[name] != entry.size:
            told = f"{name!r} has {sizes[name]} bytes, but its {MANIFEST} says {entry.size}"
            raise _refused(archive.path, told)


def _checked(file: zipfile.ZipFile, path: Path, name: str, entry: Entry) -> Iterator[bytes]:
    """The chunks of a file; raises before the end if they are not what the manifest says."""
    digest, size = hashlib.sha256(), 0
    with file.open(name) as source:
        while chunk := source.read(min(CHUNK, entry.size + 1 - size)):
            if size == 0:
                _check_kind(path, name, chunk, entry.size)
            digest.update(chunk)
            size += len(chunk)
            if size > entry.size:
                break
            yield chunk
    if size != entry.size or digest.hexdigest() != entry.sha256:
        raise AutosegError(
            f"{path / name} has another SHA-256 than the {MANIFEST} says: it was changed or "
            f"damaged; {ADVICE}"
        )


def _check_kind(path: Path, name: str, start: bytes, size: int) -> None:
    """Does the content begin as its ending promises? A pickle begins otherwise."""
    if name.endswith(WEIGHTS):
        header = int.from_bytes(start[:8], "little")
        fits = start[8:9] == b"{" and header <= size - 8
    else:
        fits = not start.startswith((b"\x80", b"PK\x03\x04"))
    if not fits:
        raise _refused(path, f"holds {name!r}, whose content is not what its name says")


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AutosegError(f"{where} is no UTF-8 text ({error}); {ADVICE}") from error


def _refused(path: Path, reason: str) -> AutosegError:
    return AutosegError(f"{path} is refused: it {reason}; {ADVICE}")
