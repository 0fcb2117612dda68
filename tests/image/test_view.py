from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.common.figures import window_of
from autoseg.image.view import (
    PREDICTION,
    REFERENCE,
    Exhibit,
    Plane,
    View,
    main_axis,
    make_view,
    read_view,
)
from tests.evaluation.scores import write

LABELS = {"a": (1,), "b": (2,)}
Labels = NDArray[np.uint8]


def view_of(
    truth: Labels,
    prediction: Labels | None = None,
    spacing_mm: tuple[float, ...] = (1, 1, 1),
    ignore: int | None = None,
) -> View:
    exhibit = Exhibit("case", Path(), Path(), Path(), LABELS, ignore=ignore)
    maps = {
        REFERENCE: truth,
        PREDICTION: np.zeros_like(truth) if prediction is None else prediction,
    }
    return View(exhibit, truth.astype(float), maps, spacing_mm, (0.0, 1.0))


@pytest.mark.parametrize(
    ("spacing_mm", "axis"),
    [((1, 1, 1), 2), ((0.8, 0.8, 5), 2), ((1, 1, 0.6), 2), ((5, 1, 1), 0), ((1, 3.3, 1.1), 1)],
)
def test_main_axis(spacing_mm: tuple[float, ...], axis: int) -> None:
    assert main_axis(view_of(np.zeros((2, 2, 2), np.uint8), spacing_mm=spacing_mm)) == axis


def test_small_classes_count_as_much_as_large_ones() -> None:
    truth = np.zeros((8, 8, 30), np.uint8)
    truth[:6, :, 4:25] = 1
    truth[7, 7, 9] = 2
    assert view_of(truth).fullest()[2] == 9


def test_the_middle_without_classes() -> None:
    assert view_of(np.zeros((3, 5, 9), np.uint8)).fullest() == (1, 2, 4)


def test_slices_are_seen_from_the_feet_and_from_the_front() -> None:
    array = np.arange(24).reshape(2, 3, 4)
    view = view_of(array.astype(np.uint8), spacing_mm=(1, 5, 2))
    axial, coronal, sagittal = (Plane(view, axis, 1) for axis in (2, 1, 0))
    assert np.array_equal(axial.cut(array), array[:, :, 1].T)  # rows run to the back
    assert coronal.cut(array)[0].tolist() == array[:, 1, 3].tolist()  # the head is above
    assert axial.sides == ("R", "L", "A", "P")
    assert coronal.sides == ("R", "L", "S", "I")
    assert sagittal.sides == ("A", "P", "S", "I")
    assert [plane.size_mm for plane in (axial, coronal, sagittal)] == [(2, 15), (2, 8), (15, 8)]


def test_errors_are_of_three_kinds_and_none_is_ignored() -> None:
    truth = np.array([0, 1, 1, 2, 0, 9], np.uint8).reshape(6, 1, 1)
    prediction = np.array([1, 0, 2, 2, 0, 1], np.uint8).reshape(6, 1, 1)
    plane = Plane(view_of(truth, prediction, ignore=9), 2, 0)
    found = {name: np.flatnonzero(mask).tolist() for name, mask in plane.errors().items()}
    assert found == {"false positive": [0], "false negative": [1], "other class": [2]}


def test_a_view_is_cropped_to_the_classes_with_a_margin() -> None:
    truth = np.zeros((100, 100, 100), np.uint8)
    truth[40:60, 45:55, 50:52] = 1
    exhibit = Exhibit("case", Path(), None, None, LABELS)
    view = make_view(exhibit, truth.astype(float), {REFERENCE: truth}, (1, 1, 4))
    assert view.image.shape == (60, 50, 12)  # 20 mm on each side
    assert view.maps[REFERENCE].sum() == truth.sum()


@pytest.mark.parametrize(
    ("value", "offset", "channel", "window", "tissue"),
    [
        (40, 0, "", (-160, 240), "soft tissue"),
        (-800, 0, "", (-1350, 150), "lung"),
        (900, 0, "CT", (-450, 1050), "bone"),
        (40, 1024, "CT", (864, 1264), "soft tissue"),
    ],
)
def test_windows_of_ct(
    value: int, offset: int, channel: str, window: tuple[int, int], tissue: str
) -> None:
    image = np.full((20, 20, 20), -1000, np.int16)
    image[5:9, 5:9, 5:9] = value
    truth = (image == value).astype(np.uint8)
    exhibit = Exhibit("case", Path(), None, None, LABELS, channel=channel)
    view = make_view(exhibit, image + offset, {REFERENCE: truth}, (1, 1, 1))
    assert (view.window, view.tissue) == (window, tissue)


def test_other_scans_have_the_window_of_their_values() -> None:
    image = np.random.default_rng(0).integers(0, 900, (20, 20, 20))
    exhibit = Exhibit("case", Path(), None, None, LABELS, channel="MR_T1")
    view = make_view(exhibit, image, {REFERENCE: (image > 800).astype(np.uint8)}, (1, 1, 1))
    assert view.window == pytest.approx(np.percentile(image, (1, 99)))
    assert view.tissue == ""


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
    plane = Plane(view, 2, 1)
    assert np.argwhere(plane.masks(REFERENCE)["a"]).tolist() == [[1, 1]]
    assert np.argwhere(plane.masks(PREDICTION)["a"]).tolist() == [[2, 2]]


def test_other_grid(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.zeros((4, 4, 4), np.uint8))
    other = write(tmp_path / "b.nii.gz", np.zeros((4, 4, 4), np.uint8), spacing_mm=(1, 1, 2))
    with pytest.raises(DataError, match=r"b\.nii\.gz: .*a\.nii\.gz: spacing"):
        read_view(Exhibit("a", path, path, other, LABELS))
