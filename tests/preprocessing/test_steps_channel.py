from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autoseg.preprocessing import steps as module
from autoseg.preprocessing.steps import Channel

LAYOUTS = ["straight", "turned", "cut"]


def halve(values: NDArray[np.float32]) -> None:
    values /= 2


def clip(values: NDArray[np.float32]) -> None:
    np.clip(values, -10.5, 30, out=values)


def stored(layout: str, dtype: Any = np.int16) -> NDArray[Any]:
    values = np.random.default_rng(0).integers(-50, 90, (9, 7, 5)).astype(dtype)
    return {"straight": values, "turned": values.T, "cut": values[2:7, 1:, ::2]}[layout]


@pytest.fixture(params=[1, 20, 1 << 20])
def _slabs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLAB_VOXELS", request.param)


@pytest.mark.usefixtures("_slabs")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operations_are_applied_in_order(layout: str) -> None:
    array = stored(layout)
    before = array.copy()
    channel = Channel(array).then(clip).then(halve)
    expected = array.astype(np.float32).clip(-10.5, 30) / 2
    assert channel.shape == array.shape
    assert channel.values().dtype == np.float32
    assert channel.values().flags.c_contiguous
    assert (channel.values() == expected).all()
    assert channel.limits() == (expected.min(), expected.max())
    assert channel.mean_and_std() == pytest.approx(
        (expected.astype(float).mean(), expected.astype(float).std())
    )
    assert (array == before).all()


@pytest.mark.usefixtures("_slabs")
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_slabs_cover_the_channel_once(layout: str, axis: int | None) -> None:
    array = stored(layout)
    seen = np.zeros(array.shape, int)
    for where, values in Channel(array).slabs(axis):
        seen[where] += 1
        assert (values == array[where]).all()
        assert not np.shares_memory(values, array)
    assert (seen == 1).all()


@pytest.mark.usefixtures("_slabs")
def test_nonzero_is_asked_of_the_changed_values() -> None:
    array = stored("turned", np.float32)

    def positive(values: NDArray[np.float32]) -> None:
        np.maximum(values, 0, out=values)

    assert (Channel(array).nonzero() == (array != 0)).all()
    assert (Channel(array).then(positive).nonzero() == (array > 0)).all()


def test_a_part_keeps_the_operations() -> None:
    box = (slice(1, 4), slice(0, 2), slice(2, 5))
    channel = Channel(stored("straight")).then(clip)
    assert (channel.crop(box).values() == channel.values()[box]).all()


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    noise = np.random.default_rng(0).normal(size=(20, 20, 20))
    values = (noise + 1e5).astype(np.float32)
    mean, std = Channel(values).mean_and_std()
    assert mean == pytest.approx(values.astype(float).mean(), rel=1e-12)
    assert std == pytest.approx(values.astype(float).std(), rel=1e-9)
