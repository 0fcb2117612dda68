from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from autoseg.common.arrays import count_labels
from autoseg.common.files import dataclass_from_json
from autoseg.fingerprint.fingerprint import CaseFigures, measure, orientation_of, shape_of_content
from autoseg.fingerprint.statistics import (
    SAMPLE_SIZE,
    Intensities,
    LabelFigures,
    rounded,
)
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


def image_of(
    array: NDArray[Any], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Image:
    geometry = Geometry(array.shape[1:], spacing_mm, (0.0, 0.0, 0.0), IDENTITY)
    return Image(array.astype(np.float32), geometry)


def test_golden_figures_of_a_handmade_case() -> None:
    array = np.zeros((2, 4, 3, 2), np.float32)
    array[0, 1:3, 1, :] = [[10, 20], [30, 40]]
    array[1, 0, 1, 0] = -5
    label = np.zeros((4, 3, 2), np.uint8)
    label[1:3, 1, :] = [[1, 1], [2, 9]]
    voxels = count_labels(label)
    spacing_mm = (0.97656251, 1.0, 3.0)
    labels = {"background": (0,), "a": (1,), "b": (2,), "c": (3,)}
    figures, samples = measure(image_of(array, spacing_mm), label, voxels, labels, 9)

    assert figures.shape == (4, 3, 2)
    assert figures.spacing_mm == spacing_mm
    assert figures.orientation == "LPS"
    assert figures.shape_after_crop == (3, 1, 2)
    assert figures.voxels == {0: 20, 1: 2, 2: 1, 9: 1}
    assert figures.labels == {
        "a": LabelFigures(volume_ml=0.00585938, components=1, extent_mm=(0.976563, 1.0, 6.0)),
        "b": LabelFigures(volume_ml=0.00292969, components=1, extent_mm=(0.976563, 1.0, 3.0)),
        "c": LabelFigures(volume_ml=0.0, components=0, extent_mm=None),
    }
    first, second = figures.channels
    assert (first.scale, second.scale) == ("0..255", "other")
    assert first.foreground == Intensities(
        mean=20.0, std=8.16497, min=10.0, p00_5=10.1, median=20.0, p99_5=29.9, max=30.0
    )
    assert first.image == Intensities(
        mean=4.16667, std=10.3749, min=0.0, p00_5=0.0, median=0.0, p99_5=38.85, max=40.0
    )
    assert second.image.min == -5.0
    assert second.foreground == Intensities(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert [len(sample) for sample in samples] == [SAMPLE_SIZE, SAMPLE_SIZE]
    assert samples[0][0] == 10.02
    assert samples[0][-1] == 29.98
    assert dataclass_from_json(CaseFigures, asdict(figures), "figures") == figures


def test_no_foreground() -> None:
    array = np.ones((1, 2, 2, 2), np.float32)
    label = np.full((2, 2, 2), 3, np.uint8)
    figures, samples = measure(image_of(array), label, {3: 8}, {"background": (0,)}, 3)
    assert figures.channels[0].foreground is None
    assert samples == ((),)


@given(
    shapes.flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.float32, shape, elements=st.floats(-3000, 3000, width=32)),
            hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)),
        )
    )
)
def test_figures_equal_numpy(case: tuple[NDArray[np.float32], NDArray[np.uint8]]) -> None:
    array, label = case
    figures, _ = measure(
        image_of(array[np.newaxis]), label, count_labels(label), {"background": (0,)}, None
    )
    for found, values in (
        (figures.channels[0].image, array.ravel()),
        (figures.channels[0].foreground, array[label > 0]),
    ):
        if not values.size:
            assert found is None
            continue
        exact = values.astype(np.float64)
        assert found is not None
        assert found.mean == pytest.approx(exact.mean(), rel=1e-5, abs=1e-2)
        assert found.std == pytest.approx(exact.std(), rel=1e-5, abs=1e-2)
        expected = np.percentile(exact, [0, 0.5, 50, 99.5, 100])
        quantiles = [found.min, found.p00_5, found.median, found.p99_5, found.max]
        assert quantiles == pytest.approx(expected, rel=1e-5, abs=1e-30)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.just(2), *[st.integers(1, 5)] * 3),
        elements=st.sampled_from([0.0, 0.0, 0.0, -1.0]),
    )
)
def test_the_box_of_what_is_not_zero(array: NDArray[np.float32]) -> None:
    places = np.argwhere(array.any(axis=0))
    expected = np.ptp(places, axis=0) + 1 if len(places) else array.shape[1:]
    assert shape_of_content(array) == tuple(expected)


def test_orientation_is_named_as_itk_does() -> None:
    import SimpleITK as sitk

    name = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
    rng = np.random.default_rng(0)
    for _ in range(200):
        direction, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        flat = tuple(float(value) for value in direction.ravel())
        assert orientation_of(flat) == name(flat)
    assert orientation_of(IDENTITY) == "LPS"
    assert orientation_of((-1, 0, 0, 0, -1, 0, 0, 0, 1)) == "RAS"


def test_rounding_keeps_six_digits() -> None:
    assert rounded(123456.789) == 123457.0
    assert rounded(-0.00012345678) == -0.000123457
