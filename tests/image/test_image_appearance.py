from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
import pytest

from autoseg.image.geometry import Geometry
from autoseg.image.image import BODY_SIZE, Image, appearance_of, body_of, read_image
from tests.dataset.making import HIPPOCAMPUS

SCAN = HIPPOCAMPUS / "imagesTs" / "hippocampus_040.nii.gz"


def test_the_figures_of_a_real_scan() -> None:
    found = appearance_of(read_image(SCAN))
    scan: Any = nibabel.load(SCAN)
    values = np.asarray(scan.dataobj)
    assert found.orientation == "".join(nibabel.aff2axcodes(scan.affine))
    assert found.spacing_mm == (1.0, 1.0, 1.0)
    assert found.extent_mm == pytest.approx(np.ptp(np.nonzero(values), axis=1) + 1, abs=2)
    low, high = found.ranges[0]
    assert [low, high] == pytest.approx(np.percentile(values, (0.5, 99.5)), rel=0.15)
    (body,) = found.bodies
    assert len(body) == BODY_SIZE
    assert np.mean(body) == pytest.approx(values.mean(), rel=0.03)


def test_lengths_are_those_of_the_patients_axes() -> None:
    """x runs from head to foot, y to the left, z to the front."""
    direction = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0, -1.0, 0.0, 0.0)
    array = np.zeros((1, 20, 30, 10), np.int16)
    array[0, 5:15, 3:28, 2:9] = 7
    found = appearance_of(
        Image(array, Geometry((20, 30, 10), (3.0, 1.0, 2.0), (0, 0, 0), direction))
    )
    assert found.orientation == "ILA"
    assert found.spacing_mm == (1.0, 2.0, 3.0)
    assert found.extent_mm == (25.0, 14.0, 30.0)


@pytest.mark.parametrize("padding", [0, -1000])
def test_padding_is_outside_of_the_body(padding: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-500, 500, (20, 20, 20))
    inside = rng.random(values.shape) > 0.4
    body = body_of(np.where(inside, values, padding))
    fractions = (np.arange(BODY_SIZE) + 0.5) / BODY_SIZE
    assert body == pytest.approx(
        np.quantile(values[inside & (values != padding)], fractions), abs=2
    )


def test_a_scan_of_one_value_is_its_own_body() -> None:
    assert set(body_of(np.full((5, 5, 5), 7.0))) == {7.0}


def test_large_scans_are_sampled() -> None:
    array = np.random.default_rng(0).normal(size=(1, 129, 64, 33)).astype(np.float32)
    grid = Geometry((129, 64, 33), (1.0, 1.0, 1.0), (0, 0, 0), tuple(np.eye(3).ravel()))
    found = appearance_of(Image(array, grid))
    assert found.extent_mm == pytest.approx((129, 64, 33), abs=5)
    assert found.ranges[0] == pytest.approx((-2.58, 2.58), abs=0.15)
