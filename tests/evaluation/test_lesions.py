from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from autoseg.evaluation.metrics import Lesions, cut_masks, lesions, pool

Mask = NDArray[np.bool_]
pairs = st.tuples(*[st.integers(1, 7)] * 3).flatmap(
    lambda shape: st.tuples(
        *[hnp.arrays(bool, shape, elements=st.sampled_from([False, False, False, True]))] * 2
    )
)


def score(truth: Mask, predicted: Mask) -> Lesions:
    return lesions(cut_masks(truth.astype(np.uint8), predicted.astype(np.uint8), (1,)))


def slow(truth: Mask, predicted: Mask) -> Lesions:
    """Component by component, labelled by SciPy."""
    found = []
    for mask, other in ((truth, predicted), (predicted, truth)):
        labels, number = ndimage.label(mask, np.ones((3, 3, 3)))
        found += [number, sum(bool(other[labels == i + 1].any()) for i in range(number))]
    reference, hit, there, right = found
    return Lesions.of(reference, hit, there, there - right)


@settings(deadline=None)
@given(pairs)
def test_equals_a_slow_count(pair: tuple[Mask, Mask]) -> None:
    assert score(*pair) == slow(*pair)


@settings(deadline=None)
@given(pairs)
def test_turned_round_recall_is_precision(pair: tuple[Mask, Mask]) -> None:
    there, back = score(*pair), score(*pair[::-1])
    assert (there.recall, there.precision) == (back.precision, back.recall)
    assert there.missed == back.false


def test_golden() -> None:
    """Three lesions, of which one is hit twice, one by a corner voxel, one not; one is invented."""
    truth, predicted = np.zeros((2, 20, 5, 5), bool)
    truth[0:5, 1, 1] = truth[7:9, 1:3, 1] = truth[12, 4, 4] = True
    predicted[0, 1, 1] = predicted[4, 1, 1] = predicted[8:10, 2:4, 1] = predicted[17, 0, 0] = True
    found = score(truth, predicted)
    assert found == Lesions(3, 2, 4, 1, recall=2 / 3, precision=3 / 4)
    assert found.missed == 1


def test_a_corner_connects() -> None:
    truth = np.zeros((2, 2, 2), bool)
    truth[0, 0, 0] = truth[1, 1, 1] = True
    assert score(truth, truth).reference == 1


@pytest.mark.parametrize("axis", range(3))
def test_a_single_line_of_voxels(axis: int) -> None:
    """cc3d itself fails on these."""
    line = np.zeros((7, 7, 7), bool)
    line[tuple(slice(1, 6, 2) if other == axis else 3 for other in range(3))] = True
    assert score(line, line) == Lesions(3, 3, 3, 0, 1.0, 1.0)


def test_empty_masks() -> None:
    nothing, one = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert score(nothing, nothing) == Lesions(0, 0, 0, 0, None, None)
    assert score(one, nothing) == Lesions(1, 0, 0, 0, 0.0, None)
    assert score(nothing, one) == Lesions(0, 0, 1, 1, None, 0.0)


def test_pooled_lesions_count_the_same() -> None:
    of = [Lesions.of(1, 1, 1, 0), Lesions.of(9, 0, 0, 0), Lesions.of(0, 0, 2, 2)]
    assert pool(of) == Lesions(10, 1, 3, 2, 0.1, 1 / 3)
    assert pool([]) == Lesions(0, 0, 0, 0, None, None)
