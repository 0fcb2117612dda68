from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

from autoseg.common.errors import PlanError
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image
from autoseg.plan.plan import Plan
from autoseg.preprocessing.resample import Ties, resample_label, resampled_shape
from autoseg.preprocessing.steps import (
    IGNORED,
    Channel,
    Prepared,
    prepare,
    resample_channel,
    round_trip_dice,
    to_classes,
)
from tests.making import REGIONS, grid, tiny_plan

TWO = {"channels": ["CT", "MRI"]}


def scan(array: Any, spacing_mm: Any = (1.0, 1.0, 1.0)) -> Image:
    values = np.asarray(array, np.float32)
    return Image(values, grid(values.shape[1:], spacing_mm))


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(50, 100, shape).astype(np.float32)


def steps(*entries: dict[str, Any], **changes: Any) -> Plan:
    return tiny_plan(preprocessing=list(entries), **changes)


def run(plan: Plan, array: Any) -> NDArray[np.float32]:
    return prepare(plan, scan(array)).image


def test_no_step_changes_nothing_and_copies() -> None:
    image = scan(noise(1, 4, 5, 6))
    prepared = prepare(steps(), image)
    assert (prepared.image == image.array).all()
    assert not np.shares_memory(prepared.image, image.array)
    assert prepared.label is None
    assert prepared.box == ((0, 4), (0, 5), (0, 6))
    assert prepared.spacing_mm == (1, 1, 1)


def test_the_steps_leave_the_scan_as_it_was() -> None:
    array = noise(1, 4, 5, 6)
    before = array.copy()
    array.setflags(write=False)
    run(steps({"step": "clip", "window": [0, 1]}, {"step": "rescale"}, {"step": "z_score"}), array)
    assert (array == before).all()


@pytest.mark.parametrize("channel", [None, 0, 1])
def test_clip(channel: int | None) -> None:
    array = noise(2, 4, 5, 6)
    found = run(steps({"step": "clip", "window": [-20, 70], "channel": channel}, **TWO), array)
    for index in range(2):
        touched = channel in (None, index)
        expected = np.minimum(np.maximum(array[index], -20), 70) if touched else array[index]
        assert (found[index] == expected).all()


@pytest.mark.parametrize("whole", [False, True])
def test_rescale_maps_each_channel_to_the_range(whole: bool) -> None:
    array = noise(2, 4, 5, 6) * [[[[1]]], [[[7]]]]
    found = run(
        steps({"step": "rescale", "range": [-10, 245], "whole_numbers": whole}, **TWO), array
    )
    for channel, values in zip(array.astype(np.float32).astype(float), found, strict=True):
        low, high = channel.min(), channel.max()
        expected = (channel - low) / (high - low) * 255 - 10
        assert (values.min(), values.max()) == (-10, 245)
        assert values == pytest.approx(np.rint(expected) if whole else expected, abs=1e-3)
        assert whole == bool((values == np.rint(values)).all())


def test_z_score_with_the_statistics_of_the_scan() -> None:
    array = noise(2, 6, 7, 8)
    found = run(steps({"step": "z_score", "channel": 1}, **TWO), array)
    values = array[1].astype(float)
    assert found[1] == pytest.approx((values - values.mean()) / values.std(), abs=1e-5)
    assert (found[0] == array[0]).all()


def test_z_score_with_the_statistics_of_the_plan() -> None:
    array = noise(1, 4, 5, 6)
    found = run(steps({"step": "z_score", "mean": 12.5, "std": 40.0}), array)
    assert found == pytest.approx((array.astype(float) - 12.5) / 40, abs=1e-6)


def test_z_score_of_large_numbers() -> None:
    """A diffusion map in square metres a second: 1e-9 is its unit, not noise."""
    array = noise(1, 6, 6, 6) * np.float32(1e-11)
    assert run(steps({"step": "z_score"}), array).std() == pytest.approx(1, abs=1e-4)
    assert run(steps({"step": "rescale"}), array).max() == 1


def with_background(seed: int = 0) -> NDArray[np.float32]:
    """Two channels of noise in a box, zero around it."""
    array = np.zeros((2, 9, 10, 11), np.float32)
    array[:, 2:7, 3:9, 1:10] = noise(2, 5, 6, 9, seed=seed)
    return array


def test_z_score_inside_the_nonzero_voxels() -> None:
    array = with_background()
    found = run(steps({"step": "z_score", "nonzero": True}, **TWO), array)
    inside = (array != 0).any(axis=0)
    for channel, values in zip(array.astype(float), found, strict=True):
        mean, std = channel[inside].mean(), channel[inside].std()
        expected = np.where(inside, (channel - mean) / std, 0)
        assert values == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "moving",
    [
        {"step": "z_score", "channel": 0, "mean": 30.0, "std": 2.0},
        {"step": "rescale", "channel": 0, "range": [1, 2]},
        {"step": "clip", "channel": 0, "window": [5, 90]},
    ],
)
def test_a_step_that_moves_the_zeros_does_not_change_the_nonzero_mask(
    moving: dict[str, Any],
) -> None:
    array = with_background()
    masked = {"step": "z_score", "channel": 1, "nonzero": True}
    alone = run(steps(masked, **TWO), array)
    assert (run(steps(moving, masked, **TWO), array)[1] == alone[1]).all()


def test_nonzero_voxels_are_cropped_and_resampled_along() -> None:
    array = with_background()
    changes = TWO | {"target_spacing_mm": [0.5, 1.0, 1.0]}
    masked = {"step": "z_score", "nonzero": True}
    crop, resample = {"step": "crop_to_nonzero"}, {"step": "resample", "image_order": 0}
    found = run(steps(crop, resample, masked, **changes), array)
    assert found.shape == (2, 10, 6, 9)
    twice = np.repeat(array[:, 2:7, 3:9, 1:10], 2, axis=1)
    assert found == pytest.approx(run(steps(masked, **TWO), twice), abs=1e-6)


@pytest.mark.parametrize("value", [0.0, -1000.0, 0.1])
@pytest.mark.parametrize("nonzero", [False, True])
def test_a_constant_scan(value: float, nonzero: bool) -> None:
    array = np.full((1, 4, 5, 6), value)
    assert (run(steps({"step": "z_score", "nonzero": nonzero}), array) == 0).all()
    assert (run(steps({"step": "rescale", "range": [3, 4]}), array) == 3).all()
    crop = prepare(steps({"step": "crop_to_nonzero"}), scan(array))
    assert crop.image.shape == (1, 4, 5, 6)  # an empty scan is kept whole


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 2), st.integers(0, 2**32 - 1))
def test_crop_equals_scipys_box_and_can_be_undone(
    shape: tuple[int, int, int], channels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    array = rng.normal(size=(channels, *shape)) * (rng.random((channels, *shape)) < 0.05)
    label = rng.integers(0, 3, shape)
    names = {"channels": [f"c{index}" for index in range(channels)]}
    image = scan(array)
    prepared = prepare(steps({"step": "crop_to_nonzero"}, **names), image, label)
    occupied = (image.array != 0).any(axis=0)
    box = tuple(slice(start, stop) for start, stop in prepared.box)
    if occupied.any():
        assert box == ndimage.find_objects(occupied.astype(int))[0]
    assert (prepared.image == image.array[:, *box]).all()
    assert np.array_equal(np.asarray(prepared.label), label[box])
    back = np.zeros_like(image.array)
    back[:, *box] = prepared.image
    assert (back == image.array).all()


def test_crop_twice_counts_from_the_files_corner() -> None:
    array = np.zeros((2, 9, 9, 9), np.float32)
    array[0, 1:8, 2, 2] = 5
    array[1, 3:6, 2, 2] = 9
    crop = {"step": "crop_to_nonzero"}
    gone = {"step": "clip", "window": [-1, 0], "channel": 0}  # the second box is smaller
    prepared = prepare(steps(crop, gone, crop, **TWO), scan(array))
    assert prepared.box == ((3, 6), (2, 3), (2, 3))


def test_a_crop_after_resampling_is_refused() -> None:
    with pytest.raises(PlanError, match=r"crop_to_nonzero .*resample"):
        steps({"step": "resample"}, {"step": "crop_to_nonzero"})


def reference_resampled(prepared: Prepared, shape: Any) -> NDArray[Any]:
    return np.stack(
        [
            resize(channel.astype(float), shape, order=3, mode="edge", anti_aliasing=False)
            for channel in prepared.image
        ]
    )


def test_resample_changes_image_and_label_to_the_target_spacing() -> None:
    image = scan(noise(2, 9, 10, 11), (1.0, 1.5, 2.0))
    label = np.random.default_rng(1).integers(0, 3, (9, 10, 11))
    plan = steps({"step": "resample"}, target_spacing_mm=[1.5, 1.5, 1.0], **TWO)
    prepared = prepare(plan, image, label)
    assert prepared.image.shape == (2, 6, 10, 22)
    assert prepared.spacing_mm == (1.5, 1.5, 1.0)
    before = prepare(steps(**TWO), image)
    assert prepared.image == pytest.approx(reference_resampled(before, (6, 10, 22)), abs=5e-3)
    expected = resample_label(label, (6, 10, 22), (1, 1, 1))
    assert np.array_equal(np.asarray(prepared.label), expected)
    assert prepared.box == ((0, 9), (0, 10), (0, 11))  # of the file, as prediction needs it
    assert prepared.geometry == image.geometry


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("anisotropy", [3.0, None])
def test_resample_keeps_the_plans_orders(order: int, anisotropy: float | None) -> None:
    """Slices of 4 mm: not interpolated across, unless the plan says so."""
    image = scan(noise(1, 9, 8, 5), (1.0, 1.0, 4.0))
    label = np.random.default_rng(1).integers(0, 3, (9, 8, 5))
    step = {"step": "resample", "image_order": 3, "label_order": order, "anisotropy": anisotropy}
    prepared = prepare(steps(step, target_spacing_mm=[1.5, 1.0, 2.0]), image, label)
    across = 0 if anisotropy else 3
    expected = resample_channel(Channel(image.array[0]), (6, 8, 10), (3, 3, across))
    assert (prepared.image[0] == expected.values()).all()
    classes = resample_label(label, (6, 8, 10), (order, order, 0 if anisotropy else order))
    assert np.array_equal(np.asarray(prepared.label), classes)


def test_the_order_of_the_steps_matters() -> None:
    array = noise(1, 8, 8, 8)
    clip, score = {"step": "clip", "window": [0, 60]}, {"step": "z_score"}
    clipped = array.astype(float).clip(0, 60)
    found = run(steps(clip, score), array)
    assert found == pytest.approx((clipped - clipped.mean()) / clipped.std(), abs=1e-5)
    scored = (array.astype(float) - array.mean()) / array.std()
    assert run(steps(score, clip), array) == pytest.approx(scored.clip(0, 60), abs=1e-5)


def test_the_papers_steps_one_after_the_other() -> None:
    """Clip, greyscale, resample, z-score: as in `plans/Task001_COVID.json5`."""
    image = scan(noise(1, 10, 12, 8) * 10, (0.8, 0.8, 1.0))
    plan = steps(
        {"step": "clip", "window": [-1250, 250]},
        {"step": "rescale", "range": [0, 255], "whole_numbers": True},
        {"step": "resample", "rounding": "down", "anisotropy": None},
        {"step": "z_score"},
        target_spacing_mm=[1.58, 1.58, 2.7],
    )
    values = image.array[0].astype(float).clip(-1250, 250)
    values = np.rint((values - values.min()) / (values.max() - values.min()) * 255)
    values = resize(values, (5, 6, 2), order=3, mode="edge", anti_aliasing=False)
    expected = (values - values.mean()) / values.std()
    assert prepare(plan, image).image[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "clipped"),
    [((0, 255), False), ((30, 251), False), ((0, 256), True), ((-1, 255), True)],
)
def test_scans_that_are_scaled_to_grey_values_can_be_left_unclipped(
    values: tuple[float, float], clipped: bool
) -> None:
    array = np.linspace(*values, 60).reshape(1, 5, 4, 3).astype(np.float32)
    clip = {"step": "clip", "window": [10, 250]}
    expected = array.clip(10, 250) if clipped else array
    assert (run(steps({**clip, "scaled_scans": "keep"}), array) == expected).all()
    assert (run(steps(clip), array) == array.clip(10, 250)).all()
    before = {"step": "rescale", "range": [0, 300]}  # decided by the values at this step
    found = run(steps(before, {**clip, "scaled_scans": "keep"}), array)
    assert (found.min(), found.max()) == (10, 250)


def test_label_values_become_indices_of_classes() -> None:
    plan = tiny_plan(labels={"background": [0], "organ": [3, 4], "tumour": [7]}, ignore_label=9)
    label = np.array([0, 3, 4, 7, 9, 3], np.uint16).reshape(6, 1, 1)
    classes = to_classes(plan, label)
    assert classes.dtype == np.int16
    assert classes.ravel().tolist() == [0, 1, 1, 2, IGNORED, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_up_to_the_largest_value(dtype: Any) -> None:
    highest = int(np.iinfo(dtype).max)
    plan = tiny_plan(labels={"background": [0], "organ": [highest]})
    assert to_classes(plan, np.array([[[0, highest]]], dtype)).tolist() == [[[0, 1]]]


def test_ignored_voxels_stay_ignored_when_resampled() -> None:
    label = np.zeros((8, 4, 4), np.uint8)
    label[:4] = 9
    plan = steps({"step": "resample"}, ignore_label=9, target_spacing_mm=[2, 1, 1])
    prepared = prepare(plan, Image(noise(1, 8, 4, 4), grid((8, 4, 4))), label)
    assert prepared.label is not None
    assert prepared.label[:, 0, 0].tolist() == [IGNORED, IGNORED, 0, 0]


def test_geometry_of_the_file_is_kept_to_the_bit() -> None:
    tilted = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
    geometry = Geometry((4, 5, 6), (0.1 + 0.2, 1.0, 1 / 3), (-1e-17, 2.0, 3.0), tilted)
    plan = steps({"step": "crop_to_nonzero"}, {"step": "resample"})
    assert prepare(plan, Image(noise(1, 4, 5, 6), geometry)).geometry is geometry


# Label maps with regions become indices of values, whatever number of regions share them.


def test_every_value_of_a_region_keeps_an_index_of_its_own() -> None:
    plan = tiny_plan(**REGIONS, ignore_label=7)
    label = np.array([[[0, 1, 2, 4, 7]]], np.uint8)
    assert to_classes(plan, label).tolist() == [[[0, 1, 2, 3, IGNORED]]]


def test_without_regions_all_values_of_a_class_have_one_index() -> None:
    plan = tiny_plan(labels={"background": [0], "organ": [4, 1], "tumour": [2]})
    assert to_classes(plan, np.array([[[0, 1, 2, 4]]])).tolist() == [[[0, 1, 2, 1]]]


@pytest.mark.parametrize("ties", ["smallest", "nearest"])
def test_values_not_regions_are_resampled(ties: Ties) -> None:
    """Of three values a voxel mixes, the most frequent wins; the union of two would win over it."""
    plan = tiny_plan(
        **REGIONS,
        preprocessing=[{"step": "resample", "label_ties": ties}],
        target_spacing_mm=[1.7, 1.4, None],
    )
    label = np.random.default_rng(0).choice(np.array([0, 1, 2, 4], np.uint8), (12, 11, 5))
    prepared = prepare(plan, Image(label[None].astype(np.float32), grid(label.shape)), label)
    shape = resampled_shape(label.shape, (1, 1, 1), (1.7, 1.4, 1), "nearest")
    assert shape[2] == 5
    indices = np.searchsorted([0, 1, 2, 4], label)
    assert prepared.label is not None
    assert np.array_equal(prepared.label, resample_label(indices, shape, (1, 1, 1), ties))
    assert prepared.spacing_mm == (1.7, 1.4, 1.0)


def test_labels_that_a_coarser_grid_keeps() -> None:
    label = np.zeros((16, 16, 16), np.uint8)
    label[2:10, 4:12, 6:14] = 1  # every second voxel is enough
    own_grid = grid((16, 16, 16), (1.0, 1.0, 1.0))
    plan = steps({"step": "resample", "label_ties": "nearest"}, target_spacing_mm=[2, 2, 2])
    assert round_trip_dice(plan, label, own_grid) > 0.85
    thin = np.zeros_like(label)
    thin[8, 8, :] = 1
    assert round_trip_dice(plan, thin, own_grid) == 0
    assert round_trip_dice(plan, np.zeros_like(label), own_grid) == 1
    own = steps({"step": "resample"}, target_spacing_mm=[1, 1, 1])
    assert round_trip_dice(own, thin, own_grid) == 1
