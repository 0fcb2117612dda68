"""DICOM series in a tree of folders, as archives and scanners export them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.image.dicom import Contents, Other, dicom_files, find_series, read_contents
from autoseg.image.dicom_series import Series, check_stack


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
