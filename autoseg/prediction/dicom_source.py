"""The DICOM series that was segmented: what a DICOM SEG of it refers to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM, validate_value

from autoseg.common.errors import DataError
from autoseg.common.progress import note
from autoseg.image.dicom import find_series
from autoseg.image.dicom_series import Series, check_stack

# Each file of a series must have them; the SEG refers to them.
IDENTITIES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
IN_COMMON = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# May be empty, but must be there. Those with a type may also be invalid.
OPTIONAL = {
    **dict.fromkeys(("PatientID", "PatientName", "AccessionNumber", "StudyID")),
    **{"PatientBirthDate": "DA", "StudyDate": "DA", "StudyTime": "TM", "PatientSex": "CS"},
    "ReferringPhysicianName": None,
}
SEXES = ("", "M", "F", "O")
OTHER_FORMAT = "choose the format nii.gz, nrrd or mha"


@dataclass(frozen=True)
class Source:
    """The series that was segmented.

    Attributes:
        path: its folder, or one of its slices.
        headers: of its slices along their normal, completed so that a segmentation can refer to
            them.
        frames: the number of each slice among the frames of a multi-frame object, from 0.
    """

    path: Path | Series
    headers: Sequence[pydicom.Dataset]
    frames: Sequence[int]

    @classmethod
    def read(cls, path: Path | Series) -> Source:
        """Read the headers of a series.

        Raises:
            DataError: it is not one volume, or lacks what a segmentation refers to.
        """
        series = find_series(path)
        check_stack(series, str(path))
        headers: list[pydicom.Dataset] = []
        for file in dict.fromkeys(each.file for each in series.slices):
            header: pydicom.Dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            for name in ("SOPClassUID", "SOPInstanceUID"):
                if not header.get(name) and (known := header.file_meta.get(f"MediaStorage{name}")):
                    setattr(header, name, known)
            if missing := [name for name in IDENTITIES if not header.get(name)]:
                raise DataError(
                    f"{file}: {missing[0]} is missing, which a DICOM SEG refers to; {OTHER_FORMAT}"
                )
            headers.append(header)
        if len(headers) > 1:
            apart = float(np.median(np.diff(series.offsets_mm)))
            for header in headers:
                header.SpacingBetweenSlices = f"{apart:.10g}"
                if not header.get("SliceThickness"):
                    header.SliceThickness = f"{apart:.10g}"
        source = cls(path, headers, [each.frame for each in series.slices])
        source._check_identities()
        source._complete()
        return source

    @property
    def size(self) -> tuple[int, int, int]:
        """Columns, rows and slices."""
        return int(self.headers[0].Columns), int(self.headers[0].Rows), len(self.frames)

    def as_stored(self, slices: NDArray[Any]) -> NDArray[Any]:
        """Slices along their normal in the order in which the files of the series hold them."""
        if len(self.headers) > 1:
            return slices
        count = int(self.headers[0].get("NumberOfFrames") or 1)
        stored = np.zeros((count, *slices.shape[1:]), slices.dtype)  # empty where a scout is
        stored[self.frames] = slices
        return stored

    def _check_identities(self) -> None:
        for name in IN_COMMON:
            found = {str(header.get(name) or "") for header in self.headers}
            if len(found) > 1:
                raise DataError(
                    f"{self.path}: its slices have {len(found)} values of {name}, and a DICOM SEG "
                    f"refers to one; {OTHER_FORMAT}"
                )
        if len({header.SOPInstanceUID for header in self.headers}) < len(self.headers):
            raise DataError(
                f"{self.path}: several slices have the same SOPInstanceUID, so that a DICOM SEG "
                f"cannot refer to them; {OTHER_FORMAT}"
            )

    def _complete(self) -> None:
        """Add attributes that must be there but may be empty, and empty invalid ones."""
        first = self.headers[0]
        for name, kind in OPTIONAL.items():
            value = first.get(name)
            if value and kind and not _is_valid(kind, str(value)):
                note(f"{self.path}: {name} is {str(value)!r}, which is not valid; left empty")
                value = None
            if not value:
                setattr(first, name, "")
        if not first.get("FrameOfReferenceUID"):
            note(
                f"{self.path}: FrameOfReferenceUID is missing; the DICOM SEG gets its own, so "
                "viewers have to place it by the slices that it refers to"
            )
            frame = generate_uid(entropy_srcs=[first.SeriesInstanceUID])
            for header in self.headers:
                header.FrameOfReferenceUID = frame


def _is_valid(kind: str, value: str) -> bool:
    if kind == "CS":
        return value in SEXES
    try:
        validate_value(kind, value, pydicom.config.RAISE)
        (DA if kind == "DA" else TM)(value)
    except ValueError:
        return False
    return True
