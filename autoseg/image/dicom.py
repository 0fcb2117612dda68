"""DICOM folders: the series that they contain, and reading one series as a volume."""

import itertools
import math
import re
import struct
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autoseg.common.arrays import Array
from autoseg.common.errors import DataError, raise_if
from autoseg.common.files import obstacle
from autoseg.common.progress import counted, note
from autoseg.image.dicom_series import TABLES, Series, Slice, check_stack, joined
from autoseg.image.formats import TEXT, ending_of
from autoseg.image.geometry import Geometry, check_geometry

if TYPE_CHECKING:
    from pydicom import Dataset


MARK_AT = 128
DICOM_NAME = re.compile(r".*\.(dcm|dicom|ima)", re.IGNORECASE)
FIRST_GROUPS, HIGHEST_FIRST_ELEMENT = (2, 8), 0x20  # of files without a preamble
LONGEST_FIRST_VALUE = 256  # bytes
TAGS: list[str] = TABLES["tags"]
VOLUMES: list[str] = TABLES["volumes"]  # modalities whose images are scans
LONGEST_SHOWN = 80  # characters of a value in a message
DIRECTORY = "1.2.840.10008.1.3.10"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
UID = re.compile(r"[0-9]+(\.[0-9]+){2,}")


class Other(NamedTuple):
    """A DICOM file that is not a slice.

    Attributes:
        file: its path.
        reason: what it is instead.
        is_scan: whether it contains a volume, in a form that is not supported.
        series: its SeriesInstanceUID if it is an image stored among slices, else "".
    """

    file: Path
    reason: str
    is_scan: bool = False
    series: str = ""


class Contents(NamedTuple):
    """The DICOM files of one folder."""

    series: tuple[Series, ...]
    others: tuple[Other, ...]

    @property
    def volumes(self) -> list[Series]:
        """The series that are meant to be volumes, whether or not their slices are consistent."""
        return [each for each in self.series if each.why_no_volume is None]


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM prefix, or begins like a DICOM dataset without it.

    Such files often have no ending.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(MARK_AT + 4)
    if len(start) < MARK_AT or start[MARK_AT:] == b"DICM":
        return start[MARK_AT:] == b"DICM"
    group, element, length = struct.unpack_from("<HHI", start)
    if group not in FIRST_GROUPS or element > HIGHEST_FIRST_ELEMENT:
        return False
    return length <= LONGEST_FIRST_VALUE or (start[4:6].isalpha() and start[4:6].isupper())


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files in a folder, without subfolders and hidden files.

    Files that are named like one are included, so that damaged ones are reported.

    Raises:
        DataError: one that is named like the others is no file, or cannot be read.
    """
    visible = (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))
    entries = [entry for entry in visible if not ending_of(entry)]
    reasons = {entry: reason for entry in entries if (reason := obstacle(entry))}
    files = [entry for entry in entries if entry not in reasons and entry.is_file()]
    found = {file for file in files if DICOM_NAME.fullmatch(file.name) or is_dicom(file)}
    patterns = {_pattern(file) for file in found} - {None}
    for entry, reason in reasons.items():
        if DICOM_NAME.fullmatch(entry.name) or _pattern(entry) in patterns:
            raise DataError(reason)
    return [file for file in files if file in found or _pattern(file) in patterns]


def _pattern(file: Path) -> str | None:
    """The file name, with each number replaced by 0; None without a number."""
    pattern, count = re.subn(r"\d+", "0", file.name)
    return pattern if count else None


def read_contents(files: Iterable[Path]) -> Contents:
    """Sort the DICOM files of one folder into series.

    Raises:
        DataError: a file is damaged, so that a slice of an unknown series is missing.
    """
    slices: defaultdict[str, list[Slice]] = defaultdict(list)
    others: list[Other] = []
    for file in files:
        found = _read_header(file)
        if isinstance(found, Other):
            others.append(found)
        else:
            slices[found[0].series] += found
    for other in others:
        if other.series in slices:
            raise DataError(TEXT("among slices", file=other.file, reason=other.reason))
    series = joined([Series.of(each) for each in slices.values()])
    series.sort(key=lambda each: (each.first.number is None, each.first.number or 0, each.uids[1]))
    return Contents(tuple(series), tuple(others))


def find_series(path: Path | Series) -> Series:
    """The series that a path stands for: the only one of a folder, or the one of a slice.

    Localisers are ignored, unless a folder contains nothing else.

    Raises:
        DataError: there is not exactly one series, or a file is damaged.
    """
    if isinstance(path, Series):
        return path
    if path.is_dir():
        contents = read_contents(dicom_files(path))
        found = contents.volumes or list(contents.series)
        raise_if(len(found) != 1, DataError(TEXT("several series", path=path, count=len(found))))
        return found[0]
    contents = read_contents(dicom_files(path.parent))
    if not (names := [each for each in contents.series if path in each.files]):
        reason = next((other.reason for other in contents.others if other.file == path), "hidden")
        raise DataError(f"{path}: not a slice of a scan ({reason})")
    return names[0]


def modality_of(path: Path | Series) -> str | None:
    """The Modality (CT, MR, PT, ...) of a series that was read; None for other files.

    Only the first image of a folder is opened.
    """
    if isinstance(path, Series):
        return path.first.modality or None
    if path.is_file() and ending_of(path):
        return None
    found = map(_read_header, dicom_files(path) if path.is_dir() else [path])
    return next((each[0].modality or None for each in found if isinstance(each, list)), None)


def find_volume(source: Path | Series) -> Series:
    """As `find_series`, checked to make up a volume.

    Raises:
        DataError: see `find_series` and `check_stack`.
    """
    series = find_series(source)
    check_stack(series, str(source))
    check_geometry(series.geometry, str(source))
    return series


def read_series(source: Path | Series) -> tuple[Array, Geometry]:
    """Read a series, or the one that a path stands for, slices ordered by position.

    Returns:
        An array of shape (1, x, y, z), and its grid.

    Raises:
        DataError: see `find_volume`, or its pixels cannot be read.
    """
    from autoseg.image.dicom_pixels import read_pixels

    series = find_volume(source)
    if series.scouts:
        names = ", ".join(each.file.name for each in series.scouts)
        note(f"{source}: left out {counted(len(series.scouts), 'scout')} of the series ({names})")
    return read_pixels(series).transpose(2, 1, 0)[None], series.geometry


def _read_header(file: Path) -> list[Slice] | Other:
    from autoseg.image.dicom_pixels import read_header  # pydicom is slow to import

    try:
        raise_if(not is_dicom(file), "it does not begin like one")
        header, length = read_header(file, [*TAGS, *TABLES["sequences"], *TABLES["names"]])
        return _other(file, header) or _slices(file, header, length)
    except Exception as error:  # pydicom raises nearly anything on damaged bytes
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(TEXT("damaged slice", file=file, reason=reason)) from error


def _other(file: Path, header: "Dataset") -> Other | None:
    """What a file is if it is not a slice; None for a slice, also one with a cut-off header."""
    if header.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
        return Other(file, "an index of files (DICOMDIR)")
    kind = _kind(header)
    if "SeriesInstanceUID" not in header:
        return None
    modality = str(header.get("Modality", ""))
    if modality in TABLES["objects"]:
        return Other(file, TABLES["objects"][modality])
    if "Rows" not in header:
        is_cut_off = kind in TABLES["slices"] or "ImagePositionPatient" in header
        return None if is_cut_off else Other(file, f"an object without an image ({modality})")
    series = str(header.SeriesInstanceUID) if kind in TABLES["slices"] else ""
    is_localiser = "LOCALIZER" in (header.get("ImageType") or ())
    is_scan = modality in VOLUMES and not (is_localiser or kind.startswith(SECONDARY_CAPTURE))
    if int(header.get("SamplesPerPixel") or 1) > 1:
        return Other(file, "a colour image", series=series)
    if header.get("PerFrameFunctionalGroupsSequence"):
        return None
    if int(header.get("NumberOfFrames") or 1) > 1:
        reason = "a multi-frame object without positions" if is_scan else "a film of several frames"
    elif all(header.get(name) for name in TABLES["position_tags"]):
        return None
    else:
        reason = "an image without a position in the patient"
    return Other(file, reason, is_scan=is_scan, series=series)


def _kind(header: "Dataset") -> str:
    """The SOP class, from the header or from the file meta information before it."""
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))


def _slices(file: Path, header: "Dataset", length: int | None) -> list[Slice]:
    """The slice of a file, or those of an enhanced multi-frame object."""
    from autoseg.image.dicom_pixels import check_pixels, frame_header

    if missing := [name for name in TABLES["needed"] if header.get(name) in (None, "")]:
        raise ValueError(f"{missing[0]} is missing")
    if not UID.fullmatch(_kind(header)):
        raise ValueError(f"SOPClassUID is {_kind(header)[:LONGEST_SHOWN]!r}, which is not a UID")
    check_pixels(header, length)
    if not (groups := header.get("PerFrameFunctionalGroupsSequence")):
        return [_slice(file, header)]
    differs = len(groups) != int(header.get("NumberOfFrames") or 1)
    raise_if(differs, f"{len(groups)} frames are described, but NumberOfFrames differs")
    return [_slice(file, frame_header(header, n), n) for n in range(len(groups))]


def _slice(file: Path, header: "Dataset", frame: int = 0) -> Slice:
    row_mm, column_mm = _floats(header.PixelSpacing, 2)
    number, bits = header.get("SeriesNumber"), header.get("BitsStored") or header.BitsAllocated
    if (slope := _number(header, "RescaleSlope", 1.0)) == 0:
        raise ValueError("RescaleSlope is 0")
    patient, name = (str(header.get(key) or "").strip() for key in TABLES["names"][:2])
    return Slice(
        file=file,
        number=None if number in (None, "") else int(number),
        size=(int(header.Columns), int(header.Rows)),
        spacing_mm=(column_mm, row_mm),
        position_mm=_floats(header.ImagePositionPatient, 3),
        orientation=_floats(header.ImageOrientationPatient, 6),
        scale=(slope, _number(header, "RescaleIntercept", 0.0)),
        pixel=(int(bits), int(header.get("PixelRepresentation") or 0)),
        is_localiser="LOCALIZER" in itertools.islice(header.get("ImageType") or (), 8),
        frame=frame,
        has_table=bool(header.get("ModalityLUTSequence")),
        is_rescaled="RescaleSlope" in header or "ModalityLUTSequence" in header,
        thickness_mm=_number(header, "SliceThickness", 0.0),
        patient="" if patient.casefold() == name.casefold() else patient,
        **{name: str(header.get(tag) or "") for name, tag in TABLES["texts"].items()},
    )


def _number(header: "Dataset", name: str, otherwise: float) -> float:
    value = header.get(name)
    return otherwise if value is None else _floats([value], 1)[0]


def _floats(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(map(float, values))
    if odd := [number for number in numbers if not math.isfinite(number)]:
        raise ValueError(f"{odd[0]} is not a finite number")
    raise_if(len(numbers) != count, f"{len(numbers)} numbers instead of {count}")
    return numbers
