"""DICOM folders: the series that they contain, and reading one series as a volume."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from autoseg.common.errors import DataError
from autoseg.image.dicom_series import Series, Slice, check_stack
from autoseg.image.formats import ending_of

if TYPE_CHECKING:
    import SimpleITK as sitk
    from pydicom import Dataset


PIXELS = 0x7FE00010
BITS = (8, 16, 32)
LARGEST_SLICE = 1 << 26  # pixels of a compressed slice, whose length cannot be checked


def pixel_bytes(header: Dataset, stream: BinaryIO) -> int | None:
    """The length of the pixels after a header; None if they are compressed, 0 if missing."""
    from pydicom.filereader import data_element_generator

    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise ValueError("TransferSyntaxUID is missing")
    if syntax.is_compressed or syntax.is_deflated:  # in fragments, or together with the header
        return None
    implicit, little = syntax.is_implicit_VR, syntax.is_little_endian
    elements: Iterator[Any] = data_element_generator(stream, implicit, little, defer_size=1)
    return next((int(element.length) for element in elements if element.tag == PIXELS), 0)


def check_pixels(header: Dataset, length: int | None) -> None:
    """Check that a header describes valid pixels, and that all of them are in the file.

    GDCM would read beyond the end of memory where pixels are missing.

    Args:
        header: the header of a slice, read by pydicom.
        length: what `pixel_bytes` returned.

    Raises:
        ValueError: the pixels cannot be read.
    """
    columns, rows = int(header.Columns), int(header.Rows)
    if min(columns, rows) < 2:
        raise ValueError(f"{columns} x {rows} pixels are not an image")
    allocated = int(header.BitsAllocated)
    stored = int(header.get("BitsStored") or allocated)
    highest = header.get("HighBit")
    if allocated not in BITS or not 1 <= stored <= allocated or highest not in (None, stored - 1):
        raise ValueError(f"{stored} of {allocated} bits up to bit {highest} is not a pixel format")
    if length is None:
        if columns * rows > LARGEST_SLICE:
            raise ValueError(f"{columns} x {rows} pixels are too many for a slice")
        return
    needed = columns * rows * allocated // 8
    if length < needed:
        raise ValueError(f"{length} bytes of pixels, but {columns} x {rows} pixels take {needed}")


MARK_AT = 128
POSITION_TAGS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
TAGS = [
    *POSITION_TAGS,
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    *("Modality", "ImageType", "NumberOfFrames", "SamplesPerPixel", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept"),
]
NEEDED = ("SeriesInstanceUID", "Rows", "Columns", "BitsAllocated")
LONGEST_SHOWN = 80  # characters of a value in a message
DIRECTORY = "1.2.840.10008.1.3.10"
STORAGE = "1.2.840.10008.5.1.4.1.1."
SLICES = {f"{STORAGE}{kind}" for kind in ("2", "4", "128")}  # CT, MR, PET
MULTI_FRAME = {f"{STORAGE}{kind}" for kind in ("2.1", "2.2", "4.1", "4.4", "130", "128.1")}
OBJECTS = {
    "SR": "a structured report",
    "KO": "a selection of key images",
    "PR": "a presentation state",
    "SEG": "a segmentation",
    "RTSTRUCT": "contours",
    "RTDOSE": "a dose",
    "RTPLAN": "a treatment plan",
    "REG": "a registration",
    "DOC": "a document",
}


@dataclass(frozen=True)
class Other:
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


@dataclass(frozen=True)
class Contents:
    """The DICOM files of one folder."""

    series: tuple[Series, ...]
    others: tuple[Other, ...]

    @property
    def volumes(self) -> list[Series]:
        """The series that are meant to be volumes, whether or not their slices are consistent."""
        return [each for each in self.series if each.why_no_volume is None]


def is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM prefix; such files often have no ending."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(MARK_AT + 4)[MARK_AT:] == b"DICM"


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files in a folder, without subfolders and hidden files."""
    entries = (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))
    return [entry for entry in entries if not ending_of(entry) and is_dicom(entry)]


def read_contents(files: Iterable[Path]) -> Contents:
    """Sort the DICOM files of one folder into series.

    Raises:
        DataError: a file is damaged, so that a slice of an unknown series is missing.
    """
    slices: defaultdict[str, list[Slice]] = defaultdict(list)
    others: list[Other] = []
    for file in files:
        header = _read_header(file)
        if isinstance(header, Other):
            others.append(header)
        else:
            slices[header.series].append(header)
    for other in others:
        if other.series in slices:
            raise DataError(
                f"{other.file}: has the series of slices, but is {other.reason}; a slice may be "
                "damaged: copy the folder again, or remove the file"
            )
    series = sorted((Series.of(each) for each in slices.values()), key=_by_number)
    return Contents(tuple(series), tuple(others))


def find_series(path: Path) -> Series:
    """The series that a path stands for: the only one of a folder, or the one of a slice.

    Localisers are ignored, unless a folder contains nothing else.

    Raises:
        DataError: there is not exactly one series, or a file is damaged.
    """
    if path.is_dir():
        contents = read_contents(dicom_files(path))
        found = contents.volumes or list(contents.series)
        if len(found) != 1:
            raise DataError(
                f"{path}: contains {len(found)} DICOM series; give a folder with one series, or "
                "one slice of a series"
            )
        return found[0]
    contents = read_contents(dicom_files(path.parent))
    names = [each for each in contents.series if path in [s.file for s in each.slices]]
    if not names:
        reason = next((other.reason for other in contents.others if other.file == path), "hidden")
        raise DataError(f"{path}: not a slice of a scan ({reason})")
    return names[0]


def modality_of(path: Path) -> str | None:
    """The Modality (CT, MR, PT, ...) of a series that was read; None for other files.

    Only the first image of a folder is opened.
    """
    import pydicom

    if path.is_file() and ending_of(path):
        return None
    for file in dicom_files(path) if path.is_dir() else [path]:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Modality"])
        modality = str(header.get("Modality") or "")
        if modality not in OBJECTS:
            return modality or None
    return None


def read_series(path: Path) -> sitk.Image:
    """Read the series that a path stands for with SimpleITK, slices ordered by position.

    Raises:
        DataError: see `find_series` and `check_stack`.
        RuntimeError: ITK cannot read it.
    """
    import SimpleITK as sitk

    series = find_series(path)
    check_stack(series, str(path))
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(each.file) for each in series.slices])
    if series.values_differ:  # ITK would convert all slices to the first slice's type
        reader.SetOutputPixelType(sitk.sitkFloat32)
    image: sitk.Image = reader.Execute()
    # ITK does not read the pixel spacing of object types that it does not know.
    image.SetSpacing((*series.first.spacing_mm, image.GetSpacing()[2]))
    return image


def _by_number(series: Series) -> tuple[bool, int, str]:
    number = series.first.number
    return number is None, number or 0, series.first.series


def _read_header(file: Path) -> Slice | Other:
    import pydicom

    try:
        with pydicom.config.disable_value_validation(), file.open("rb") as stream:
            header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(TAGS))
            return _other(file, header) or _slice(file, header, pixel_bytes(header, stream))
    except Exception as error:  # pydicom raises nearly anything on damaged bytes
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(
            f"{file}: damaged DICOM file ({reason}); a slice is missing: copy the folder again"
        ) from error


def _other(file: Path, header: Dataset) -> Other | None:
    """What a file is if it is not a slice; None for a slice, also one with a cut-off header."""
    if header.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
        return Other(file, "an index of files (DICOMDIR)")
    kind = _kind(header)
    if kind in MULTI_FRAME:
        reason = "a multi-frame object, which is not supported; export it as single slices"
        return Other(file, reason, is_scan=True)
    if "SeriesInstanceUID" not in header:
        return None
    modality = str(header.get("Modality", ""))
    if modality in OBJECTS:
        return Other(file, OBJECTS[modality])
    if "Rows" not in header:
        is_cut_off = kind in SLICES or "ImagePositionPatient" in header
        return None if is_cut_off else Other(file, f"an object without an image ({modality})")
    series = str(header.SeriesInstanceUID) if kind in SLICES else ""
    if int(header.get("NumberOfFrames") or 1) > 1:
        return Other(file, "a film of several frames", series=series)
    if int(header.get("SamplesPerPixel") or 1) > 1:
        return Other(file, "a colour image", series=series)
    if not all(header.get(name) for name in POSITION_TAGS):
        return Other(file, "an image without a position in the patient", series=series)
    return None


def _kind(header: Dataset) -> str:
    """The SOP class, from the header or from the file meta information before it."""
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))


def _slice(file: Path, header: Dataset, length: int | None) -> Slice:
    if missing := [name for name in NEEDED if header.get(name) in (None, "")]:
        raise ValueError(f"{missing[0]} is missing")
    if not _kind(header).startswith(STORAGE):
        raise ValueError(f"SOPClassUID is {_kind(header)[:LONGEST_SHOWN]!r}, which is not an image")
    check_pixels(header, length)
    row_mm, column_mm = _floats(header.PixelSpacing, 2)
    number = header.get("SeriesNumber")
    return Slice(
        file=file,
        series=str(header.SeriesInstanceUID),
        number=None if number is None else int(number),
        instance=str(header.get("SOPInstanceUID", "")),
        size=(int(header.Columns), int(header.Rows)),
        spacing_mm=(column_mm, row_mm),
        position_mm=_floats(header.ImagePositionPatient, 3),
        orientation=_floats(header.ImageOrientationPatient, 6),
        scale=(_number(header, "RescaleSlope", 1.0), _number(header, "RescaleIntercept", 0.0)),
        pixel=(int(header.BitsAllocated), int(header.get("PixelRepresentation") or 0)),
        is_localiser="LOCALIZER" in itertools.islice(header.get("ImageType") or (), 8),
    )


def _number(header: Dataset, name: str, otherwise: float) -> float:
    value = header.get(name)
    return otherwise if value is None else _finite(value)


def _floats(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(_finite(value) for value in values)
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers instead of {count}")
    return numbers


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a finite number")
    return number
