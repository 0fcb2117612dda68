from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from autoseg.common.arrays import count_labels
from autoseg.common.errors import AutosegError
from autoseg.common.files import dataclass_from_json, write_json
from autoseg.fingerprint.fingerprint import Fingerprint
from autoseg.fingerprint.statistics import (
    SAMPLE_SIZE,
    CaseStatistics,
    ChannelStatistics,
    IntensityStatistics,
    LabelStatistics,
    measure,
    rounded,
    shape_of_content,
)
from autoseg.image.geometry import Geometry
from autoseg.image.image import Image

ANY = IntensityStatistics(mean=0, std=1, min=-1024, p00_5=-1000, median=0, p99_5=900, max=1000)
PRESENT, ABSENT = LabelStatistics(1.0, 1, (1.0, 2.0, 3.0)), LabelStatistics(0.0, 0, None)
CASE = CaseStatistics(
    shape=(2, 2, 2),
    spacing_mm=(1.0, 1.0, 1.0),
    orientation="LPS",
    shape_after_crop=(2, 2, 2),
    channels=(ChannelStatistics("hounsfield", ANY, None),),
    voxels={0: 8},
    labels={"lung": PRESENT, "infection": ABSENT},
    content="",
)


def fingerprint(cases: dict[str, CaseStatistics]) -> Fingerprint:
    labels: dict[str, tuple[int, ...]] = {"background": (0,), "lung": (1,), "infection": (2,)}
    return Fingerprint("Task001_COVID", ("CT",), labels, None, (None,), cases)


def test_spacings_survive_the_file_exactly(tmp_path: Path) -> None:
    spacing_mm = (0.1 + 0.2, 0.9765620231628418, 3.2699999809265137)
    found = fingerprint({"a": replace(CASE, spacing_mm=spacing_mm)})
    found.save(tmp_path / "fingerprint.json")
    again = Fingerprint.load(tmp_path / "fingerprint.json")
    assert again == found
    assert again.cases["a"].spacing_mm == spacing_mm
    assert again.median_spacing_mm == spacing_mm


def test_presence_names_the_labels_of_each_case() -> None:
    sick = replace(CASE, labels={"lung": PRESENT, "infection": PRESENT})
    assert fingerprint({"a": CASE, "b": sick}).presence == {
        "a": frozenset({"lung"}),
        "b": frozenset({"lung", "infection"}),
    }


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"format": 1}', '{"format": 2}', '{"format": 99}', "{"]
)
def test_invalid_fingerprints_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fingerprint.json"
    path.write_text(text)
    with pytest.raises(AutosegError, match=r"fingerprint\.json"):
        Fingerprint.load(path)


def test_those_of_version_0_1_0_are_read(tmp_path: Path) -> None:
    found = fingerprint({"a": CASE}).to_json()
    for channel in found["cases"]["a"]["channels"]:
        del channel["body"]
    write_json(tmp_path / "fingerprint.json", found | {"format": 2})
    assert Fingerprint.load(tmp_path / "fingerprint.json") == fingerprint({"a": CASE})


def test_a_missing_fingerprint_is_named(tmp_path: Path) -> None:
    with pytest.raises(AutosegError, match=r"fingerprint\.json is missing"):
        Fingerprint.load(tmp_path / "fingerprint.json")


# The statistics of one case.

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))


def image_of(
    array: NDArray[Any], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Image:
    geometry = Geometry(array.shape[1:], spacing_mm, (0.0, 0.0, 0.0), IDENTITY)
    return Image(array.astype(np.float32), geometry)


def test_golden_statistics_of_a_handmade_case() -> None:
    array = np.zeros((2, 4, 3, 2), np.float32)
    array[0, 1:3, 1, :] = [[10, 20], [30, 40]]
    array[1, 0, 1, 0] = -5
    label = np.zeros((4, 3, 2), np.uint8)
    label[1:3, 1, :] = [[1, 1], [2, 9]]
    voxels = count_labels(label)
    spacing_mm = (0.97656251, 1.0, 3.0)
    labels = {"background": (0,), "a": (1,), "b": (2,), "c": (3,)}
    statistics, samples = measure(image_of(array, spacing_mm), label, voxels, labels, 9)

    assert statistics.shape == (4, 3, 2)
    assert statistics.spacing_mm == spacing_mm
    assert statistics.orientation == "LPS"
    assert statistics.shape_after_crop == (3, 1, 2)
    assert statistics.voxels == {0: 20, 1: 2, 2: 1, 9: 1}
    assert statistics.labels == {
        "a": LabelStatistics(volume_ml=0.00585938, components=1, extent_mm=(0.976563, 1.0, 6.0)),
        "b": LabelStatistics(volume_ml=0.00292969, components=1, extent_mm=(0.976563, 1.0, 3.0)),
        "c": LabelStatistics(volume_ml=0.0, components=0, extent_mm=None),
    }
    first, second = statistics.channels
    assert (first.scale, second.scale) == ("0..255", "other")
    assert first.foreground == IntensityStatistics(
        mean=20.0, std=8.16497, min=10.0, p00_5=10.1, median=20.0, p99_5=29.9, max=30.0
    )
    assert first.image == IntensityStatistics(
        mean=4.16667, std=10.3749, min=0.0, p00_5=0.0, median=0.0, p99_5=38.85, max=40.0
    )
    assert second.image.min == -5.0
    assert second.foreground == IntensityStatistics(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert [len(sample) for sample in samples] == [SAMPLE_SIZE, SAMPLE_SIZE]
    assert samples[0][0] == 10.02
    assert samples[0][-1] == 29.98
    assert dataclass_from_json(CaseStatistics, asdict(statistics), "statistics") == statistics


def test_no_foreground() -> None:
    array = np.ones((1, 2, 2, 2), np.float32)
    label = np.full((2, 2, 2), 3, np.uint8)
    statistics, samples = measure(image_of(array), label, {3: 8}, {"background": (0,)}, 3)
    assert statistics.channels[0].foreground is None
    assert samples == ((),)


@given(
    shapes.flatmap(
        lambda shape: st.tuples(
            hnp.arrays(np.float32, shape, elements=st.floats(-3000, 3000, width=32)),
            hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)),
        )
    )
)
def test_statistics_equal_numpy(case: tuple[NDArray[np.float32], NDArray[np.uint8]]) -> None:
    array, label = case
    statistics, _ = measure(
        image_of(array[np.newaxis]), label, count_labels(label), {"background": (0,)}, None
    )
    for found, values in (
        (statistics.channels[0].image, array.ravel()),
        (statistics.channels[0].foreground, array[label > 0]),
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
def test_the_bounding_box_of_nonzero_voxels(array: NDArray[np.float32]) -> None:
    places = np.argwhere(array.any(axis=0))
    expected = np.ptp(places, axis=0) + 1 if len(places) else array.shape[1:]
    assert shape_of_content(array) == tuple(expected)


def test_turning_exchanges_what_belongs_to_axes() -> None:
    array = np.zeros((1, 4, 5, 6), np.float32)
    array[0, 1:3, 2, 1:] = 1
    grid = Geometry((4, 5, 6), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0), IDENTITY)  # LPS
    label = (array[0] > 0).astype(np.uint8)
    case, _ = measure(Image(array, grid), label, {0: 110, 1: 10}, {"organ": [1]}, None)
    turned = case.turned_to("SRA")
    assert turned.turned_to("LPS") == case
    assert (turned.orientation, turned.shape, turned.shape_after_crop) == (
        "SRA",
        (6, 4, 5),
        (5, 2, 1),
    )
    assert turned.spacing_mm == (3.0, 1.0, 2.0)
    assert turned.labels["organ"].extent_mm == (15.0, 2.0, 2.0)
    assert turned.labels["organ"].volume_ml == case.labels["organ"].volume_ml


def test_rounding_keeps_six_digits() -> None:
    assert rounded(123456.789) == 123457.0
    assert rounded(-0.00012345678) == -0.000123457
