"""The slices of a DICOM series as one volume: their order, and what must not be wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import DataError

GAP_TOLERANCE = 0.1  # of the usual distance: positions are often rounded to a tenth of a millimetre
SAME_PLACE_MM = 1e-3
TURN_TOLERANCE = 1e-3  # of direction cosines
LOCALISER_ANGLE = 30.0  # degrees; planes of a localiser are usually perpendicular
DRIFT_TOLERANCE = 0.5  # pixels, over the whole stack


@dataclass(frozen=True)
class Slice:
    """What the header of one DICOM slice says.

    Attributes:
        file: where it lies.
        series: its SeriesInstanceUID.
        number: its SeriesNumber, if it has one.
        instance: its SOPInstanceUID.
        size: columns and rows.
        spacing_mm: distance of neighbouring columns, and of neighbouring rows.
        position_mm: centre of the first pixel.
        orientation: direction cosines along a row, then along a column.
        scale: what stored values are multiplied by, and then added.
        pixel: bits that a pixel takes in the file, and 1 if it has a sign, else 0.
        is_localiser: whether the scanner calls it one.
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

    @cached_property
    def normal(self) -> NDArray[np.float64]:
        """The direction in which slices are stacked."""
        normal: NDArray[np.float64] = np.cross(self.orientation[:3], self.orientation[3:])
        return normal


@dataclass(frozen=True)
class Series:
    """The slices of one folder that have the same SeriesInstanceUID, ordered along their normal."""

    slices: tuple[Slice, ...]

    @classmethod
    def of(cls, slices: list[Slice]) -> Series:
        """A series of slices in any order."""
        normal = slices[0].normal
        return cls(tuple(sorted(slices, key=lambda each: (each.position_mm @ normal, each.file))))

    @property
    def first(self) -> Slice:
        """The slice where the volume begins."""
        return self.slices[0]

    @property
    def values_differ(self) -> bool:
        """Whether slices have scales of their own, as in PET, or types of their own."""
        return any(
            (each.scale, each.pixel) != (self.first.scale, self.first.pixel) for each in self.slices
        )

    @property
    def why_no_volume(self) -> str | None:
        """Why it is not meant to be a volume: a localiser, a single picture."""
        if any(each.is_localiser for each in self.slices):
            return "a localiser"
        if len(self.slices) == 1:
            return "a single slice: a localiser or a picture, not a volume"
        along = np.abs([each.normal @ self.first.normal for each in self.slices])
        if along.min() < np.cos(np.radians(LOCALISER_ANGLE)):
            return "its slices lie in several planes: a localiser, not a volume"
        return None

    @property
    def places_mm(self) -> NDArray[np.float64]:
        """Where the slices lie along their normal."""
        positions = np.array([each.position_mm for each in self.slices], dtype=np.float64)
        places: NDArray[np.float64] = positions @ self.first.normal
        return places


def check_stack(series: Series, where: str) -> None:
    """Check that slices make up a volume: one size and orientation, evenly spaced, none missing.

    Args:
        series: the slices.
        where: begins the message: the folder.

    Raises:
        DataError: they do not.
    """
    if wrong := _unlike(series) or _uneven(series) or _drifting(series):
        raise DataError(f"{where}: {wrong}")


def _unlike(series: Series) -> str | None:
    sizes = Counter(each.size for each in series.slices)
    if len(sizes) > 1:
        found = " and ".join(f"{x} x {y}" for (x, y), _ in sizes.most_common(2))
        return f"its slices have {found} pixels; export slices of one size as one series"
    spacings = [each.spacing_mm for each in series.slices]
    if np.ptp(spacings, axis=0).max() * max(series.first.size) > series.first.spacing_mm[0]:
        return "its slices have pixels of different sizes; export them as series of their own"
    turned = np.subtract([each.orientation for each in series.slices], series.first.orientation)
    if np.abs(turned).max() > TURN_TOLERANCE:
        return (
            "its slices are turned against each other (several stacks in one series); "
            "export each stack as a series of its own"
        )
    return None


def _uneven(series: Series) -> str | None:
    apart = np.diff(series.places_mm)
    if apart.size == 0:
        return None
    if apart.min() < SAME_PLACE_MM:
        return _twice(series, apart)
    usual = float(np.median(apart))
    wrong = np.abs(apart - usual)
    if wrong.max() <= GAP_TOLERANCE * usual:
        return None
    at = int(wrong.argmax())
    names = " and ".join(each.file.name for each in series.slices[at : at + 2])
    return (
        f"neighbouring slices are {apart.min():.4g} to {apart.max():.4g} mm apart, "
        f"usually {usual:.4g}; slices are missing or do not belong there (look at {names}): "
        "export it again"
    )


def _twice(series: Series, apart: NDArray[np.float64]) -> str:
    starts = np.flatnonzero(np.concatenate([[True], apart >= SAME_PLACE_MM]))
    counts = np.diff([*starts, len(series.slices)])
    if len(counts) > 1 and counts.min() == counts.max():
        return (
            f"{counts[0]} slices lie at each of its {len(counts)} places (phases, echoes, or "
            "everything copied twice); export each volume as a series of its own"
        )
    at = int(apart.argmin())
    first, second = (each.file.name for each in series.slices[at : at + 2])
    return f"{first} and {second} are slices of the same place; remove what is there twice"


def _drifting(series: Series) -> str | None:
    """ITK takes slices to be stacked straight: with a tilted gantry it would shear the volume."""
    first, last = series.first, series.slices[-1]
    way = np.subtract(last.position_mm, first.position_mm)
    aside = float(np.linalg.norm(way - (way @ first.normal) * first.normal))
    if aside <= DRIFT_TOLERANCE * min(first.spacing_mm):
        return None
    return (
        f"its slices drift {aside:.4g} mm sideways (a tilted gantry); resample it to an upright "
        "volume first"
    )
