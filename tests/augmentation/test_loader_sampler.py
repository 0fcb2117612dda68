import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.augmentation.loader import PatchSampler, Position
from autoseg.plan.augmentation import Sampling
from autoseg.preprocessing.store import CaseStore
from tests.making import store_case, tiny_plan, tiny_store


def position(**changes):
    values = {"seed": 7, "fold": 0, "epoch": 0, "batch": 0, "place": 0}
    return Position(**(values | changes))


def positions(sampler, epochs, fold=0):
    return [
        position(fold=fold, epoch=epoch, batch=batch, place=place)
        for epoch in range(epochs)
        for batch in range(sampler.steps_per_epoch)
        for place in range(sampler.sampling.batch_size)
    ]


def sampler_of(folder, cases, steps=3, **sampling):
    """`cases`: name -> (image (x, y, z), label)."""
    store = CaseStore(folder, "id")
    for name, (image, label) in cases.items():
        store_case(store, name, image[None], label)
    return PatchSampler(store, list(cases), Sampling(**sampling), steps)


def one_voxel(shape, voxel):
    label = np.zeros(shape, np.int16)
    label[tuple(voxel)] = 1
    return np.ones(shape), label


def numbered(count):
    return {f"c{i}": (np.full((4, 4, 4), i), np.zeros((4, 4, 4))) for i in range(count)}


def test_random_numbers_depend_on_every_part_of_the_position():
    base = position().rng().random(4)
    assert np.array_equal(position().rng().random(4), base)
    for key in ("seed", "fold", "epoch", "batch", "place"):
        assert not np.array_equal(position(**{key: 8}).rng().random(4), base)


@pytest.mark.parametrize(("cases", "batch_size", "steps"), [(5, 2, 3), (3, 4, 2), (1, 2, 2)])
def test_each_case_comes_once_before_any_comes_again(tmp_path, cases, batch_size, steps):
    size = (4, 4, 4)
    sampler = sampler_of(tmp_path, numbered(cases), steps, patch_size=size, batch_size=batch_size)
    found = [int(sampler.draw(at, size)[0][0, 0, 0, 0]) for at in positions(sampler, epochs=5)]
    rounds = [found[i : i + cases] for i in range(0, len(found) - cases + 1, cases)]
    assert len(rounds) >= 5
    assert all(sorted(round_) == list(range(cases)) for round_ in rounds)
    if cases > 1:
        assert len({tuple(round_) for round_ in rounds}) > 1  # shuffled again


def test_few_cases_stay_open_and_patches_are_the_same(tmp_path, monkeypatch):
    size = (4, 4, 4)
    sampler = sampler_of(tmp_path, numbered(6), patch_size=size, batch_size=2)
    at = positions(sampler, epochs=4)
    unbounded = [sampler.draw(one, size)[0] for one in at]
    assert len(sampler._open) == 6
    again = PatchSampler(sampler.store, sampler.cases, sampler.sampling, sampler.steps_per_epoch)
    monkeypatch.setattr("autoseg.augmentation.loader.OPEN_BYTES", 3 << 20)
    for one, expected in zip(at, unbounded, strict=True):
        assert np.array_equal(again.draw(one, size)[0], expected)
        assert len(again._open) <= 3
    assert next(reversed(again._open)) == again.name_at(at[-1])


def test_order_of_the_cases_does_not_matter(tmp_path):
    plan = tiny_plan()
    store = tiny_store(tmp_path, plan)
    names = [f"case_{i}" for i in range(4)]
    first = PatchSampler(store, names, plan.sampling, 2)
    second = PatchSampler(store, names[::-1], plan.sampling, 2)
    for at in reversed(positions(first, epochs=2)):  # nor does the order of asking
        image, label = first.draw(at, (8, 8, 8))
        other_image, other_label = second.draw(at, (8, 8, 8))
        assert np.array_equal(image, other_image)
        assert np.array_equal(label, other_label)


def test_folds_and_epochs_differ(tmp_path):
    plan = tiny_plan()
    sampler = PatchSampler(tiny_store(tmp_path, plan), ["case_0"], plan.sampling, 2)
    drawn = [
        sampler.draw(at, (8, 8, 8))[0].tobytes()
        for fold in range(3)
        for at in positions(sampler, epochs=2, fold=fold)
    ]
    assert len(set(drawn)) > len(drawn) // 2  # a few may agree by chance


def test_a_box_of_a_mixed_patch_comes_from_another_case_with_its_labels(tmp_path):
    size = (16, 12, 8)
    cases = {f"c{i}": (np.full(size, i), np.full(size, i)) for i in range(3)}
    sampler = sampler_of(tmp_path, cases, patch_size=size, batch_size=2, mix_probability=1.0)
    pairs, corners = set(), set()
    for at in positions(sampler, epochs=20):
        image, label = sampler.draw(at, size)
        assert np.array_equal(image[0], label)
        own = int(sampler.name_at(at)[1:])
        (other,) = set(np.unique(label)) - {own}
        inside = np.argwhere(label == other)
        low, high = inside.min(0), inside.max(0) + 1
        assert len(inside) == np.prod(high - low)  # a box
        assert all(n // 4 <= side <= 3 * n // 4 for n, side in zip(size, high - low, strict=True))
        pairs.add((own, int(other)))
        corners.add(tuple(low))
    assert len(pairs) == 6
    assert len(corners) > 60


def test_patches_are_mixed_with_the_probability_of_the_plan(tmp_path):
    size, share = (4, 4, 4), 0.3
    options = {"patch_size": size, "batch_size": 5, "mix_probability": share}
    sampler = sampler_of(tmp_path, numbered(4), steps=20, **options)
    mixed = [len(np.unique(sampler.draw(at, size)[0])) > 1 for at in positions(sampler, epochs=10)]
    assert np.mean(mixed) == pytest.approx(share, abs=0.05)
    assert len(set(mixed)) == 2


def test_a_single_case_is_not_mixed(tmp_path):
    cases = {"a": (np.arange(512.0).reshape(8, 8, 8), np.ones((8, 8, 8)))}
    sampler = sampler_of(tmp_path, cases, patch_size=(4, 4, 4), batch_size=2, mix_probability=1.0)
    for at in positions(sampler, epochs=5):
        assert sampler.names_at(at) == ["a"]
        assert np.all(np.diff(sampler.draw(at, (4, 4, 4))[0][0], axis=2) == 1)


axes = st.tuples(st.integers(1, 9), st.integers(0, 12), st.integers(0, 100))


@given(st.tuples(axes, axes, axes), st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_forced_patches_hold_foreground_and_stay_inside(tmp_path_factory, kinds, seed):
    patch = [size for size, _, _ in kinds]
    shape = [size + extra for size, extra, _ in kinds]
    voxel = [place % n for (_, _, place), n in zip(kinds, shape, strict=True)]
    cases = {"a": one_voxel(shape, voxel)}
    folder = tmp_path_factory.mktemp("store")
    sampler = sampler_of(folder, cases, patch_size=patch, batch_size=1, foreground_share=1)
    image, label = sampler.draw(position(seed=seed), tuple(patch))
    assert image.shape == (1, *patch)
    assert label.shape == tuple(patch)
    assert label.sum() == 1
    assert image.min() == 1  # nothing from beyond the case


@pytest.mark.parametrize("size", [5, 6, 7])
@pytest.mark.parametrize("patch", [4, 5])
def test_every_place_inside_is_drawn_and_no_other(tmp_path, size, patch):
    image = np.broadcast_to(np.arange(1, size + 1)[:, None, None], (size, 2, 2))
    cases = {"a": (image, np.zeros((size, 2, 2)))}
    box = (patch, 2, 2)
    sampler = sampler_of(tmp_path, cases, 100, patch_size=box, batch_size=1, foreground_share=0)
    first = {int(sampler.draw(at, box)[0][0, 0, 0, 0]) for at in positions(sampler, epochs=1)}
    assert first == set(range(1, size - patch + 2))


@pytest.mark.parametrize(
    ("batch_size", "share", "forced"),  # nnU-Net's: place >= round(size * (1 - share))
    [(2, 0.33, [1]), (3, 0.5, [2]), (5, 0.33, [3, 4]), (2, 0, []), (2, 1, [0, 1])],
)
def test_last_patches_of_a_batch_are_forced(tmp_path, batch_size, share, forced):
    cases = {"a": one_voxel((24, 24, 24), (23, 0, 23))}
    sampler = sampler_of(
        tmp_path, cases, 40, patch_size=(4, 4, 4), batch_size=batch_size, foreground_share=share
    )
    hits = np.zeros(batch_size)
    for at in positions(sampler, epochs=1):
        hits[at.place] += sampler.draw(at, (4, 4, 4))[1].any()
    assert [place for place in range(batch_size) if hits[place] == 40] == forced
    assert all(hits[place] < 5 for place in range(batch_size) if place not in forced)


@pytest.mark.parametrize(("share", "low", "high"), [(0, 0, 0.05), (0.5, 0.4, 0.6), (1, 1, 1)])
def test_each_patch_is_forced_by_chance(tmp_path, share, low, high):
    cases = {"a": one_voxel((24, 24, 24), (0, 23, 12))}
    sampler = sampler_of(
        tmp_path,
        cases,
        200,
        patch_size=(4, 4, 4),
        batch_size=2,
        foreground_share=share,
        foreground_mode="chance",
    )
    hits = [sampler.draw(at, (4, 4, 4))[1].any() for at in positions(sampler, epochs=1)]
    assert low <= np.mean(hits) <= high
    assert low <= np.mean(hits[::2]) <= high  # the first place as often as the second


def test_every_class_is_chosen_alike(tmp_path):
    label = np.zeros((24, 24, 24), np.int16)
    label[:12] = 1  # a large class
    label[23, 23, 23] = 3  # and a single voxel; class 2 is nowhere
    sampler = sampler_of(
        tmp_path,
        {"a": (np.ones(label.shape), label)},
        200,
        patch_size=(4, 4, 4),
        batch_size=1,
        foreground_share=1,
    )
    rare = [(sampler.draw(at, (4, 4, 4))[1] == 3).any() for at in positions(sampler, epochs=1)]
    assert 0.4 < np.mean(rare) < 0.6


def test_a_case_without_foreground_gives_random_patches(tmp_path):
    cases = {"a": (np.ones((9, 9, 9)), np.zeros((9, 9, 9)))}
    sampler = sampler_of(tmp_path, cases, patch_size=(4, 4, 4), batch_size=1, foreground_share=1)
    image, label = sampler.draw(position(), (4, 4, 4))
    assert image.min() == 1
    assert not label.any()


def test_a_smaller_case_lies_in_the_middle_of_zeros(tmp_path):
    cases = {"a": (np.full((4, 7, 12), 5.0), np.ones((4, 7, 12)))}
    sampler = sampler_of(tmp_path, cases, patch_size=(8, 8, 8), batch_size=1)
    image, label = sampler.draw(position(), (8, 8, 8))
    inside = np.zeros((8, 8, 8), bool)
    inside[2:6, 1:8] = True
    assert np.array_equal(image[0], np.where(inside, 5, 0))
    assert np.array_equal(label, inside)
    assert image.dtype == np.float32
    assert label.dtype == np.int16


@pytest.mark.parametrize("patch", [(4, 4, 4), (5, 3, 1)])
def test_a_margin_lies_evenly_around_the_patch(tmp_path, patch):
    rng = np.random.default_rng(0)
    cases = {"a": (rng.normal(size=(9, 9, 9)), rng.integers(0, 3, (9, 9, 9)))}
    sampler = sampler_of(tmp_path, cases, patch_size=patch, batch_size=2)
    x, y, z = patch
    for at in positions(sampler, epochs=2):
        image, label = sampler.draw(at, patch)
        wide_image, wide_label = sampler.draw(at, (x + 4, y + 6, z + 10))
        middle = (slice(2, 2 + x), slice(3, 3 + y), slice(5, 5 + z))
        assert np.array_equal(wide_image[(slice(None), *middle)], image)
        assert np.array_equal(wide_label[middle], label)


def test_ignored_voxels_stay_ignored(tmp_path):
    cases = {"a": (np.ones((6, 6, 6)), np.full((6, 6, 6), -1))}
    sampler = sampler_of(tmp_path, cases, patch_size=(8, 8, 8), batch_size=1)
    label = sampler.draw(position(), (8, 8, 8))[1]
    assert (label[1:7, 1:7, 1:7] == -1).all()
    assert label.sum() == -216


@pytest.mark.parametrize("patch", [(4, 4, 4), (9, 5, 2)])
def test_beyond_the_case_lies_zero_or_its_nearest_voxel(tmp_path, patch):
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(6, 5, 7)), rng.integers(1, 3, (6, 5, 7))
    sampler = sampler_of(tmp_path, {"a": (image, label)}, patch_size=patch, batch_size=2)
    size = tuple(n + 12 for n in patch)  # larger than the case on every side
    for at in positions(sampler, epochs=1):
        zeros, near = (sampler.draw(at, size, border) for border in ("constant", "nearest"))
        inside = zeros[1] > 0
        assert np.array_equal(zeros[0][0][inside], image.astype(np.float32).ravel())
        assert not zeros[0][0][~inside].any()
        first = [
            int(np.flatnonzero(inside.any(axis=others))[0]) for others in ((1, 2), (0, 2), (0, 1))
        ]
        margins = [(f, s - f - n) for f, s, n in zip(first, size, image.shape, strict=True)]
        assert np.array_equal(near[0][0], np.pad(image.astype(np.float32), margins, mode="edge"))
        assert np.array_equal(near[1], np.pad(label, margins, mode="edge"))
