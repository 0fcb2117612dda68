from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from sklearn import metrics as reference

from autoseg.common.arrays import Mask
from autoseg.evaluation.metrics import METRICS, Lesions, Overlap, cut_masks, lesions, overlap
from autoseg.evaluation.scores import total


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
    assert overlap(cut_masks(truth, prediction, (1,))) == Overlap(tp=7, fp=1, fn=2, tn=17)
    assert overlap(cut_masks(truth, prediction, (2,))) == Overlap(tp=3, fp=0, fn=0, tn=24)


def ratios(scores: Overlap) -> dict[str, float | None]:
    return {name: of.of(scores) for name, of in METRICS.items() if of.group == "labels"}


def test_golden_overlap() -> None:
    scores = Overlap(tp=7, fp=1, fn=2, tn=17)
    assert ratios(scores) == {
        **{"Dice": pytest.approx(14 / 17), "IoU": 7 / 10, "Sensitivity": 7 / 9},
        **{"Specificity": 17 / 18, "Precision": 7 / 8, "Accuracy": 24 / 27},
    }
    assert (scores.n_ref, scores.n_pred) == (9, 8)


def test_a_region_is_the_union_of_its_values() -> None:
    truth, prediction = handmade()
    assert overlap(cut_masks(truth, prediction, (1, 2))) == Overlap(tp=10, fp=1, fn=2, tn=14)
    prediction[1, 0] = 1  # within the region it does not matter which of its values
    assert overlap(cut_masks(truth, prediction, (1, 2))) == Overlap(tp=10, fp=1, fn=2, tn=14)


def test_ignored_voxels_do_not_count() -> None:
    truth, prediction = handmade()
    truth[0, 0, 0] = 9  # was a false negative
    truth[2, 2, 2] = 9  # was a false positive
    assert overlap(cut_masks(truth, prediction, (1,), ignore=9)) == Overlap(tp=7, fp=0, fn=1, tn=17)


def test_everything_ignored_gives_no_number() -> None:
    scores = overlap(cut_masks(np.full((2, 2, 2), 9), np.ones((2, 2, 2), int), (1,), ignore=9))
    assert set(ratios(scores).values()) == {None}


def test_both_empty_gives_no_dice() -> None:
    scores = Overlap(tp=0, fp=0, fn=0, tn=8)
    assert ratios(scores) == {
        **dict.fromkeys(("Dice", "IoU", "Sensitivity", "Precision")),
        **{"Specificity": 1.0, "Accuracy": 1.0},
    }


def test_one_empty_gives_dice_zero() -> None:
    names = ("Dice", "Sensitivity", "Precision")
    invented = ratios(Overlap(tp=0, fp=3, fn=0, tn=5))
    assert [invented[name] for name in names] == [0.0, None, 0.0]
    lost = ratios(Overlap(tp=0, fp=0, fn=3, tn=5))
    assert [lost[name] for name in names] == [0.0, 0.0, None]


label_maps = hnp.arrays(np.uint8, (3, 2, 4), elements=st.integers(0, 3))


@given(label_maps, label_maps, st.sampled_from([(1,), (2,), (1, 3)]))
def test_equals_scikit_learn(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], values: tuple[int, ...]
) -> None:
    found = overlap(cut_masks(truth, prediction, values))
    flat = [np.isin(array, values).ravel() for array in (truth, prediction)]
    expected: dict[str, Any] = {
        "Dice": reference.f1_score(*flat, zero_division=np.nan),
        "IoU": reference.jaccard_score(*flat, zero_division=0)
        if flat[0].any() or flat[1].any()
        else None,
        "Sensitivity": reference.recall_score(*flat, zero_division=np.nan),
        "Specificity": reference.recall_score(*flat, pos_label=False, zero_division=np.nan),
        "Precision": reference.precision_score(*flat, zero_division=np.nan),
        "Accuracy": reference.accuracy_score(*flat),
    }
    for name, value in expected.items():
        mine = ratios(found)[name]
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
        ratios(overlap(cut_masks(*pair, (1,))))
        for pair in [(truth, prediction), (prediction, truth)]
    )
    assert there["Dice"] == back["Dice"]
    assert there["Sensitivity"] == back["Precision"]
    if (dice := there["Dice"]) is not None:
        assert there["IoU"] == pytest.approx(dice / (2 - dice))


@given(label_maps, label_maps, st.integers(0, 3))
def test_ignoring_equals_leaving_out(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], ignore: int
) -> None:
    kept = truth != ignore
    values = (1,) if ignore != 1 else (2,)
    left_out = overlap(cut_masks(truth[kept], prediction[kept], values))
    assert overlap(cut_masks(truth, prediction, values, ignore)) == left_out


mask_pairs = st.tuples(*[st.integers(1, 7)] * 3).flatmap(
    lambda shape: st.tuples(
        *[hnp.arrays(bool, shape, elements=st.sampled_from([False, False, False, True]))] * 2
    )
)


def lesions_of(truth: Mask, predicted: Mask) -> Lesions:
    return lesions(cut_masks(truth.astype(np.uint8), predicted.astype(np.uint8), (1,)))


def slow_lesions(truth: Mask, predicted: Mask) -> Lesions:
    """Component by component, labelled by SciPy."""
    found = []
    for mask, other in ((truth, predicted), (predicted, truth)):
        labels, number = ndimage.label(mask, np.ones((3, 3, 3)))
        found += [number, sum(bool(other[labels == i + 1].any()) for i in range(number))]
    reference, hit, there, right = found
    return Lesions(reference, hit, there, there - right)


@settings(deadline=None)
@given(mask_pairs)
def test_lesions_equal_a_slow_count(pair: tuple[Mask, Mask]) -> None:
    assert lesions_of(*pair) == slow_lesions(*pair)


@settings(deadline=None)
@given(mask_pairs)
def test_lesion_recall_is_precision_of_the_swapped_pair(pair: tuple[Mask, Mask]) -> None:
    there, back = lesions_of(*pair), lesions_of(*pair[::-1])
    recall, precision = METRICS["LesionRecall"].of, METRICS["LesionPrecision"].of
    assert (recall(there), precision(there)) == (precision(back), recall(back))
    assert there.missed == back.false


def test_golden_lesions() -> None:
    """Three lesions, of which one is hit twice, one by a corner voxel, one not; one is invented."""
    truth, predicted = np.zeros((2, 20, 5, 5), bool)
    truth[0:5, 1, 1] = truth[7:9, 1:3, 1] = truth[12, 4, 4] = True
    predicted[0, 1, 1] = predicted[4, 1, 1] = predicted[8:10, 2:4, 1] = predicted[17, 0, 0] = True
    found = lesions_of(truth, predicted)
    assert found == Lesions(3, 2, 4, 1)
    assert found.missed == 1


def test_a_corner_connects() -> None:
    truth = np.zeros((2, 2, 2), bool)
    truth[0, 0, 0] = truth[1, 1, 1] = True
    assert lesions_of(truth, truth).reference == 1


@pytest.mark.parametrize("axis", range(3))
def test_a_single_line_of_voxels(axis: int) -> None:
    """cc3d itself fails on these."""
    line = np.zeros((7, 7, 7), bool)
    line[tuple(slice(1, 6, 2) if other == axis else 3 for other in range(3))] = True
    assert lesions_of(line, line) == Lesions(3, 3, 3, 0)


def test_lesions_of_empty_masks() -> None:
    nothing, one = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert lesions_of(nothing, nothing) == Lesions(0, 0, 0, 0)
    assert lesions_of(one, nothing) == Lesions(1, 0, 0, 0)
    assert lesions_of(nothing, one) == Lesions(0, 0, 1, 1)


def test_pooled_lesions_count_the_same() -> None:
    of = [Lesions(1, 1, 1, 0), Lesions(9, 0, 0, 0), Lesions(0, 0, 2, 2)]
    assert total(of) == Lesions(10, 1, 3, 2)


def test_a_box_around_a_class_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    truth, prediction = np.zeros((2, 9, 8, 7), np.uint16)
    truth[2:5, 3:6, 1:4] = rng.integers(0, 3, (3, 3, 3))
    prediction[3:7, 3:6, 2:5] = rng.integers(0, 3, (4, 3, 3))
    truth[4, 4, 2:] = 9
    box = (slice(2, 7), slice(3, 6), slice(1, 7))
    whole, part = (cut_masks(truth, prediction, (1, 2), 9, None, of) for of in ((), box))
    assert np.array_equal(whole.reference, part.reference)
    assert np.array_equal(whole.predicted, part.predicted)
    assert (whole.voxels, whole.flat) == (part.voxels, part.flat)
    nowhere = cut_masks(truth, prediction, (5,), box=(slice(0),) * 3)
    assert not nowhere.reference.any()
    assert nowhere.voxels == truth.size
