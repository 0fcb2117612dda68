from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from autoseg.common.arrays import Triple
from autoseg.plan.sections import Inference
from autoseg.prediction import sliding_window
from autoseg.prediction.sliding_window import (
    Slab,
    count_tiles,
    predict_slabs,
    tile_starts,
    weight_map,
    window_bytes,
)
from tests.prediction.making import mean_of

PATCH = (6, 4, 5)
SHAPES = st.tuples(*[st.integers(1, 15)] * 3)
WEIGHTINGS = ["gaussian", "uniform"]


def softmax_of_values(patches: Tensor) -> Tensor:
    """A pointwise network."""
    return torch.softmax(torch.cat([patches, -patches, patches * 0.5], dim=1), dim=1)


def how(overlap: Triple, weighting: str = "gaussian") -> Inference:
    return Inference.model_validate({"overlap": overlap, "weighting": weighting})


def slabs_of(
    image: NDArray[np.float32], inference: Inference, patch: Triple = PATCH
) -> Iterator[Slab]:
    return predict_slabs(softmax_of_values, image, patch, inference, 3)


def joined(slabs: Iterator[Slab]) -> NDArray[Any]:
    return np.concatenate([mean_of(slab) for slab in slabs], axis=1)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int]:
    patch = draw(st.integers(1, 200))
    return draw(st.integers(1, 1000)), patch, draw(st.integers(0, patch - 1))


@given(axes())
def test_tiles_cover_the_axis_and_overlap_enough(axis: tuple[int, int, int]) -> None:
    size, patch, overlap = axis
    starts = tile_starts(size, patch, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, size - patch)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= patch - overlap).all()
    if len(starts) > 1:
        assert steps.max() - steps.min() <= 1  # evenly spread
        assert (len(starts) - 2) * (patch - overlap) < size - patch  # no tile too many


@pytest.mark.parametrize(
    ("size", "patch", "overlap", "expected"),
    [
        (262, 160, 80, [0, 51, 102]),  # the paper's patches on its 262 x 262 x 111 voxels
        (111, 80, 40, [0, 31]),
        (160, 160, 80, [0]),
        (161, 160, 80, [0, 1]),
        (5, 8, 4, [0]),
        (10, 4, 0, [0, 3, 6]),
        (12, 4, 0, [0, 4, 8]),
        (6, 4, 3, [0, 1, 2]),
    ],
)
def test_tile_starts(size: int, patch: int, overlap: int, expected: list[int]) -> None:
    assert tile_starts(size, patch, overlap) == expected


def test_count_tiles_is_the_number_of_patches() -> None:
    seen: list[torch.Size] = []

    def count(patches: Tensor) -> Tensor:
        seen.append(patches.shape)
        return softmax_of_values(patches)

    image = np.zeros((2, 13, 9, 3), np.float32)
    list(predict_slabs(lambda p: count(p[:, :1]), image, PATCH, how((3, 2, 1)), 3))
    tiles = sum(shape[0] for shape in seen)
    assert tiles == count_tiles((13, 9, 3), PATCH, (3, 2, 1)) == 4 * 4 * 1
    assert {shape[1:] for shape in seen} == {torch.Size((1, *PATCH))}


@pytest.mark.parametrize(
    ("voxels", "batches"),
    [
        (1, [1] * 8),
        (120, [1] * 8),
        (240, [2] * 4),
        (479, [3, 1] * 2),
        (959, [4] * 2),
        (960, [8]),
        (9999, [8]),
    ],
)
def test_small_patches_are_batched(
    voxels: int, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four patches of 120 voxels at each of two x positions."""
    monkeypatch.setattr(sliding_window, "VOXELS_AT_ONCE", voxels)
    seen: list[int] = []

    def count(patches: Tensor) -> Tensor:
        seen.append(len(patches))
        return softmax_of_values(patches)

    image = np.random.default_rng(0).normal(size=(1, 7, 6, 7)).astype(np.float32)
    got = joined(predict_slabs(count, image, PATCH, how((3, 2, 2)), 3))
    assert seen == batches
    whole = softmax_of_values(torch.from_numpy(image)[None])[0].numpy()
    assert np.abs(got - whole).max() <= 1e-5


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@settings(max_examples=40, deadline=None)
@given(
    shape=SHAPES,
    overlap=st.tuples(*[st.integers(0, size - 1) for size in PATCH]),
    seed=st.integers(0, 2**32 - 1),
)
def test_tiles_of_a_pointwise_network_equal_the_whole_volume(
    weighting: str, shape: Triple, overlap: Triple, seed: int
) -> None:
    image = np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
    whole = softmax_of_values(torch.from_numpy(image)[None])[0].numpy()
    got = joined(slabs_of(image, how(overlap, weighting)))
    assert got.shape == whole.shape
    assert np.abs(got - whole).max() <= 1e-5


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_overlapping_patches_are_averaged_by_their_weights(weighting: str) -> None:
    """A network whose output depends on the position in the patch, against a loop in float64."""
    shape, overlap = (14, 7, 9), (4, 1, 3)
    answer = torch.rand(3, *PATCH, generator=torch.Generator().manual_seed(0))
    slabs = predict_slabs(
        lambda patches: answer.expand(len(patches), -1, -1, -1, -1),
        np.zeros((1, *shape), np.float32),
        PATCH,
        how(overlap, weighting),
        3,
    )
    weights = weight_map(PATCH, weighting).double().numpy()
    sums, totals = np.zeros((3, *shape)), np.zeros(shape)
    xs, ys, zs = (tile_starts(*axis) for axis in zip(shape, PATCH, overlap, strict=True))
    for x in xs:
        for y in ys:
            for z in zs:
                box = (slice(x, x + 6), slice(y, y + 4), slice(z, z + 5))
                sums[:, *box] += answer.double().numpy() * weights
                totals[box] += weights
    assert joined(slabs) == pytest.approx(sums / totals, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.tuples(*[st.integers(0, size - 1) for size in PATCH]))
def test_slabs_come_in_order_and_cover_x(shape: Triple, overlap: Triple) -> None:
    slabs = slabs_of(np.zeros((1, *shape), np.float32), how(overlap))
    following = 0
    for slab in slabs:
        assert slab.first == following < slab.stop
        assert slab.sums.shape == (3, slab.stop - slab.first, *shape[1:])
        following = slab.stop
    assert following == shape[0]


@pytest.mark.parametrize(("shape", "patch"), [((30, 9, 8), (1, 8, 8)), ((9, 30, 8), (8, 1, 8))])
def test_slices_are_batched(shape: Triple, patch: Triple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices across x, one at each x, and across y, all at one x; up to eight per batch."""
    monkeypatch.setattr(sliding_window, "VOXELS_AT_ONCE", 8 * 64)
    seen: list[int] = []

    def count(patches: Tensor) -> Tensor:
        seen.append(len(patches))
        return softmax_of_values(patches)

    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    got = joined(predict_slabs(count, image, patch, how((0, 0, 0)), 3))
    assert max(seen) == 8
    assert len(seen) == -(-count_tiles(shape, patch, (0, 0, 0)) // 8)
    whole = softmax_of_values(torch.from_numpy(image)[None])[0].numpy()
    assert np.abs(got - whole).max() <= 1e-5


def convolving(norm: str) -> torch.nn.Module:
    """A network whose output depends on the position, because convolutions see the border."""
    torch.manual_seed(0)
    kind = torch.nn.InstanceNorm3d if norm == "instance" else torch.nn.BatchNorm3d
    layers = (torch.nn.Conv3d(2, 4, 3, padding=1), kind(4, affine=True), torch.nn.LeakyReLU())
    return torch.nn.Sequential(*layers, torch.nn.Conv3d(4, 3, 3, padding=1)).eval()


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_constant_patches_are_computed_once_with_the_same_bits(
    norm: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding_window, "VOXELS_AT_ONCE", at_once * 120)
    image = np.full((2, 40, 9, 11), -1024, np.float32)
    image[1] = 7
    image[:, 4:9, 2:6, 3:7] = np.random.default_rng(0).normal(size=(2, 5, 4, 4))
    image[0, 25:] = 3  # another air
    network, seen = convolving(norm), [0, 0]

    def count(patches: Tensor) -> Tensor:
        seen[0] += 1
        with torch.inference_mode():
            return torch.softmax(network(patches), dim=1)

    got = joined(predict_slabs(count, image, PATCH, how((3, 2, 2)), 3))
    monkeypatch.setattr(sliding_window, "_reusing", lambda run: lambda p, _: run(p))
    cached, seen[0] = seen[0], 0
    expected = joined(predict_slabs(count, image, PATCH, how((3, 2, 2)), 3))
    assert (got == expected).all()
    assert cached < 0.7 * seen[0]


def test_only_a_few_planes_of_a_long_volume_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliding_window, "VOXELS_AT_ONCE", 1)
    allocated: list[tuple[int, ...]] = []
    zeros = torch.zeros

    def watched(*shape: int, **where: Any) -> Tensor:
        allocated.append(shape)
        return zeros(*shape, **where)

    monkeypatch.setattr(torch, "zeros", watched)
    list(slabs_of(np.zeros((1, 40, 7, 8), np.float32), how((3, 2, 2))))
    assert allocated == [(3, 6, 7, 8), (6, 7, 8)]
    assert window_bytes((40, 7, 8), PATCH, 3) == 4 * (3 + 1) * 6 * 7 * 8


@pytest.mark.parametrize("folds", [1, 3])
def test_the_planes_of_a_slab_can_be_taken_in_parts(folds: int) -> None:
    made = torch.Generator().manual_seed(0)
    kind = torch.float32 if folds == 1 else torch.float16
    sums, totals = (torch.rand(*n, 7, 4, 5, generator=made).to(kind) for n in ((2 * folds,), ()))
    slab = Slab(10, sums, totals, folds)
    parts = slab.empty(7)
    slab.mean(10, 12, parts[:, :2])
    slab.mean(12, 17, parts[:, 2:])
    assert (parts.numpy() == mean_of(slab)).all()
    shares = np.asarray(sums.double() / totals.double()).reshape(folds, 2, 7, 4, 5)
    assert mean_of(slab) == pytest.approx(shares.mean(0), rel=4e-3 if folds > 1 else 1e-6)


def test_short_axes_are_padded_by_zeros_on_both_sides() -> None:
    seen: list[Tensor] = []

    def look(patches: Tensor) -> Tensor:
        seen.append(patches)
        return softmax_of_values(patches)

    list(predict_slabs(look, np.ones((1, 3, 4, 2), np.float32), PATCH, how((0, 0, 0)), 3))
    expected = np.zeros((1, 1, 6, 4, 5), np.float32)
    expected[:, :, 1:4, :, 1:3] = 1
    assert (seen[0].numpy() == expected).all()


def test_arrays_need_not_be_contiguous() -> None:
    image = np.random.default_rng(0).normal(size=(1, 9, 8, 7)).astype(np.float32)
    turned = image.transpose(0, 3, 2, 1)[:, ::-1]
    got = joined(slabs_of(turned, how((2, 2, 2))))
    assert (got == joined(slabs_of(np.ascontiguousarray(turned), how((2, 2, 2))))).all()


@given(st.tuples(*[st.integers(1, 24)] * 3))
def test_gaussian_weights(patch: Triple) -> None:
    weights = weight_map(patch, "gaussian")
    assert weights.shape == patch
    assert float(weights.max()) == 1
    assert float(weights.min()) > 0.99e-4
    assert torch.equal(weights, weights.flip((0, 1, 2)))


def test_gaussian_weights_fall_by_their_sigma() -> None:
    weights = weight_map((33, 1, 1), "gaussian")[:, 0, 0]
    distance = torch.arange(-16, 17).double()
    expected = torch.exp(-0.5 * (distance / (33 / 8)) ** 2)
    assert weights.numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_uniform_weights() -> None:
    assert torch.equal(weight_map((2, 3, 4), "uniform"), torch.ones(2, 3, 4))
