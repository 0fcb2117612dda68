from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn import metrics as reference

from autoseg.evaluation.metrics import Overlap, cut_masks, overlap


def handmade() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """3 x 3 x 3: the truth has nine 1s and three 2s; two 1s are lost, one 0 becomes 1."""
    truth = np.zeros((3, 3, 3), np.uint8)
    truth[0] = 1
    truth[1, 0] = 2
    prediction = truth.copy()
    prediction[0, 0, :2] = 0
    prediction[2, 2, 2] = 1
    return truth, prediction


def test_golden_counts() -> None:
    truth, prediction = handmade()
    assert overlap(cut_masks(truth, prediction, (1,))) == Overlap.of(tp=7, fp=1, fn=2, tn=17)
    assert overlap(cut_masks(truth, prediction, (2,))) == Overlap.of(tp=3, fp=0, fn=0, tn=24)


def test_golden_overlap() -> None:
    scores = Overlap.of(tp=7, fp=1, fn=2, tn=17)
    assert scores.dice == pytest.approx(14 / 17)
    assert scores.iou == 7 / 10
    assert scores.sensitivity == 7 / 9
    assert scores.specificity == 17 / 18
    assert scores.precision == 7 / 8
    assert scores.accuracy == 24 / 27
    assert (scores.tp, scores.fp, scores.fn, scores.tn) == (7, 1, 2, 17)
    assert (scores.n_ref, scores.n_pred) == (9, 8)


def test_a_region_is_the_union_of_its_values() -> None:
    truth, prediction = handmade()
    assert overlap(cut_masks(truth, prediction, (1, 2))) == Overlap.of(tp=10, fp=1, fn=2, tn=14)
    prediction[1, 0] = 1  # within the region it does not matter which of its values
    assert overlap(cut_masks(truth, prediction, (1, 2))) == Overlap.of(tp=10, fp=1, fn=2, tn=14)


def test_ignored_voxels_do_not_count() -> None:
    truth, prediction = handmade()
    truth[0, 0, 0] = 9  # was a false negative
    truth[2, 2, 2] = 9  # was a false positive
    assert overlap(cut_masks(truth, prediction, (1,), ignore=9)) == Overlap.of(
        tp=7, fp=0, fn=1, tn=17
    )


def test_everything_ignored_gives_no_number() -> None:
    scores = overlap(cut_masks(np.full((2, 2, 2), 9), np.ones((2, 2, 2), int), (1,), ignore=9))
    assert scores.dice is None
    assert scores.accuracy is None


def test_both_empty_gives_no_dice() -> None:
    scores = Overlap.of(tp=0, fp=0, fn=0, tn=8)
    assert (scores.dice, scores.iou, scores.sensitivity, scores.precision) == (None,) * 4
    assert (scores.specificity, scores.accuracy) == (1.0, 1.0)


def test_one_empty_gives_dice_zero() -> None:
    invented = Overlap.of(tp=0, fp=3, fn=0, tn=5)
    assert (invented.dice, invented.sensitivity, invented.precision) == (0.0, None, 0.0)
    lost = Overlap.of(tp=0, fp=0, fn=3, tn=5)
    assert (lost.dice, lost.sensitivity, lost.precision) == (0.0, 0.0, None)


label_maps = hnp.arrays(np.uint8, (3, 2, 4), elements=st.integers(0, 3))


@given(label_maps, label_maps, st.sampled_from([(1,), (2,), (1, 3)]))
def test_equals_scikit_learn(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], values: tuple[int, ...]
) -> None:
    found = overlap(cut_masks(truth, prediction, values))
    flat = [np.isin(array, values).ravel() for array in (truth, prediction)]
    expected: dict[str, Any] = {
        "dice": reference.f1_score(*flat, zero_division=np.nan),
        "iou": reference.jaccard_score(*flat, zero_division=0)
        if flat[0].any() or flat[1].any()
        else None,
        "sensitivity": reference.recall_score(*flat, zero_division=np.nan),
        "specificity": reference.recall_score(*flat, pos_label=False, zero_division=np.nan),
        "precision": reference.precision_score(*flat, zero_division=np.nan),
        "accuracy": reference.accuracy_score(*flat),
    }
    for name, value in expected.items():
        mine = getattr(found, name)
        if value is None or np.isnan(value):
            assert mine is None, name
        else:
            assert mine == pytest.approx(value), name
    matrix = reference.confusion_matrix(*flat, labels=[False, True]).ravel().tolist()
    assert [found.tn, found.fp, found.fn, found.tp] == matrix


@given(label_maps, label_maps)
def test_dice_is_symmetric_and_iou_follows_from_it(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8]
) -> None:
    there, back = (
        overlap(cut_masks(*pair, (1,))) for pair in [(truth, prediction), (prediction, truth)]
    )
    assert there.dice == back.dice
    assert there.sensitivity == back.precision
    if there.dice is not None:
        assert there.iou == pytest.approx(there.dice / (2 - there.dice))


@given(label_maps, label_maps, st.integers(0, 3))
def test_ignoring_equals_leaving_out(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], ignore: int
) -> None:
    kept = truth != ignore
    values = (1,) if ignore != 1 else (2,)
    left_out = overlap(cut_masks(truth[kept], prediction[kept], values))
    assert overlap(cut_masks(truth, prediction, values, ignore)) == left_out
