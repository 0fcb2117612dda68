"""Surface distances between a prediction and its reference, in mm.

The surface of a mask runs between voxel centres, as in marching cubes: each cube of 2 x 2 x 2
voxels that the mask partly fills holds one surface element, located at the centre of the cube, with
the area of its triangles. All metrics weight the elements by their area. This is the definition of
DeepMind's `surface-distance` package (Nikolov et al. 2021, doi 10.2196/26151).

A scan of one slice has contours in its plane instead, as in that package's 2D mode: otherwise the
slice's own top and bottom would be its surface. There the elements are weighted by their length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

from autoseg.evaluation.metrics import Masks

Array = NDArray[np.float64]
PERCENT = 95
ROUNDING = 1e-9
SEARCH_VOXELS = 20  # radius within which the k-d tree is searched
MOST_SURFACE = 0.1  # share of cubes with a surface element above which no k-d tree is used
FULL = 255  # code of a cube with all eight voxels in the mask


@dataclass(frozen=True)
class Surface:
    """The surface metrics of one class in one case; None if the class is in neither label map.

    Attributes:
        hd95_mm: robust Hausdorff distance: the 95th percentile of the distances from one surface to
            the other, weighted by area; the larger of both directions.
        assd_mm: average symmetric surface distance: the mean distance to the other surface,
            weighted by area, over both surfaces together.
        nsd: normalised surface Dice: the share of the area of both surfaces that is within the
            tolerance of the other surface.
    """

    hd95_mm: float | None
    assd_mm: float | None
    nsd: float | None


def surface(
    masks: Masks, spacing_mm: Sequence[float], tolerance_mm: float, diagonal_mm: float
) -> Surface:
    """The surface metrics of one class.

    Args:
        masks: the class in reference and prediction, from `cut_masks`.
        spacing_mm: voxel spacing along x, y, z.
        tolerance_mm: distance up to which two surfaces agree.
        diagonal_mm: diagonal of the full grid (of its plane if it is one slice): the distance if
            only one of the two has the class.
    """
    present = masks.reference.any(), masks.predicted.any()
    if not any(present):
        return Surface(None, None, None)
    if not all(present):
        return Surface(diagonal_mm, diagonal_mm, 0.0)
    both = distances(masks, spacing_mm)
    mm, areas = map(np.concatenate, zip(*both, strict=True))
    total = float(areas.sum())
    return Surface(
        hd95_mm=max(_percentile(*one) for one in both),
        assd_mm=float(np.sum(mm * areas)) / total,
        nsd=float(areas[mm <= tolerance_mm].sum()) / total,
    )


def _percentile(mm: Array, areas: Array) -> float:
    """The distance that `PERCENT` of the area does not exceed."""
    order = np.lexsort((areas, mm))
    share = np.cumsum(areas[order]) / np.sum(areas)
    # Tolerates rounding errors of the sum where a share is reached exactly.
    index = int(np.searchsorted(share, PERCENT / 100 - ROUNDING))
    return float(mm[order[index]])


def distances(masks: Masks, spacing_mm: Sequence[float]) -> list[tuple[Array, Array]]:
    """The distances from reference to prediction and back; neither mask may be empty.

    Of each element of a surface: the distance to the other surface in mm, and the area in mm^2; of
    a scan of one slice the length of the contour in mm.
    """
    spacing = np.array(spacing_mm, dtype=np.float64)
    spacing[list(masks.flat)] = 1  # the thickness does not matter
    areas, codes = _areas(spacing), []
    for mask in (masks.reference, masks.predicted):
        for axis in masks.flat:  # a second, equal slice instead of the margin: no end there
            mask = mask.take([1, 1], axis)
        codes.append(_codes(mask))
    (a, a_codes), (b, b_codes) = ((_elements(of), of) for of in codes)
    return [
        (_nearest(a, b, b_codes, spacing), areas[a_codes[tuple(a.T)]]),
        (_nearest(b, a, a_codes, spacing), areas[b_codes[tuple(b.T)]]),
    ]


def _codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The voxels of each 2 x 2 x 2 cube as bits: voxel (x, y, z) sets bit x + 2y + 4z.

    Because of the margin of the mask its outermost voxels have a surface too.
    """
    found: NDArray[Any] = mask.view(np.uint8)
    found = found[:-1] | found[1:] << 1
    found = found[:, :-1] | found[:, 1:] << 2
    return np.asarray(found[:, :, :-1] | found[:, :, 1:] << 4)


def _elements(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The indices of the cubes with a surface element: (n, 3)."""
    flat = np.flatnonzero(codes.ravel(order="F") + np.uint8(1) > 1)  # FULL + 1 is 0
    return np.stack(np.unravel_index(flat, codes.shape, order="F"), axis=1)


def _nearest(
    elements: NDArray[np.int64], others: NDArray[np.int64], codes: NDArray[np.uint8], spacing: Array
) -> Array:
    """The distance from each element to the closest of the others, whose codes are given."""
    found = codes[tuple(elements.T)]
    apart = (found == 0) | (found == FULL)  # the rest are on both surfaces
    mm = np.zeros(len(elements))
    away = elements[apart]
    # From integer steps: in floating point 3 * 0.7 - 2 * 0.7 exceeds a tolerance of 0.7.
    steps = away - _closest(away, others, codes, spacing)
    mm[apart] = np.sqrt(((steps * spacing) ** 2).sum(axis=1))
    return mm


def _closest(
    elements: NDArray[np.int64], others: NDArray[np.int64], codes: NDArray[np.uint8], spacing: Array
) -> NDArray[np.int64]:
    """The closest of the others, whose codes are given, to each element.

    A k-d tree is fast if the closest element is near, and takes minutes if very many are almost
    equally close: in noise, or around the centre of a ball. The distance transform is used there;
    its time and memory (12 bytes per voxel) depend only on the box.
    """
    if max(len(elements), len(others)) <= codes.size * MOST_SURFACE:
        radius = SEARCH_VOXELS * float(np.cbrt(spacing.prod()))
        tree = KDTree(others * spacing)
        _, found = tree.query(elements * spacing, distance_upper_bound=radius)
        if (found < len(others)).all():  # an element without a neighbour has the index len(others)
            return np.asarray(others[found], dtype=np.int64)
    empty = (codes == 0) | (codes == FULL)
    indices = distance_transform_edt(
        empty, sampling=spacing, return_distances=False, return_indices=True
    )
    return np.asarray(indices[(slice(None), *elements.T)].T, dtype=np.int64)


def _areas(spacing: Array) -> Array:
    """The surface area in a cube in mm^2, by its code."""
    scale = spacing.prod() / spacing
    return np.asarray(np.linalg.norm(_normals() * scale, axis=2).sum(axis=1))


@cache
def _normals() -> NDArray[Any]:
    """Normals of the triangles in a unit cube, scaled by their areas: (code, triangle, 3)."""
    found: dict[int, NDArray[Any]] = {}
    for code in range(1, FULL):
        # A cube and its complement have the same surface, whichever side is the inside.
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
