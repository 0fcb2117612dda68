"""What the data is, in words: the fingerprint as the report tells it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from autoseg.evaluation.tables import NOTHING, Pair, Row
from autoseg.fingerprint import Fingerprint

RANGE = "\N{EN DASH}"


def data_rows(fingerprint: Fingerprint) -> list[Pair]:
    """What -> its values over the cases."""
    cases = list(fingerprint.cases.values())
    shapes = np.array([case.shape for case in cases], dtype=np.float64)
    spacings = fingerprint.spacings_mm
    orientations = sorted({case.orientation for case in cases})
    return [
        ("cases", str(len(cases))),
        ("channels", ", ".join(fingerprint.channels)),
        ("voxels along x, y, z: median", _times(np.median(shapes, axis=0))),
        ("voxels: smallest to largest", _ranges(shapes)),
        ("voxel size in mm: median", _times(np.median(spacings, axis=0))),
        ("voxel size in mm: smallest to largest", _ranges(spacings)),
        ("extent in mm: median", _times(np.rint(np.median(shapes * spacings, axis=0)))),
        ("left after cutting off zeros", f"{fingerprint.relative_size_after_cropping:.0%}"),
        ("orientation", ", ".join(orientations)),
    ]


def label_rows(fingerprint: Fingerprint) -> list[Row]:
    """Labels x how much of them there is: a header, then one row for each, without background."""
    shares = fingerprint.voxel_shares
    header = ("label", "value", "cases with it", "share of voxels", "median ml", "median pieces")
    rows: list[Row] = [header]
    cases = list(fingerprint.cases.values())
    names = list(dict.fromkeys(name for case in cases for name in case.labels))
    for name in names:
        found = [of for case in cases if (of := case.labels.get(name)) and of.present]
        rows.append(
            (
                name,
                ", ".join(map(str, fingerprint.labels.get(name, ()))),
                str(len(found)),
                f"{100 * shares.get(name, 0.0):.3g} %",
                _median(of.volume_ml for of in found),
                _median(of.components for of in found),
            )
        )
    return rows


def intensity_rows(fingerprint: Fingerprint) -> list[Row]:
    """Channels x intensities of the labelled voxels: a header, then one row for each."""
    header = ("channel", "mean", "std", "min", "0.5 %", "median", "99.5 %", "max")
    rows: list[Row] = [header]
    for name, of in zip(fingerprint.channels, fingerprint.foreground, strict=True):
        if of is None:
            rows.append((name, *[NOTHING] * (len(header) - 1)))
            continue
        figures = (of.mean, of.std, of.min, of.p00_5, of.median, of.p99_5, of.max)
        rows.append((name, *(f"{figure:.4g}" for figure in figures)))
    return rows


def _times(values: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _ranges(values: np.ndarray) -> str:
    """The range along each axis; one number where all cases have the same."""
    parts = []
    for low, high in zip(values.min(axis=0), values.max(axis=0), strict=True):
        parts.append(f"{low:.4g}" if low == high else f"{low:.4g}{RANGE}{high:.4g}")
    return " x ".join(parts)


def _median(values: Iterable[float]) -> str:
    known = list(values)
    return f"{statistics.median(known):.3g}" if known else NOTHING
