from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.planner.grid import Topology, feature_map_voxels, pool_and_kernels

SPACINGS = st.floats(0.1, 12)
SIDES = st.integers(1, 1000)
GRIDS = st.one_of(
    st.lists(st.tuples(SPACINGS, SIDES), min_size=2, max_size=2),
    st.lists(st.tuples(SPACINGS, SIDES), min_size=3, max_size=3),
)


def make(grid: Sequence[tuple[float, int]]) -> Topology:
    spacing, patch = zip(*grid, strict=True)
    return pool_and_kernels(spacing, patch)


def test_isotropic_patch_is_halved_everywhere():
    topology = pool_and_kernels((1, 1, 1), (128, 128, 128))
    assert topology.patch == (128, 128, 128)
    assert topology.strides == ((1, 1, 1),) + ((2, 2, 2),) * 5
    assert topology.kernels == ((3, 3, 3),) * 6
    assert topology.features == (32, 64, 128, 256, 320, 320)
    assert topology.divisors == (32, 32, 32)
    assert topology.voxels == tuple(128**3 // 8**stage for stage in range(6))


def test_coarse_axis_waits_for_the_fine_ones():
    topology = pool_and_kernels((0.5, 0.5, 2.0), (256, 256, 32))
    assert topology.strides[:4] == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    assert topology.kernels[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    assert topology.patch == (256, 256, 32)


def test_fractions_of_a_median_shape_are_padded_up():
    assert pool_and_kernels((1, 1), (588.0, 618.5)).patch == (640, 640)


def test_a_lone_short_axis_is_not_halved():
    assert pool_and_kernels((1, 1, 1), (11, 7, 7)).strides == ((1, 1, 1),)
    assert pool_and_kernels((1, 1, 1), (12, 7, 7)).strides == ((1, 1, 1), (2, 1, 1))


def test_smallest_feature_map_is_a_choice():
    assert pool_and_kernels((1, 1), (64, 64), min_feature_map=8).divisors == (8, 8)
    assert pool_and_kernels((1, 1), (64, 64)).divisors == (16, 16)


@given(GRIDS)
@settings(deadline=None, max_examples=60)
def test_patch_fits_the_strides(grid):
    topology = make(grid)
    dimensions = len(grid)
    for padded, divisor, (_, wished) in zip(topology.patch, topology.divisors, grid, strict=True):
        assert padded % divisor == 0
        assert wished <= padded < wished + divisor
        assert divisor == 1 or padded // divisor >= 4
    assert topology.strides[0] == (1,) * dimensions
    assert {step for stride in topology.strides for step in stride} <= {1, 2}
    assert {side for kernel in topology.kernels for side in kernel} <= {1, 3}
    assert len(topology.kernels) == topology.stages
    assert topology.kernels[-1] == (3,) * dimensions
    most = 512 if dimensions == 2 else 320
    assert topology.features == tuple(min(32 * 2**i, most) for i in range(topology.stages))


@given(GRIDS)
@settings(deadline=None, max_examples=60)
def test_order_of_the_axes_does_not_matter(grid):
    forward, backward = make(grid), make(grid[::-1])
    assert backward.patch == forward.patch[::-1]
    assert backward.strides == tuple(stride[::-1] for stride in forward.strides)
    assert backward.kernels == tuple(kernel[::-1] for kernel in forward.kernels)


@pytest.mark.parametrize(
    ("residual", "encoder", "decoder", "labels", "expected"),
    [
        (False, (2,) * 6, (2,) * 5, 3, 452_796_416),  # what nnU-Net computes for this network
        (False, (2,) * 6, (2,) * 5, 4, 452_796_416 + 128**3),
    ],
)
def test_feature_map_voxels(residual, encoder, decoder, labels, expected):
    topology = pool_and_kernels((1, 1, 1), (128, 128, 128))
    assert feature_map_voxels(topology, encoder, decoder, residual, labels) == expected


def test_feature_map_voxels_by_hand():
    topology = pool_and_kernels((1, 1), (8, 8))
    assert topology.voxels == (64, 16)
    # stem + 2 convolutions, then 2 blocks of 2 convolutions + 1 projection; decoder; last layer
    by_hand = 3 * 32 * 64 + 5 * 64 * 16 + 2 * 32 * 64 + 3 * 64
    assert feature_map_voxels(topology, (1, 2), (1,), True, 3) == by_hand
