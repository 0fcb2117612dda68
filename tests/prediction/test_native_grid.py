from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.transform import resize

from autoseg.prediction.native_grid import segment
from autoseg.prediction.sliding_window import Slab
from autoseg.preprocessing.resample import Shape3

SHAPES = st.tuples(*[st.integers(1, 14)] * 3)
quick = settings(max_examples=60, deadline=None)


def random_probabilities(classes: int, shape: Shape3, seed: int) -> NDArray[np.float32]:
    shares = np.random.default_rng(seed).random((classes, *shape)).astype(np.float32)
    normed: NDArray[np.float32] = shares / shares.sum(axis=0)
    return normed


def cut(probabilities: NDArray[np.float32], at: list[int]) -> list[Slab]:
    """Slabs that end before the planes `at`."""
    size = probabilities.shape[1]
    edges = sorted({0, size, *(place % size for place in at)})
    return [(a, probabilities[:, a:b]) for a, b in pairwise(edges)]


def reference(probabilities: NDArray[np.float32], shape: Shape3) -> tuple[Any, Any]:
    """Every class resized whole in float64; the winner, and by how much it wins."""
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
    low: Shape3, native: Shape3, classes: int, cuts: list[int], seed: int
) -> None:
    probabilities = random_probabilities(classes, low, seed)
    expected, margin = reference(probabilities, native)
    got = segment(cut(probabilities, cuts), low, native)
    assert got.shape == native
    clear = margin > 1e-5
    assert (got == expected)[clear].all()


@quick
@given(SHAPES, SHAPES, st.lists(st.integers(0, 99)), st.integers(0, 2**32 - 1))
def test_the_cuts_do_not_matter(low: Shape3, native: Shape3, cuts: list[int], seed: int) -> None:
    probabilities = random_probabilities(3, low, seed)
    _, margin = reference(probabilities, native)
    whole = segment([(0, probabilities)], low, native)
    assert (segment(cut(probabilities, cuts), low, native) == whole)[margin > 1e-5].all()


def test_planes_that_no_native_plane_needs_are_skipped() -> None:
    """Down from 12 to 3 planes only the middle of each four counts: slabs of one plane each."""
    probabilities = np.zeros((2, 12, 1, 1), np.float32)
    probabilities[0] = 0.6
    probabilities[1] = 0.4
    probabilities[:, 5:7] = probabilities[::-1, 5:7]
    slabs = cut(probabilities, list(range(12)))
    assert len(slabs) == 12
    assert segment(slabs, (12, 1, 1), (3, 1, 1)).ravel().tolist() == [0, 1, 0]


def test_the_same_grid_is_a_plain_argmax_and_ties_go_to_the_smaller_class() -> None:
    probabilities = np.round(random_probabilities(4, (9, 5, 6), seed=0), 1)
    slabs = cut(probabilities, [2, 3, 7])
    assert (segment(slabs, (9, 5, 6), (9, 5, 6)) == probabilities.argmax(axis=0)).all()


@pytest.mark.parametrize("native", [(9, 9, 9), (4, 4, 4), (17, 3, 8)])
def test_ties_go_to_the_smaller_class_on_another_grid(native: Shape3) -> None:
    probabilities = np.full((3, 8, 8, 8), 1 / 3, np.float32)
    assert (segment(cut(probabilities, [3, 5]), (8, 8, 8), native) == 0).all()


def test_many_planes_from_few() -> None:
    """More native planes than are mixed at once."""
    probabilities = random_probabilities(3, (5, 3, 3), seed=1)
    expected, margin = reference(probabilities, (61, 4, 3))
    got = segment(cut(probabilities, [1, 4]), (5, 3, 3), (61, 4, 3))
    assert (got == expected)[margin > 1e-5].all()


def test_more_classes_than_a_byte_holds() -> None:
    probabilities = np.zeros((300, 2, 2, 2), np.float32)
    probabilities[299] = 1
    for native in ((2, 2, 2), (3, 2, 4)):
        got = segment([(0, probabilities)], (2, 2, 2), native, np.uint16)
        assert got.dtype == np.uint16
        assert (got == 299).all()


def test_slabs_are_asked_for_one_at_a_time() -> None:
    """No slab before the last is alive when the next is made: memory stays bounded."""
    alive: list[int] = []

    def slabs() -> Iterator[Slab]:
        made: list[weakref.ref[NDArray[np.float32]]] = []
        for start in range(0, 30, 3):
            alive.append(sum(ref() is not None for ref in made))
            planes = random_probabilities(2, (3, 4, 4), seed=start)
            made.append(weakref.ref(planes))
            yield start, planes
            del planes

    segment(slabs(), (30, 4, 4), (60, 4, 4))
    assert max(alive) <= 2


def painted(probabilities: NDArray[np.float32], shape: Shape3) -> tuple[Any, Any]:
    """Every region resized whole in float64 and painted in order; how far each is from 0.5."""
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
    low: Shape3, native: Shape3, regions: int, cuts: list[int], seed: int
) -> None:
    probabilities = np.random.default_rng(seed).random((regions, *low)).astype(np.float32)
    expected, margin = painted(probabilities, native)
    got = segment(cut(probabilities, cuts), low, native, regions=True)
    assert (got == expected)[margin > 1e-5].all()


@pytest.mark.parametrize("native", [(4, 4, 4), (7, 3, 5)])
def test_a_region_as_probable_as_not_is_not_painted(native: Shape3) -> None:
    probabilities = np.full((2, 4, 4, 4), 0.5, np.float32)
    assert not segment([(0, probabilities)], (4, 4, 4), native, regions=True).any()


def test_slabs_of_regions_are_asked_for_one_at_a_time() -> None:
    alive: list[int] = []

    def slabs() -> Iterator[Slab]:
        made: list[weakref.ref[NDArray[np.float32]]] = []
        for start in range(0, 30, 3):
            alive.append(sum(ref() is not None for ref in made))
            planes = np.random.default_rng(start).random((3, 3, 4, 4)).astype(np.float32)
            made.append(weakref.ref(planes))
            yield start, planes
            del planes

    segment(slabs(), (30, 4, 4), (60, 5, 4), regions=True)
    assert max(alive) <= 2
