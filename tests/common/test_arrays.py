from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from autoseg.augmentation.transforms import corrupt_previous
from autoseg.common import arrays as module
from autoseg.common.arrays import (
    bounding_box,
    centre_of,
    connected_components,
    count_labels,
    count_values,
    members,
    union_of_boxes,
    value_boxes,
)
from autoseg.evaluation.metrics import Lesions, cut_masks, lesions
from autoseg.fingerprint.statistics import measure_labels
from autoseg.plan.augmentation import PreviousRemoval
from autoseg.prediction.postprocessing import find_islands

THIN = [
    *[(1, 1, n) for n in (1, 2, 3, 100, 5001)],
    *[(n, 1, 1) for n in (3, 100, 5001)],
    *[(1, n, 1) for n in (3, 100, 5001)],
    *[(1, 40, 30), (40, 1, 30), (40, 30, 1), (2, 2, 900), (900, 2, 2)],
]

shapes = st.tuples(*[st.integers(1, 6)] * 3)


def test_members_are_found_in_the_maps_own_memory_order() -> None:
    label = (np.arange(24).reshape(2, 3, 4) % 5).astype(np.uint8)
    for same in (label, np.asfortranarray(label)):
        inside = members(same, (1, 3))
        assert np.array_equal(inside, np.isin(label, (1, 3)))
        assert inside.strides == same.strides


def test_members_of_many_values_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    values = (2, 5, 117, 300, 40000, 70000)
    for kind in (np.uint8, np.uint16, np.int16, ">u2", np.int32):
        label = rng.choice([0, 1, 2, 5, 117], (5, 4, 3)).astype(kind)
        for same in (label, np.asfortranarray(label), label.transpose(1, 2, 0), label[::-1]):
            inside = members(same, values)
            assert np.array_equal(inside, np.isin(same, values))
            assert inside.dtype == bool
    ignored = np.array([[[-1, 0, 1, 4]]], np.int16)
    assert members(ignored, (1, 2, 3, 4)).tolist() == [[[False, False, True, True]]]
    assert members(ignored, (-1, 2, 3, 4)).tolist() == [[[True, False, False, True]]]


@given(arrays(np.int16, shapes, elements=st.integers(-1, 5)))
def test_boxes_of_values_are_those_of_single_masks(label: NDArray[np.int16]) -> None:
    expected = {int(value): bounding_box(label == value) for value in np.unique(label) if value > 0}
    assert value_boxes(label) == expected
    assert value_boxes(np.asfortranarray(label)) == expected


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
@given(label=arrays(np.uint8, shapes, elements=st.integers(0, 3)))
def test_boxes_and_centres_equal_scipys(label: NDArray[np.uint8], axes: tuple[int, ...]) -> None:
    turned = label.transpose(axes)[::-1]
    expected = dict(enumerate(ndimage.find_objects(turned), start=1))
    boxes = value_boxes(turned)
    assert boxes == {value: box for value, box in expected.items() if box}
    for value, box in boxes.items():
        centre = ndimage.center_of_mass(turned == value)
        assert centre_of(turned[box] == value, box) == pytest.approx(centre)


def test_values_beyond_the_integer_type_are_nowhere() -> None:
    assert not members(np.zeros((2, 2, 2), np.uint8), (300,)).any()


@given(
    arrays(np.int16, st.tuples(*[st.integers(0, 4)] * 3), elements=st.integers(-1, 5)),
    st.lists(st.integers(-1, 6)),
)
def test_members_are_those_of_numpy(label: NDArray[np.int16], values: list[int]) -> None:
    inside = members(label, values)
    assert inside.dtype == bool
    assert np.array_equal(inside, np.isin(label, values))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@given(array=arrays(np.uint8, shapes, elements=st.sampled_from([0, 0, 0, 0, 0, 3])))
def test_the_bounding_box_equals_numpys(array: NDArray[np.uint8], axes: tuple[int, ...]) -> None:
    turned = array.transpose(axes)
    box, indices = bounding_box(turned), np.argwhere(turned)
    if not len(indices):
        assert box is None
        return
    assert box is not None
    assert [side.start for side in box] == indices.min(axis=0).tolist()
    assert [side.stop for side in box] == (indices.max(axis=0) + 1).tolist()


def test_a_bounding_box_has_as_many_sides_as_the_array_has_axes() -> None:
    assert bounding_box(np.array([0, 0, 1, 0, 1, 0])) == np.s_[2:5,]
    assert bounding_box(np.eye(3)[:, 1:]) == np.s_[1:3, 0:2]


def test_the_union_of_boxes_contains_them_all() -> None:
    boxes = [np.s_[2:4, 0:1, 5:6], None, np.s_[3:9, 1:2, 1:2]]
    assert union_of_boxes(boxes) == np.s_[2:9, 0:2, 1:6]
    assert union_of_boxes([None]) is None


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("density", [0.2, 0.5, 0.8, "as many components as possible"])
@pytest.mark.parametrize("shape", THIN)
def test_components_of_thin_masks_are_scipys(
    shape: tuple[int, int, int], density: float | str, order: Any
) -> None:
    """cc3d 4.1.1 raises on some of these masks when they are Boolean."""
    if isinstance(density, str):
        mask = np.zeros(shape, bool)
        mask[::2, ::2, ::2] = True
    else:
        mask = np.random.default_rng(sum(shape)).random(shape) < density
    components, count = connected_components(np.array(mask, order=order))
    expected, expected_count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count == expected_count
    assert np.array_equal(components > 0, mask)
    pairs = np.unique(np.stack([components[mask], expected[mask]]), axis=1)
    assert pairs.shape[1] == count


def test_an_empty_mask_has_no_component() -> None:
    assert connected_components(np.zeros((3, 3, 3), bool))[1] == 0


def test_a_mask_need_not_be_contiguous() -> None:
    mask = np.zeros((4, 3, 3), bool)
    mask[0] = mask[2:, 0, 0] = True
    assert connected_components(mask.transpose(2, 0, 1))[1] == 2
    assert connected_components(mask[::2])[1] == 1


@pytest.mark.parametrize("shape", THIN)
def test_thin_label_maps_work_wherever_components_are_used(shape: tuple[int, int, int]) -> None:
    label = np.zeros(shape, np.uint8)
    label[::2, ::2, ::2] = 1
    count = int(label.sum())
    assert measure_labels(label, {"a": (1,)}, (1.0, 1.0, 1.0))["a"].components == count
    assert lesions(cut_masks(label, label, (1,))) == Lesions(count, count, count, 0)
    islands = find_islands(label, (1,))
    assert (0 if islands is None else int(islands[1].sum())) == count - 1
    # A share above 1, so that even a mask of a single component loses it.
    removal = PreviousRemoval.model_construct(probability=1.0, largest_share=2.0)
    changed = corrupt_previous(label, removal, np.random.default_rng(0))
    assert int(changed.sum()) == count - 1


@given(arrays(np.uint16, shapes, elements=st.integers(0, 300)))
def test_labels_are_counted(label: NDArray[np.uint16]) -> None:
    values, counts = np.unique(label, return_counts=True)
    assert count_labels(label) == dict(zip(values.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("chunk", [8, 64, 1 << 20])
@given(array=arrays(np.uint8, shapes, elements=st.integers(0, 5)))
def test_values_are_counted_in_chunks(array: NDArray[np.uint8], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        assert np.array_equal(count_values(array, 6), np.bincount(array.ravel(), minlength=6))
        inside = array > 2
        expected = np.bincount(array[inside], minlength=6)
        assert np.array_equal(count_values(array, 6, inside), expected)
        assert sum(count_labels(array).values()) == array.size
