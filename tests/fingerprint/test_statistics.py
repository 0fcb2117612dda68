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
from autoseg.fingerprint.statistics import (
    Histogram,
    IntensityStatistics,
    LabelStatistics,
    RawValues,
    content_of,
    intensities_of,
    measure_labels,
    sample_quantiles,
    small_integers,
    summarize,
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
def test_histograms_equal_sorting(dtype: Any, data: st.DataObject) -> None:
    channel, mask = data.draw(cases(dtype))
    floats = channel.astype(np.float32)
    for found, values in zip(
        intensities_of(channel, mask), (floats.ravel(), floats[mask]), strict=True
    ):
        assert isinstance(found, Histogram)
        slow = RawValues(np.sort(values), is_sorted=True)
        assert len(found) == len(slow)
        assert sample_quantiles(found) == sample_quantiles(slow)
        if len(slow):
            assert summarize(found) == summarize(slow) == summarize(RawValues(values))


def test_the_histogram_of_a_large_scan() -> None:
    rng = np.random.default_rng(0)
    channel = rng.normal(0, 900, (129, 128, 127)).astype(np.int16)
    assert channel.size > CHUNK
    mask = channel > 700
    whole, inside = intensities_of(channel, mask)
    assert summarize(whole) == summarize(RawValues(channel.ravel().astype(np.float32)))
    assert summarize(inside) == summarize(RawValues(channel[mask].astype(np.float32)))


def test_golden_statistics() -> None:
    found = summarize(
        intensities_of(np.array([[[-3, 1, 1, 5]]], np.int16), np.ones((1, 1, 4), np.bool_))[0]
    )
    assert found == IntensityStatistics(
        mean=1.0, std=2.82843, min=-3.0, p00_5=-2.94, median=1.0, p99_5=4.94, max=5.0
    )


def test_the_ends_of_each_type() -> None:
    for dtype in TYPES:
        ends = np.array([[[np.iinfo(dtype).min, np.iinfo(dtype).max]]], dtype)
        found = summarize(intensities_of(ends, np.ones(ends.shape, np.bool_))[0])
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
    whole, inside = intensities_of(values.reshape(1, 1, -1), values.reshape(1, 1, -1) > 0)
    assert (len(whole), len(inside)) == (CHUNK + 5, 1)
    assert summarize(whole).max == summarize(inside).min == 0.5


def test_nothing_has_no_quantiles() -> None:
    for channel in (np.zeros((2, 2, 2), np.int16), np.full((2, 2, 2), 0.5, np.float32)):
        _, inside = intensities_of(channel, np.zeros((2, 2, 2), np.bool_))
        assert len(inside) == 0
        assert sample_quantiles(inside) == ()


@given(
    hnp.arrays(
        np.int16,
        st.tuples(st.integers(1, 2), *[st.integers(1, 5)] * 3),
        elements=st.integers(-1, 1),
    )
)
def test_the_hash_is_that_of_the_floats(array: NDArray[np.int16]) -> None:
    floats = np.ascontiguousarray(array.astype(np.float32).T)
    assert content_of(array) == hashlib.sha256(floats.data).hexdigest()


# Label maps.

label_shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
LABELS = {"background": (0,), "one": (1,), "two": (2,), "far": (300,), "some": (1, 2)}


def test_golden_label_statistics() -> None:
    label = np.zeros((6, 5, 4), np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = 1  # corners touch: one piece
    label[4, 1, 3] = 1
    label[2:4, 1, 1] = 2
    found = measure_labels(label, LABELS, (10.0, 5.0, 2.5))
    assert found == {
        "one": LabelStatistics(volume_ml=0.375, components=2, extent_mm=(50.0, 10.0, 10.0)),
        "two": LabelStatistics(volume_ml=0.25, components=1, extent_mm=(20.0, 5.0, 2.5)),
        "far": LabelStatistics(volume_ml=0.0, components=0, extent_mm=None),
        "some": LabelStatistics(volume_ml=0.625, components=2, extent_mm=(50.0, 10.0, 10.0)),
    }
    assert [label.present for label in found.values()] == [True, True, False, True]


@given(hnp.arrays(np.uint16, label_shapes, elements=st.sampled_from([0, 0, 0, 1, 2, 300])))
def test_label_statistics_equal_scipy(label: NDArray[np.uint16]) -> None:
    from scipy.ndimage import label as components_of

    spacing_mm = (0.5, 1.0, 2.0)
    for name, found in measure_labels(label, LABELS, spacing_mm).items():
        mask = np.isin(label, LABELS[name])
        places = np.argwhere(mask)
        assert found.volume_ml == pytest.approx(len(places) / 1000)
        assert found.components == components_of(mask, np.ones((3, 3, 3)))[1]
        extent: Any = (np.ptp(places, axis=0) + 1) * spacing_mm if len(places) else None
        assert found.extent_mm == (None if extent is None else pytest.approx(extent))
