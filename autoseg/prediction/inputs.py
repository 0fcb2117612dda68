"""Find the cases in a file or folder of new scans: image files, and DICOM series at any depth."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.dataset.layouts import IMAGE_STEM, LABEL_STEM
from autoseg.image.dicom import Contents, Other, dicom_files, find_series, is_dicom, read_contents
from autoseg.image.dicom_series import Series, check_stack
from autoseg.image.formats import ENDINGS, ending_of, stem_of

CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
IMAGING = re.compile(rf"^{IMAGE_STEM}(_\d{{4}})?$")
Inputs = dict[str, tuple[Path, ...]]


@dataclass(frozen=True)
class FoundInputs:
    """The cases of a file or folder.

    Attributes:
        cases: case name -> its files, one per channel, in the order of the channels. A DICOM series
            is its folder, or one of its slices if the folder holds several.
        refused: scans that cannot be read or assigned, by name -> why.
        passed_over: what is not meant as a scan, by file or series -> what it is.
    """

    cases: Inputs
    refused: dict[str, str]
    passed_over: dict[str, str]


@dataclass(frozen=True)
class Scan:
    """One file or series.

    Attributes:
        above: the folders above it, joined to a prefix of its name; '' at the top.
        stem: its own name, perhaps with the number of a channel.
        path: what to read.
    """

    above: str
    stem: str
    path: Path

    @property
    def name(self) -> str:
        """The case name, if the scan is a case of its own."""
        return f"{self.above}_{self.stem}" if self.above else self.stem


def find_inputs(path: Path, channels: tuple[str, ...]) -> FoundInputs:
    """The cases of a scan, or of a folder of scans.

    Files are named CASE_0000, CASE_0001, ... by channel; a scan with one channel, or one file with
    all channels, may leave the number out. DICOM series are found at any depth: each is a case,
    named after its folders (PATIENT_STUDY_SERIES) and, if a folder holds several, its number. Image
    files are only found at the top, as results are often stored below their scans, and in folders
    that hold just `imaging.*` and perhaps `segmentation.*`, MIScnn's layout: each is a case.

    Raises:
        DataError: there is no scan.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        return _group([_single(path)], channels, FoundInputs({}, {}, {}))
    studies = find_studies(path)
    folders = [folder for folder in (path, *_folders_in(path)) if _imaging(folder)]
    files = [] if path in folders else _files_in(path)
    scans = [Scan("", stem_of(file), file) for file in files] + studies.scans
    scans += [scan for folder in folders for scan in _imaging(folder)]
    found = FoundInputs({}, _folders_named_as_files(path) | studies.refused, studies.passed_over)
    if not scans and not found.refused:
        others = "; ".join(f"{name}: {reason}" for name, reason in found.passed_over.items())
        raise DataError(
            f"{path}: holds no scan; supported are files ending in {', '.join(ENDINGS)}, and DICOM "
            f"series{'; skipped: ' if others else ''}{others}"
        )
    return _group(scans, channels, found)


def _single(path: Path) -> Scan:
    if ending_of(path):
        return Scan("", stem_of(path), path)
    if is_dicom(path):
        return _scan_of_slice(path)
    raise DataError(f"{path}: not a scan; use {', '.join(ENDINGS)}, or a DICOM series")


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]


def _files_in(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if ending_of(entry) and entry.is_file()]


def _folders_in(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _imaging(folder: Path) -> list[Scan]:
    """The channels of a case folder, `imaging` or `imaging_0000`, ..., under the folder's name."""
    files = [file for file in _files_in(folder) if stem_of(file) != LABEL_STEM]
    numbers = [IMAGING.match(stem_of(file)) for file in files]
    name = folder.resolve().name
    if not all(numbers):
        return []
    return [Scan("", name + (n[1] or ""), f) for n, f in zip(numbers, files, strict=True) if n]


def _folders_named_as_files(folder: Path) -> dict[str, str]:
    """Folders such as `a.nii.gz`, which some programs make of a scan when they unpack it."""
    return {
        entry.name: f"{entry}: a folder without a DICOM series, although it is named like a file; "
        "put the scan itself there"
        for entry in sorted(folder.iterdir())
        if ending_of(entry) and entry.is_dir() and not dicom_files(entry)
    }


def _group(scans: Iterable[Scan], channels: tuple[str, ...], found: FoundInputs) -> FoundInputs:
    """Group the channels of each case."""
    scans = list(scans)
    stems = {(scan.above, scan.stem) for scan in scans}
    cases: dict[str, dict[int, Path]] = {}
    for scan in scans:
        stem, channel = _case_and_channel(scan, stems, len(channels))
        name = Scan(scan.above, stem, scan.path).name
        twin = cases.setdefault(name, {}).setdefault(channel, scan.path)
        if twin != scan.path:
            found.refused[name] = f"{scan.path} and {twin} are the same case; rename or remove one"
    for name, files in sorted(cases.items()):
        if gaps := sorted(set(range(len(files))) - set(files)):
            missing = ", ".join(f"{name}_{gap:04d}" for gap in gaps)
            found.refused.setdefault(
                name,
                f"case {name}: {missing} is missing; the model's channels are "
                f"{', '.join(channels)}",
            )
        if name not in found.refused:
            found.cases[name] = tuple(files[channel] for channel in sorted(files))
    return found


def _case_and_channel(scan: Scan, stems: set[tuple[str, str]], channels: int) -> tuple[str, int]:
    """Split a file name. A number above the last channel belongs to the case name (`scan_2021`),
    unless CASE_0000 exists.
    """
    numbered = CHANNEL.match(scan.stem)
    if not numbered:
        return scan.stem, 0
    case, channel = numbered["case"], int(numbered["channel"])
    if channel >= channels and (scan.above, f"{case}_0000") not in stems:
        return scan.stem, 0
    return case, channel


# DICOM series in a tree of folders, as archives and scanners export them.


@dataclass
class Studies:
    """The series of a tree: scans, and by name what is refused and what is not meant as a scan."""

    scans: list[Scan] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _NamedSeries:
    scan: Scan
    series: Series


def find_studies(root: Path) -> Studies:
    """All DICOM series in a folder and the folders below it.

    Slices that do not form a volume, damaged files and multi-frame objects are refused; localisers,
    single pictures and objects without a scan are skipped.
    """
    studies = Studies()
    found: list[_NamedSeries] = []
    for folder in _walk(root, set(), studies):
        try:
            contents = read_contents(dicom_files(folder))
        except DataError as error:
            studies.refused[_scan_in(folder, root).name] = str(error)
        else:
            _sort_others(contents, root, studies)
            found += _named_series(contents, folder, root)
    split = _split_series(found)
    for each in found:
        name, series = each.scan.name, each.series
        if series.first.series in split:
            studies.refused[name] = split[series.first.series]
        elif reason := series.why_no_volume:
            studies.passed_over[name] = reason
        else:
            where = each.scan.path if each.scan.path.is_dir() else each.scan.path.parent
            try:
                check_stack(series, f"{where}, series {series.first.number}")
            except DataError as error:
                studies.refused[name] = str(error)
            else:
                studies.scans.append(each.scan)
    return studies


def _scan_of_slice(file: Path) -> Scan:
    """The scan of the series that a file belongs to, named after its folder.

    Raises:
        DataError: it belongs to none, or its slices do not form a volume.
    """
    series = find_series(file)
    if reason := series.why_no_volume:
        raise DataError(f"{file}: {reason}")
    check_stack(series, str(file))
    found = _named_series(read_contents(dicom_files(file.parent)), file.parent, file.parent)
    return next(each.scan for each in found if each.series.first.series == series.first.series)


def _walk(folder: Path, seen: set[Path], studies: Studies) -> Iterator[Path]:
    """The folder and all visible ones below it, each once: links may be circular."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    try:
        below = _folders_in(folder)
    except OSError as error:
        studies.refused[folder.name] = f"{folder}: cannot be opened ({error.strerror})"
        return
    yield folder
    for entry in below:
        yield from _walk(entry, seen, studies)


def _scan_in(folder: Path, root: Path) -> Scan:
    """A folder as a scan, named after its place in the tree; the root is named after itself."""
    *above, stem = folder.relative_to(root).parts or (root.resolve().name,)
    return Scan("_".join(above), stem, folder)


def _named_series(contents: Contents, folder: Path, root: Path) -> list[_NamedSeries]:
    """Name the series of a folder: the only volume after the folder, others by their number."""
    scan = _scan_in(folder, root)
    volumes = contents.volumes
    numbers = Counter(series.first.number for series in contents.series)
    named = []
    for series in contents.series:
        if series in volumes and len(volumes) == 1:
            named.append(_NamedSeries(scan, series))
            continue
        first = series.first
        stem = f"{scan.stem}_series{'' if first.number is None else first.number}"
        if numbers[first.number] > 1 or first.number is None:  # the number alone is not unique
            stem += f"_{first.series.rpartition('.')[2]}"
        named.append(_NamedSeries(Scan(scan.above, stem, first.file), series))
    return named


def _split_series(found: list[_NamedSeries]) -> dict[str, str]:
    """Series whose slices form one volume only together with those of another folder."""
    parts: defaultdict[str, list[_NamedSeries]] = defaultdict(list)
    for each in found:
        parts[each.series.first.series].append(each)
    return {
        identity: f"{' and '.join(str(each.scan.path) for each in some)}: hold parts of one "
        "series; move its files into one folder"
        for identity, some in parts.items()
        if len(some) > 1 and _form_one_volume([each.series for each in some])
    }


def _form_one_volume(some: list[Series]) -> bool:
    whole = Series.of([each for series in some for each in series.slices])
    try:
        check_stack(whole, "")
    except DataError:  # each is a volume: copies, or a tool that writes the same UID everywhere
        return False
    return True


def _sort_others(contents: Contents, root: Path, studies: Studies) -> None:
    """One line for all objects of a kind in a folder."""
    alike: defaultdict[tuple[str, bool], list[Other]] = defaultdict(list)
    for other in contents.others:
        alike[other.reason, other.is_scan].append(other)
    for (reason, is_scan), others in alike.items():
        name = str(others[0].file.relative_to(root))
        if len(others) > 1:
            reason = f"{reason} (and {len(others) - 1} more like it)"
        (studies.refused if is_scan else studies.passed_over)[name] = reason
