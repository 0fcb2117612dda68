"""Statistics of a case: of its intensities (mean, standard deviation, quantiles) and its label map.

Most scans contain 16-bit integers. A histogram of these gives the same quantiles as sorting, in a
sixth of the time.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.common import arrays
from autoseg.common.arrays import Array, Box, Doubles, LabelMap, Mask, Triple
from autoseg.dataset.checks import scale_of
from autoseg.dataset.task import Labels
from autoseg.image.geometry import Turn, orientation_of
from autoseg.image.image import Image, body_of

SUMMARY_FRACTIONS = (0.0, 0.005, 0.5, 0.995, 1.0)
SAMPLE_SIZE = 500
SAMPLE_FRACTIONS = tuple((i + 0.5) / SAMPLE_SIZE for i in range(SAMPLE_SIZE))
Ranks = NDArray[np.intp]

Quantiles = tuple[float, ...]
"""Equally spaced quantiles of the foreground of a channel; empty without foreground."""


@dataclass(frozen=True)
class IntensityStatistics:
    """Statistics of intensities, rounded to six significant digits.

    `std` is the population standard deviation; `p00_5` and `p99_5` are the 0.5 and 99.5 percentile.
    """

    mean: float
    std: float
    min: float
    p00_5: float
    median: float
    p99_5: float
    max: float

    @staticmethod
    def rounded(*figures: float) -> "IntensityStatistics":
        """The statistics from unrounded figures, in the order of the fields."""
        return IntensityStatistics(*map(rounded, figures))


@dataclass(frozen=True)
class Histogram:
    """The distinct intensities, ascending, and the number of voxels with each."""

    values: Doubles
    counts: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def mean_and_std(self) -> tuple[float, float]:
        """In double precision; the sum of integers is exact."""
        mean = float(self.values @ self.counts) / len(self)
        squares = float(np.square(self.values - mean) @ self.counts)
        return mean, (squares / len(self)) ** 0.5

    def at(self, ranks: Ranks) -> Doubles:
        """Return the intensities at these ranks; the smallest has rank 0."""
        indices = np.searchsorted(np.cumsum(self.counts), ranks, side="right")
        return np.asarray(self.values[indices])


@dataclass(frozen=True)
class RawValues:
    """The intensities of all voxels, and whether they are sorted."""

    values: Array
    is_sorted: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mean_and_std(self) -> tuple[float, float]:
        """In double precision, without copying all values to double precision."""
        starts = range(0, len(self), arrays.CHUNK)
        chunks = [self.values[start : start + arrays.CHUNK] for start in starts]
        mean = sum(float(chunk.sum(dtype=np.float64)) for chunk in chunks) / len(self)
        squares = sum(float(np.square(chunk - np.float64(mean)).sum()) for chunk in chunks)
        return mean, (squares / len(self)) ** 0.5

    def at(self, ranks: Ranks) -> Doubles:
        """Return the intensities at these ranks; partitioning is cheaper than sorting."""
        ordered = self.values if self.is_sorted else np.partition(self.values, np.unique(ranks))
        return np.asarray(ordered[ranks], np.float64)


Values = Histogram | RawValues


def intensities_of(channel: Array, mask: Mask) -> tuple[Values, Values]:
    """Return all intensities of a channel (x, y, z), and those in a mask."""
    flat, flags = channel.T.reshape(-1), mask.T.reshape(-1)  # .T: the memory order of a file
    if (integers := small_integers(flat)) is None:
        return RawValues(flat), RawValues(np.sort(flat[flags]), is_sorted=True)
    return histogram(integers), histogram(integers, flags)


def small_integers(values: Array) -> Array | None:
    """Return the values as integers of up to 16 bits, or None if they are not."""
    if values.dtype.kind in "iu" and values.itemsize <= 2:
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    found = np.empty(len(values), np.int16)
    with np.errstate(invalid="ignore"):  # values that do not fit are changed
        for start in range(0, len(values), arrays.CHUNK):
            chunk = values[start : start + arrays.CHUNK]
            found[start : start + arrays.CHUNK] = chunk
            if not np.array_equal(found[start : start + arrays.CHUNK], chunk):
                return None
    return found


def histogram(values: Array, mask: Mask | None = None) -> Histogram:
    """Return the histogram of flat integers of up to 16 bits, or of those in a mask."""
    bits = 8 * values.itemsize
    unsigned = values.view(f"u{values.itemsize}")
    counts = arrays.count_values(unsigned, 1 << bits, mask)
    first = 0
    if values.dtype.kind == "i":  # the upper half of the counts is that of negative integers
        first = -len(counts) // 2
        counts = np.roll(counts, first)
    found = np.flatnonzero(counts)
    return Histogram((found + first).astype(np.float64), counts[found])


def summarize(values: Values) -> IntensityStatistics:
    """Return the statistics of at least one intensity."""
    return IntensityStatistics.rounded(*values.mean_and_std, *quantiles(values, SUMMARY_FRACTIONS))


def sample_quantiles(values: Values) -> Quantiles:
    """Return the quantiles at the centres of `SAMPLE_SIZE` equal intervals of [0, 1]."""
    return tuple(map(rounded, quantiles(values, SAMPLE_FRACTIONS))) if len(values) else ()


def quantiles(values: Values, fractions: Sequence[float]) -> list[float]:
    """Return quantiles with linear interpolation, as `numpy.quantile`."""
    position = np.array(fractions) * (len(values) - 1)
    low = np.floor(position).astype(np.intp)
    ranks = np.concatenate([low, np.minimum(low + 1, len(values) - 1)])
    below, above = np.split(values.at(ranks), 2)
    found: list[float] = (below + (position - low) * (above - below)).tolist()
    return found


def rounded(value: float) -> float:
    """Round to six significant digits, which keeps JSON files short."""
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class LabelStatistics:
    """Statistics of one label in one case.

    Attributes:
        volume_ml: volume of its voxels.
        components: number of connected components (26 neighbours).
        extent_mm: size of its bounding box along x, y, z; None if the label is absent.
    """

    volume_ml: float
    components: int
    extent_mm: tuple[float, float, float] | None

    @property
    def present(self) -> bool:
        """Whether the label occurs in the case."""
        return self.extent_mm is not None


def measure_labels(
    label: LabelMap, labels: Labels, spacing_mm: Sequence[float]
) -> dict[str, LabelStatistics]:
    """Measure every label except the background.

    Needs about six bytes for each voxel of the bounding box of a label.

    Args:
        label: the label map (x, y, z).
        labels: label name -> values that it covers; labels that cover 0 are omitted.
        spacing_mm: along x, y, z.
    """
    boxes = arrays.value_boxes(label)
    return {
        name: _measure(label, values, arrays.union_of_boxes(map(boxes.get, values)), spacing_mm)
        for name, values in labels.items()
        if 0 not in values
    }


def _measure(
    label: LabelMap, values: Sequence[int], box: Box | None, spacing_mm: Sequence[float]
) -> LabelStatistics:
    if box is None:
        return LabelStatistics(0.0, 0, None)
    inside = label[box]
    mask = inside == values[0] if len(values) == 1 else np.isin(inside, values)
    x, y, z = (size * mm for size, mm in zip(mask.shape, spacing_mm, strict=True))
    volume_ml = rounded(np.count_nonzero(mask) * prod(spacing_mm) / 1000)
    components = arrays.connected_components(mask)[1]
    return LabelStatistics(volume_ml, components, (rounded(x), rounded(y), rounded(z)))


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
    channels: "tuple[ChannelStatistics, ...]"
    voxels: dict[int, int]
    labels: dict[str, LabelStatistics]
    content: str

    def turned_to(self, orientation: str) -> "CaseStatistics":
        """The same case with its axes in another orientation."""
        turn = Turn.between(self.orientation, orientation)
        sizes = ("shape", "spacing_mm", "shape_after_crop")
        turned: dict[str, Any] = {key: turn.triple(getattr(self, key)) for key in sizes}
        extents = {
            name: of.extent_mm and turn.triple(of.extent_mm) for name, of in self.labels.items()
        }
        turned["labels"] = {n: replace(self.labels[n], extent_mm=mm) for n, mm in extents.items()}
        return replace(self, orientation=orientation, **turned)


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
    image: Image, label: LabelMap, voxels: dict[int, int], labels: Labels, ignore_label: int | None
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
        scale = scale_of(whole.min, whole.p00_5, whole.p99_5, whole.max)
        own = summarize(inside) if len(inside) else None
        channels.append(ChannelStatistics(scale, whole, own, body_of(channel)))
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
    box = arrays.union_of_boxes(arrays.bounding_box(channel) for channel in array)
    x, y, z = array.shape[1:] if box is None else [side.stop - side.start for side in box]
    return x, y, z
