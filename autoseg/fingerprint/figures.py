"""The figures of one case: its grid, its intensities, its labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.dataset.scales import scale_of
from autoseg.fingerprint.labels import LabelFigures, measure_labels
from autoseg.fingerprint.rounding import rounded
from autoseg.image.image import Image

SUMMARY_FRACTIONS = (0.0, 0.005, 0.5, 0.995, 1.0)
SAMPLE_SIZE = 500
SAMPLE_FRACTIONS = tuple((i + 0.5) / SAMPLE_SIZE for i in range(SAMPLE_SIZE))
CHUNK = 1 << 20


@dataclass(frozen=True)
class Intensities:
    """Statistics of some voxels' intensities, rounded to six significant digits.

    `std` is the population's; `p00_5` and `p99_5` are the 0.5 and the 99.5 percentile.
    """

    mean: float
    std: float
    min: float
    p00_5: float
    median: float
    p99_5: float
    max: float


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

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    shape_after_crop: tuple[int, int, int]
    channels: tuple[ChannelFigures, ...]
    voxels: dict[int, int]
    labels: dict[str, LabelFigures]
    content: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for strict JSON."""
        voxels = {str(value): count for value, count in self.voxels.items()}
        return asdict(self) | {"voxels": voxels}

    @staticmethod
    def from_json(values: dict[str, Any]) -> CaseFigures:
        """The inverse of `to_json`."""
        return CaseFigures(
            shape=_three(values["shape"]),
            spacing_mm=_three(values["spacing_mm"]),
            orientation=values["orientation"],
            shape_after_crop=_three(values["shape_after_crop"]),
            channels=tuple(
                ChannelFigures(
                    scale=channel["scale"],
                    image=Intensities(**channel["image"]),
                    foreground=intensities_from_json(channel["foreground"]),
                )
                for channel in values["channels"]
            ),
            voxels={int(value): count for value, count in values["voxels"].items()},
            labels={name: _label_from_json(label) for name, label in values["labels"].items()},
            content=values["content"],
        )


Sample = tuple[float, ...]
"""Equally likely intensities of one channel's foreground, ascending; empty without foreground."""


def intensities_from_json(values: dict[str, float] | None) -> Intensities | None:
    """Intensities written by `dataclasses.asdict`, or None where there were none."""
    return None if values is None else Intensities(**values)


def _label_from_json(values: dict[str, Any]) -> LabelFigures:
    extent = values["extent_mm"]
    return LabelFigures(
        volume_ml=values["volume_ml"],
        components=values["components"],
        extent_mm=None if extent is None else _three(extent),
    )


def _three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    x, y, z = values
    return x, y, z


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
        The figures, and for each channel a sample of `SAMPLE_SIZE` foreground intensities: the
        quantiles at the middles of as many equal shares of the foreground.
    """
    foreground = label > 0
    if ignore_label is not None:
        foreground &= label != ignore_label
    channels, samples = [], []
    for channel in image.array:
        inside = np.sort(channel.T[foreground.T])  # .T: in the order in which memory holds a file
        samples.append(_sample(inside))
        intensities = channel.ravel(order="K")
        whole = _summary(intensities, _partitioned(intensities))
        channels.append(
            ChannelFigures(
                scale=scale_of(whole.min, whole.p00_5, whole.p99_5, whole.max),
                image=whole,
                foreground=_summary(inside, inside) if inside.size else None,
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
        content=hashlib.sha256(np.ascontiguousarray(image.array.T).data).hexdigest(),
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


def shape_of_content(array: NDArray[np.float32]) -> tuple[int, int, int]:
    """The shape of the box around all voxels of (channel, x, y, z) that are not zero everywhere.

    An image that is all zero keeps its shape.
    """
    content: NDArray[np.bool_] = np.any(array, axis=0)
    if not content.any():
        return _three(content.shape)
    lengths = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        hits = np.flatnonzero(content.any(axis=axes))
        lengths.append(int(hits[-1] - hits[0]) + 1)
    return _three(lengths)


def _summary(values: NDArray[np.float32], ordered: NDArray[np.float32]) -> Intensities:
    """Summarise flat `values`; `ordered` are the same, in order where quantiles look."""
    mean, std = _mean_and_std(values)
    smallest, low, median, high, largest = _quantiles(ordered, SUMMARY_FRACTIONS)
    return Intensities(
        mean=rounded(mean),
        std=rounded(std),
        min=rounded(smallest),
        p00_5=rounded(low),
        median=rounded(median),
        p99_5=rounded(high),
        max=rounded(largest),
    )


def _sample(ordered: NDArray[np.float32]) -> Sample:
    if not ordered.size:
        return ()
    return tuple(rounded(value) for value in _quantiles(ordered, SAMPLE_FRACTIONS))


def _mean_and_std(values: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and standard deviation in double precision, without a double precision copy."""
    chunks = [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]
    mean = sum(float(chunk.sum(dtype=np.float64)) for chunk in chunks) / len(values)
    squares = sum(float(np.square(chunk - np.float64(mean)).sum()) for chunk in chunks)
    return mean, (squares / len(values)) ** 0.5


def _partitioned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy in which the ranks that the summary reads are in place: cheaper than sorting."""
    low, high, _ = _ranks(len(values), SUMMARY_FRACTIONS)
    return np.partition(values, np.union1d(low, high))


def _quantiles(ordered: NDArray[np.float32], fractions: Sequence[float]) -> list[float]:
    low, high, weight = _ranks(len(ordered), fractions)
    below, above = ordered[low].astype(np.float64), ordered[high].astype(np.float64)
    return [float(value) for value in below + weight * (above - below)]


def _ranks(
    count: int, fractions: Sequence[float]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """The ranks below and above each fraction, and the weight of the one above (NumPy's linear)."""
    position = np.array(fractions) * (count - 1)
    low = np.floor(position).astype(np.intp)
    return low, np.minimum(low + 1, count - 1), position - low
