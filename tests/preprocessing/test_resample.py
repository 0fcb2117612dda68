from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.transform import resize

from autoseg.preprocessing.resample import (
    Shape3,
    axis_orders,
    resample_image,
    resample_label,
    resampled_shape,
)

SHAPES = st.tuples(*[st.integers(1, 12)] * 3)
SEEDS = st.integers(0, 2**32 - 1)
ORDERS = st.sampled_from([0, 1, 3])
quick = settings(max_examples=40, deadline=None)


def reference(volume: NDArray[Any], shape: Shape3, order: int) -> NDArray[np.float64]:
    """scikit-image in float64, with its clipping to the range of the volume."""
    resized: NDArray[np.float64] = resize(
        volume.astype(float), shape, order=order, mode="edge", anti_aliasing=False
    )
    return resized


def slow_label(label: NDArray[Any], shape: Shape3, orders: Shape3) -> tuple[Any, Any]:
    """The winning value of every voxel, and by how much it wins, in float64."""
    values = np.unique(label)
    shares = [
        one_axis_after_another((label == value).astype(float), shape, orders) for value in values
    ]
    ranked = np.sort(shares, axis=0)
    margin = ranked[-1] - ranked[-2] if len(values) > 1 else np.ones(shape)
    best = np.array(shares) > ranked[-1] - 5e-7  # those that tie: the first has the smallest value
    return values[np.argmax(best, axis=0)], margin


def one_axis_after_another(
    volume: NDArray[Any], shape: Shape3, orders: Shape3
) -> NDArray[np.float64]:
    result = volume.astype(float)
    for axis in range(3):
        wanted = list(result.shape)
        wanted[axis] = shape[axis]
        result = resize(
            result, wanted, order=orders[axis], mode="edge", anti_aliasing=False, clip=False
        )
    return result


@quick
@given(SHAPES, SHAPES, ORDERS, st.integers(1, 2), SEEDS)
def test_image_equals_scikit_image(
    old: Shape3, new: Shape3, order: int, channels: int, seed: int
) -> None:
    image = np.random.default_rng(seed).normal(100, 50, (channels, *old)).astype(np.float32)
    image[-1] *= 10  # channels of unlike ranges: each is clipped to its own
    resampled = resample_image(image, new, (order, order, order))
    assert resampled.dtype == np.float32
    assert resampled.shape == (channels, *new)
    for channel, got in zip(image, resampled, strict=True):
        scale = np.abs(channel).max()
        assert np.abs(got - reference(channel, new, order)).max() <= 1e-5 * scale


@quick
@given(SHAPES, SHAPES, st.tuples(ORDERS, ORDERS, ORDERS), SEEDS)
def test_mixed_orders_equal_one_axis_after_another(
    old: Shape3, new: Shape3, orders: Shape3, seed: int
) -> None:
    volume = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    expected = one_axis_after_another(volume, new, orders).clip(volume.min(), volume.max())
    assert resample_image(volume[None], new, orders)[0] == pytest.approx(expected, abs=2e-5)


def test_cubic_overshoot_is_clipped_to_the_range() -> None:
    step = np.zeros((1, 8, 4, 4), np.float32)
    step[:, 4:] = 1
    resampled = resample_image(step, (13, 4, 4), (3, 3, 3))
    assert (resampled.min(), resampled.max()) == (0, 1)
    unclipped = one_axis_after_another(step[0], (13, 4, 4), (3, 3, 3))
    assert unclipped.max() > 1.01  # otherwise this test shows nothing


def test_the_same_shape_changes_nothing() -> None:
    image = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    assert (resample_image(image, (3, 4, 5), (3, 3, 3)) == image).all()


def test_arrays_need_not_be_contiguous() -> None:
    image = np.random.default_rng(0).normal(size=(1, 9, 7, 5)).astype(np.float32)
    turned = image.transpose(0, 3, 2, 1)
    expected = resample_image(np.ascontiguousarray(turned), (4, 8, 6), (3, 1, 0))
    assert (resample_image(turned, (4, 8, 6), (3, 1, 0)) == expected).all()


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("new", [7, 20, 31])
def test_a_ramp_in_mm_stays_the_same_ramp(order: int, new: int) -> None:
    old = 20
    spacing, new_spacing = 1.5, 1.5 * old / new
    position = (np.arange(old) + 0.5) * spacing  # from the edge of the volume, not its first centre
    new_position = (np.arange(new) + 0.5) * new_spacing
    ramp = np.broadcast_to(position[:, None, None], (old, 3, 3)).astype(np.float32)
    got = resample_image(ramp[None], (new, 4, 2), (order, order, order))[0, :, 0, 0]
    inner = (new_position > 4 * spacing) & (new_position < (old - 4) * spacing)
    assert inner.sum() >= 3
    # A spline knows that its border is flat: that is felt a little within the volume.
    assert got[inner] == pytest.approx(new_position[inner], abs=1e-4 if order == 1 else 2e-2)


@quick
@given(SHAPES, SHAPES, st.sampled_from([(1, 1, 1), (1, 1, 0), (0, 1, 1)]), SEEDS)
def test_label_equals_the_best_of_the_masks(
    old: Shape3, new: Shape3, orders: Shape3, seed: int
) -> None:
    values = np.array([-1, 0, 3, 7], np.int16)
    label = np.random.default_rng(seed).choice(values, old)
    expected, margin = slow_label(label, new, orders)
    resampled = resample_label(label, new, orders)
    assert resampled.dtype == np.int16
    decided = (margin < 5e-7) | (margin > 3e-6)  # in between float32 may see a tie or not
    assert (resampled == expected)[decided].all()


def test_the_smaller_value_wins_a_tie() -> None:
    for label in ([3, 3, 7, 7], [7, 7, 3, 3]):
        volume = np.array(label, np.int16).reshape(4, 1, 1)
        # Voxels of 4/3: the middle one of three takes half of each side.
        assert resample_label(volume, (3, 1, 1), (1, 1, 1))[1, 0, 0] == 3


@quick
@given(SHAPES, SHAPES, SEEDS)
def test_label_of_order_0_equals_scikit_image(old: Shape3, new: Shape3, seed: int) -> None:
    label = np.random.default_rng(seed).integers(-1, 30, old).astype(np.int16)
    assert (resample_label(label, new, (0, 0, 0)) == reference(label, new, 0)).all()


@pytest.mark.parametrize(
    ("shape", "spacing", "target", "rounding", "expected"),
    [
        ((512, 512, 301), (0.810547, 0.810547, 1.0), (1.58, 1.58, 2.70), "down", (262, 262, 111)),
        (
            (512, 512, 301),
            (0.810547, 0.810547, 1.0),
            (1.58, 1.58, 2.70),
            "nearest",
            (263, 263, 111),
        ),
        ((10, 10, 10), (1.0, 1.0, 1.0), (1.0, 2.0, 4.0), "nearest", (10, 5, 2)),  # 2.5 to even
        ((11, 11, 11), (1.0, 2.0, 3.0), (2.0, 1.0, 2.0), "down", (5, 22, 16)),
        ((1, 2, 3), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0), "down", (1, 1, 1)),
        ((1, 2, 3), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0), "nearest", (1, 1, 1)),
    ],
)
def test_resampled_shape(
    shape: Shape3, spacing: Any, target: Any, rounding: str, expected: Shape3
) -> None:
    assert resampled_shape(shape, spacing, target, rounding) == expected


@given(SHAPES, st.tuples(*[st.floats(0.1, 9)] * 3), st.sampled_from(["down", "nearest"]))
def test_the_own_spacing_keeps_the_shape(shape: Shape3, spacing: Any, rounding: str) -> None:
    third = tuple(value * 3 / 3 for value in spacing)  # not always the same number
    assert resampled_shape(shape, spacing, third, rounding) == shape


@pytest.mark.parametrize(
    ("old", "new", "anisotropy", "expected"),
    [
        ((1, 1, 5), (1, 1, 1), 3.0, (3, 3, 0)),  # coarse before
        ((1, 1, 1), (5, 1, 1), 3.0, (0, 3, 3)),  # coarse after
        ((1, 5, 1), (5, 1, 1), 3.0, (3, 0, 3)),  # the old spacing is asked first
        ((1, 1, 3), (1, 1, 3), 3.0, (3, 3, 3)),  # the limit itself is not above it
        ((1, 5, 5), (1, 1, 5), 3.0, (3, 3, 3)),  # two coarse axes: none is alone
        ((1, 1, 5), (1, 1, 5), None, (3, 3, 3)),
    ],
)
def test_axis_orders(old: Any, new: Any, anisotropy: float | None, expected: Shape3) -> None:
    assert axis_orders(3, old, new, anisotropy) == expected
