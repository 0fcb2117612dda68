from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.transform import resize

from autoseg.common.arrays import Triple
from autoseg.plan.labels import Classes
from autoseg.prediction.native_grid import Area, Placement, Planes, label_map, native_planes
from autoseg.prediction.sliding_window import Slab

SHAPES = st.tuples(*[st.integers(1, 14)] * 3)
quick = settings(max_examples=60, deadline=None)


def segment(
    slabs: list[Slab] | Iterator[Slab],
    low: Triple,
    native: Triple,
    regions: bool = False,
    classes: int = 0,
) -> NDArray[Any]:
    """The index of the class of every voxel, or 1 + that of the region, or 0."""
    classes = classes or len(slabs[0].sums) if isinstance(slabs, list) else classes
    names = tuple(str(number) for number in range(classes + regions))
    kinds = Classes(names, ((0,),), ((0,),), tuple(range(len(names))), regions)
    placement = Placement(
        low, tuple((0, n) for n in native), native, outside=None if regions else 0
    )
    return label_map(native_planes(slabs, placement), kinds, native)


def random_probabilities(classes: int, shape: Triple, seed: int) -> NDArray[np.float32]:
    shares = np.random.default_rng(seed).random((classes, *shape)).astype(np.float32)
    normed: NDArray[np.float32] = shares / shares.sum(axis=0)
    return normed


def cut(probabilities: NDArray[np.float32], at: list[int]) -> list[Slab]:
    """Slabs that end before the planes `at`."""
    size = probabilities.shape[1]
    edges = sorted({0, size, *(place % size for place in at)})
    return [slab_of(a, probabilities[:, a:b]) for a, b in pairwise(edges)]


def slab_of(first: int, planes: NDArray[np.float32]) -> Slab:
    return Slab(first, torch.from_numpy(planes), torch.ones(planes.shape[1:]))


def reference(probabilities: NDArray[np.float32], shape: Triple) -> tuple[Any, Any]:
    """Each class resized as a whole in float64; the winner and its margin."""
    wide = np.stack(
        [
            resize(share.astype(float), shape, order=1, mode="edge", anti_aliasing=False)
            for share in probabilities
        ]
    )
    ranked = np.sort(wide, axis=0)
    margin = ranked[-1] - ranked[-2] if len(wide) > 1 else np.ones(shape)
    return wide.argmax(axis=0), margin


@quick
@given(SHAPES, SHAPES, st.integers(1, 4), st.lists(st.integers(0, 99)), st.integers(0, 2**32 - 1))
def test_equals_scikit_image_on_the_whole_array(
    low: Triple, native: Triple, classes: int, cuts: list[int], seed: int
) -> None:
    probabilities = random_probabilities(classes, low, seed)
    expected, margin = reference(probabilities, native)
    got = segment(cut(probabilities, cuts), low, native)
    assert got.shape == native
    clear = margin > 1e-5
    assert (got == expected)[clear].all()


@quick
@given(SHAPES, SHAPES, st.lists(st.integers(0, 99)), st.integers(0, 2**32 - 1))
def test_the_size_of_the_slabs_does_not_matter(
    low: Triple, native: Triple, cuts: list[int], seed: int
) -> None:
    probabilities = random_probabilities(3, low, seed)
    _, margin = reference(probabilities, native)
    whole = segment([slab_of(0, probabilities)], low, native)
    assert (segment(cut(probabilities, cuts), low, native) == whole)[margin > 1e-5].all()


def test_unneeded_planes_are_skipped() -> None:
    """From 12 to 3 planes, only the middle two of each four are used."""
    probabilities = np.zeros((2, 12, 1, 1), np.float32)
    probabilities[0] = 0.6
    probabilities[1] = 0.4
    probabilities[:, 5:7] = probabilities[::-1, 5:7]
    slabs = cut(probabilities, list(range(12)))
    assert len(slabs) == 12
    assert segment(slabs, (12, 1, 1), (3, 1, 1)).ravel().tolist() == [0, 1, 0]


def test_on_the_same_grid_it_is_the_argmax() -> None:
    probabilities = np.round(random_probabilities(4, (9, 5, 6), seed=0), 1)
    slabs = cut(probabilities, [2, 3, 7])
    assert (segment(slabs, (9, 5, 6), (9, 5, 6)) == probabilities.argmax(axis=0)).all()


@pytest.mark.parametrize("native", [(9, 9, 9), (4, 4, 4), (17, 3, 8)])
def test_ties_go_to_the_smaller_class_on_another_grid(native: Triple) -> None:
    probabilities = np.full((3, 8, 8, 8), 1 / 3, np.float32)
    assert (segment(cut(probabilities, [3, 5]), (8, 8, 8), native) == 0).all()


def test_upsampling_along_x() -> None:
    """More native planes than are processed at once."""
    probabilities = random_probabilities(3, (5, 3, 3), seed=1)
    expected, margin = reference(probabilities, (61, 4, 3))
    got = segment(cut(probabilities, [1, 4]), (5, 3, 3), (61, 4, 3))
    assert (got == expected)[margin > 1e-5].all()


def test_more_than_256_classes() -> None:
    probabilities = np.zeros((300, 2, 2, 2), np.float32)
    probabilities[299] = 1
    for native in ((2, 2, 2), (3, 2, 4)):
        got = segment([slab_of(0, probabilities)], (2, 2, 2), native)
        assert got.dtype == np.uint16
        assert (got == 299).all()


def test_slabs_are_consumed_one_at_a_time() -> None:
    """Earlier slabs are released before the next one is made, so memory is bounded."""
    alive: list[int] = []

    def slabs() -> Iterator[Slab]:
        made: list[weakref.ref[Slab]] = []
        for start in range(0, 30, 3):
            alive.append(sum(ref() is not None for ref in made))
            slab = slab_of(start, random_probabilities(2, (3, 4, 4), seed=start))
            made.append(weakref.ref(slab))
            yield slab
            del slab

    segment(slabs(), (30, 4, 4), (60, 4, 4), classes=2)
    assert max(alive) <= 2


def painted(probabilities: NDArray[np.float32], shape: Triple) -> tuple[Any, Any]:
    """Each region resized as a whole in float64 and painted in order; the distance from 0.5."""
    wide = np.stack(
        [
            resize(share.astype(float), shape, order=1, mode="edge", anti_aliasing=False)
            for share in probabilities
        ]
    )
    out = np.zeros(shape, int)
    for number, share in enumerate(wide, start=1):
        out[share > 0.5] = number
    return out, np.abs(wide - 0.5).min(axis=0)


@quick
@given(SHAPES, SHAPES, st.integers(1, 4), st.lists(st.integers(0, 99)), st.integers(0, 2**32 - 1))
def test_regions_are_painted_in_order(
    low: Triple, native: Triple, regions: int, cuts: list[int], seed: int
) -> None:
    probabilities = np.random.default_rng(seed).random((regions, *low)).astype(np.float32)
    expected, margin = painted(probabilities, native)
    got = segment(cut(probabilities, cuts), low, native, regions=True)
    assert (got == expected)[margin > 1e-5].all()


@pytest.mark.parametrize("native", [(4, 4, 4), (7, 3, 5)])
def test_a_region_with_probability_one_half_is_not_painted(native: Triple) -> None:
    probabilities = np.full((2, 4, 4, 4), 0.5, np.float32)
    assert not segment([slab_of(0, probabilities)], (4, 4, 4), native, regions=True).any()


def test_slabs_of_regions_are_consumed_one_at_a_time() -> None:
    alive: list[int] = []

    def slabs() -> Iterator[Slab]:
        made: list[weakref.ref[Slab]] = []
        for start in range(0, 30, 3):
            alive.append(sum(ref() is not None for ref in made))
            planes = np.random.default_rng(start).random((3, 3, 4, 4)).astype(np.float32)
            slab = slab_of(start, planes)
            made.append(weakref.ref(slab))
            yield slab
            del slab

    segment(slabs(), (30, 4, 4), (60, 5, 4), regions=True, classes=3)
    assert max(alive) <= 2


BOXES = st.tuples(*[st.tuples(st.integers(0, 5), st.integers(1, 40), st.integers(0, 5))] * 3)


def planes_of(
    probabilities: NDArray[np.float32], sides: Any, outside: int | None
) -> tuple[list[Planes], NDArray[np.float64]]:
    """All planes of a grid with a covered box, and the same by scikit-image."""
    size = tuple(before + inside + after for before, inside, after in sides)
    box = tuple((before, before + inside) for before, inside, _ in sides)
    placement = Placement(probabilities.shape[1:], box, size, outside)
    expected = np.zeros((len(probabilities), *size))
    if outside is not None:
        expected[outside] = 1
    shape = tuple(inside for _, inside, _ in sides)
    here = tuple(slice(*pair) for pair in box)
    for share, whole in zip(probabilities, expected, strict=True):
        whole[here] = resize(share.astype(float), shape, order=1, mode="edge", anti_aliasing=False)
    return list(native_planes(cut(probabilities, [2, 5]), placement)), expected


@quick
@given(SHAPES, BOXES, st.sampled_from([0, None]), st.integers(0, 2**32 - 1))
def test_probabilities_equal_scikit_image_everywhere(
    low: Triple, sides: Any, outside: int | None, seed: int
) -> None:
    probabilities = random_probabilities(3, low, seed)
    found, expected = planes_of(probabilities, sides, outside)
    rng = np.random.default_rng(seed)
    assert [row for planes in found for row in range(planes.rows.start, planes.rows.stop)] == list(
        range(expected.shape[1])
    )
    for planes in found:
        assert planes.shape[1:] == expected.shape[2:]
        y, z = (slice(*sorted(rng.choice(n + 1, 2, replace=False))) for n in planes.shape[1:])
        for index in range(3):
            got = planes.probabilities(index, (y, z))
            assert np.abs(got - expected[index, planes.rows, y, z]).max() <= 1e-5


@quick
@given(SHAPES, BOXES, st.sampled_from([0, None]), st.floats(0.1, 0.9), st.integers(0, 2**32 - 1))
def test_outside_of_the_area_a_class_is_below_the_threshold(
    low: Triple, sides: Any, outside: int | None, least: float, seed: int
) -> None:
    probabilities = random_probabilities(3, low, seed) ** 4
    found, expected = planes_of(probabilities, sides, outside)
    for planes in found:
        for index in range(3):
            there = expected[index, planes.rows].copy()
            if (area := planes.area_above(index, least)) is not None:
                there[:, *area] = 0
            assert there.max() <= least + 1e-6


def test_unlikely_classes_are_not_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[int] = []
    probabilities = np.full((6, 8, 8, 8), 0.001, np.float32)
    probabilities[0] = 0.995
    probabilities[3, 2:4, 2:4, 2:4] = 0.9
    probabilities[0, 2:4, 2:4, 2:4] = 0.096
    placement = Placement((8, 8, 8), ((0, 100),) * 3, (100, 100, 100))
    kinds = Classes(("",) * 6, ((0,),), ((0,),), tuple(range(6)), False)

    def watched() -> Iterator[Planes]:
        for planes in native_planes([slab_of(0, probabilities)], placement):
            shares = planes.probabilities

            def watch(index: int, area: Area, shares: Any = shares) -> NDArray[np.float32]:
                requested.append(index)
                found: NDArray[np.float32] = shares(index, area)
                return found

            monkeypatch.setattr(planes, "probabilities", watch)
            yield planes

    found = label_map(watched(), kinds, (100, 100, 100))
    assert set(requested) == {0, 3}
    assert sorted(np.unique(found)) == [0, 3]
    expected, margin = reference(probabilities, (100, 100, 100))
    assert (found == expected)[margin > 1e-5].all()
