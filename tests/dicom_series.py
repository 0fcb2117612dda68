"""Small DICOM series and objects, made by the tests that use them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

STORAGE = "1.2.840.10008.5.1.4.1.1."
CT, SECONDARY_CAPTURE, REPORT = f"{STORAGE}2", f"{STORAGE}7", f"{STORAGE}88.11"
ENHANCED_CT = f"{STORAGE}2.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SPACING_MM = (0.7, 1.25)


def write_series(
    folder: Path,
    array: NDArray[np.int16],
    positions_mm: Sequence[float] | None = None,
    orientation: Sequence[float] = AXIAL,
    **tags: Any,
) -> list[Path]:
    """Write a CT series (x, y, z) whose file names run against its positions: 30, 33, 36, ...

    Each series has identities of its own; `tags` change or, with None, remove what its headers say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = positions_mm or [30 + 3 * z for z in range(array.shape[2])]
    normal = np.cross(orientation[:3], orientation[3:])
    common = {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        **tags,
    }
    files = []
    for z, place in enumerate(places):
        header = make_slice(array[:, :, z])
        header.ImageOrientationPatient = [f"{value:.10f}" for value in orientation]
        position = np.array([1.0, 2.0, 0.0]) + place * normal
        header.ImagePositionPatient = [f"{value:.8f}" for value in position]
        header.InstanceNumber = z + 1
        for name, value in common.items():
            setattr(header, name, value)
            if value is None:
                delattr(header, name)
        files.append(save(header, folder / f"{100 - z}.dcm"))
    return files


def write_enhanced(path: Path, array: NDArray[np.int16], order: Sequence[int], **tags: Any) -> Path:
    """Write an enhanced multi-frame CT (x, y, z) whose frames are the slices in this order.

    Each frame has a slope and an intercept of its own: z + 1 and -z.
    """
    header = make_slice(array[:, :, 0], ENHANCED_CT)
    for name in ("PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept"):
        delattr(header, name)
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING_MM[1], SPACING_MM[0]], 3
    orientation.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    header.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for z in order:
        position, values, group = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [1.0, 2.0, 30.0 + 3 * z]
        values.RescaleSlope, values.RescaleIntercept = z + 1, -z
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        groups.append(group)
    header.PerFrameFunctionalGroupsSequence = groups
    header.NumberOfFrames = len(order)
    header.PixelData = np.ascontiguousarray(array[:, :, list(order)].T, dtype="<i2").tobytes()
    for name, value in tags.items():
        setattr(header, name, value)
    return save(header, path)


def make_object(kind: str, modality: str) -> Dataset:
    """A DICOM object without an image."""
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = kind, generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID = generate_uid(), generate_uid()
    header.Modality = modality
    header.PatientID, header.PatientName = "p1", "Doe^Jane"
    header.PatientBirthDate, header.PatientSex = "", "O"
    header.StudyID, header.StudyDate, header.StudyTime = "1", "20200101", "120000"
    header.AccessionNumber = header.ReferringPhysicianName = ""
    header.SeriesNumber = 4
    return header


def make_slice(pixels: NDArray[np.int16], kind: str = CT) -> Dataset:
    """One image (x, y), without a place in the patient."""
    header = make_object(kind, "CT")
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.Columns, header.Rows = pixels.shape
    header.PixelSpacing = [SPACING_MM[1], SPACING_MM[0]]  # rows come first
    header.SliceThickness = 3
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, 1
    header.RescaleIntercept, header.RescaleSlope = 0, 1
    header.PixelData = np.ascontiguousarray(pixels.T, dtype="<i2").tobytes()
    return header


def save(header: Dataset, path: Path) -> Path:
    """Write an object as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.save_as(path, enforce_file_format=True)
    return path
