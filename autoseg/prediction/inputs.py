"""Which cases a file or a folder of new scans holds."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.dataset.layouts import IMAGE, LABEL
from autoseg.image.dicom import Contents, Other, dicom_files, find_series, is_dicom, read_contents
from autoseg.image.dicom_series import Series, check_stack
from autoseg.image.formats import ENDINGS, ending_of, stem_of

# DICOM series in a tree of folders, as archives and scanners export them.


@dataclass(frozen=True)
class Scan:
    """One file or series.

    Attributes:
        above: the folders above it, as a part of a name; '' at the top.
        stem: its own name, perhaps with the number of a channel.
        path: what to read.
    """

    above: str
    stem: str
    path: Path

    @property
    def name(self) -> str:
        """The name of a case that it is alone."""
        return f"{self.above}_{self.stem}" if self.above else self.stem


@dataclass
class Studies:
    """The series of a tree: scans, and by name what is refused and what was not meant as a scan."""

    scans: list[Scan] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Located:
    scan: Scan
    series: Series


def find_studies(root: Path) -> Studies:
    """All DICOM series in a folder and the folders below it.

    Slices that do not make up a volume, damaged files and multi-frame objects are refused;
    localisers, single pictures and objects that hold no scan are passed over.
    """
    studies = Studies()
    located: list[_Located] = []
    for folder in _folders(root, set(), studies):
        try:
            contents = read_contents(dicom_files(folder))
        except DataError as error:
            studies.refused[_name(folder, root).name] = str(error)
        else:
            _note_others(contents, root, studies)
            located += _locate(contents, folder, root)
    spread = _spread(located)
    for each in located:
        series = each.series
        if series.first.series in spread:
            studies.refused[each.scan.name] = spread[series.first.series]
        elif reason := series.why_no_volume:
            studies.passed_over[each.scan.name] = reason
        else:
            _take(each, studies)
    return studies


def scan_of_slice(file: Path) -> Scan:
    """The scan of the series that a file belongs to, named after its folder.

    Raises:
        DataError: it belongs to none, or its slices do not make up a volume.
    """
    series = find_series(file)
    if reason := series.why_no_volume:
        raise DataError(f"{file}: {reason}")
    check_stack(series, str(file))
    contents = read_contents(dicom_files(file.parent))
    located = _locate(contents, file.parent, file.parent)
    return next(each.scan for each in located if each.series.first.series == series.first.series)


def _folders(folder: Path, seen: set[Path], studies: Studies) -> Iterator[Path]:
    """The folder and all below it, each once: links may lead in circles."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    try:
        below = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    except OSError as error:
        studies.refused[folder.name] = f"{folder}: cannot be opened ({error.strerror})"
        return
    yield folder
    for entry in below:
        if not entry.name.startswith("."):
            yield from _folders(entry, seen, studies)


def _name(folder: Path, root: Path) -> Scan:
    """A folder's place in the tree as a name; the root's own name stands for itself."""
    *above, stem = folder.relative_to(root).parts or (root.resolve().name,)
    return Scan("_".join(above), stem, folder)


def _locate(contents: Contents, folder: Path, root: Path) -> list[_Located]:
    """Name the series of a folder: a volume that is alone after the folder, others by number."""
    name = _name(folder, root)
    volumes = contents.volumes
    numbers = Counter(series.first.number for series in contents.series)
    located = []
    for series in contents.series:
        if series in volumes and len(volumes) == 1:
            located.append(_Located(name, series))
            continue
        first = series.first
        stem = f"{name.stem}_series{'' if first.number is None else first.number}"
        if numbers[first.number] > 1 or first.number is None:  # the number alone is not enough
            stem += f"_{first.series.rpartition('.')[2]}"
        located.append(_Located(Scan(name.above, stem, first.file), series))
    return located


def _spread(located: list[_Located]) -> dict[str, str]:
    """Series whose slices make up one volume only together with those of another folder."""
    parts: defaultdict[str, list[_Located]] = defaultdict(list)
    for each in located:
        parts[each.series.first.series].append(each)
    return {
        identity: f"{' and '.join(str(each.scan.path) for each in some)}: hold parts of one "
        "series; bring its files into one folder"
        for identity, some in parts.items()
        if len(some) > 1 and _are_parts([each.series for each in some])
    }


def _are_parts(some: list[Series]) -> bool:
    whole = Series.of([each for series in some for each in series.slices])
    try:
        check_stack(whole, "")
    except DataError:  # each is a volume of its own: copies, or a tool that writes one UID for all
        return False
    return True


def _take(each: _Located, studies: Studies) -> None:
    where = each.scan.path if each.scan.path.is_dir() else each.scan.path.parent
    try:
        check_stack(each.series, f"{where}, series {each.series.first.number}")
    except DataError as error:
        studies.refused[each.scan.name] = str(error)
    else:
        studies.scans.append(each.scan)


def _note_others(contents: Contents, root: Path, studies: Studies) -> None:
    """One line for all objects of a kind in a folder."""
    alike: defaultdict[tuple[str, bool], list[Other]] = defaultdict(list)
    for other in contents.others:
        alike[other.reason, other.is_scan].append(other)
    for (reason, is_scan), others in alike.items():
        name = str(others[0].file.relative_to(root))
        if len(others) > 1:
            reason = f"{reason} (and {len(others) - 1} more like it)"
        (studies.refused if is_scan else studies.passed_over)[name] = reason


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
