"""A label map as a file, in the format that was asked for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoseg import __version__
from autoseg.common.arrays import count_values
from autoseg.common.errors import AutosegError
from autoseg.common.files import replacing
from autoseg.image.dicom import find_series
from autoseg.image.formats import ending_of
from autoseg.image.geometry import Geometry
from autoseg.image.label_writer import write_label
from autoseg.plan.plan import Plan, VolumeShare

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription


DEFAULT_FORMAT, DICOM_SEG = "nii.gz", "dicom-seg"
ENDINGS = {DEFAULT_FORMAT: ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", DICOM_SEG: ".dcm"}
FORMATS = tuple(ENDINGS)


def ending(format: str) -> str:
    """How the files of a format end.

    Raises:
        AutosegError: the format is unknown.
    """
    if format not in ENDINGS:
        raise AutosegError(f"no output format {format!r}; choose {', '.join(FORMATS)}")
    return ENDINGS[format]


def check_format(format: str, inputs: Mapping[str, tuple[Path, ...]]) -> None:
    """Check that all cases can be written in a format, before the first one is predicted.

    Raises:
        AutosegError: the format is unknown, needs DICOM and a case is none, or its library is not
            installed.
    """
    ending(format)
    if format != DICOM_SEG:
        return
    if find_spec("highdicom") is None:
        raise AutosegError("--format dicom-seg needs highdicom: pip install 'autoseg[dicom]'")
    others = [name for name, files in inputs.items() if not _is_series(files[0])]
    if others:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise AutosegError(
            f"{inputs[others[0]][0]}{more}: --format dicom-seg needs a DICOM series as input; "
            "choose nii.gz, nrrd or mha"
        )


def write_prediction(
    path: Path,
    label: NDArray[np.integer[Any]],
    geometry: Geometry,
    files: tuple[Path, ...],
    plan: Plan,
    format: str = DEFAULT_FORMAT,
) -> None:
    """Write a label map, whole or not at all.

    Its grid is the scan's to the bit in MHA, and in the scan's own format. Otherwise NIfTI rounds
    to 32 bits, and NRRD may change the last bit of 64 where the axes are oblique.

    Args:
        path: where to; it ends as `ending` says.
        label: label values (x, y, z).
        geometry: the grid of the scan.
        files: the scan, one file a channel.
        plan: names the classes.
        format: one of FORMATS.
    """
    if format == DICOM_SEG:
        write_segmentation(path, label, files[0], plan)
    else:
        write_label(path, label, geometry, like=files[0])


def _is_series(path: Path) -> bool:
    return path.is_dir() or not ending_of(path)


# How much of each class a label map holds.


def volumes(label: NDArray[Any], geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """Volume of each class in ml, and the shares that the plan names."""
    highest = max(value for covered in plan.labels.values() for value in covered)
    counts = count_values(label, highest + 1)
    voxel_ml = prod(geometry.spacing_mm) / 1000
    classes = dict(list(plan.labels.items())[1:])
    record: dict[str, Any] = {
        "volume_ml": {
            name: round(float(counts[list(covered)].sum() * voxel_ml), 6)
            for name, covered in classes.items()
        }
    }
    if plan.shares:
        record["share"] = {
            _name_of(share.label, plan.labels): _share(counts, share, plan) for share in plan.shares
        }
    return record


def _share(counts: NDArray[np.intp], share: VolumeShare, plan: Plan) -> float | None:
    part = _voxels(counts, {share.label}, plan)
    whole = part + _voxels(counts, set(share.container), plan)
    return round(part / whole, 6) if whole else None


def _voxels(counts: NDArray[np.intp], labels: set[int], plan: Plan) -> int:
    """Voxels of the classes of these labels; a prediction holds one value for a whole class."""
    if plan.classes.are_regions:  # it holds the values of regions, in which classes overlap
        return int(counts[list(labels)].sum())
    classes = [covered for covered in plan.labels.values() if labels & set(covered)]
    return sum(int(counts[list(covered)].sum()) for covered in classes)


def _name_of(value: int, classes: dict[str, tuple[int, ...]]) -> str:
    """The class of a value; of regions the smallest one."""
    covering = [name for name, covered in classes.items() if value in covered]
    return min(covering, key=lambda name: len(classes[name]))


# A label map as a DICOM segmentation object of the series that it was made from.

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
