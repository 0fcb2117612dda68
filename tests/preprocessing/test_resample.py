from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.transform import resize

from autoseg.common.arrays import Triple
from autoseg.preprocessing import steps as channel_module
from autoseg.preprocessing.resample import (
    BAND_ROWS,
    axis_of,
    axis_operator,
    axis_orders,
    resample_axis,
    resampled_shape,
)
from autoseg.preprocessing.steps import Channel, resample_channel
from tests.preprocessing.resizing import one_axis_after_another

SHAPES = st.tuples(*[st.integers(1, 12)] * 3)
SEEDS = st.integers(0, 2**32 - 1)
ORDERS = st.sampled_from([0, 1, 3])
quick = settings(max_examples=40, deadline=None)


def reference(volume: NDArray[Any], shape: Triple, order: int) -> NDArray[np.float64]:
    """scikit-image in float64, with its clipping to the range of the volume."""
    resized: NDArray[np.float64] = resize(
        volume.astype(float), shape, order=order, mode="edge", anti_aliasing=False
    )
    return resized


def resampled(volume: NDArray[np.float32], shape: Triple, orders: Triple) -> NDArray[np.float32]:
    return resample_channel(Channel(volume), shape, orders).values()


@quick
@given(SHAPES, SHAPES, ORDERS, SEEDS)
def test_image_equals_scikit_image(old: Triple, new: Triple, order: int, seed: int) -> None:
    volume = np.random.default_rng(seed).normal(100, 50, old).astype(np.float32)
    found = resampled(volume, new, (order, order, order))
    assert found.dtype == np.float32
    assert found.shape == new
    expected = reference(volume, new, order)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(volume).max()


@quick
@given(SHAPES, SHAPES, st.tuples(ORDERS, ORDERS, ORDERS), SEEDS)
def test_mixed_orders_equal_one_axis_after_another(
    old: Triple, new: Triple, orders: Triple, seed: int
) -> None:
    volume = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    expected = one_axis_after_another(volume, new, orders).clip(volume.min(), volume.max())
    assert resampled(volume, new, orders) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(("size", "new_size"), [(512, 262), (301, 111), (111, 301), (40, 160)])
def test_operators_hold_no_denormal_numbers(size: int, new_size: int) -> None:
    operator = axis_operator(size, new_size, 3)
    nonzero = np.abs(operator[operator != 0])
    assert nonzero.min() >= 1e-20
    # The weights that were dropped are far below the rounding of a float32 sum.
    unit = resize(
        np.eye(size), (new_size, size), order=3, mode="edge", anti_aliasing=False, clip=False
    )
    assert np.abs(operator - unit).max() < 1e-6
    weights = axis_of(size, new_size, 3).weights
    assert not ((weights != 0) & (np.abs(weights) < np.finfo(np.float32).tiny)).any()


@pytest.mark.parametrize("new", [(4, 8, 6), (12, 3, 5), (4, 14, 2)])  # another axis is the last
@pytest.mark.parametrize("turned", [False, True])
def test_slabs_give_what_the_whole_volume_gives(
    new: Triple, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = np.random.default_rng(0).normal(size=(9, 7, 5)).astype(np.float32)
    stored = volume.T.copy().T if turned else volume
    whole = resampled(volume, new, (3, 1, 3))
    for voxels in (1, 100):
        monkeypatch.setattr(channel_module, "SLAB_VOXELS", voxels)
        assert resampled(stored, new, (3, 1, 3)) == pytest.approx(whole, abs=2e-6)


def test_operations_are_applied_before_resampling() -> None:
    stored = np.random.default_rng(0).integers(-1000, 1000, (9, 7, 5)).astype(np.int16)

    def change(values: NDArray[np.float32]) -> None:
        np.clip(values, -100, 300, out=values)

    expected = resampled(stored.astype(np.float32).clip(-100, 300), (4, 8, 6), (3, 3, 3))
    found = resample_channel(Channel(stored).then(change), (4, 8, 6), (3, 3, 3))
    assert (found.values() == expected).all()
    assert found.operations == ()
    assert found.limits() == (-100, 300)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("old", "new"), [(512, 262), (111, 301), (40, 200), (300, 7), (33, 33)])
def test_bands_are_the_whole_matrix(old: int, new: int, order: int) -> None:
    operator, joined = axis_operator(old, new, order), np.zeros((new, old), np.float32)
    axis = axis_of(old, new, order)
    for start in range(0, new, BAND_ROWS):
        rows = slice(start, start + BAND_ROWS)
        joined[rows, axis.columns(rows)] = axis.weights[rows, axis.columns(rows)]
    assert np.abs(joined - operator).max() <= 1e-9
    assert np.abs(joined - operator).sum(axis=1).max() <= 1e-7
    lines = np.random.default_rng(0).normal(size=(old, 2, 3)).astype(np.float32)
    expected = np.einsum("ij,jyz->iyz", operator.astype(float), lines)
    for way in range(3):
        found = resample_axis(lines.swapaxes(0, way), way, new, order).swapaxes(0, way)
        assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize(
    ("old", "new"), [((70, 45, 81), (33, 97, 40)), ((97, 20, 40), (65, 66, 9))]
)
def test_shapes_of_several_bands_equal_scikit_image(old: Triple, new: Triple) -> None:
    volume = np.random.default_rng(0).normal(100, 50, old).astype(np.float32)
    for order in (1, 3):
        found = resampled(volume, new, (order, order, order))
        assert np.abs(found - reference(volume, new, order)).max() <= 1e-5 * np.abs(volume).max()


def test_cubic_overshoot_is_clipped_to_the_range() -> None:
    step = np.zeros((8, 4, 4), np.float32)
    step[4:] = 1
    found = resampled(step, (13, 4, 4), (3, 3, 3))
    assert (found.min(), found.max()) == (0, 1)
    unclipped = one_axis_after_another(step, (13, 4, 4), (3, 3, 3))
    assert unclipped.max() > 1.01  # otherwise this test shows nothing


def test_the_same_shape_changes_nothing() -> None:
    channel = Channel(np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32))
    assert resample_channel(channel, (3, 4, 5), (3, 3, 3)) is channel


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("new", [7, 20, 31])
def test_a_ramp_in_mm_stays_the_same_ramp(order: int, new: int) -> None:
    old = 20
    spacing, new_spacing = 1.5, 1.5 * old / new
    position = (np.arange(old) + 0.5) * spacing  # from the edge of the volume, not its first centre
    new_position = (np.arange(new) + 0.5) * new_spacing
    ramp = np.broadcast_to(position[:, None, None], (old, 3, 3)).astype(np.float32)
    found = resampled(ramp, (new, 4, 2), (order, order, order))[:, 0, 0]
    inner = (new_position > 4 * spacing) & (new_position < (old - 4) * spacing)
    assert inner.sum() >= 3
    # A spline knows that its border is flat: that is felt a little within the volume.
    assert found[inner] == pytest.approx(new_position[inner], abs=1e-4 if order == 1 else 2e-2)


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
    shape: Triple, spacing: Any, target: Any, rounding: str, expected: Triple
) -> None:
    assert resampled_shape(shape, spacing, target, rounding) == expected


@given(SHAPES, st.tuples(*[st.floats(0.1, 9)] * 3), st.sampled_from(["down", "nearest"]))
def test_the_own_spacing_keeps_the_shape(shape: Triple, spacing: Any, rounding: str) -> None:
    third = tuple(value * 3 / 3 for value in spacing)  # not always the same number
    assert resampled_shape(shape, spacing, third, rounding) == shape


@pytest.mark.parametrize(
    ("old", "new", "anisotropy", "expected"),
    [
        ((1, 1, 5), (1, 1, 1), 3.0, (3, 3, 0)),  # coarse before
        ((1, 1, 1), (5, 1, 1), 3.0, (0, 3, 3)),  # coarse after
        ((1, 5, 1), (5, 1, 1), 3.0, (3, 0, 3)),  # the old spacing is used first
        ((1, 1, 3), (1, 1, 3), 3.0, (3, 3, 3)),  # the limit itself is not above it
        ((1, 5, 5), (1, 1, 5), 3.0, (3, 3, 3)),  # two coarse axes: none is alone
        ((1, 1, 5), (1, 1, 5), None, (3, 3, 3)),
    ],
)
def test_axis_orders(old: Any, new: Any, anisotropy: float | None, expected: Triple) -> None:
    assert axis_orders(3, old, new, anisotropy) == expected
