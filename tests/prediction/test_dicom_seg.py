"""DICOM segmentation objects, read back with pydicom, highdicom and SimpleITK."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from skimage.color import rgb2lab

import autoseg
from autoseg.common.errors import DataError
from autoseg.common.progress import noted
from autoseg.image.dicom import read_contents
from autoseg.plan.plan import Plan
from autoseg.prediction.dicom_seg import SegWriter, Source
from tests.dicom_series import AXIAL, write_enhanced, write_series
from tests.making import REGIONS, tiny_plan

highdicom = pytest.importorskip("highdicom")

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


def write(
    folder: Path, label: NDArray[Any], plan: Plan, source: Path | None = None, **options: Any
) -> Any:
    path = folder / "out" / "a.dcm"
    autoseg.write_dicom_seg(path, label, source or folder / "in", plan, **options)
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


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_frames_of_an_enhanced_object_may_lie_in_any_order(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    scan, label = SCAN[:, :, :4], label_of(0, 1, 3)[:, :, :4]
    label[:, :, 1] = 0
    (tmp_path / "in").mkdir()
    write_enhanced(tmp_path / "in" / "1", scan, order, FrameOfReferenceUID="1.2.3")
    segmentation = write(tmp_path, label, NAMED)
    found = np.zeros((*label.shape, 2), bool)
    groups = segmentation.PerFrameFunctionalGroupsSequence
    for frame, group in zip(segmentation.pixel_array, groups, strict=True):
        z = round((group.PlanePositionSequence[0].ImagePositionPatient[2] - 30) / 3)
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        assert order[source.ReferencedFrameNumber - 1] == z
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[:, :, z, number - 1] = frame.T
    assert np.array_equal(found, label[..., None] == (1, 3))
    with pytest.raises(DataError, match="label map"):
        write(tmp_path, label[:, :, :3], NAMED)
    tags = pydicom.dcmread(tmp_path / "in" / "1")
    more = {name: tags[name].value for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    write_enhanced(tmp_path / "in" / "2", scan, order, FrameOfReferenceUID="1.2.3", **more)
    second = pydicom.dcmread(tmp_path / "in" / "2")
    for group in second.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient[2] += 12
    second.save_as(tmp_path / "in" / "2")
    with pytest.raises(DataError, match="cannot be the source"):
        SegWriter.of(NAMED).read(tmp_path / "in")


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


def checked(path: Path) -> list[str]:
    """What dciodvfy, a validator of DICOM's rules, finds wrong."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    ran = subprocess.run(["dciodvfy", path], capture_output=True, text=True, timeout=60)
    lines = (ran.stdout + ran.stderr).splitlines()
    assert any("Segmentation" in line or "SCImage" in line for line in lines)
    return [line for line in lines if "Error" in line or "Unrecognized" in line]


NAMED = tiny_plan(labels={"background": [0], "left lung": [1, 2], "lung tumours": [3]})
# Attributes that may be empty; anonymisation often removes them.
OPTIONAL: dict[str, Any] = dict.fromkeys(
    ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime")
) | dict.fromkeys(("PatientID", "PatientName", "ReferringPhysicianName", "SeriesNumber"))


def test_segments_are_coded_coloured_and_tracked(tmp_path: Path) -> None:
    write_series(tmp_path / "in", SCAN)
    label = label_of(0, 1, 3)
    segmentation = write(tmp_path, label, NAMED, note="differs: spacing 3 mm")
    lung, tumour = segmentation.SegmentSequence
    (what,), (lesion,) = lung.SegmentedPropertyTypeCodeSequence, tumour.AnatomicRegionSequence
    assert (what.CodeValue, what.CodingSchemeDesignator) == ("39607008", "SCT")
    assert what.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert tumour.SegmentedPropertyTypeCodeSequence[0].CodeValue == "108369006"
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert lesion.CodeValue == "39607008"
    assert lung.TrackingUID != tumour.TrackingUID
    assert lung.TrackingID != tumour.TrackingID
    algorithm = lung.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmVersion, algorithm.AlgorithmSource) == (NAMED.id, "autoseg")
    for segment, colour in ((lung, (230, 159, 0)), (tumour, (86, 180, 233))):
        light, a, b = segment.RecommendedDisplayCIELabValue  # DICOM C.10.7.1.1: 16 bits
        found = (light * 100 / 65535, a * 255 / 65535 - 128, b * 255 / 65535 - 128)
        assert found == pytest.approx(rgb2lab(np.array(colour) / 255), abs=1)
    assert segmentation.ContentQualification == "RESEARCH"
    assert segmentation.SeriesDescription.startswith("differs: spacing 3 mm")
    assert "CodingSchemeIdentificationSequence" not in segmentation
    again = write(tmp_path, label, NAMED, content_qualification="PRODUCT", note="x" * 99)
    assert [each.TrackingUID for each in again.SegmentSequence] == [
        each.TrackingUID for each in segmentation.SegmentSequence
    ]
    assert again.SOPInstanceUID != segmentation.SOPInstanceUID
    assert again.ContentQualification == "PRODUCT"
    assert (len(again.SeriesDescription), again.ImageComments) == (64, "x" * 99)
    assert checked(tmp_path / "out" / "a.dcm") == []


def test_a_private_code_is_declared_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "in", SCAN)
    segmentation = write(tmp_path, label_of(0, 1, 3), PLAN)
    assert "known for never there:" in capsys.readouterr().err
    (scheme,) = segmentation.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99AUTOSEG"
    assert all("99AUTOSEG" in line for line in checked(tmp_path / "out" / "a.dcm"))
    code = {"never there": {"type": ["10200004", "SCT", "Liver"]}}
    segmentation = write(tmp_path, label_of(0, 1, 3), PLAN, codes=code)
    third = segmentation.SegmentSequence[2]
    assert third.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert checked(tmp_path / "out" / "a.dcm") == []


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_highdicom_and_simpleitk_read_the_same_voxels(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    files = write_series(tmp_path / "in", SCAN, orientation=orientation)
    label = label_of(0, 1, 3)
    classes: dict[str, Any] = {"background": 0, "a": 1, "b": [3]}
    autoseg.write_dicom_seg(tmp_path / "a.dcm", label, tmp_path / "in", classes)
    segmentation = highdicom.seg.segread(tmp_path / "a.dcm")
    uids = [str(pydicom.dcmread(file).SOPInstanceUID) for file in files]  # in their spatial order
    stack = segmentation.get_pixels_by_source_instance(uids, combine_segments=False)
    for number, value in enumerate((1, 3)):
        assert ((label == value) == stack[..., number].T).all()
    # ITK reads the frames in the order of the file; `masks` tells their places.
    frames = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "a.dcm")).astype(bool)
    read = pydicom.dcmread(tmp_path / "a.dcm")
    assert (frames == read.pixel_array.astype(bool)).all()
    found = masks(read, tmp_path / "in")
    assert (found["a"] == (label == 1)).all()
    assert (found["b"] == (label == 3)).all()


def test_optional_attributes_may_be_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write_series(tmp_path / "in", SCAN, **OPTIONAL)
    segmentation = write(tmp_path, label_of(0, 1, 3), NAMED)
    assert all(
        segmentation[name].value in ("", None) for name in OPTIONAL.keys() - {"SeriesNumber"}
    )
    assert segmentation.FrameOfReferenceUID == pydicom.dcmread(files[0]).FrameOfReferenceUID
    assert checked(tmp_path / "out" / "a.dcm") == []
    assert capsys.readouterr().err == ""


def test_invalid_optional_attributes_are_left_empty(tmp_path: Path) -> None:
    write_series(tmp_path / "in", SCAN, SeriesNumber=2**31 - 1)
    for file in (tmp_path / "in").iterdir():
        header = pydicom.dcmread(file)
        for name, value in {"StudyDate": "20200231", "PatientSex": "FEMALE"}.items():
            header[name] = pydicom.DataElement(name, header[name].VR, value, validation_mode=0)
        header.save_as(file)
    with noted() as notes:
        Source.read(tmp_path / "in")
    assert [text.split(": ")[1].split()[0] for text in notes] == ["StudyDate", "PatientSex"]
    segmentation = write(tmp_path, label_of(0, 1, 3), NAMED)
    assert (segmentation.StudyDate, segmentation.PatientSex) == ("", "")
    assert segmentation.SeriesNumber == 1000
    assert checked(tmp_path / "out" / "a.dcm") == []


def test_a_series_without_frame_of_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "in", SCAN, FrameOfReferenceUID=None, SliceThickness=None)
    segmentation = write(tmp_path, label_of(0, 1, 3), NAMED)
    assert "FrameOfReferenceUID is missing" in capsys.readouterr().err
    assert segmentation.FrameOfReferenceUID
    assert checked(tmp_path / "out" / "a.dcm") == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("StudyInstanceUID", [None] * 8),
        ("StudyInstanceUID", ["1.2.3", *["1.2.4"] * 7]),
        ("FrameOfReferenceUID", ["1.2.3", *["1.2.4"] * 7]),
        ("FrameOfReferenceUID", [None, *["1.2.4"] * 7]),
        ("SOPInstanceUID", ["1.2.3"] * 8),
    ],
)
def test_what_a_segmentation_cannot_refer_to_is_refused(
    tmp_path: Path, name: str, values: list[str | None]
) -> None:
    for file, value in zip(write_series(tmp_path / "in", SCAN), values, strict=True):
        header = pydicom.dcmread(file)
        setattr(header, name, value)
        if value is None:
            delattr(header, name)
        header.save_as(file)
    with pytest.raises(DataError, match=rf"in.*({name}|study|frame of reference)"):
        Source.read(tmp_path / "in")


def test_what_highdicom_refuses_is_refused_before_the_prediction(tmp_path: Path) -> None:
    write_series(tmp_path / "in", SCAN)
    writer = SegWriter.of(NAMED)
    writer.read(tmp_path / "in")
    for file in (tmp_path / "in").iterdir():
        header = pydicom.dcmread(file)
        header["SliceThickness"] = RawDataElement(
            Tag("SliceThickness"), "DS", 4, b"thin", 0, False, True
        )
        header.save_as(file)
    with pytest.raises(DataError, match=r"in.*(nii\.gz|\.dcm)"):
        writer.read(tmp_path / "in")


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (label_of(0, 1, 3), {"a": 1}),  # 3 belongs to no class
        (label_of(0, 1)[:, :, :-1], {"a": 1}),
        (label_of(0, 1), {"background": 0}),
        (label_of(0, 1), {"a": [0, 1]}),
    ],
)
def test_label_maps_that_do_not_fit(
    tmp_path: Path, label: NDArray[Any], classes: dict[str, Any]
) -> None:
    write_series(tmp_path / "in", SCAN)
    with pytest.raises(DataError):
        autoseg.write_dicom_seg(tmp_path / "a.dcm", label, tmp_path / "in", classes)
    assert not (tmp_path / "a.dcm").exists()


@pytest.mark.parametrize("tags", [{}, OPTIONAL], ids=["complete", "sparse"])
def test_a_picture_is_a_secondary_capture_of_the_study(
    tmp_path: Path, tags: dict[str, Any]
) -> None:
    files = write_series(tmp_path / "in", SCAN, **tags)
    picture = np.random.default_rng(0).integers(0, 256, (20, 31, 3)).astype(np.uint8)
    source = Source.read(tmp_path / "in")
    SegWriter.of(NAMED).write_picture(tmp_path / "a.dcm", picture, source, "differs")
    found = pydicom.dcmread(tmp_path / "a.dcm")
    assert (found.pixel_array == picture).all()
    assert found.StudyInstanceUID == pydicom.dcmread(files[0]).StudyInstanceUID
    assert found.SeriesInstanceUID != pydicom.dcmread(files[0]).SeriesInstanceUID
    assert found.SeriesDescription.startswith("differs")
    assert (found.ContentQualification, found.BurnedInAnnotation) == ("RESEARCH", "NO")
    assert checked(tmp_path / "a.dcm") == []
    assert read_contents([tmp_path / "a.dcm"]).series == ()
