"""Which cases a file or a folder of new scans holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.dataset.layouts import IMAGE, LABEL
from autoseg.image.dicom import dicom_files, is_dicom
from autoseg.image.formats import ENDINGS, ending_of, stem_of
from autoseg.prediction.studies import Scan, find_studies, scan_of_slice

CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
IMAGING = re.compile(rf"^{IMAGE}(_\d{{4}})?$")
Inputs = dict[str, tuple[Path, ...]]


@dataclass(frozen=True)
class Found:
    """What a path holds.

    Attributes:
        cases: case name -> its files, one a channel, in the order of the channels. A DICOM series
            is its folder, or one of its slices where the folder holds several.
        refused: scans that cannot be right, by name -> why.
        passed_over: what was not meant to be a scan, by file or series -> what it is.
    """

    cases: Inputs
    refused: dict[str, str]
    passed_over: dict[str, str]


def find_inputs(path: Path, channels: tuple[str, ...]) -> Found:
    """The cases of a scan, or of a folder of scans.

    Files are named CASE_0000, CASE_0001, ... by channel; a scan with one channel, or one file that
    holds all channels, may leave the number out. DICOM is looked for in the folders below, too, at
    any depth: each series is a case, named after its folders (PATIENT_STUDY_SERIES) and, where a
    folder holds several, its number. Other files are not: results often lie below their scans.
    But a folder with `imaging.*` and nothing else but `segmentation.*`, MIScnn's layout, is a case.

    Raises:
        DataError: there is nothing that could be a scan.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        return _group([_single(path)], channels, Found({}, {}, {}))
    studies = find_studies(path)
    folders = [folder for folder in (path, *_folders_in(path)) if _imaging(folder)]
    files = [] if path in folders else _files_in(path)
    scans = [Scan("", stem_of(file), file) for file in files] + studies.scans
    scans += [scan for folder in folders for scan in _imaging(folder)]
    found = Found({}, _folders_named_as_files(path) | studies.refused, studies.passed_over)
    if not scans and not found.refused:
        seen = [f"{name}: {reason}" for name, reason in found.passed_over.items()]
        raise DataError(
            f"{path}: holds no scan; known are files ending in {', '.join(ENDINGS)}, and DICOM "
            f"series{'; passed over: ' if seen else ''}{'; '.join(seen)}"
        )
    return _group(scans, channels, found)


def _single(path: Path) -> Scan:
    if ending_of(path):
        return Scan("", stem_of(path), path)
    if is_dicom(path):
        return scan_of_slice(path)
    raise DataError(
        f"{path}: no scan; known are files ending in {', '.join(ENDINGS)}, and DICOM series"
    )


def _files_in(folder: Path) -> list[Path]:
    entries = (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))
    return [entry for entry in entries if ending_of(entry) and entry.is_file()]


def _folders_in(folder: Path) -> list[Path]:
    entries = (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))
    return [entry for entry in entries if entry.is_dir()]


def _imaging(folder: Path) -> list[Scan]:
    """The channels of a case folder, `imaging` or `imaging_0000`, ..., under the folder's name."""
    files = [file for file in _files_in(folder) if stem_of(file) != LABEL]
    numbers = [IMAGING.match(stem_of(file)) for file in files]
    name = folder.resolve().name
    if not all(numbers):
        return []
    return [Scan("", name + (n[1] or ""), f) for n, f in zip(numbers, files, strict=True) if n]


def _folders_named_as_files(folder: Path) -> dict[str, str]:
    """What some programs make of a scan when they unpack it; a DICOM folder may be named anyhow."""
    return {
        entry.name: f"{entry}: is a folder without a DICOM series, though it is named like a file; "
        "put the scan itself there"
        for entry in sorted(folder.iterdir())
        if ending_of(entry) and entry.is_dir() and not dicom_files(entry)
    }


def _group(scans: Iterable[Scan], channels: tuple[str, ...], found: Found) -> Found:
    """Bring the channels of each case together."""
    scans = list(scans)
    stems = {(scan.above, scan.stem) for scan in scans}
    cases: dict[str, dict[int, Path]] = {}
    for scan in scans:
        stem, channel = _case_and_channel(scan, stems, len(channels))
        name = f"{scan.above}_{stem}" if scan.above else stem
        twin = cases.setdefault(name, {}).setdefault(channel, scan.path)
        if twin != scan.path:
            found.refused[name] = f"{scan.path} and {twin} are the same case; rename or remove one"
    for name, files in sorted(cases.items()):
        if gap := _gap(name, files, channels):
            found.refused.setdefault(name, gap)
        if name not in found.refused:
            found.cases[name] = tuple(files[channel] for channel in sorted(files))
    return found


def _case_and_channel(scan: Scan, stems: set[tuple[str, str]], channels: int) -> tuple[str, int]:
    """A number that no channel has belongs to the name (`scan_2021`), unless CASE_0000 is there."""
    numbered = CHANNEL.match(scan.stem)
    if not numbered:
        return scan.stem, 0
    case, channel = numbered["case"], int(numbered["channel"])
    if channel >= channels and (scan.above, f"{case}_0000") not in stems:
        return scan.stem, 0
    return case, channel


def _gap(name: str, files: dict[int, Path], channels: tuple[str, ...]) -> str | None:
    """Which numbers of channels are missing between the others."""
    if not (gaps := sorted(set(range(len(files))) - set(files))):
        return None
    missing = ", ".join(f"{name}_{gap:04d}" for gap in gaps)
    return f"case {name}: {missing} is missing; the model's channels are {', '.join(channels)}"
