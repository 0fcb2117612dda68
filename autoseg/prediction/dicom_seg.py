"""DICOM segmentation objects (SEG), and pictures of them in the same study (secondary captures).

The first part is the series that was segmented, which the objects refer to.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM, validate_value

from autoseg import __version__
from autoseg.common.arrays import LabelMap, count_values
from autoseg.common.errors import AutosegError, DataError, install_hint
from autoseg.common.figures import Colours, colours_of
from autoseg.common.files import read_json, replacing
from autoseg.common.progress import note, say
from autoseg.image.dicom import find_series
from autoseg.image.dicom_series import Series, check_stack
from autoseg.models.folder import RESEARCH
from autoseg.plan import labels as coding
from autoseg.plan.labels import PRIVATE_SCHEME, ClassValues, Codes, SegmentCode
from autoseg.plan.plan import Plan
from autoseg.prediction.studies import TEXT

# What never changes. Each file of a series must have the identities, as the SEG refers to them;
# some are the same for all files. The optional ones may be empty, but must be there; those with a
# type may be invalid. A capture has planes of three orientations, and no patient is named in it.
FIXED = read_json(Path(__file__).with_suffix(".json"))


def _unfit(path: Path | Series, what: str, **about: Any) -> DataError:
    return DataError(f"{path}: {TEXT(what, **about)}; choose the format nii.gz, nrrd or mha")


class Source(NamedTuple):
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
    def read(cls, path: Path | Series) -> Self:
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
            if missing := [name for name in FIXED["identities"] if not header.get(name)]:
                raise _unfit(file, "SEG: missing", name=missing[0])
            headers.append(header)
        if len(headers) > 1:
            apart = float(np.median(np.diff(series.offsets_mm)))
            for header in headers:
                header.SpacingBetweenSlices = f"{apart:.10g}"
                header.SliceThickness = header.get("SliceThickness") or f"{apart:.10g}"
        source = cls(path, headers, [each.frame for each in series.slices])
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

    def _complete(self) -> None:
        """Check the identities, add attributes that may be empty, and empty invalid ones."""
        for name in FIXED["in_common"]:
            found = {str(header.get(name) or "") for header in self.headers}
            if (count := len(found)) > 1:
                raise _unfit(self.path, "SEG: values", count=count, name=name)
        if len({header.SOPInstanceUID for header in self.headers}) < len(self.headers):
            raise _unfit(self.path, "SEG: same slices")
        first = self.headers[0]
        for name, kind in FIXED["optional"].items():
            value = first.get(name)
            is_valid = not (value and kind) or _is_valid(kind, str(value))
            if not is_valid:
                note(f"{self.path}: {name} is {str(value)!r}, which is not valid; left empty")
            if not (value and is_valid):
                setattr(first, name, "")
        if not first.get("FrameOfReferenceUID"):
            note(TEXT("SEG: frame of reference", path=self.path))
            frame = generate_uid(entropy_srcs=[first.SeriesInstanceUID])
            for header in self.headers:
                header.FrameOfReferenceUID = frame


def _is_valid(kind: str, value: str) -> bool:
    if kind == "CS":
        return value in ("", "M", "F", "O")  # sexes
    try:
        validate_value(kind, value, pydicom.config.RAISE)
        (DA if kind == "DA" else TM)(value)
    except ValueError:
        return False
    return True


LENGTH, COMMENT_LENGTH = 64, 10240  # characters that DICOM allows
SERIES_NUMBER, PICTURE_NUMBER = 1000, 2000  # added to the source's: viewers list results behind it
LARGEST_NUMBER = 2**31 - 1
MAKER = "autoseg"
NO_CODES: Codes = {}


@dataclass(frozen=True)
class SegWriter:
    """Writes segmentations of a model, and knows what they say about themselves.

    Attributes:
        labels: class -> its values, without the background.
        overlap: whether classes may overlap.
        declared: codes of some classes.
        colours: of some classes, `#RRGGBB`.
        task: what was segmented.
        model: its name.
        version: of the model.
        qualification: RESEARCH, PRODUCT or SERVICE.
    """

    labels: ClassValues
    overlap: bool
    declared: Codes
    colours: Colours
    task: str
    model: str
    version: str
    qualification: str = RESEARCH

    @classmethod
    def of(
        cls, plan: Plan | Mapping[str, Any], qualification: str = RESEARCH, codes: Codes = NO_CODES
    ) -> Self:
        """What a plan knows, or class -> values; the codes go before those of a plan.

        Raises:
            DataError: no class is named, or one has the value 0.
        """
        if not isinstance(plan, Plan):
            each = {n: (v,) if isinstance(v, int) else tuple(v) for n, v in plan.items()}
            labels = {name: values for name, values in each.items() if values != (0,)}
            flat = [value for values in labels.values() for value in values]
            if not flat or 0 in flat:
                raise DataError(f"classes: {labels} names no class, or one with the value 0")
            about = MAKER, MAKER, __version__, qualification
            return cls(labels, len(set(flat)) < len(flat), codes, {}, *about)
        labels, task = dict(list(plan.labels.items())[1:]), plan.task
        colours, overlap = plan.evaluation.colours_of(labels), plan.classes.are_regions
        about = task, f"{task} {plan.name}", plan.id, qualification
        return cls(labels, overlap, {**plan.codes, **codes}, colours, *about)

    @cached_property
    def codes(self) -> dict[str, SegmentCode]:
        """Of each class; classes without a standard code are named (standard error)."""
        found = coding.codes_of(self.labels, self.declared, self.task)
        if private := [name for name, code in found.items() if code.is_private]:
            say(TEXT("SEG: private codes", names=", ".join(private), scheme=PRIVATE_SCHEME))
        return found

    def read(self, path: Path | Series) -> Source:
        """Read a series, and check by an empty segmentation of two slices that one can be written.

        Raises:
            DataError: it cannot.
        """
        source = Source.read(path)
        first = source._replace(headers=source.headers[:2], frames=source.frames[:2])
        try:
            self._segmentation(first, np.zeros(first.size, np.uint8), "").save_as(BytesIO())
        except AutosegError:
            raise
        except Exception as error:  # of highdicom and pydicom, which raise nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _unfit(path, "SEG: source", reason=reason) from error
        return source

    def write(
        self, path: Path, label: LabelMap, source: Source, note: str = "", about: str = ""
    ) -> None:
        """Write a label map (x, y, z) as a segmentation, atomically; `about` is for comments."""
        _save(self._segmentation(source, label, note), path, "; ".join(filter(None, (note, about))))

    def write_picture(
        self, path: Path, picture: NDArray[np.uint8], source: Source, note: str = ""
    ) -> None:
        """Write a picture (rows, columns, RGB) as a secondary capture in the study, atomically."""
        header, make = source.headers[0], _highdicom().sc.SCImage.from_ref_dataset
        about = self._series(header, PICTURE_NUMBER, "Preview of", note)
        capture = make(header, picture, **FIXED["picture"], **about)
        for name, value in FIXED["capture"].items():
            setattr(capture, name, value)
        _save(capture, path, note)

    def _series(self, header: pydicom.Dataset, above: int, kind: str, note: str) -> dict[str, Any]:
        """What describes a new series of results and the equipment that made it."""
        number = above + int(header.get("SeriesNumber") or 0)
        return {
            "series_instance_uid": generate_uid(),
            "sop_instance_uid": generate_uid(),
            "series_number": number if 0 < number <= LARGEST_NUMBER else above,
            # The note comes first, as viewers show 64 characters.
            "series_description": ": ".join(filter(None, (note, f"{kind} {self.task}")))[:LENGTH],
            "manufacturer_model_name": self.task[:LENGTH],
            "software_versions": __version__,
            "device_serial_number": self.version,
            "content_qualification": self.qualification,
            **FIXED["series"],
        }

    def _frames(self, label: LabelMap) -> NDArray[Any]:
        """Segment numbers (z, y, x), or of regions, which overlap, masks (z, y, x, segment)."""
        classes = list(self.labels.values())
        if self.overlap:
            return np.stack([np.isin(label.T, covered) for covered in classes], axis=-1)
        highest = max(int(label.max(initial=0)), *(max(covered) for covered in classes))
        numbers = np.zeros(highest + 1, np.uint8 if len(classes) < 256 else np.uint16)
        for number, covered in enumerate(classes, start=1):
            numbers[list(covered)] = number
        return np.asarray(numbers[label.T])

    def _segmentation(self, source: Source, label: LabelMap, note: str) -> pydicom.Dataset:
        headers, frames = source.headers, source.as_stored(self._frames(label))
        series = headers[0].SeriesInstanceUID
        segments = [self._segment(*each, series) for each in enumerate(self.labels, start=1)]
        segmentation: pydicom.Dataset = _highdicom().seg.Segmentation(
            source_images=list(headers),
            pixel_array=frames,
            segment_descriptions=segments,
            content_description=self.model[:LENGTH],
            omit_empty_frames=bool(frames.any()),  # an object needs frames, even if only empty ones
            **FIXED["segmentation"],
            **self._series(headers[0], SERIES_NUMBER, "Segmentation by", note),
        )
        if any(code.is_private for code in self.codes.values()):
            scheme = pydicom.Dataset()
            for name, value in FIXED["scheme"].items():
                setattr(scheme, name, value)
            segmentation.CodingSchemeIdentificationSequence = [scheme]
        return segmentation

    def _segment(self, number: int, name: str, series: str) -> pydicom.Dataset:
        highdicom, code = _highdicom(), self.codes[name]
        colour = colours_of(self.labels, self.colours)[name]
        concept, algorithm = highdicom.sr.CodedConcept, highdicom.AlgorithmIdentificationSequence
        about = self.model[:LENGTH], concept(*FIXED["algorithm"]), self.version
        # The same model finds the same structure of the same scan again under the same identity.
        tracked = generate_uid(entropy_srcs=[series, self.version, name])
        segment: pydicom.Dataset = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:LENGTH],
            segmented_property_category=concept(*code.category),
            segmented_property_type=concept(*code.type),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm(*about, source=MAKER),
            tracking_uid=tracked,
            tracking_id=f"{name} {tracked.rpartition('.')[2]}",
            anatomic_regions=[concept(*code.region)] if code.region else None,
            display_color=highdicom.color.CIELabColor.from_rgb(*bytes.fromhex(colour[1:])),
        )
        modifiers = [concept(*modifier) for modifier in code.modifiers]
        if modifiers and code.region:
            segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = modifiers
        elif modifiers:
            what = segment.SegmentedPropertyTypeCodeSequence[0]
            what.SegmentedPropertyTypeModifierCodeSequence = modifiers
        return segment


def write_dicom_seg(
    path: Path | str,
    label: LabelMap,
    series: Path | str,
    classes: Plan | Mapping[str, int | Sequence[int]],
    *,
    codes: Mapping[str, Mapping[str, Any]] | None = None,
    content_qualification: str = RESEARCH,
    note: str = "",
) -> None:
    """Write a label map as a DICOM segmentation object with one segment per class.

    Patient, study and frame of reference are the source's; each frame names the slice that it
    covers. A class that does not occur is a segment without frames.

    >>> import autoseg
    >>> label = predictor.predict(autoseg.read_image("ct"))  # doctest: +SKIP
    >>> autoseg.write_dicom_seg("seg.dcm", label, "ct", predictor.plan)  # doctest: +SKIP
    >>> classes = {"left lung": 1, "tumour": [2, 3]}
    >>> autoseg.write_dicom_seg("seg.dcm", label, "ct", classes)  # doctest: +SKIP

    Args:
        path: the file to write.
        label: label values (x, y, z), on the grid of the series.
        series: the DICOM series: its folder, or one of its slices.
        classes: a plan, or class -> its values; classes may overlap.
        codes: class -> `type`, `category`, `modifiers`, `region` as in dataset.json. Other classes
            get the code of their name, or else a private one, which is said.
        content_qualification: `RESEARCH`, `PRODUCT` or `SERVICE`.
        note: precedes the description of the series.

    Raises:
        DataError: the series has no such grid, or lacks what a segmentation refers to.
    """
    given = {name: SegmentCode.model_validate(code) for name, code in (codes or {}).items()}
    writer = SegWriter.of(classes, content_qualification, given)
    coding.check_codes(given, writer.labels)
    source = Source.read(Path(series))
    if label.shape != (size := source.size):
        raise DataError(f"{path}: the label map has {label.shape} voxels, {series} has {size}")
    counts = count_values(label, 1 + max(int(label.max(initial=0)), 0))
    if unknown := sorted({*np.flatnonzero(counts)[1:]} - coding.values_of(writer.labels)):
        raise DataError(f"{path}: the value {unknown[0]} of the label map belongs to no class")
    writer.write(Path(path), label, source, note)


def _save(dataset: pydicom.Dataset, path: Path, note: str) -> None:
    # Labels may contain any letter.
    dataset.SpecificCharacterSet = FIXED["segmentation"]["specific_character_set"]
    if note:
        dataset.ImageComments = note[:COMMENT_LENGTH]
    with replacing(path) as temporary:
        dataset.save_as(temporary)


def _highdicom() -> Any:
    """The library, which is optional."""
    try:
        import highdicom
    except ModuleNotFoundError as error:
        raise AutosegError(f"DICOM SEG needs highdicom; run: {install_hint('dicom')}") from error
    # What it and pydicom think of the names and dates of the source, which are copied as they are.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(highdicom|pydicom)\.")
    return highdicom
