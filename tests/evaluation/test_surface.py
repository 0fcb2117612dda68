from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import surface_distance as deepmind
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from surface_distance.lookup_tables import (
    ENCODE_NEIGHBOURHOOD_3D_KERNEL,
    create_table_neighbour_code_to_surface_area,
)

from autoseg.evaluation.metrics import cut_masks
from autoseg.evaluation.surface import FULL, Surface, _areas, _codes, surface
from autoseg.image.image import read_label
from tests.evaluation.scores import HIPPOCAMPUS

Mask = NDArray[np.bool_]
DIAGONAL = 99.0
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (2.5, 0.31, 1.17)]

masks = hnp.arrays(bool, st.tuples(*[st.integers(1, 7)] * 3))
pairs = st.tuples(*[st.integers(1, 6)] * 3).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)

slices = st.tuples(*[st.integers(2, 9)] * 2).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)


def score(
    truth: Mask,
    predicted: Mask,
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    tolerance: float = 1.0,
) -> Surface:
    cut = cut_masks(truth.astype(np.uint8), predicted.astype(np.uint8), (1,))
    return surface(cut, spacing, tolerance, DIAGONAL)


def deepminds(
    truth: Mask, predicted: Mask, spacing: tuple[float, ...], tolerance: float
) -> dict[str, float]:
    """The same figures by DeepMind's package, which divides by zero where a mask is empty."""
    kept = [axis for axis, size in enumerate(truth.shape) if size > 1]
    if len(kept) == 2:  # their 2D mode
        truth, predicted = truth.squeeze(), predicted.squeeze()
        spacing = tuple(spacing[axis] for axis in kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # scipy's old names
        of = deepmind.compute_surface_distances(truth, predicted, spacing)
    there, back = deepmind.compute_average_surface_distance(of)
    areas = of["surfel_areas_gt"].sum(), of["surfel_areas_pred"].sum()
    return {
        # A share that is reached but for the rounding of a sum is reached.
        "hd95_mm": deepmind.compute_robust_hausdorff(of, 95 - 1e-7),
        "assd_mm": (there * areas[0] + back * areas[1]) / sum(areas),
        "nsd": deepmind.compute_surface_dice_at_tolerance(of, tolerance),
    }


@pytest.mark.parametrize("spacing", SPACINGS)
def test_areas_are_deepminds(spacing: tuple[float, ...]) -> None:
    theirs = create_table_neighbour_code_to_surface_area(spacing)
    kernel = np.array(ENCODE_NEIGHBOURHOOD_3D_KERNEL)
    mine = _areas(np.array(spacing))
    for code in range(FULL + 1):
        cube = (code & kernel) > 0
        (own,) = _codes(cube).ravel()
        assert mine[own] == pytest.approx(theirs[code], abs=1e-12)


@settings(deadline=None, max_examples=150)
@given(pairs, st.sampled_from(SPACINGS), st.sampled_from([0.5, 0.7, 1.0, 1.4, 3.0]))
def test_equals_deepmind(
    pair: tuple[Mask, Mask], spacing: tuple[float, ...], tolerance: float
) -> None:
    truth, predicted = pair
    if not (truth.any() and predicted.any()) or truth.shape.count(1) > 1:
        return
    found = score(truth, predicted, spacing, tolerance)
    expected = deepminds(truth, predicted, spacing, tolerance)
    assert vars(found) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(slices, st.integers(0, 2), st.sampled_from(SPACINGS), st.sampled_from([0.5, 0.7, 1.4, 3.0]))
def test_one_slice_equals_deepminds_2d_mode(
    pair: tuple[Mask, Mask], flat: int, spacing: tuple[float, ...], tolerance: float
) -> None:
    truth, predicted = (np.expand_dims(mask, flat) for mask in pair)
    if truth.any() and predicted.any():
        found = score(truth, predicted, spacing, tolerance)
        expected = deepminds(truth, predicted, spacing, tolerance)
        assert vars(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("thickness", [0.1, 1.0, 5.0, 400.0])
@pytest.mark.parametrize("flat", [0, 1, 2])
def test_a_shifted_disc_in_one_slice(flat: int, thickness: float) -> None:
    x, y = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
    first, second = (np.hypot(x - middle, y - 32) <= 14 for middle in (26, 32))
    spacing = [1.0, 1.0]
    spacing.insert(flat, thickness)
    found = score(np.expand_dims(first, flat), np.expand_dims(second, flat), tuple(spacing))
    assert found.hd95_mm == 6.0
    assert found == score(first[..., None], second[..., None])
    assert found.nsd is not None
    assert 0.2 < found.nsd < 0.35


def test_a_slab_in_a_volume_still_has_a_top_and_a_bottom() -> None:
    slab = np.zeros((6, 6, 3), bool)
    slab[1:5, 1:5, 1] = True
    assert score(slab, np.roll(slab, 1, axis=2), tolerance=0.5) != score(slab, slab)
    assert score(slab, np.roll(slab, 1, axis=0)).nsd == 1.0


def test_rows_of_voxels() -> None:
    truth, predicted = np.zeros((2, 1, 9, 1), bool)
    truth[0, 1:3] = predicted[0, 1:7] = True
    assert score(truth, predicted, (7.0, 0.5, 7.0)) == Surface(2.0, 0.75, 0.75)


@pytest.mark.parametrize("value", [1, 2])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_equals_deepmind_on_real_shapes(value: int, spacing: tuple[float, ...]) -> None:
    first, second = (
        read_label(path)[0] for path in sorted((HIPPOCAMPUS / "labelsTr").iterdir())[:2]
    )
    x, y, z = np.minimum(first.shape, second.shape)
    truth, predicted = (np.asarray(one[:x, :y, :z] == value) for one in (first, second))
    found = score(truth, predicted, spacing, 2.0)
    assert vars(found) == pytest.approx(deepminds(truth, predicted, spacing, 2.0), abs=1e-9)
    assert found.nsd is not None
    assert 0 < found.nsd < 1


@pytest.mark.parametrize("crowded", [0.0, 1.0])
@pytest.mark.parametrize("near", [1, 3, 50])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_tree_and_a_transform_find_the_same(
    crowded: float, near: int, spacing: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`near` 1 sends a search in the tree on to the transform."""
    monkeypatch.setattr("autoseg.evaluation.surface.MOST_SURFACE", crowded)
    monkeypatch.setattr("autoseg.evaluation.surface.SEARCH_VOXELS", near)
    rng = np.random.default_rng(3)
    truth, predicted = rng.random((2, 17, 15, 12)) < 0.004
    truth[3:6, 4:9, 2:7] = predicted[5:8, 3:9, 3:6] = True
    found = score(truth, predicted, spacing, 2.0)
    assert vars(found) == pytest.approx(deepminds(truth, predicted, spacing, 2.0), abs=1e-9)


def test_memory_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.random((2, 9, 7, 8)) < 0.5
    turned = np.asfortranarray(truth), np.asfortranarray(predicted)
    assert score(truth, predicted) == score(*turned) == score(truth, turned[1])


@settings(deadline=None)
@given(masks)
def test_a_mask_against_itself(mask: Mask) -> None:
    nothing = Surface(None, None, None)
    assert score(mask, mask) == (Surface(0.0, 0.0, 1.0) if mask.any() else nothing)


@settings(deadline=None)
@given(pairs)
def test_symmetric(pair: tuple[Mask, Mask]) -> None:
    assert vars(score(*pair)) == pytest.approx(vars(score(*pair[::-1])))


@settings(deadline=None)
@given(pairs, st.permutations([0, 1, 2]), st.sampled_from([1, -1]))
def test_axes_may_be_turned_and_flipped(
    pair: tuple[Mask, Mask], order: list[int], step: int
) -> None:
    spacing = (0.7, 1.3, 5.0)
    turned = [mask.transpose(order)[::step] for mask in pair]
    found = score(turned[0], turned[1], tuple(spacing[axis] for axis in order))
    assert vars(found) == pytest.approx(vars(score(*pair, spacing)))


@settings(deadline=None)
@given(pairs)
def test_more_tolerance_never_scores_less(pair: tuple[Mask, Mask]) -> None:
    found = [score(*pair, tolerance=mm).nsd for mm in (0.5, 1.0, 2.0, 20.0)]
    if found[0] is not None:
        assert found == sorted(found)  # type: ignore[type-var]
        assert found[-1] == (1.0 if pair[0].any() and pair[1].any() else 0.0)


@settings(deadline=None)
@given(pairs, st.sampled_from([0.3, 0.5, 1.7, 8.0]))
def test_distances_grow_with_the_voxels(pair: tuple[Mask, Mask], factor: float) -> None:
    found, grown = score(*pair), score(*pair, spacing=(factor,) * 3, tolerance=factor * 1.0001)
    if pair[0].any() and pair[1].any():
        assert found.hd95_mm is not None
        assert found.assd_mm is not None
        assert grown.hd95_mm == pytest.approx(factor * found.hd95_mm)
        assert grown.assd_mm == pytest.approx(factor * found.assd_mm)


@pytest.mark.parametrize("axis", range(3))
def test_a_slab_shifted_by_one_voxel(axis: int) -> None:
    """Both large faces lie one voxel apart, and nothing lies farther."""
    spacing = (0.7, 1.3, 3.0)
    slab = np.zeros((12, 12, 12), bool)
    slab[tuple(slice(4, 7) if other == axis else slice(None) for other in range(3))] = True
    shifted = np.roll(slab, 1, axis)
    found = score(slab, shifted, spacing, tolerance=spacing[axis])
    assert found.hd95_mm == pytest.approx(spacing[axis])
    assert found.nsd == 1.0  # a distance of exactly the tolerance agrees
    less = score(slab, shifted, spacing, spacing[axis] * 0.999).nsd
    assert less is not None
    assert less < 1


def test_golden_single_voxels() -> None:
    """Two voxels three steps apart: of eight elements each, four lie 2 and four 3 away."""
    truth, predicted = np.zeros((2, 6, 3, 3), bool)
    truth[1, 1, 1] = predicted[4, 1, 1] = True
    found = score(truth, predicted, (2.0, 1.0, 1.0), tolerance=4.0)
    assert found == Surface(6.0, 5.0, 0.5)


def test_only_one_of_the_two_is_there() -> None:
    mask, nothing = np.ones((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    assert score(mask, nothing) == score(nothing, mask) == Surface(DIAGONAL, DIAGONAL, 0.0)


def test_a_ball_in_a_ball() -> None:
    """Radii 6 and 9 mm about one centre: 3 mm apart everywhere, as fine as the voxels are."""
    x, y, z = np.meshgrid(*[np.arange(-11, 12)] * 3, indexing="ij")
    radius: Any = np.sqrt(x * x + y * y + z * z)
    found = score(radius <= 6, radius <= 9, tolerance=4.0)
    assert found.assd_mm == pytest.approx(3, abs=0.6)
    assert found.nsd == 1.0
    less = score(radius <= 6, radius <= 9, tolerance=1.5).nsd
    assert less == 0.0


def test_far_apart_in_a_corner_of_a_large_grid(tmp_path: Path) -> None:
    truth, predicted = np.zeros((2, 40, 3, 2), np.uint8)
    truth[0, 0, 0] = predicted[39, 2, 1] = 1
    found = surface(cut_masks(truth, predicted, (1,)), (1.0, 1.0, 1.0), 1.0, DIAGONAL)
    assert found.hd95_mm is not None
    assert 38 < found.hd95_mm <= math.hypot(39, 2, 1)
