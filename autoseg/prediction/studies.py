"""DICOM series in a tree of folders, as archives and scanners export them: found, named, chosen."""

import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import obstacle, printable, texts_in
from autoseg.image import dicom, dicom_series

TEXT = texts_in(Path(__file__).with_name("messages.json"))
UNSAFE = re.compile(r"[^A-Za-z0-9.-]+")
WITH_ENDING = re.compile(r".+\.[A-Za-z]\w*")  # unlike a UID
NUMBERED = re.compile(r".+_\d{4}")
CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|!=|=|<|>)\s*(.+?)\s*")
COMPARISONS = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
Choice = Callable[[dicom_series.Series], bool]


class Scan(NamedTuple):
    """One file or series.

    Attributes:
        above: the folders above it, joined to a prefix of its name; '' at the top.
        stem: its own name, perhaps with the number of a channel.
        path: what to read.
        is_case: whether it is a case of its own, whatever number its name ends in.
    """

    above: str
    stem: str
    path: dicom_series.Source
    is_case: bool = False

    @property
    def name(self) -> str:
        """The case name, if the scan is a case of its own."""
        return f"{self.above}_{self.stem}" if self.above else self.stem


@dataclass
class Studies:
    """The series of a tree.

    Attributes:
        scans: the scans to predict.
        refused: scans that cannot be read, by name -> why.
        passed_over: what is not meant as a scan, by name -> what it is.
        listed: name -> one line about the series, for all series.
        uids: name -> SeriesInstanceUID, for all series.
    """

    scans: list[Scan] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)
    uids: dict[str, str] = field(default_factory=dict)


class _Found(NamedTuple):
    """A series, where it lies, and why it is refused."""

    scan: Scan
    series: dicom_series.Series
    folder: Path
    problem: str | None = None


def find_studies(
    root: Path, name_by: str = "patient", choice: Choice | None = None, channels: int = 1
) -> Studies:
    """All DICOM series in a folder and the folders below it.

    The slices of a series may lie in several folders. Slices that do not form a volume and damaged
    files are refused; localisers, single pictures and objects without a scan are skipped.

    Args:
        root: the folder.
        name_by: `patient` (PatientID and series number), `uid` or `folder`.
        choice: which series to take; None: all.
        channels: of the model; if there are several, folders named CASE_0000, CASE_0001 are the
            channels of a case, whatever `name_by` says.
    """
    studies = Studies()
    found: list[_Found] = []
    for folder in _walk(root, set(), studies):
        try:
            contents = dicom.read_contents(dicom.dicom_files(folder))
        except DataError as error:
            studies.refused[_scan_in(folder, root).name] = str(error)
        else:
            _sort_others(contents, root, studies)
            found += _found_in(contents, folder, root)
    _sort([*_named(_put_together(found), name_by, channels)], choice, studies)
    return studies


def scan_of_slice(file: Path, name_by: str) -> Scan:
    """The scan of the series that a file belongs to.

    Raises:
        DataError: it belongs to none, or its slices do not form a volume.
    """
    series = dicom.find_series(file)
    if reason := series.why_no_volume:
        raise DataError(f"{file}: {reason}")
    dicom_series.check_stack(series, str(file))
    found = _found_in(dicom.read_contents(dicom.dicom_files(file.parent)), file.parent, file.parent)
    named = _named(found, name_by, 1)
    return next(each.scan for each in named if each.series.first.file in series.files)


def _sort(found: Sequence[_Found], choice: Choice | None, studies: Studies) -> None:
    """Sort series into scans, refused ones, and what is not meant as a scan."""
    volumes = [each for each in found if each.series.why_no_volume is None]
    folders, exams = {v.folder for v in volumes}, {v.series.first.study for v in volumes}
    for each in found:
        name, series = each.scan.name, each.series
        first, problem = series.first, each.problem
        studies.listed[name], studies.uids[name] = series.describe(), first.series
        if choice is not None and not choice(series):
            continue
        if problem is None and (reason := series.why_no_volume):
            is_beside = each.folder in folders or first.study in exams
            is_scan = first.modality in dicom.VOLUMES and not first.is_localiser
            if not is_scan or (is_beside and len(series.slices) < dicom_series.LARGEST_LOCALISER):
                studies.passed_over[name] = reason
                continue
            problem = f"{series}: {reason}"
        if problem := problem or _problem_of(series, f"{series}, series {first.number}"):
            studies.refused[name] = problem
        else:
            studies.scans.append(each.scan)


def _problem_of(series: dicom_series.Series, what: str) -> str | None:
    try:
        dicom_series.check_stack(series, what)
    except DataError as error:
        return str(error)
    return None


def _walk(folder: Path, seen: set[Path], studies: Studies) -> Iterator[Path]:
    """The folder and all visible ones below it, each once: links may be circular."""
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    if reason := obstacle(folder):
        studies.refused[printable(folder.name)] = reason
        return
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    for entry in entries:  # without an ending, it may lead to a folder of scans
        is_link = entry.is_symlink() and not WITH_ENDING.fullmatch(entry.name)
        if is_link and (reason := obstacle(entry)):
            studies.refused[printable(entry.name)] = reason
    yield folder
    for entry in filter(Path.is_dir, entries):
        yield from _walk(entry, seen, studies)


def _scan_in(folder: Path, root: Path) -> Scan:
    """A folder as a scan, named after its place in the tree; the root is named after itself."""
    *above, stem = folder.relative_to(root).parts or (root.resolve().name,)
    return Scan("_".join(above), stem, folder)


def _found_in(contents: dicom.Contents, folder: Path, root: Path) -> list[_Found]:
    """Name the series of a folder: the only volume after the folder, others by their number."""
    whole, found = _scan_in(folder, root), []
    numbers = Counter(series.first.number for series in contents.series)
    for series in contents.series:
        first, scan = series.first, whole
        if contents.volumes != [series]:
            stem = f"{scan.stem}_series{'' if first.number is None else first.number}"
            if numbers[first.number] > 1 or first.number is None:  # the number alone is not unique
                stem += f"_{first.series.rpartition('.')[2]}"
            scan = Scan(scan.above, stem, first.file)
        found.append(_Found(scan, series, folder))
    return found


def _put_together(found: Sequence[_Found]) -> list[_Found]:
    """Make one series of those that lie in several folders, or have a UID for each slice."""
    parts: defaultdict[tuple[str, ...], list[_Found]] = defaultdict(list)
    for each in found:
        parts[each.series.uids].append(each)
    whole = [each for some in parts.values() for each in _whole(some)]
    singles = {id(each.series): each for each in whole if len(each.series.slices) == 1}
    for series in dicom_series.joined([each.series for each in singles.values()]):
        if id(series) not in singles:
            some = [each for each in singles.values() if each.series.first in series.slices]
            whole = [each for each in whole if each not in some]
            whole.append(_Found(some[0].scan._replace(path=series), series, some[0].folder))
    return _with_lost_slices(whole)


def _whole(some: list[_Found]) -> list[_Found]:
    """The parts of one series as one volume, or as they are if they are volumes of their own.

    Copies of a series stay separate, and so do volumes to which a program gave the same UID.
    """
    every = [each for part in some for each in part.series.slices]
    slices = {(each.instance, each.frame, each.position_mm): each for each in every}
    series = dicom_series.Series.of(slices.values())
    is_copy = len(series.slices) <= max(len(part.series.slices) for part in some)
    if len(some) == 1 or is_copy or series.why_no_volume:
        return some
    one = some[0]._replace(scan=some[0].scan._replace(path=series), series=series)
    problem, offsets = _problem_of(series, f"{series}: hold parts of one series"), series.offsets_mm
    if problem and (offsets[1:] - offsets[:-1]).min() < dicom_series.SAME_POSITION_MM:
        return some
    return [one._replace(problem=problem)]


def _with_lost_slices(found: list[_Found]) -> list[_Found]:
    """Refuse volumes whose first or last slice has a SeriesInstanceUID of its own."""
    volumes = [each for each in found if each.series.why_no_volume is None]
    singles = [each for each in found if len(each.series.slices) == 1]
    for single, volume in product(singles, volumes):
        first = single.series.first
        if not first.is_localiser and dicom_series.continues(first, volume.series):
            reason = TEXT("lost slice", first=first, series=volume.series.first.series)
            pair = single, volume
            found = [each._replace(problem=reason) if each in pair else each for each in found]
    return found


def _named(found: Sequence[_Found], name_by: str, channels: int) -> Iterator[_Found]:
    """The series with the names of their cases, each unique, also where case is ignored."""
    names = []
    for each in found:
        first = each.series.first
        patient = UNSAFE.sub("_", first.patient).strip("._") or "unknown"
        number = "" if first.number is None else f"_{first.number}"
        names.append(first.series if name_by == "uid" else patient + number)
    counts = Counter(name.casefold() for name in names)
    seen: Counter[str] = Counter()
    for each, name in zip(found, names, strict=True):
        if name_by == "folder" or (channels > 1 and NUMBERED.fullmatch(each.scan.stem)):
            yield each
            continue
        if counts[name.casefold()] > 1 and name_by != "uid":
            name = f"{name}_{each.series.first.series.rpartition('.')[2]}"
        seen[name.casefold()] += 1
        if seen[name.casefold()] > 1:
            name = f"{name}_{seen[name.casefold()]}"
        yield each._replace(scan=Scan("", name, each.scan.path, is_case=True))


def _sort_others(contents: dicom.Contents, root: Path, studies: Studies) -> None:
    """One line for all objects of a kind in a folder."""
    alike: defaultdict[tuple[str, bool], list[dicom.Other]] = defaultdict(list)
    for other in contents.others:
        alike[other.reason, other.is_scan].append(other)
    for (reason, is_scan), others in alike.items():
        name = str(others[0].file.relative_to(root))
        if len(others) > 1:
            reason = f"{reason} (and {len(others) - 1} more like it)"
        (studies.refused if is_scan else studies.passed_over)[name] = reason


def series_choice(text: str) -> Choice:
    """What `--series` chooses: a SeriesInstanceUID, or conditions on DICOM tags joined by `and`.

    Raises:
        AutosegError: it is neither.
    """
    if dicom.UID.fullmatch(text.strip()):
        return lambda series: series.first.series == text.strip()
    from autoseg.image.dicom_pixels import is_keyword, values_of  # pydicom is slow to import

    conditions: list[tuple[str, str, str]] = []
    for part in re.split(r"\s+and\s+", text, flags=re.IGNORECASE):
        found = CONDITION.fullmatch(part)
        if not found or not is_keyword(found[1]):
            raise AutosegError(TEXT("no condition", part=part))
        keyword, comparison, value = found[1], found[2], found[3].strip("'\"")
        if comparison in COMPARISONS and _number(value) is None:
            raise AutosegError(f"--series: {part!r} needs a number after {comparison}")
        conditions.append((keyword, comparison, value))
    return lambda series: all(
        _is_met(values_of(series.first, keyword), comparison, value)
        for keyword, comparison, value in conditions
    )


def _is_met(found: Sequence[Any], comparison: str, value: str) -> bool:
    number, numbers = _number(value), [n for n in map(_number, found) if n is not None]
    if comparison in ("=", "!="):
        known = {*(str(each).casefold() for each in found), *numbers}
        return (not known.isdisjoint({value.casefold(), number})) == (comparison == "=")
    assert number is not None
    return bool(numbers) and all(COMPARISONS[comparison](each, number) for each in numbers)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
