"""DICOM segmentation objects, read back with pydicom alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from autoseg.image.dicom import read_contents
from autoseg.image.image import read_image
from autoseg.plan.plan import Plan
from autoseg.prediction.output import write_prediction
from tests.dicom_series import AXIAL, write_series
from tests.making import REGIONS, tiny_plan

pytest.importorskip("highdicom")

SIZE = (16, 12, 8)
SCAN = np.random.default_rng(0).integers(-1000, 400, SIZE).astype(np.int16)
LABELS = {"background": [0], "lungs": [1, 2], "infection": [3], "never there": [7]}
PLAN = tiny_plan(labels=LABELS)
OBLIQUE = (0.8, 0.48, 0.36, -0.6, 0.64, 0.48)


def label_of(*values: int) -> NDArray[np.uint8]:
    """A random label map of these values; the last slice is empty."""
    label = np.random.default_rng(1).choice(np.array(values, np.uint8), SIZE)
    label[:, :, -1] = 0
    return label


def write(folder: Path, label: NDArray[Any], plan: Plan, source: Path | None = None) -> Any:
    path = folder / "out" / "a.dcm"
    geometry = read_image([source or folder / "in"]).geometry
    write_prediction(path, label, geometry, (source or folder / "in",), plan, "dicom-seg")
    assert [entry.name for entry in path.parent.iterdir()] == ["a.dcm"]
    return pydicom.dcmread(path)


def masks(segmentation: Any, folder: Path) -> dict[str, NDArray[np.bool_]]:
    """The mask (x, y, z) of each segment; its frames name the slices that they cover."""
    sources = [pydicom.dcmread(file) for file in folder.iterdir()]
    normal = np.cross(
        sources[0].ImageOrientationPatient[:3], sources[0].ImageOrientationPatient[3:]
    )
    sources.sort(key=lambda each: float(np.dot(each.ImagePositionPatient, normal)))
    at = {each.SOPInstanceUID: z for z, each in enumerate(sources)}
    segments = segmentation.SegmentSequence
    found = {each.SegmentLabel: np.zeros(SIZE, bool) for each in segments}
    frames = segmentation.pixel_array.reshape(-1, SIZE[1], SIZE[0])
    groups = segmentation.PerFrameFunctionalGroupsSequence
    for frame, group in zip(frames, groups, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        z = at[source.ReferencedSOPInstanceUID]
        place = group.PlanePositionSequence[0].ImagePositionPatient
        assert place == pytest.approx(list(sources[z].ImagePositionPatient), abs=1e-6)
        found[segments[number - 1].SegmentLabel][:, :, z] = frame.T.astype(bool)
    return found


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_each_class_is_a_segment(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    write_series(tmp_path / "in", SCAN, orientation=orientation)
    label = label_of(0, 1, 3)
    segmentation = write(tmp_path, label, PLAN)
    found = masks(segmentation, tmp_path / "in")
    assert list(found) == ["lungs", "infection", "never there"]
    for name, values in list(LABELS.items())[1:]:
        assert (found[name] == np.isin(label, values)).all(), name
    assert found["infection"].any()


def test_patient_and_frame_of_reference_are_the_source_s(tmp_path: Path) -> None:
    files = write_series(tmp_path / "in", SCAN)
    segmentation = write(tmp_path, label_of(0, 1, 3), PLAN)
    source = pydicom.dcmread(files[0])
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert segmentation[name].value == source[name].value, name
    assert segmentation.Modality == "SEG"
    assert segmentation.SegmentationType == "BINARY"
    assert segmentation.SeriesInstanceUID != source.SeriesInstanceUID
    assert segmentation.SeriesNumber == 1004
    assert segmentation.DeviceSerialNumber == PLAN.id
    (series,) = segmentation.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    instances = {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence}
    assert instances == {pydicom.dcmread(file).SOPInstanceUID for file in files}
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
    (first, *_) = segmentation.SegmentSequence
    assert first.SegmentAlgorithmType == "AUTOMATIC"


def test_regions_overlap(tmp_path: Path) -> None:
    write_series(tmp_path / "in", SCAN)
    label = label_of(0, 1, 2, 4)
    found = masks(write(tmp_path, label, tiny_plan(**REGIONS)), tmp_path / "in")
    assert (found["whole"] == np.isin(label, [1, 2, 4])).all()
    assert (found["core"] == np.isin(label, [2, 4])).all()
    assert (found["enhancing"] == (label == 4)).all()


def test_an_empty_segmentation_is_a_valid_object(tmp_path: Path) -> None:
    write_series(tmp_path / "in", SCAN)
    found = masks(write(tmp_path, label_of(0), PLAN), tmp_path / "in")
    assert list(found) == ["lungs", "infection", "never there"]
    assert not any(mask.any() for mask in found.values())


def test_names_in_any_alphabet(tmp_path: Path) -> None:
    write_series(tmp_path / "in", SCAN, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Zoë")
    plan = tiny_plan(labels={"background": [0], "Entzündung 肺": [3]})
    segmentation = write(tmp_path, label_of(0, 3), plan)
    assert segmentation.PatientName == "Müller^Zoë"
    assert segmentation.SegmentSequence[0].SegmentLabel == "Entzündung 肺"


def test_one_of_several_series_in_a_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "in", SCAN)
    for file in write_series(tmp_path / "more", SCAN[:, :, ::-1].copy()):
        file.rename(tmp_path / "in" / f"more {file.name}")
    label = label_of(0, 1, 3)
    segmentation = write(tmp_path, label, PLAN, tmp_path / "in" / "more 97.dcm")
    source = pydicom.dcmread(tmp_path / "in" / "more 97.dcm")
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID


def test_a_segmentation_is_not_taken_for_a_scan(tmp_path: Path) -> None:
    """The output folder may be among the scans of the next run."""
    write_series(tmp_path / "in", SCAN)
    write(tmp_path, label_of(0, 1), PLAN)
    contents = read_contents([tmp_path / "out" / "a.dcm"])
    assert [other.reason for other in contents.others] == ["a segmentation"]
