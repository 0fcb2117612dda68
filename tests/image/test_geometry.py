from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.common.errors import DataError
from autoseg.common.progress import noted
from autoseg.image.geometry import Geometry, check_same_grid
from tests.turning import TURNS, rotation

SIZES = st.tuples(*[st.integers(1, 300)] * 3)
SPACINGS = st.tuples(*[st.floats(0.3, 8)] * 3)
SHARES = st.tuples(*[st.floats(-0.2, 0.2)] * 3)


@given(SIZES, SPACINGS, TURNS, SHARES)
def test_grids_shifted_by_less_than_5_percent_of_a_voxel_are_equal(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    turn: tuple[float, ...],
    share: tuple[float, float, float],
) -> None:
    """The shift is given in voxels along each axis, whatever the direction of the axes."""
    matrix = rotation(turn)
    direction = tuple(matrix.ravel().tolist())
    grid = Geometry(size, spacing, (1.0, 2.0, 3.0), direction)
    x, y, z = (np.array([1.0, 2.0, 3.0]) + matrix @ np.multiply(share, spacing)).tolist()
    moved = Geometry(size, spacing, (x, y, z), direction)
    largest = max(map(abs, share))
    if abs(largest - 0.05) > 1e-6:
        assert grid.nearly(moved) == (largest < 0.05)


def test_a_small_error_of_the_spacing_grows_with_the_size() -> None:
    axes = tuple(np.eye(3).ravel().tolist())
    for size, is_near in ((40, True), (400, False)):
        grid = Geometry((size, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), axes)
        other = Geometry((size, 4, 4), (1.001, 1.0, 1.0), (0.0, 0.0, 0.0), axes)
        assert grid.nearly(other) == is_near
    assert not grid.nearly(Geometry((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), axes))


def test_a_difference_is_noted_or_an_error() -> None:
    axes = tuple(np.eye(3).ravel().tolist())
    grid = Geometry((9, 9, 9), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), axes)
    near = Geometry((9, 9, 9), (1.0, 1.0, 2.0), (0.0, 0.0, 0.09), axes)
    far = Geometry((9, 9, 9), (1.0, 1.0, 2.0), (0.0, 0.0, 0.11), axes)
    with noted() as notes:
        check_same_grid(grid, "a", grid, "b")
        assert notes == []
        check_same_grid(near, "a", grid, "b")
    (text,) = notes
    assert "0.09 mm" in text
    with pytest.raises(DataError, match=r"a: .* b: origin by 0\.11 mm"):
        check_same_grid(far, "a", grid, "b")
