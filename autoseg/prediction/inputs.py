"""Find the cases in a file or folder of new scans: image files, and DICOM series at any depth."""

import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import obstacle
from autoseg.common.progress import COPIES, note
from autoseg.dataset.task import IMAGE_STEM, LABEL_STEM
from autoseg.image import formats
from autoseg.image.dicom import dicom_files, is_dicom
from autoseg.image.dicom_series import Source
from autoseg.prediction.output import DEFAULT_FORMAT, ENDINGS, PICTURE
from autoseg.prediction.studies import TEXT, Choice, Scan, Studies, find_studies, scan_of_slice

CHANNEL = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
IMAGING = re.compile(rf"^{IMAGE_STEM}(_\d{{4}})?$")
MOST_FILES, MOST_BYTES = 10**6, 2**38  # of a zip file
HIGHEST_RATIO, SMALL_BYTES = 100, 2**30  # unpacked to packed size, above some bytes
Inputs = Mapping[str, tuple[Source, ...]]


@dataclass
class FoundInputs(Studies):
    """The cases of a file or folder.

    Attributes:
        cases: case name -> its files, one per channel, in the order of the channels. A DICOM series
            is its folder, one of its slices if the folder holds several, or a Series if its slices
            lie in several folders.
    """

    cases: Inputs = field(default_factory=dict)

    def for_output(self, out: Path, format: str) -> tuple["FoundInputs", Path, str]:
        """The inputs, the output folder and the format; a single scan may be given a file.

        Args:
            out: the folder, or a file such as `out/seg.nii.gz`, after which the case is named.
            format: of the label maps in a folder; that of pictures is PNG instead of NIfTI.

        Raises:
            AutosegError: `out` is a file of another format, or there are several scans.
        """
        files = (file for each in self.cases.values() for file in each)
        flat = {isinstance(file, Path) and formats.is_picture(file) for file in files} == {True}
        ends = {form: end for form, end in ENDINGS.items() if flat or form != PICTURE}
        found = [form for form, end in ends.items() if out.name.lower().endswith(end)]
        if out.is_dir() or not (found or formats.ending_of(out)):
            return self, out, PICTURE if flat and format == DEFAULT_FORMAT else format
        if not found or format not in (DEFAULT_FORMAT, *found):
            given = f", with --format {format} {ends[format]}" if format != DEFAULT_FORMAT else ""
            raise AutosegError(f"-o {out}: label maps end in {', '.join(ends.values())}{given}")
        if (count := len({*self.cases, *self.refused})) > 1:
            raise AutosegError(f"-o {out} is one file, for {count} scans; give a folder: -o out/")
        name = out.name[: -len(ends[found[0]])]
        cases = dict.fromkeys([name][: len(self.cases)], *self.cases.values())
        uids = dict.fromkeys([name][: len(self.uids)], *self.uids.values())
        return replace(self, cases=cases, uids=uids), out.parent, found[0]


def find_inputs(
    path: Path, channels: tuple[str, ...], name_by: str = "patient", choice: Choice | None = None
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
        if formats.ending_of(path):
            scan = Scan("", formats.stem_of(path), path)
        elif is_dicom(path):
            scan = scan_of_slice(path, name_by)
        else:
            raise DataError(TEXT("not a scan", path=path, known=", ".join(formats.READABLE)))
        return _group([scan], channels, FoundInputs())
    found = FoundInputs(**vars(find_studies(path, name_by, choice, len(channels))))
    if choice is not None and not found.scans and not found.refused:
        listed = "; ".join(f"{name}: {line}" for name, line in found.listed.items())
        raise DataError(f"{path}: --series chooses no series of these: {listed or 'none'}")
    if choice is None:
        for entry in _folders_in(path):  # which some programs make of a scan they unpack
            if formats.ending_of(entry) and not dicom_files(entry):
                found.refused.setdefault(entry.name, TEXT("no series", path=entry))
        top = [] if _imaging(path) else _files_in(path)
        files = [Scan("", formats.stem_of(file), file) for file in top]
        files += [scan for folder in (path, *_folders_in(path)) for scan in _imaging(folder)]
        if found.scans:  # pictures beside them are screenshots
            files = [scan for scan in files if not formats.is_picture(Path(str(scan.path)))]
        found.scans = found.scans + files
    if not found.scans and not found.refused:
        others = "; ".join(f"{name}: {reason}" for name, reason in found.passed_over.items())
        about = {"others": others, "skipped": "; skipped: " if others else ""}
        raise DataError(TEXT("no scan", path=path, known=", ".join(formats.READABLE), **about))
    return _group(found.scans, channels, found)


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
                file.extractall(folder, members)
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


def _visible(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]


def _files_in(folder: Path) -> list[Path]:
    """The image files, also those that cannot be read, such as links to nothing."""
    return formats.images_among(entry for entry in _visible(folder) if not entry.is_dir())


def _folders_in(folder: Path) -> list[Path]:
    return [entry for entry in _visible(folder) if entry.is_dir() and not obstacle(entry)]


def _imaging(folder: Path) -> list[Scan]:
    """The channels of a case folder, `imaging` or `imaging_0000`, ..., under the folder's name."""
    files = [file for file in _files_in(folder) if formats.stem_of(file) != LABEL_STEM]
    numbers = [IMAGING.match(formats.stem_of(file)) for file in files]
    name = formats.composed(folder.resolve().name)
    if not all(numbers):
        return []
    return [Scan("", name + (n[1] or ""), f) for n, f in zip(numbers, files, strict=True) if n]


def _group(scans: Iterable[Scan], channels: tuple[str, ...], found: FoundInputs) -> FoundInputs:
    """Group the channels of each case."""
    scans = list(scans)
    stems = {(scan.above, scan.stem) for scan in scans}
    cases: dict[str, dict[int, Source]] = {}
    grouped: dict[str, tuple[Source, ...]] = {}
    for scan in scans:
        stem, channel = _case_and_channel(scan, stems, len(channels))
        name = Scan(scan.above, stem, scan.path).name
        twin = cases.setdefault(name, {}).setdefault(channel, scan.path)
        if twin != scan.path:
            found.refused[name] = f"{scan.path} and {twin} are the same case; rename or remove one"
    for name, files in sorted(cases.items()):
        reasons = [obstacle(file) for file in files.values() if isinstance(file, Path)]
        if len(channels) == 1 and len(files) > 1:
            about = {"channel": channels[0], "name": name, "last": max(files)}
            reasons[:0] = [TEXT("one channel", files=", ".join(map(str, files.values())), **about)]
        elif gaps := sorted(set(range(len(files))) - set(files)):
            missing = ", ".join(f"{name}_{gap:04d}" for gap in gaps)
            reasons[:0] = [TEXT("gap", name=name, missing=missing, known=", ".join(channels))]
        if any(reasons):
            found.refused.setdefault(name, next(filter(None, reasons)))
        if name not in found.refused:
            grouped[name] = tuple(files[channel] for channel in sorted(files))
    found.cases = grouped
    for message in formats.alike(found.cases):
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
