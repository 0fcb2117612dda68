"""A label map as a DICOM segmentation object of the series that it was made from."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoseg import __version__
from autoseg.common.files import replacing
from autoseg.image.dicom import find_series
from autoseg.plan.plan import Plan

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription

LONGEST = 64  # characters in a DICOM label
SERIES_NUMBER = 1000  # added to the source's: viewers list the segmentation behind the scans


def write_segmentation(path: Path, label: NDArray[Any], source: Path, plan: Plan) -> None:
    """Write a label map (x, y, z) as one segment for each class but the background.

    Patient, study and frame of reference are the source's; each frame names the slice that it
    covers. A class that is not there stays as a segment without frames.

    Args:
        path: where to.
        label: the prediction, in the label values of the task.
        source: the DICOM series: its folder, or one of its slices.
        plan: says which values make up which class.
    """
    import pydicom

    series = find_series(source)
    slices = [pydicom.dcmread(each.file, stop_before_pixels=True) for each in series.slices]
    segmentation = _segmentation(slices, _frames(label, plan), plan)
    segmentation.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: labels may hold any letter
    with replacing(path) as temporary:
        segmentation.save_as(temporary)


def _frames(label: NDArray[Any], plan: Plan) -> NDArray[Any]:
    """What highdicom takes: numbers of segments (z, y, x), or masks (z, y, x, segment) of regions.

    Regions overlap; masks of classes that do not would only take memory.
    """
    covered_by_class = list(plan.labels.values())[1:]
    highest = max(int(label.max(initial=0)), *(max(covered) for covered in covered_by_class))
    if plan.classes.are_regions:
        return np.stack([np.isin(label.T, covered) for covered in covered_by_class], axis=-1)
    numbers = np.zeros(highest + 1, np.uint8 if len(covered_by_class) < 256 else np.uint16)
    for number, covered in enumerate(covered_by_class, start=1):
        numbers[list(covered)] = number
    frames: NDArray[Any] = numbers[label.T]
    return frames


def _segmentation(slices: list[Any], frames: NDArray[Any], plan: Plan) -> Segmentation:
    import highdicom

    number = int(slices[0].get("SeriesNumber") or 0)
    return highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=frames,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_segments(plan),
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER + number,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="autoseg",
        manufacturer_model_name=plan.task[:LONGEST],
        software_versions=__version__,
        device_serial_number=plan.id,
        content_label="SEGMENTATION",
        content_description=f"{plan.task} {plan.name}"[:LONGEST],
        series_description=f"Segmentation by {plan.task}"[:LONGEST],
        omit_empty_frames=bool(frames.any()),  # an object needs frames, if only empty ones
    )


def _segments(plan: Plan) -> list[SegmentDescription]:
    """One description a class. Its code is our own: which structure it is, only its name says."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=f"{plan.task} {plan.name}"[:LONGEST],
        family=codes.DCM.ArtificialIntelligence,
        version=plan.id,
        source="autoseg",
    )
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=name[:LONGEST],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=CodedConcept(f"class-{number}", "99AUTOSEG", name[:LONGEST]),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(itertools.islice(plan.labels, 1, None), start=1)
    ]
