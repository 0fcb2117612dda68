from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from autoseg.common.arrays import CHUNK
from autoseg.fingerprint.fingerprint import content_of
from autoseg.fingerprint.statistics import (
    Counted,
    Intensities,
    Listed,
    sample,
    small_integers,
    summary,
    whole_and_inside,
)

TYPES: list[Any] = [np.uint8, np.int8, np.uint16, np.int16]
shapes = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))


def cases(dtype: Any) -> st.SearchStrategy[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """A channel of whole numbers, and a mask."""
    return shapes.flatmap(
        lambda shape: st.tuples(hnp.arrays(dtype, shape), hnp.arrays(np.bool_, shape))
    )


@pytest.mark.parametrize("dtype", TYPES)
@given(data=st.data())
def test_counting_equals_sorting(dtype: Any, data: st.DataObject) -> None:
    channel, mask = data.draw(cases(dtype))
    floats = channel.astype(np.float32)
    for found, values in zip(
        whole_and_inside(channel, mask), (floats.ravel(), floats[mask]), strict=True
    ):
        assert isinstance(found, Counted)
        slow = Listed(np.sort(values), ordered=True)
        assert len(found) == len(slow)
        assert sample(found) == sample(slow)
        if len(slow):
            assert summary(found) == summary(slow) == summary(Listed(values))


def test_a_large_scan_is_counted_in_chunks() -> None:
    rng = np.random.default_rng(0)
    channel = rng.normal(0, 900, (129, 128, 127)).astype(np.int16)
    assert channel.size > CHUNK
    mask = channel > 700
    whole, inside = whole_and_inside(channel, mask)
    assert summary(whole) == summary(Listed(channel.ravel().astype(np.float32)))
    assert summary(inside) == summary(Listed(channel[mask].astype(np.float32)))


def test_golden_figures() -> None:
    found = summary(
        whole_and_inside(np.array([[[-3, 1, 1, 5]]], np.int16), np.ones((1, 1, 4), np.bool_))[0]
    )
    assert found == Intensities(
        mean=1.0, std=2.82843, min=-3.0, p00_5=-2.94, median=1.0, p99_5=4.94, max=5.0
    )


def test_the_ends_of_each_type() -> None:
    for dtype in TYPES:
        ends = np.array([[[np.iinfo(dtype).min, np.iinfo(dtype).max]]], dtype)
        found = summary(whole_and_inside(ends, np.ones(ends.shape, np.bool_))[0])
        assert (found.min, found.max) == (np.iinfo(dtype).min, np.iinfo(dtype).max)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_whole_numbers_of_any_type_are_counted(dtype: Any) -> None:
    values = np.array([-32768, 0, 7, 32767], dtype)
    found = small_integers(values)
    assert found is not None
    assert found.dtype == np.int16
    assert found.tolist() == values.tolist()
    assert small_integers(np.array([1, 32768], dtype)) is None


def test_other_numbers_are_not() -> None:
    values = np.zeros(CHUNK + 5, np.float32)
    values[-1] = 0.5
    assert small_integers(values) is None
    assert small_integers(np.array([1e30, -1e30], np.float32)) is None
    whole, inside = whole_and_inside(values.reshape(1, 1, -1), values.reshape(1, 1, -1) > 0)
    assert (len(whole), len(inside)) == (CHUNK + 5, 1)
    assert summary(whole).max == summary(inside).min == 0.5


def test_nothing_has_no_sample() -> None:
    for channel in (np.zeros((2, 2, 2), np.int16), np.full((2, 2, 2), 0.5, np.float32)):
        _, inside = whole_and_inside(channel, np.zeros((2, 2, 2), np.bool_))
        assert len(inside) == 0
        assert sample(inside) == ()


@given(
    hnp.arrays(
        np.int16,
        st.tuples(st.integers(1, 2), *[st.integers(1, 5)] * 3),
        elements=st.integers(-1, 1),
    )
)
def test_the_content_is_that_of_the_floats(array: NDArray[np.int16]) -> None:
    floats = np.ascontiguousarray(array.astype(np.float32).T)
    assert content_of(array) == hashlib.sha256(floats.data).hexdigest()
