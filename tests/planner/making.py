"""Tiny fingerprints, made by the tests that use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoseg.fingerprint import Fingerprint
from autoseg.fingerprint.statistics import CaseStatistics, ChannelStatistics, IntensityStatistics

FOREGROUND = IntensityStatistics(
    mean=-81.5, std=140.25, min=-1024.0, p00_5=-958.5, median=-64.0, p99_5=271.0, max=3071.0
)
LABELS = {"background": (0,), "organ": (1,), "tumour": (2,)}


def fingerprint(
    channels: Sequence[str] = ("CT",),
    shape: tuple[int, int, int] = (40, 56, 48),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.5),
    shape_after_crop: tuple[int, int, int] | None = None,
    labels: Mapping[str, tuple[int, ...]] = LABELS,
    ignore_label: int | None = None,
    foreground: IntensityStatistics | None = FOREGROUND,
    task: str = "Task001_Tiny",
    cases: int = 6,
) -> Fingerprint:
    """The fingerprint of a data set of equal cases."""
    channel = ChannelStatistics("hounsfield", FOREGROUND, foreground)
    case = CaseStatistics(
        shape=shape,
        spacing_mm=spacing_mm,
        orientation="LPS",
        shape_after_crop=shape_after_crop or shape,
        channels=(channel,) * len(channels),
        voxels={0: 90_000, 1: 10_000, 2: 500},
        labels={},
        content="0" * 64,
    )
    return Fingerprint(
        task=task,
        channels=tuple(channels),
        labels=dict(labels),
        ignore_label=ignore_label,
        cases={f"case_{number}": case for number in range(cases)},
        foreground=(foreground,) * len(channels),
    )
