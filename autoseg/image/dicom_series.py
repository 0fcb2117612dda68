"""The slices of a DICOM series: their order, and checks that they make up one volume."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path

import numpy as np

from autoseg.common.arrays import Doubles
from autoseg.common.errors import DataError
from autoseg.common.files import read_json
from autoseg.common.progress import by_axis, counted
from autoseg.image.formats import TEXT
from autoseg.image.geometry import Geometry

GAP_TOLERANCE = 0.1  # of the median distance: positions are often rounded to 0.1 mm
SAME_POSITION_MM = 1e-3
ROTATION_TOLERANCE = 1e-3  # of direction cosines
LOCALISER_ANGLE = 30.0  # degrees between the planes of a localiser, usually 90
DRIFT_TOLERANCE = 0.5  # pixels, over the whole stack
TABLES = read_json(Path(__file__).with_name("dicom.json"))
SCOUT_SHARE = 2  # a series is a volume with scouts if it has this many times as many other slices
FEWEST_JOINED = 3  # series of one slice each that are put together
LARGEST_LOCALISER = 20  # slices, of a series in several planes that is not marked as a localiser


@dataclass(frozen=True)
class Slice:
    """The header of one DICOM slice.

    Attributes:
        file: its path.
        series: its SeriesInstanceUID.
        number: its SeriesNumber, or None.
        instance: its SOPInstanceUID.
        size: columns and rows.
        spacing_mm: distance between columns, and between rows.
        position_mm: position of the centre of the first pixel.
        orientation: direction cosines along a row, then along a column.
        scale: slope and intercept for stored values.
        pixel: bits that a pixel uses, and 1 if signed, else 0.
        is_localiser: whether the header marks it as a localiser.
        frame: its number in the file, from 0.
        has_table: whether a Modality LUT Sequence replaces `scale`.
        is_rescaled: whether the file states a scale or a table.
        thickness_mm: its SliceThickness, or 0.
        study: its StudyInstanceUID.
        frame_of_reference: its FrameOfReferenceUID, or "".
        modality: such as CT.
        patient: its PatientID, or "" if there is none, or if it is the patient's name.
        description: its SeriesDescription.
    """

    file: Path
    series: str
    number: int | None
    instance: str
    size: tuple[int, int]
    spacing_mm: tuple[float, ...]
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    scale: tuple[float, float] = (1.0, 0.0)
    pixel: tuple[int, int] = (16, 1)
    is_localiser: bool = False
    frame: int = 0
    has_table: bool = False
    is_rescaled: bool = False
    thickness_mm: float = 0.0
    study: str = ""
    frame_of_reference: str = ""
    modality: str = ""
    patient: str = ""
    description: str = ""

    @cached_property
    def normal(self) -> Doubles:
        """The direction in which slices are stacked."""
        return np.asarray(np.cross(self.orientation[:3], self.orientation[3:]))


@dataclass(frozen=True)
class Series:
    """The slices of a volume, ordered along their normal: usually those of a SeriesInstanceUID.

    Attributes:
        slices: the slices.
        scouts: slices of the same series that are no part of the volume.
    """

    slices: tuple[Slice, ...]
    scouts: tuple[Slice, ...] = ()

    @classmethod
    def of(cls, slices: Iterable[Slice]) -> "Series":
        """Order the slices of a series, and separate scouts from a volume."""
        volume, scouts = list(slices), list[Slice]()
        if not all(each.is_localiser for each in volume):
            rounded = np.round([each.normal for each in volume], 2)
            normals, counts = np.unique(rounded, axis=0, return_counts=True)
            main, least = normals[counts.argmax()], np.cos(np.radians(LOCALISER_ANGLE))
            belongs = [not s.is_localiser and abs(s.normal @ main) >= least for s in volume]
            count = sum(belongs)
            if count >= max(2, SCOUT_SHARE * (len(volume) - count)):
                scouts = [each for each, does in zip(volume, belongs, strict=True) if not does]
                volume = [each for each, does in zip(volume, belongs, strict=True) if does]
        normal = volume[0].normal
        volume.sort(key=lambda each: (each.position_mm @ normal, each.file, each.frame))
        return cls(tuple(volume), tuple(scouts))

    def __str__(self) -> str:
        return " and ".join(sorted({str(each.file.parent) for each in self.slices}))

    @property
    def first(self) -> Slice:
        """The first slice of the volume."""
        return self.slices[0]

    @property
    def files(self) -> list[Path]:
        """The files of the slices, each once."""
        return list(dict.fromkeys(each.file for each in self.slices))

    @property
    def uids(self) -> tuple[str, ...]:
        """What belongs together: study, series and frame of reference."""
        return self.first.study, self.first.series, self.first.frame_of_reference

    @property
    def geometry(self) -> Geometry:
        """The grid of the volume: from the positions, whatever other tags say of the distance."""
        first, count = self.first, len(self.slices)
        apart = float(np.ptp(self.offsets_mm)) / (count - 1) if count > 1 else first.thickness_mm
        axes = np.stack([first.orientation[:3], first.orientation[3:], first.normal], axis=1)
        spacing_mm = (*first.spacing_mm, apart or 1.0)
        return Geometry.of((*first.size, count), spacing_mm, first.position_mm, axes)

    def describe(self) -> str:
        """One line about the series, without the patient's name."""
        first, grid = self.first, self.geometry
        number = "without a number" if first.number is None else str(first.number)
        text = f"{first.modality or 'no modality'}, series {number}"
        if first.description:
            text += f" {first.description!r}"
        text += f", {by_axis(grid.size)} voxels of {by_axis(grid.spacing_mm, '.4g')} mm"
        if self.scouts:
            text += f" and {counted(len(self.scouts), 'scout')}"
        return f"{text}, UID {first.series}"

    @property
    def why_no_volume(self) -> str | None:
        """Why the series is not meant to be a volume; None if it is."""
        if any(each.is_localiser for each in self.slices):
            return "a localiser"
        if len(self.slices) == 1:
            return "a single slice: a localiser or an image, not a volume"
        along = np.abs([each.normal @ self.first.normal for each in self.slices])
        if along.min() < np.cos(np.radians(LOCALISER_ANGLE)):
            return "its slices lie in several planes: a localiser, not a volume"
        return None

    @property
    def offsets_mm(self) -> Doubles:
        """Positions of the slices along their normal."""
        positions = np.array([each.position_mm for each in self.slices], dtype=np.float64)
        return np.asarray(positions @ self.first.normal)


def check_stack(series: Series, where: str) -> None:
    """Check that slices make up a volume: same size and orientation, evenly spaced, complete.

    Args:
        series: the slices.
        where: the folder or file, for the message.

    Raises:
        DataError: they do not.
    """
    if wrong := _inconsistent(series) or _uneven(series) or _drifting(series) or _mixed(series):
        raise DataError(f"{where}: {wrong}")


def joined(found: list[Series]) -> list[Series]:
    """The series, with those put together that have one slice each, as some programs export them.

    They are put together where study, frame of reference, size, pixels and plane are the same.
    """
    alike: defaultdict[tuple[object, ...], list[Series]] = defaultdict(list)
    for each in found:
        if len(each.slices) == 1 and not each.first.is_localiser:
            s = each.first
            plane = tuple(round(cosine, 2) + 0.0 for cosine in s.orientation)
            key = (s.study, s.frame_of_reference, s.modality, s.size, s.spacing_mm, plane)
            alike[key].append(each)
    groups = [some for some in alike.values() if len(some) >= FEWEST_JOINED]
    single = {id(each) for some in groups for each in some}
    wholes = [Series.of(each.first for each in some) for some in groups]
    return [each for each in found if id(each) not in single] + wholes


def _inconsistent(series: Series) -> str | None:
    sizes = Counter(each.size for each in series.slices)
    if len(sizes) > 1:
        found = " and ".join(f"{x} x {y}" for (x, y), _ in sizes.most_common(2))
        return TEXT("sizes", found=found)
    spacings = [each.spacing_mm for each in series.slices]
    if np.ptp(spacings, axis=0).max() * max(series.first.size) > series.first.spacing_mm[0]:
        return TEXT("spacings")
    if len(stated := Counter(each.is_rescaled for each in series.slices)) > 1:
        return TEXT("scales", without=counted(stated[False], "slice"), all=len(series.slices))
    rotation = np.subtract([each.orientation for each in series.slices], series.first.orientation)
    return TEXT("orientations") if np.abs(rotation).max() > ROTATION_TOLERANCE else None


def _uneven(series: Series) -> str | None:
    apart = np.diff(series.offsets_mm)
    if apart.size == 0:
        return None
    if apart.min() < SAME_POSITION_MM:
        starts = np.flatnonzero(np.concatenate([[True], apart >= SAME_POSITION_MM]))
        counts = np.diff([*starts, len(series.slices)])
        if len(counts) > 1 and counts.min() == counts.max():
            return TEXT("several", slices=counts[0], positions=len(counts))
        at = int(apart.argmin())
        return TEXT("duplicates", files=[each.file.name for each in series.slices[at : at + 2]])
    usual = float(np.median(apart))
    wrong = np.abs(apart - usual)
    if wrong.max() <= GAP_TOLERANCE * usual:
        return None
    at = int(wrong.argmax())
    names = " and ".join(each.file.name for each in series.slices[at : at + 2])
    return TEXT("uneven", low=apart.min(), high=apart.max(), usual=usual, names=names)


def _drifting(series: Series) -> str | None:
    """ITK stacks slices along their normal: with a tilted gantry it would shear the volume."""
    first, last = series.first, series.slices[-1]
    shift = np.subtract(last.position_mm, first.position_mm)
    drift = float(np.linalg.norm(shift - (shift @ first.normal) * first.normal))
    is_small = drift <= DRIFT_TOLERANCE * min(first.spacing_mm)
    return None if is_small else TEXT("drift", drift=drift)


def _mixed(series: Series) -> str | None:
    for name in ("study", "frame_of_reference"):
        if len({getattr(each, name) for each in series.slices} - {""}) > 1:
            return TEXT("mixed", what=name.replace("_", " "))
    return None


def continues(single: Slice, volume: Series) -> bool:
    """Whether a slice with another SeriesInstanceUID lies at the next position of a volume."""
    first = volume.first
    alike = attrgetter("study", "frame_of_reference", "size", "spacing_mm")
    if alike(single) != alike(first):
        return False
    shift = np.subtract(single.position_mm, first.position_mm)
    along, step = float(shift @ first.normal), volume.geometry.spacing_mm[2]
    aside = float(np.linalg.norm(shift - along * first.normal))
    from_end = min(abs(along + step), abs(along - len(volume.slices) * step))
    return from_end < GAP_TOLERANCE * step and aside < min(first.spacing_mm)


Source = Path | Series  # what a channel is read from
