"""The slices of a DICOM series: their order, and checks that they make up one volume."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import DataError

GAP_TOLERANCE = 0.1  # of the median distance: positions are often rounded to 0.1 mm
SAME_POSITION_MM = 1e-3
ROTATION_TOLERANCE = 1e-3  # of direction cosines
LOCALISER_ANGLE = 30.0  # degrees between the planes of a localiser, usually 90
DRIFT_TOLERANCE = 0.5  # pixels, over the whole stack


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
        pixel: bits per stored pixel, and 1 if signed, else 0.
        is_localiser: whether the header marks it as a localiser.
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
    """The slices of a folder with the same SeriesInstanceUID, ordered along their normal."""

    slices: tuple[Slice, ...]

    @classmethod
    def of(cls, slices: list[Slice]) -> Series:
        """Order the slices of a series."""
        normal = slices[0].normal
        return cls(tuple(sorted(slices, key=lambda each: (each.position_mm @ normal, each.file))))

    @property
    def first(self) -> Slice:
        """The first slice of the volume."""
        return self.slices[0]

    @property
    def values_differ(self) -> bool:
        """Whether slices differ in scale, as in PET, or in pixel type."""
        return any(
            (each.scale, each.pixel) != (self.first.scale, self.first.pixel) for each in self.slices
        )

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
    def offsets_mm(self) -> NDArray[np.float64]:
        """Positions of the slices along their normal."""
        positions = np.array([each.position_mm for each in self.slices], dtype=np.float64)
        offsets: NDArray[np.float64] = positions @ self.first.normal
        return offsets


def check_stack(series: Series, where: str) -> None:
    """Check that slices make up a volume: same size and orientation, evenly spaced, complete.

    Args:
        series: the slices.
        where: the folder or file, for the message.

    Raises:
        DataError: they do not.
    """
    if wrong := _inconsistent(series) or _uneven(series) or _drifting(series):
        raise DataError(f"{where}: {wrong}")


def _inconsistent(series: Series) -> str | None:
    sizes = Counter(each.size for each in series.slices)
    if len(sizes) > 1:
        found = " and ".join(f"{x} x {y}" for (x, y), _ in sizes.most_common(2))
        return f"its slices have {found} pixels; export slices of one size as one series"
    spacings = [each.spacing_mm for each in series.slices]
    if np.ptp(spacings, axis=0).max() * max(series.first.size) > series.first.spacing_mm[0]:
        return "its slices have different pixel sizes; export each size as its own series"
    rotation = np.subtract([each.orientation for each in series.slices], series.first.orientation)
    if np.abs(rotation).max() > ROTATION_TOLERANCE:
        return (
            "its slices have different orientations (several stacks in one series); export each "
            "stack as its own series"
        )
    return None


def _uneven(series: Series) -> str | None:
    apart = np.diff(series.offsets_mm)
    if apart.size == 0:
        return None
    if apart.min() < SAME_POSITION_MM:
        return _duplicates(series, apart)
    usual = float(np.median(apart))
    wrong = np.abs(apart - usual)
    if wrong.max() <= GAP_TOLERANCE * usual:
        return None
    at = int(wrong.argmax())
    names = " and ".join(each.file.name for each in series.slices[at : at + 2])
    return (
        f"neighbouring slices are {apart.min():.4g} to {apart.max():.4g} mm apart, "
        f"usually {usual:.4g}; slices are missing or out of place (look at {names}); export "
        "the series again"
    )


def _duplicates(series: Series, apart: NDArray[np.float64]) -> str:
    starts = np.flatnonzero(np.concatenate([[True], apart >= SAME_POSITION_MM]))
    counts = np.diff([*starts, len(series.slices)])
    if len(counts) > 1 and counts.min() == counts.max():
        return (
            f"{counts[0]} slices lie at each of its {len(counts)} positions (phases, echoes, or "
            "duplicates); export each volume as its own series"
        )
    at = int(apart.argmin())
    first, second = (each.file.name for each in series.slices[at : at + 2])
    return f"{first} and {second} are slices of the same position; remove the duplicates"


def _drifting(series: Series) -> str | None:
    """ITK stacks slices along their normal: with a tilted gantry it would shear the volume."""
    first, last = series.first, series.slices[-1]
    shift = np.subtract(last.position_mm, first.position_mm)
    drift = float(np.linalg.norm(shift - (shift @ first.normal) * first.normal))
    if drift <= DRIFT_TOLERANCE * min(first.spacing_mm):
        return None
    return (
        f"its slices drift {drift:.4g} mm sideways (a tilted gantry); resample the series to an "
        "orthogonal volume"
    )
