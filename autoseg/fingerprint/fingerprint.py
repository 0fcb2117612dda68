"""What a data set is like: shapes, spacings, intensities and labels of all cases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Triple, bounding_box, union_of_boxes
from autoseg.common.errors import DataError
from autoseg.common.files import dataclass_from_json, read_json, write_json
from autoseg.dataset.checks import scale_of
from autoseg.fingerprint.statistics import (
    Intensities,
    LabelFigures,
    Sample,
    measure_labels,
    sample,
    summary,
    whole_and_inside,
)
from autoseg.image.image import Image

# The figures of one case: its grid, its intensities, its labels.


@dataclass(frozen=True)
class ChannelFigures:
    """One channel.

    Attributes:
        scale: what its intensities can be: `hounsfield`, `0..255`, `0..1` or `other`.
        image: all its voxels.
        foreground: its labelled voxels; None if the case has none.
    """

    scale: str
    image: Intensities
    foreground: Intensities | None


@dataclass(frozen=True)
class CaseFigures:
    """What one case is like.

    Attributes:
        shape: voxels along x, y, z.
        spacing_mm: along x, y, z, exactly as the header has it.
        orientation: where the x, y and z axes point, as ITK names it; no rotation is "LPS".
        shape_after_crop: the box around all voxels that are not zero in every channel.
        channels: intensities, channel by channel.
        voxels: label value -> number of voxels.
        labels: name -> volume, pieces and extent, for every label but the background.
        content: SHA-256 of the image array (float32; z, y, x, channel).
    """

    shape: Triple
    spacing_mm: tuple[float, float, float]
    orientation: str
    shape_after_crop: Triple
    channels: tuple[ChannelFigures, ...]
    voxels: dict[int, int]
    labels: dict[str, LabelFigures]
    content: str


def measure(
    image: Image,
    label: NDArray[np.integer[Any]],
    voxels: dict[int, int],
    labels: Mapping[str, Sequence[int]],
    ignore_label: int | None,
) -> tuple[CaseFigures, tuple[Sample, ...]]:
    """Measure one case.

    Args:
        image: the scan.
        label: its label map of the same shape (x, y, z).
        voxels: what `count_labels` found.
        labels: name -> values that it covers, background included.
        ignore_label: value that is no foreground although it is above zero.

    Returns:
        The figures, and for each channel a sample of 500 foreground intensities: the
        quantiles at the middles of as many equal shares of the foreground.
    """
    foreground = label > 0
    if ignore_label is not None:
        foreground &= label != ignore_label
    channels, samples = [], []
    for channel in image.array:
        values, inside = whole_and_inside(channel, foreground)
        samples.append(sample(inside))
        whole = summary(values)
        channels.append(
            ChannelFigures(
                scale=scale_of(whole.min, whole.p00_5, whole.p99_5, whole.max),
                image=whole,
                foreground=summary(inside) if len(inside) else None,
            )
        )
    geometry = image.geometry
    figures = CaseFigures(
        shape=geometry.size,
        spacing_mm=geometry.spacing_mm,
        orientation=orientation_of(geometry.direction),
        shape_after_crop=shape_of_content(image.array),
        channels=tuple(channels),
        voxels=voxels,
        labels=measure_labels(label, labels, geometry.spacing_mm),
        content=content_of(image.array),
    )
    return figures, tuple(samples)


def orientation_of(direction: Sequence[float]) -> str:
    """Name a 3 x 3 direction matrix, given row by row, as ITK does.

    Each axis of the grid gets the letter of the side of the patient that it points to: left or
    right, posterior or anterior, superior or inferior. Oblique grids get the nearest name.
    """
    cosines = np.array(direction, dtype=np.float64).reshape(3, 3)
    strength = np.abs(cosines)
    letters = ["", "", ""]
    for _ in range(3):
        side, axis = np.unravel_index(np.argmax(strength), (3, 3))
        letters[axis] = ("LR", "PA", "SI")[side][int(cosines[side, axis] < 0)]
        strength[side, :] = strength[:, axis] = -1.0
    return "".join(letters)


def content_of(array: NDArray[Any]) -> str:
    """SHA-256 of an image array (channel, x, y, z), as float32 in the order z, y, x, channel."""
    digest = hashlib.sha256()
    for plane in array.T:
        digest.update(np.ascontiguousarray(plane, np.float32).data)
    return digest.hexdigest()


def shape_of_content(array: NDArray[Any]) -> Triple:
    """The shape of the box around all voxels of (channel, x, y, z) that are not zero everywhere.

    An image that is all zero keeps its shape.
    """
    box = union_of_boxes(bounding_box(channel) for channel in array)
    x, y, z = array.shape[1:] if box is None else [side.stop - side.start for side in box]
    return x, y, z


FORMAT = 2


@dataclass(frozen=True)
class Fingerprint:
    """What a data set is like; the same for any number of processes.

    Attributes:
        task, channels, labels, ignore_label: as the task declares them.
        foreground: for each channel the intensities of all cases' foreground voxels (labelled
            above zero, not ignored), each case weighing the same, as nnU-Net weighs them when it
            draws equally many voxels from each case; None where no case has foreground. Mean,
            standard deviation, minimum and maximum are exact; median and percentiles are those of
            500 quantiles of each case.
        cases: name -> figures of every case without an error, sorted by name.
    """

    task: str
    channels: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    ignore_label: int | None
    foreground: tuple[Intensities | None, ...]
    cases: dict[str, CaseFigures]

    @property
    def spacings_mm(self) -> NDArray[np.float64]:
        """Spacing of every case, shape (n, 3), x, y, z."""
        return np.array([case.spacing_mm for case in self.cases.values()], dtype=np.float64)

    @property
    def shapes_after_crop(self) -> NDArray[np.int64]:
        """Shape of every case's box of voxels that are not zero, shape (n, 3), x, y, z."""
        return np.array([case.shape_after_crop for case in self.cases.values()], dtype=np.int64)

    @property
    def median_spacing_mm(self) -> tuple[float, float, float]:
        """Median over the cases, axis by axis."""
        x, y, z = np.median(self.spacings_mm, axis=0)
        return float(x), float(y), float(z)

    @property
    def relative_size_after_cropping(self) -> float:
        """Median over the cases of voxels after / before cropping to what is not zero."""
        shapes = np.array([case.shape for case in self.cases.values()], dtype=np.int64)
        return float(np.median(self.shapes_after_crop.prod(axis=1) / shapes.prod(axis=1)))

    @property
    def presence(self) -> dict[str, frozenset[str]]:
        """Case -> names of the labels that it has, background left out."""
        return {
            name: frozenset(label for label, found in case.labels.items() if found.present)
            for name, case in self.cases.items()
        }

    @property
    def voxel_shares(self) -> dict[str, float]:
        """Label name -> its share of all voxels of all cases (regions may overlap)."""
        total = sum(sum(case.voxels.values()) for case in self.cases.values())
        return {
            name: sum(case.voxels.get(v, 0) for case in self.cases.values() for v in values) / total
            for name, values in self.labels.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values for strict JSON."""
        return {"format": FORMAT} | asdict(self)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically; equal fingerprints give equal bytes."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> Fingerprint:
        """Read what `save` wrote.

        Raises:
            AutosegError: the file is missing, not JSON, or not a fingerprint of this version.
        """
        values = read_json(path)
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise DataError(
                f"{path}: not a fingerprint of format {FORMAT} (found {found!r}); "
                "delete it and plan again"
            )
        del values["format"]
        return dataclass_from_json(Fingerprint, values, path, "delete it and plan again")
