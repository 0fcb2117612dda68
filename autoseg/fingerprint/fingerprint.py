"""The fingerprint of a data set: shapes, spacings, intensities and labels of all cases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common.arrays import Array, Doubles, LabelMap, Triple, bounding_box, union_of_boxes
from autoseg.common.errors import DataError
from autoseg.common.files import dataclass_from_json, read_json, write_json
from autoseg.dataset.checks import scale_of
from autoseg.fingerprint.statistics import (
    IntensityStatistics,
    LabelStatistics,
    Quantiles,
    intensities_of,
    measure_labels,
    sample_quantiles,
    summarize,
)
from autoseg.image.geometry import Turn, counted_codes, most_common, orientation_of
from autoseg.image.image import Image, body_of

FORMAT = 3
READABLE = (2, FORMAT)  # 2, of version 0.1.0, has no `body`


@dataclass(frozen=True)
class Fingerprint:
    """Properties of a data set, from which the rules make a plan.

    Attributes:
        task, channels, labels, ignore_label: as declared by the task.
        foreground: for each channel the intensities of the foreground voxels (label above zero,
            not ignored) of all cases; None if no case has foreground. Cases have equal weights, as
            in nnU-Net, which draws equally many voxels from each. Mean, standard deviation, minimum
            and maximum are exact; median and percentiles are estimated from 500 quantiles per case.
        cases: case name -> statistics of every case without an error, sorted by name.
    """

    task: str
    channels: tuple[str, ...]
    labels: dict[str, tuple[int, ...]]
    ignore_label: int | None
    foreground: tuple[IntensityStatistics | None, ...]
    cases: dict[str, CaseStatistics]

    @property
    def spacings_mm(self) -> Doubles:
        """Spacing of each case (x, y, z), shape (n, 3)."""
        return np.array([case.spacing_mm for case in self.cases.values()], dtype=np.float64)

    @property
    def shapes_after_crop(self) -> NDArray[np.int64]:
        """Shape of each case after cropping to nonzero voxels (x, y, z), shape (n, 3)."""
        return np.array([case.shape_after_crop for case in self.cases.values()], dtype=np.int64)

    @property
    def median_spacing_mm(self) -> tuple[float, float, float]:
        """Median over the cases along each axis."""
        x, y, z = np.median(self.spacings_mm, axis=0)
        return float(x), float(y), float(z)

    @property
    def relative_size_after_cropping(self) -> float:
        """Median over the cases of the fraction of voxels that cropping to nonzero keeps."""
        shapes = np.array([case.shape for case in self.cases.values()], dtype=np.int64)
        return float(np.median(self.shapes_after_crop.prod(axis=1) / shapes.prod(axis=1)))

    @property
    def presence(self) -> dict[str, frozenset[str]]:
        """Case name -> names of its labels, without background."""
        return {
            name: frozenset(label for label, found in case.labels.items() if found.present)
            for name, case in self.cases.items()
        }

    @property
    def voxel_shares(self) -> dict[str, float]:
        """Label name -> fraction of all voxels of all cases (regions may overlap)."""
        total = sum(sum(case.voxels.values()) for case in self.cases.values())
        return {
            name: sum(case.voxels.get(v, 0) for case in self.cases.values() for v in values) / total
            for name, values in self.labels.items()
        }

    @property
    def usual_orientation(self) -> str:
        """The orientation in which most cases are stored."""
        return most_common(case.orientation for case in self.cases.values())

    @property
    def counted_orientations(self) -> str:
        """The number of cases with each orientation, such as `3 RAS, 1 LPS`."""
        return counted_codes(case.orientation for case in self.cases.values())

    def turned_to(self, orientation: str | None) -> Fingerprint:
        """The same with the axes of all cases in this orientation; None: as they are stored."""
        if orientation is None:
            return self
        turned = {name: case.turned_to(orientation) for name, case in self.cases.items()}
        return replace(self, cases=turned)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return {"format": FORMAT} | asdict(self)

    def save(self, path: Path) -> None:
        """Write a JSON file, atomically; equal fingerprints give equal bytes."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> Fingerprint:
        """Read a file that was written by `save`.

        Raises:
            AutosegError: the file is missing, not JSON, or not a fingerprint of this version.
        """
        return Fingerprint.parse(read_json(path), path)

    @staticmethod
    def parse(values: Any, path: Path) -> Fingerprint:
        """The same for the content of a file; `path` appears in messages."""
        found = values.get("format") if isinstance(values, dict) else None
        if found not in READABLE:
            raise DataError(f"{path} has format {found!r}, not {FORMAT}; delete it and plan again")
        fields = {key: value for key, value in values.items() if key != "format"}
        return dataclass_from_json(Fingerprint, fields, path, "delete it and plan again")


@dataclass(frozen=True)
class CaseStatistics:
    """Properties of one case.

    Attributes:
        shape: voxels along x, y, z.
        spacing_mm: along x, y, z, exactly as in the header.
        orientation: of the axes x, y, z as they are stored; see `autoseg.image.geometry`.
        shape_after_crop: shape of the bounding box of voxels that are nonzero in any channel.
        channels: intensities of each channel.
        voxels: label value -> number of voxels.
        labels: label name -> volume, components and extent, without background.
        content: SHA-256 of the image array (float32; z, y, x, channel).
    """

    shape: Triple
    spacing_mm: tuple[float, float, float]
    orientation: str
    shape_after_crop: Triple
    channels: tuple[ChannelStatistics, ...]
    voxels: dict[int, int]
    labels: dict[str, LabelStatistics]
    content: str

    def turned_to(self, orientation: str) -> CaseStatistics:
        """The same case with its axes in another orientation."""
        turn = Turn.between(self.orientation, orientation)
        return replace(
            self,
            shape=turn.triple(self.shape),
            spacing_mm=turn.triple(self.spacing_mm),
            orientation=orientation,
            shape_after_crop=turn.triple(self.shape_after_crop),
            labels={
                name: replace(found, extent_mm=found.extent_mm and turn.triple(found.extent_mm))
                for name, found in self.labels.items()
            },
        )


@dataclass(frozen=True)
class ChannelStatistics:
    """IntensityStatistics of one channel of a case.

    Attributes:
        scale: `hounsfield`, `0..255`, `0..1` or `other`.
        image: of all voxels.
        foreground: of the foreground voxels; None if the case has none.
        body: quantiles inside the body, see `body_of`; empty in fingerprints of format 2.
    """

    scale: str
    image: IntensityStatistics
    foreground: IntensityStatistics | None
    body: tuple[float, ...] = ()


def measure(
    image: Image,
    label: LabelMap,
    voxels: dict[int, int],
    labels: Mapping[str, Sequence[int]],
    ignore_label: int | None,
) -> tuple[CaseStatistics, tuple[Quantiles, ...]]:
    """Measure one case.

    Args:
        image: the scan.
        label: the label map (x, y, z).
        voxels: label value -> number of voxels, from `count_labels`.
        labels: label name -> values that it covers, background included.
        ignore_label: value above zero that is not foreground.

    Returns:
        the statistics, and for each channel 500 foreground quantiles (see `sample_quantiles`).
    """
    foreground = label > 0
    if ignore_label is not None:
        foreground &= label != ignore_label
    channels, samples = [], []
    for channel in image.array:
        values, inside = intensities_of(channel, foreground)
        samples.append(sample_quantiles(inside))
        whole = summarize(values)
        channels.append(
            ChannelStatistics(
                scale=scale_of(whole.min, whole.p00_5, whole.p99_5, whole.max),
                image=whole,
                foreground=summarize(inside) if len(inside) else None,
                body=body_of(channel),
            )
        )
    geometry = image.geometry
    measured = CaseStatistics(
        shape=geometry.size,
        spacing_mm=geometry.spacing_mm,
        orientation=orientation_of(geometry),
        shape_after_crop=shape_of_content(image.array),
        channels=tuple(channels),
        voxels=voxels,
        labels=measure_labels(label, labels, geometry.spacing_mm),
        content=content_of(image.array),
    )
    return measured, tuple(samples)


def content_of(array: Array) -> str:
    """Return the SHA-256 of an image array (channel, x, y, z), as float32 (z, y, x, channel)."""
    digest = hashlib.sha256()
    for plane in array.T:
        digest.update(np.ascontiguousarray(plane, np.float32).data)
    return digest.hexdigest()


def shape_of_content(array: Array) -> Triple:
    """Return the shape of the bounding box of voxels that are nonzero in any channel.

    An image without nonzero voxels keeps its shape.
    """
    box = union_of_boxes(bounding_box(channel) for channel in array)
    x, y, z = array.shape[1:] if box is None else [side.stop - side.start for side in box]
    return x, y, z
