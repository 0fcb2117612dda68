from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.common.figures import window_of
from autoseg.evaluation.figures.views import (
    Exhibit,
    View,
    fullest_slices,
    read_view,
    scroll_slices,
    slicing_axis,
)
from tests.evaluation.scores import write

LABELS = {"a": (1,), "b": (2,)}


def view_of(truth: NDArray[np.uint8], prediction: NDArray[np.uint8] | None = None) -> View:
    exhibit = Exhibit("case", Path(), Path(), Path(), LABELS)
    predicted = np.zeros_like(truth) if prediction is None else prediction
    return View(exhibit, truth.astype(float), truth, predicted, (1, 1, 1), 2, (0.0, 1.0))


@pytest.mark.parametrize(
    ("spacing_mm", "axis"),
    [((1, 1, 1), 2), ((0.8, 0.8, 5), 2), ((1, 1, 0.6), 2), ((5, 1, 1), 0), ((1, 3.3, 1.1), 1)],
)
def test_slicing_axis(spacing_mm: tuple[float, ...], axis: int) -> None:
    assert slicing_axis(spacing_mm) == axis


def test_each_class_has_its_fullest_slice() -> None:
    truth = np.zeros((4, 4, 30), np.uint8)
    truth[1, 1, 4:25] = 1
    truth[:2, :, 21] = 1
    truth[3, 3, 8:10] = 2
    truth[3, 2:, 9] = 2
    assert fullest_slices(view_of(truth), 4) == {9: ("b",), 21: ("a",)}
    assert fullest_slices(view_of(truth), 1) == {9: ("b",)}  # the rarest class first


def test_classes_in_one_place_share_a_slice() -> None:
    truth = np.zeros((4, 4, 41), np.uint8)
    truth[0, 0, :] = 1
    truth[:2, 0, 20] = 1
    truth[3, 3, 22] = 2
    assert fullest_slices(view_of(truth), 4) == {22: ("a", "b")}


def test_the_prediction_chooses_only_what_the_truth_has_not() -> None:
    truth, prediction = np.zeros((2, 3, 3, 30), np.uint8)
    truth[1, 1, 5] = 1
    prediction[:, :, 12] = 1
    prediction[:, :, 25] = 2
    assert fullest_slices(view_of(truth, prediction), 4) == {5: ("a",), 25: ("b",)}


def test_nothing_to_see() -> None:
    nothing = view_of(np.zeros((3, 3, 9), np.uint8))
    assert fullest_slices(nothing, 4) == {4: ()}
    assert scroll_slices(nothing, 5) == [0, 2, 4, 6, 8]


def test_a_scroll_goes_through_the_classes_and_a_little_beyond() -> None:
    truth = np.zeros((3, 3, 60), np.uint8)
    truth[1, 1, 20:41] = 1
    slices = scroll_slices(view_of(truth), 100)
    assert slices == list(range(17, 44))
    few = scroll_slices(view_of(truth), 4)
    assert (few[0], few[-1], len(few)) == (17, 43, 4)


def test_slices_are_seen_from_the_feet_and_from_the_front() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    view = view_of(array.astype(np.uint8))
    assert np.array_equal(view.cut(array, 1), array[:, :, 1].T)  # rows run to the back
    front = View(view.exhibit, array, array, array, (1, 5, 2), 1, (0, 1))
    assert front.cut(array, 2)[0].tolist() == array[:, 2, 3].tolist()  # the head is above
    assert front.aspect == 2
    side = View(view.exhibit, array, array, array, (5, 1, 2), 0, (0, 1))
    assert (side.across, side.down, side.slices) == (1, 2, 2)


def test_a_sample_of_a_large_image_gives_its_window() -> None:
    image = np.random.default_rng(0).normal(0, 1, (150, 150, 150))
    low, high = window_of(image)
    assert (low, high) == pytest.approx(np.percentile(image, (1, 99)), abs=0.02)
    assert window_of(np.full((2, 2, 2), 7))[1] > 7


def test_other_values_in_the_prediction(tmp_path: Path) -> None:
    truth, prediction = np.zeros((2, 4, 4, 3), np.uint8)
    truth[1, 1, 1] = 1
    prediction[2, 2, 1] = 3
    one, two = (write(tmp_path / f"{i}.nii.gz", a) for i, a in enumerate((truth, prediction)))
    view = read_view(Exhibit("x", one, one, two, {"a": (1,)}, in_prediction={"a": (3,)}))
    true, predicted = view.masks(1)
    assert np.argwhere(true["a"]).tolist() == [[1, 1]]
    assert np.argwhere(predicted["a"]).tolist() == [[2, 2]]


def test_other_grid(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.uint8))
    other = write(tmp_path / "b.nii.gz", np.zeros((4, 4, 4), np.uint8), spacing_mm=(1, 1, 2))
    with pytest.raises(DataError, match=r"b\.nii\.gz: .*a\.nii\.gz: spacing"):
        read_view(Exhibit("a", path, path, other, LABELS))
