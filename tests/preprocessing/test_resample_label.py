from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from batchgenerators.augmentations.utils import resize_segmentation
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.transform import resize

from autoseg.common.arrays import Triple
from autoseg.dataset.task import read_task
from autoseg.image.image import read_label
from autoseg.preprocessing import resample as module
from autoseg.preprocessing.resample import Ties, apply_operators, resample_label
from tests.dataset.making import HIPPOCAMPUS
from tests.preprocessing.resizing import one_axis_after_another

SHAPES = st.tuples(*[st.integers(1, 12)] * 3)
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None)


def slow_label(label: NDArray[Any], shape: Triple, orders: Triple) -> tuple[Any, Any]:
    """The winning value of every voxel, and by how much it wins, in float64."""
    values = np.unique(label)
    shares = [
        one_axis_after_another((label == value).astype(float), shape, orders) for value in values
    ]
    ranked = np.sort(shares, axis=0)
    margin = ranked[-1] - ranked[-2] if len(values) > 1 else np.ones(shape)
    best = np.array(shares) > ranked[-1] - 5e-7  # those that tie: the first has the smallest value
    return values[np.argmax(best, axis=0)], margin


@quick
@given(SHAPES, SHAPES, st.sampled_from([(1, 1, 1), (1, 1, 0), (0, 1, 1)]), SEEDS)
def test_label_equals_the_best_of_the_masks(
    old: Triple, new: Triple, orders: Triple, seed: int
) -> None:
    values = np.array([-1, 0, 3, 7], np.int16)
    label = np.random.default_rng(seed).choice(values, old)
    expected, margin = slow_label(label, new, orders)
    resampled = resample_label(label, new, orders, "smallest")
    assert resampled.dtype == np.int16
    decided = (margin < 5e-7) | (margin > 3e-6)  # in between float32 may see a tie or not
    assert (resampled == expected)[decided].all()


def test_the_smaller_value_wins_a_tie() -> None:
    for label in ([3, 3, 7, 7], [7, 7, 3, 3]):
        volume = np.array(label, np.int16).reshape(4, 1, 1)
        # Voxels of 4/3: the middle one of three takes half of each side.
        assert resample_label(volume, (3, 1, 1), (1, 1, 1), "smallest")[1, 0, 0] == 3


@settings(max_examples=150, deadline=None)
@given(SHAPES, SHAPES, st.integers(1, 6), st.integers(1, 2), st.booleans(), SEEDS)
def test_label_equals_batchgenerators(
    old: Triple, new: Triple, labels: int, edge: int, x_fastest: bool, seed: int
) -> None:
    label = np.random.default_rng(seed).integers(0, labels, old).astype(np.int16)
    label = np.kron(label, np.ones([edge] * 3, np.int16))
    if x_fastest:
        label = np.asfortranarray(label)
    expected = resize_segmentation(label, new, order=1, seg_tiebreak="nearest")
    assert (resample_label(label, new, (1, 1, 1)) == expected).all()


@quick
@given(SHAPES, SHAPES, st.integers(0, 2), SEEDS)
def test_a_coarse_axis_equals_batchgenerators_slice_by_slice(
    old: Triple, new: Triple, coarse: int, seed: int
) -> None:
    label = np.random.default_rng(seed).integers(0, 4, old).astype(np.int16)
    between = list(new)
    between[coarse] = old[coarse]
    slices = [
        resize_segmentation(piece, tuple(np.delete(new, coarse)), order=1)
        for piece in np.moveaxis(label, coarse, 0)
    ]
    expected = resize_segmentation(np.moveaxis(np.stack(slices), 0, coarse), new, order=0)
    orders = (int(coarse != 0), int(coarse != 1), int(coarse != 2))
    assert (resample_label(label, new, orders) == expected).all()


def test_a_lesion_of_one_slice_is_kept() -> None:
    label = np.zeros((16, 16, 16), np.int16)
    label[:, :, 7] = 1
    assert resample_label(label, (16, 16, 8), (1, 1, 1)).sum() == 256
    assert resample_label(label, (16, 16, 8), (1, 1, 1), "smallest").sum() == 0


def test_halved_slices_keep_the_foreground() -> None:
    lost = {"smallest": 0, "nearest": 0}
    total = 0
    for case in read_task(HIPPOCAMPUS).cases[:20]:
        label, _ = read_label(case.label)
        x, y, half = label.shape[0], label.shape[1], label.shape[2] // 2
        label = label[:, :, : 2 * half]
        total += (voxels := int(np.count_nonzero(label)))
        for ties in get_args(Ties):
            halved = resample_label(label, (x, y, half), (1, 1, 1), ties)
            lost[ties] += voxels - 2 * int(np.count_nonzero(halved))
    assert lost["smallest"] / total == pytest.approx(0.161, abs=1e-3)
    assert abs(lost["nearest"]) / total < 2e-3


@quick
@given(SHAPES, SHAPES, SEEDS)
def test_label_of_order_0_equals_scikit_image(old: Triple, new: Triple, seed: int) -> None:
    label = np.random.default_rng(seed).integers(-1, 30, old).astype(np.int16)
    nearest = resize(label.astype(float), new, order=0, mode="edge", anti_aliasing=False)
    assert (resample_label(label, new, (0, 0, 0)) == nearest).all()


def all_masks(label: NDArray[Any], shape: Triple, orders: Triple) -> NDArray[Any]:
    """Every label's share of every voxel, in float32."""
    best = np.full(shape, -np.inf, np.float32)
    out = np.zeros(shape, label.dtype)
    for value in np.unique(label):
        share = apply_operators((label == value).astype(np.float32), shape, orders)
        wins = share > best + 1e-6
        best[wins] = share[wins]
        out[wins] = value
    return out


@pytest.mark.parametrize("shape", [(17, 60, 23), (50, 41, 36), (35, 26, 80)])
def test_real_labels_equal_the_shares_of_all_masks(shape: Triple) -> None:
    for case in read_task(HIPPOCAMPUS).cases[:2]:
        label, _ = read_label(case.label)
        expected = all_masks(label, shape, (1, 1, 1))
        assert len(np.unique(expected)) == 3
        assert (resample_label(label, shape, (1, 1, 1), "smallest") == expected).all()


@quick
@given(SHAPES, SHAPES, st.integers(1, 3), SEEDS)
def test_compact_labels_equal_the_shares_of_all_masks(
    old: Triple, new: Triple, edge: int, seed: int
) -> None:
    """Blocks of voxels with the same label, so that most new voxels mix only one."""
    coarse = np.random.default_rng(seed).integers(-1, 3, [-(-n // edge) for n in old])
    label = np.kron(coarse, np.ones([edge] * 3, int))[: old[0], : old[1], : old[2]]
    expected = all_masks(label, new, (1, 1, 1))
    decided = slow_label(label, new, (1, 1, 1))[1]
    agree = resample_label(label, new, (1, 1, 1), "smallest") == expected
    assert agree[(decided < 5e-7) | (decided > 3e-6)].all()


@pytest.mark.parametrize("new", [(4, 8, 9), (12, 3, 5)])
def test_memory_layout_and_slabs_do_not_matter(
    new: Triple, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.random.default_rng(0).integers(0, 3, (12, 11, 13)).astype(np.uint8)
    box = (slice(2, 11), slice(1, 8), slice(3, 9))
    for ties in get_args(Ties):
        expected = resample_label(whole[box].copy(), new, (1, 1, 1), ties)
        for voxels in (1, 40, 1 << 19):
            monkeypatch.setattr(module, "LABEL_SLAB_VOXELS", voxels)
            for stored in (whole, whole.T.copy().T):
                assert (resample_label(stored[box], new, (1, 1, 1), ties) == expected).all()


def test_masks_are_resampled_to_the_nearest() -> None:
    mask = np.random.default_rng(0).random((9, 7, 5)) < 0.5
    found = resample_label(mask, (5, 9, 3), (0, 0, 0))
    assert found.dtype == np.bool_
    assert (found == resample_label(mask.astype(np.uint8), (5, 9, 3), (0, 0, 0))).all()


def test_a_spline_of_higher_order_is_refused() -> None:
    with pytest.raises(AssertionError):
        resample_label(np.zeros((9, 9, 9), np.uint8), (4, 4, 4), (3, 3, 3))
