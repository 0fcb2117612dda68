"""Packed models: a zip file that may come from a stranger, so every member is checked before use.

`manifest.json` lists all other members with their sizes and SHA-256. Nothing is unpacked to disk,
and only harmless formats are read: JSON, text and safetensors. The checksums detect damage. They do
not authenticate the author, as whoever changes a member can change the manifest as well.
"""

import hashlib
import io
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from autoseg.common.errors import AutosegError
from autoseg.common.files import dataclass_from_json, parse_json, replacing, texts_in, to_json

ENDING, MANIFEST = ".zip", "manifest.json"
FORMAT, FORMAT_VERSION = "autoseg model", 1
WEIGHTS, TEXTS = ".safetensors", (".json", ".md")
# Generous limits, far above those of any model.
MOST_FILES, MOST_TEXT_BYTES, MOST_BYTES = 1000, 2**28, 2**36
HIGHEST_RATIO = 100  # of JSON, and of weights, which deflate compresses far less
SAFE_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")  # no drive, backslash, `..` or absolute path
BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, KeyError, OSError, RuntimeError, ValueError),
)
ADVICE = "copy or download it again"
TEXT = texts_in(Path(__file__).with_name("messages.json"))

Content = bytes | Path


@dataclass(frozen=True)
class Entry:
    """The manifest's entry of a member."""

    size: int
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Archive(NamedTuple):
    """A checked archive; each reading opens it again and checks what it reads."""

    path: Path
    about: dict[str, Any]
    entries: dict[str, Entry]

    def read(self, name: str) -> bytes:
        """The content of a member.

        Raises:
            AutosegError: there is no such member, or it has changed since the archive was opened.
        """
        if name not in self.entries:
            raise AutosegError(f"{self.path / name} is missing")
        with _opened(self.path) as file:
            changed = file.getinfo(name).file_size != self.entries[name].size
            content = b"" if changed else file.read(name)
        if changed or hashlib.sha256(content).hexdigest() != self.entries[name].sha256:
            raise _refused(self.path / name, f"does not have the SHA-256 of {MANIFEST}")
        return content


def is_archive(path: Path) -> bool:
    """Whether to read a path as an archive: by its name, so that a broken one is reported."""
    return path.suffix.lower() == ENDING and not path.is_dir()


def write_archive(path: Path, about: Mapping[str, Any], files: Mapping[str, Content]) -> None:
    """Write files and their manifest, atomically; the same content gives the same bytes.

    Nothing is compressed: weights hardly shrink, and versions of zlib give different bytes.

    Args:
        path: the archive.
        about: further JSON values for the manifest.
        files: name in the archive -> its content, or the file that contains it.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
        entries = {name: _add(file, name, content) for name, content in sorted(files.items())}
        kind = {"format": FORMAT, "format_version": FORMAT_VERSION}
        _add(file, MANIFEST, to_json({**kind, **about, "files": entries}).encode())


def _add(file: zipfile.ZipFile, name: str, content: Content) -> dict[str, Any]:
    """Add a member; return its entry for the manifest."""
    assert SAFE_NAME.fullmatch(name), name
    info = zipfile.ZipInfo(name)  # dated 1980, as the time of packing would change the bytes
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.create_system = 3  # Unix, on every machine
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
        info.file_size = source.tell()
        source.seek(0)
        with file.open(info, "w") as target:  # portable: a member of a zip file, in bytes
            shutil.copyfileobj(source, target)
    return {"size": info.file_size, "sha256": digest}


def open_archive(path: Path) -> Archive:
    """Check an archive: its members, all sizes and every SHA-256.

    Raises:
        AutosegError: it is missing, damaged, not a packed model, or not safe to read.
    """
    with _opened(path) as file:
        _check_members(file, path)
        archive = _read_manifest(file, path)
        sizes = {info.filename: info.file_size for info in file.infolist()}
        if unlisted := sizes.keys() - archive.entries.keys() - {MANIFEST}:
            raise _refused(path, f"contains {min(unlisted)!r}, which {MANIFEST} does not list")
        for name, entry in archive.entries.items():
            if sizes.get(name) != entry.size:
                found = f"has {sizes[name]} bytes" if name in sizes else "is missing"
                raise _refused(path, f"{name!r} {found}, but {MANIFEST} lists {entry.size} bytes")
            _check_content(file, path, name, entry)
    return archive


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip file; all errors of reading it become an AutosegError."""
    try:
        with zipfile.ZipFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise AutosegError(f"{path}: no such file") from error
    except AutosegError:
        raise
    except BROKEN as error:
        raise AutosegError(f"{path} is not a valid zip file ({error}); {ADVICE}") from error


def extract(path: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Write the wanted members of another program's zip file to a folder.

    Raises:
        AutosegError: it is missing, damaged, or any member is not safe to unpack.
    """
    with _opened(path) as file:
        _check_members(file, path, any_ending=True)
        file.extractall(folder, [name for name in file.namelist() if wanted(name)])


def _check_members(file: zipfile.ZipFile, path: Path, any_ending: bool = False) -> None:
    """Check the directory of the zip file, before any member is read."""
    infos = [info for info in file.infolist() if not (any_ending and info.is_dir())]
    names = [info.filename for info in infos]
    if len(infos) > MOST_FILES:
        raise _refused(path, f"contains {len(infos)} files, more than {MOST_FILES}")
    for info in infos:
        if fault := _fault(info, any_ending):
            raise _refused(path, f"contains {info.orig_filename!r}, {fault}")
        if names.count(info.filename) > 1:
            raise _refused(path, f"contains {info.filename!r} twice")
    total = sum(info.file_size for info in infos)
    if total > MOST_BYTES or sum(info.compress_size for info in infos) > path.stat().st_size:
        raise _refused(path, f"declares {total} bytes, more than it can contain")
    if infos and min(info.header_offset for info in infos) > 0:
        raise _refused(path, "has data before its first member")


def _fault(info: zipfile.ZipInfo, any_ending: bool) -> str:
    """Why a member must not be read, by its entry in the directory; empty if it may be."""
    name, size, packed = info.orig_filename, info.file_size, max(info.compress_size, 1)
    kind, known = stat.S_IFMT(info.external_attr >> 16), (*TEXTS, WEIGHTS)
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    faults = {
        "an unsafe name": not SAFE_NAME.fullmatch(name),
        "a link or another special file": kind not in (0, stat.S_IFREG),
        "which is encrypted": info.flag_bits & 1,
        f"which does not end in {', '.join(known)}": not (any_ending or name.endswith(known)),
        "which is neither stored nor deflated": info.compress_type not in methods,
        f"which expands from {packed} to {size} bytes": size > HIGHEST_RATIO * packed,
        f"a text of {size} bytes": name.endswith(TEXTS) and size > MOST_TEXT_BYTES,
    }
    return next((fault for fault, found in faults.items() if found), "")


def _read_manifest(file: zipfile.ZipFile, path: Path) -> Archive:
    where = path / MANIFEST
    if MANIFEST not in file.namelist():
        raise _refused(path, f"has no {MANIFEST}")
    try:
        about = parse_json(file.read(MANIFEST).decode("utf-8"), str(where))
    except UnicodeDecodeError as error:
        raise AutosegError(f"{where} is not UTF-8 text ({error}); {ADVICE}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise _refused(path, f"is not of the format {FORMAT!r}")
    if (found := about.get("format_version")) != FORMAT_VERSION:
        raise AutosegError(TEXT("format version", path=path, found=found, known=FORMAT_VERSION))
    listed = about.pop("files", None)
    entries = dataclass_from_json(dict[str, Entry], listed, f"{where}: files", ADVICE, extra=None)
    return Archive(path, about, entries)


def _check_content(file: zipfile.ZipFile, path: Path, name: str, entry: Entry) -> None:
    """Check the SHA-256 of a member, and that its content begins as its name promises."""
    with file.open(name) as source:
        assert isinstance(source, zipfile.ZipExtFile)
        start = source.peek(9)[:9]
        if name.endswith(WEIGHTS):
            header = int.from_bytes(start[:8], "little")
            fits = start[8:] == b"{" and header <= entry.size - 8
        else:
            fits = not start.startswith((b"\x80", b"PK\x03\x04"))  # a pickle, a file of torch.save
        if not fits:
            raise _refused(path, f"contains {name!r}, whose content is not what its name says")
        digest = hashlib.file_digest(source, "sha256").hexdigest()
        if source.tell() != entry.size or digest != entry.sha256:
            raise _refused(path / name, f"does not have the SHA-256 of {MANIFEST}")


def _refused(path: Path, reason: str) -> AutosegError:
    return AutosegError(f"{path} {reason}; {ADVICE}")
