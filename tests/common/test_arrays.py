from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from autoseg.common.arrays import members


def test_members_are_found_in_the_maps_own_memory_order() -> None:
    label = (np.arange(24).reshape(2, 3, 4) % 5).astype(np.uint8)
    for same in (label, np.asfortranarray(label)):
        inside = members(same, (1, 3))
        assert np.array_equal(inside, np.isin(label, (1, 3)))
        assert inside.strides == same.strides


def test_values_beyond_the_integer_type_are_nowhere() -> None:
    assert not members(np.zeros((2, 2, 2), np.uint8), (300,)).any()


@given(
    arrays(np.int16, st.tuples(*[st.integers(0, 4)] * 3), elements=st.integers(-1, 5)),
    st.lists(st.integers(-1, 6)),
)
def test_members_are_those_of_numpy(label: NDArray[np.int16], values: list[int]) -> None:
    inside = members(label, values)
    assert inside.dtype == bool
    assert np.array_equal(inside, np.isin(label, values))
