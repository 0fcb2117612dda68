"""How far the surface of a prediction lies from that of the truth, in mm.

The surface of a mask runs between voxel centres, as marching cubes draws it: each cube of 2 x 2 x 2
voxels that the mask fills in part holds one surface element, at the middle of the cube, with the
area of the triangles in it. Every figure weighs the elements by their area. That is the definition
of DeepMind's `surface-distance` package (Nikolov et al. 2021, doi 10.2196/26151).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from autoseg.evaluation.metrics import Masks

Array = NDArray[np.float64]
PERCENT = 95
ROUNDING = 1e-9
NEAR = 20  # voxels within which a tree of the surface is searched
CROWDED = 0.1  # share of cubes that hold a piece of a surface, above which there is no tree
FULL = 255  # the code of a cube whose eight voxels are all in the mask


@dataclass(frozen=True)
class Surface:
    """The surface scores of one class in one case; None where the class is in neither map.

    Attributes:
        hd95_mm: 95th percentile of the distances from one surface to the other, by area; the larger
            of the two directions (the robust Hausdorff distance).
        assd_mm: mean of the distances from either surface to the other, by area, over both surfaces
            together (the average symmetric surface distance).
        nsd: share of both surfaces' area that lies no farther than the tolerance from the other
            surface (the normalised surface Dice).
    """

    AMOUNTS: ClassVar = ()

    hd95_mm: float | None
    assd_mm: float | None
    nsd: float | None


@dataclass(frozen=True)
class Distances:
    """The elements of one surface: their distance to the other, and their area in mm^2."""

    mm: Array
    areas: Array

    def percentile(self, percent: float) -> float:
        """The distance that `percent` of the area does not exceed."""
        order = np.lexsort((self.areas, self.mm))
        share = np.cumsum(self.areas[order]) / np.sum(self.areas)
        # Sums of areas are rounded: a share that is reached exactly must not fail for that.
        place = int(np.searchsorted(share, percent / 100 - ROUNDING))
        return float(self.mm[order[place]])


def surface(
    masks: Masks, spacing_mm: Sequence[float], tolerance_mm: float, diagonal_mm: float
) -> Surface:
    """The surface scores of one class.

    Args:
        masks: the class in truth and prediction, as `cut_masks` gives them.
        spacing_mm: of the voxels along x, y, z.
        tolerance_mm: how far two surfaces may lie apart and still agree.
        diagonal_mm: of the whole grid: the distance where only one of the two holds the class.
    """
    present = masks.reference.any(), masks.predicted.any()
    if not any(present):
        return Surface(None, None, None)
    if not all(present):
        return Surface(diagonal_mm, diagonal_mm, 0.0)
    both = distances(masks, spacing_mm)
    mm, areas = (np.concatenate([getattr(one, name) for one in both]) for name in ("mm", "areas"))
    whole = float(areas.sum())
    return Surface(
        hd95_mm=max(one.percentile(PERCENT) for one in both),
        assd_mm=float(np.sum(mm * areas)) / whole,
        nsd=float(areas[mm <= tolerance_mm].sum()) / whole,
    )


def distances(masks: Masks, spacing_mm: Sequence[float]) -> tuple[Distances, Distances]:
    """From the truth's surface to the prediction's, and back; neither mask may be empty."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    areas = _areas(spacing)
    codes, others_codes = _codes(masks.reference), _codes(masks.predicted)
    places, others = _elements(codes), _elements(others_codes)
    return (
        Distances(_nearest(places, others, others_codes, spacing), areas[_at(codes, places)]),
        Distances(_nearest(others, places, codes, spacing), areas[_at(others_codes, others)]),
    )


def _codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Which voxels of each 2 x 2 x 2 cube are in the mask: voxel (x, y, z) sets bit x + 2y + 4z.

    The mask has a margin, so that its outermost voxels have a surface, too.
    """
    found: NDArray[Any] = mask.view(np.uint8)
    found = found[:-1] | found[1:] << 1
    found = found[:, :-1] | found[:, 1:] << 2
    coded: NDArray[np.uint8] = found[:, :, :-1] | found[:, :, 1:] << 4
    return coded


def _elements(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where the cubes are that hold a piece of the surface: (n, 3)."""
    flat = np.flatnonzero(codes.ravel(order="F") + np.uint8(1) > 1)  # FULL + 1 is 0
    return np.stack(np.unravel_index(flat, codes.shape, order="F"), axis=1)


def _at(codes: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = codes[tuple(places.T)]
    return found


def _nearest(
    places: NDArray[np.int64], others: NDArray[np.int64], codes: NDArray[np.uint8], spacing: Array
) -> Array:
    """The distance from each place to the closest of the others, whose codes are given."""
    there = _at(codes, places)
    apart = (there == 0) | (there == FULL)  # the rest are on both surfaces
    mm = np.zeros(len(places))
    away = places[apart]
    # From whole steps: 3 * 0.7 - 2 * 0.7 is more than a tolerance of 0.7.
    steps = away - _closest(away, others, codes, spacing)
    mm[apart] = np.sqrt(((steps * spacing) ** 2).sum(axis=1))
    return mm


def _closest(
    places: NDArray[np.int64], others: NDArray[np.int64], codes: NDArray[np.uint8], spacing: Array
) -> NDArray[np.int64]:
    """Which of the others, whose codes are given, is the closest to each place.

    A tree of them is fast where the closest is near, and takes minutes where very many are almost
    as close: in noise, or about a ball's centre. There the distance transform takes over, whose
    time and memory (12 bytes a voxel) depend on the box alone.
    """
    from scipy.ndimage import distance_transform_edt
    from scipy.spatial import KDTree

    if max(len(places), len(others)) <= codes.size * CROWDED:
        near = NEAR * float(np.cbrt(spacing.prod()))
        tree = KDTree(others * spacing)
        _, found = tree.query(places * spacing, distance_upper_bound=near)
        if (found < len(others)).all():  # those with nothing near them have no index
            return np.asarray(others[found], dtype=np.int64)
    empty = (codes == 0) | (codes == FULL)
    indices = distance_transform_edt(
        empty, sampling=spacing, return_distances=False, return_indices=True
    )
    return np.asarray(indices[(slice(None), *places.T)].T, dtype=np.int64)


def _areas(spacing: Array) -> Array:
    """The area in mm^2 of the surface in a cube, by its code."""
    scale = spacing.prod() / spacing
    areas: Array = np.linalg.norm(_normals() * scale, axis=2).sum(axis=1)
    return areas


@cache
def _normals() -> NDArray[Any]:
    """Normals as long as the areas of the triangles in a unit cube: (code, triangle, 3)."""
    from skimage.measure import marching_cubes

    found: dict[int, NDArray[Any]] = {}
    for code in range(1, FULL):
        # A cube and its complement share a surface: it must not matter which side is the inside.
        filled = code if code.bit_count() <= 4 else FULL - code
        cube = np.array([filled >> bit & 1 for bit in range(8)], np.float32)
        cube = cube.reshape((2, 2, 2), order="F")
        corners, triangles, _, _ = marching_cubes(cube, 0.5, method="lorensen")
        a, b, c = (corners[triangles[:, i]].astype(np.float64) for i in range(3))
        found[code] = np.cross(b - a, c - a) / 2
    normals = np.zeros((FULL + 1, max(map(len, found.values())), 3))
    for code, of in found.items():
        normals[code, : len(of)] = of
    return normals
