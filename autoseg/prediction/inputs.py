"""Find the cases in a file or folder of new scans: image files, and DICOM series at any depth."""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from autoseg.common.errors import DataError
from autoseg.common.files import obstacle
from autoseg.common.progress import COPIES, note
from autoseg.dataset.task import IMAGE_STEM, LABEL_STEM
from autoseg.image.dicom import dicom_files, is_dicom
from autoseg.image.dicom_series import Source
from autoseg.image.formats import ENDINGS, alike, composed, ending_of, stem_of
from autoseg.prediction.studies import Choice, Scan, find_studies, scan_of_slice

CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
IMAGING = re.compile(rf"^{IMAGE_STEM}(_\d{{4}})?$")
MOST_FILES, MOST_BYTES = 10**6, 2**38  # of a zip file
HIGHEST_RATIO, SMALL_BYTES = 100, 2**30  # unpacked to packed size, above some bytes
Inputs = Mapping[str, tuple[Source, ...]]


@dataclass(frozen=True)
class FoundInputs:
    """The cases of a file or folder.

    Attributes:
        cases: case name -> its files, one per channel, in the order of the channels. A DICOM series
            is its folder, one of its slices if the folder holds several, or a Series if its slices
            lie in several folders.
        refused: scans that cannot be read or assigned, by name -> why.
        passed_over: what is not meant as a scan, by file or series -> what it is.
        listed: case name -> one line about its DICOM series, also of those that are not chosen.
        uids: case name -> SeriesInstanceUID.
    """

    cases: dict[str, tuple[Source, ...]]
    refused: dict[str, str]
    passed_over: dict[str, str]
    listed: dict[str, str] = field(default_factory=dict)
    uids: dict[str, str] = field(default_factory=dict)


def find_inputs(
    path: Path,
    channels: tuple[str, ...],
    name_by: str = "patient",
    choice: Choice | None = None,
) -> FoundInputs:
    """The cases of a scan, or of a folder of scans.

    Files are named CASE_0000, CASE_0001, ... by channel; a scan with one channel, or one file with
    all channels, may leave the number out. DICOM series are found at any depth: each is a case,
    named by patient id and series number. Image files are only found at the top, as results are
    often stored below their scans, and in folders that hold just `imaging.*` and perhaps
    `segmentation.*`, MIScnn's layout: each is a case.

    Args:
        path: the file or folder.
        channels: of the model.
        name_by: how DICOM cases are named: by `patient`, `uid` or `folder`.
        choice: which DICOM series to take, see `studies.series_choice`; image files are left out.

    Raises:
        DataError: there is no scan.
    """
    if reason := obstacle(path):
        raise DataError(reason)
    if path.is_file():
        return _group([_single(path, name_by)], channels, FoundInputs({}, {}, {}))
    studies = find_studies(path, name_by, choice, len(channels))
    if choice is not None and not studies.scans and not studies.refused:
        listed = "; ".join(f"{name}: {line}" for name, line in studies.listed.items())
        raise DataError(f"{path}: --series chooses no series of these: {listed or 'none'}")
    refused = _folders_named_as_files(path) if choice is None else {}
    found = FoundInputs(
        {}, refused | studies.refused, studies.passed_over, studies.listed, studies.uids
    )
    scans = studies.scans + (_image_files(path) if choice is None else [])
    if not scans and not found.refused:
        others = "; ".join(f"{name}: {reason}" for name, reason in found.passed_over.items())
        raise DataError(
            f"{path}: holds no scan; supported are files ending in {', '.join(ENDINGS)}, and DICOM "
            f"series{'; skipped: ' if others else ''}{others}"
        )
    return _group(scans, channels, found)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A zip file as a temporary folder for as long as the block lasts; other paths unchanged.

    Raises:
        DataError: it is damaged or encrypted, or not safe to unpack.
    """
    if path.suffix.lower() != ".zip" or not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="autoseg-") as temporary:
        folder = Path(temporary, path.stem)
        COPIES[str(folder)] = str(path)  # for messages, also behind the block
        try:
            with zipfile.ZipFile(path) as file:
                members = [m for m in file.infolist() if not m.is_dir()]
                _check_members(path, members, shutil.disk_usage(temporary).free)
                for member in members:
                    target = folder / member.filename
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with file.open(member) as source, target.open("wb") as copy:
                        shutil.copyfileobj(source, copy, 2**20)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise DataError(f"{path}: not a valid zip file ({error}); copy it again") from error
        folder.mkdir(exist_ok=True)
        yield folder


def _check_members(path: Path, members: list[zipfile.ZipInfo], free: int) -> None:
    """Check that the members of a zip file stay in their folder, and their sizes."""
    for member in members:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or re.search(r"[\\:\0]", member.filename):
            raise DataError(f"{path}: {member.filename!r} lies outside the zip file; not unpacked")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise DataError(f"{path}: {member.filename!r} is a link; not unpacked")
        if member.flag_bits & 1:
            raise DataError(f"{path}: is encrypted; unpack it and give the folder")
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if len(members) > MOST_FILES or total > MOST_BYTES:
        raise DataError(f"{path}: {len(members)} files of {total} bytes are too many to unpack")
    if total > SMALL_BYTES and total > HIGHEST_RATIO * packed:
        raise DataError(f"{path}: {packed} bytes claim to hold {total}, as in a zip bomb")
    if total > free:
        raise DataError(f"{path}: {total} bytes do not fit into the temporary folder ({free} free)")


def _image_files(path: Path) -> list[Scan]:
    """The image files at the top of a folder, and those of case folders."""
    folders = [folder for folder in (path, *_folders_in(path)) if _imaging(folder)]
    files = [] if path in folders else _files_in(path)
    scans = [Scan("", stem_of(file), file) for file in files]
    return scans + [scan for folder in folders for scan in _imaging(folder)]


def _single(path: Path, name_by: str) -> Scan:
    if ending_of(path):
        return Scan("", stem_of(path), path)
    if is_dicom(path):
        return scan_of_slice(path, name_by)
    raise DataError(f"{path}: not a scan; use {', '.join(ENDINGS)}, or a DICOM series")


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]


def _files_in(folder: Path) -> list[Path]:
    """The image files, also those that cannot be read, such as links to nothing."""
    return [entry for entry in _visible(folder) if ending_of(entry) and not entry.is_dir()]


def _folders_in(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if entry.is_dir() and not obstacle(entry)]


def _imaging(folder: Path) -> list[Scan]:
    """The channels of a case folder, `imaging` or `imaging_0000`, ..., under the folder's name."""
    files = [file for file in _files_in(folder) if stem_of(file) != LABEL_STEM]
    numbers = [IMAGING.match(stem_of(file)) for file in files]
    name = composed(folder.resolve().name)
    if not all(numbers):
        return []
    return [Scan("", name + (n[1] or ""), f) for n, f in zip(numbers, files, strict=True) if n]


def _folders_named_as_files(folder: Path) -> dict[str, str]:
    """Folders such as `a.nii.gz`, which some programs make of a scan when they unpack it."""
    return {
        entry.name: f"{entry}: a folder without a DICOM series, although it is named like a file; "
        "put the scan itself there"
        for entry in _folders_in(folder)
        if ending_of(entry) and not dicom_files(entry)
    }


def _group(scans: Iterable[Scan], channels: tuple[str, ...], found: FoundInputs) -> FoundInputs:
    """Group the channels of each case."""
    scans = list(scans)
    stems = {(scan.above, scan.stem) for scan in scans}
    cases: dict[str, dict[int, Source]] = {}
    for scan in scans:
        stem, channel = _case_and_channel(scan, stems, len(channels))
        name = Scan(scan.above, stem, scan.path).name
        twin = cases.setdefault(name, {}).setdefault(channel, scan.path)
        if twin != scan.path:
            found.refused[name] = f"{scan.path} and {twin} are the same case; rename or remove one"
    for name, files in sorted(cases.items()):
        if len(channels) == 1 and len(files) > 1:
            found.refused.setdefault(
                name,
                f"{', '.join(map(str, files.values()))}: the numbers at the end of their names "
                f"were taken for channels, but the model has one channel, {channels[0]}; rename "
                f"them if they are separate scans, for example to {name}-{max(files):04d}",
            )
        elif gaps := sorted(set(range(len(files))) - set(files)):
            missing = ", ".join(f"{name}_{gap:04d}" for gap in gaps)
            found.refused.setdefault(
                name,
                f"case {name}: {missing} is missing; the model's channels are "
                f"{', '.join(channels)}",
            )
        for file in files.values():
            if isinstance(file, Path) and (reason := obstacle(file)):
                found.refused.setdefault(name, reason)
        if name not in found.refused:
            found.cases[name] = tuple(files[channel] for channel in sorted(files))
    for message in alike(found.cases):
        note(message)
    return found


def _case_and_channel(scan: Scan, stems: set[tuple[str, str]], channels: int) -> tuple[str, int]:
    """Split a file name. A number above the last channel belongs to the case name (`scan_2021`),
    unless CASE_0000 exists.
    """
    numbered = CHANNEL.match(scan.stem)
    if not numbered or scan.is_case:
        return scan.stem, 0
    case, channel = numbered["case"], int(numbered["channel"])
    if channel >= channels and (scan.above, f"{case}_0000") not in stems:
        return scan.stem, 0
    return case, channel
