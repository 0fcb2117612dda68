"""Warps against batchgenerators' own spatial transform, and what they may not do."""

import numpy as np
import pytest
from batchgenerators.augmentations.spatial_transformations import augment_spatial
from batchgenerators.augmentations.utils import (
    create_zero_centered_coordinate_mesh,
    elastic_deform_coordinates,
    interpolate_img,
    rotate_coords_3d,
    scale_coords,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation
from scipy.stats import ks_2samp

from autoseg.augmentation.spatial import Warp, displacement, draw_warp, rotation, smoothing_operator
from autoseg.plan.augmentation import Spatial

SIZES = {(12, 16, 10): (52, 48, 44), (15, 9, 8): (53, 49, 44)}  # patch: a volume about it


def volume(size, seed=0):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def middle(array, size):
    starts = [(n - p) // 2 for n, p in zip(array.shape, size, strict=True)]
    return array[tuple(slice(s, s + p) for s, p in zip(starts, size, strict=True))]


def fixed(angles, **others):
    """A transform that always rotates by the same angles."""
    x, y, z = ((angle, angle) for angle in angles)
    return Spatial(
        rotation_probability=1,
        rotation_degrees=(x, y, z),
        scaling_probability=1,
        scaling=(1, 1),
        **others,
    )


def warp_of(spec, size, scale=1.0, field=None):
    matrix = rotation(*np.deg2rad([low for low, _ in spec.rotation_degrees])) * scale
    return Warp(spec, size, matrix, field)


def reference(volume, size, angles, scale, order, field=0.0, **others):
    """batchgenerators' own functions, on a volume about the patch."""
    at = create_zero_centered_coordinate_mesh(size) + field
    at = scale_coords(rotate_coords_3d(at, *np.deg2rad(angles)), scale)
    at += (np.array(volume.shape)[:, None, None, None] - 1) / 2
    return interpolate_img(volume, at, order, "constant", **others)


CASES = [
    ((0, 0, 0), 1.2),  # each axis on its own
    ((0, 0, 0), 0.83),
    ((25, 0, 0), 1.0),  # in a plane
    ((0, -40, 0), 1.1),
    ((0, 0, 90), 0.9),
    ((10, -15, 20), 1.0),  # all axes together
    ((10, -15, 20), 1.25),
]


def assert_equal(found, expected, order):
    if order == 0:  # rounding decides points in the middle between two voxels
        assert (found != expected).mean() < 0.002
        return
    # The spline's border lies 6 voxels off the points, not at the edge of the volume.
    assert np.abs(found - expected).max() < (2e-3 if order == 3 else 1e-4)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 1e-4


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(("angles", "scale"), CASES)
@pytest.mark.parametrize("size", SIZES)
def test_equals_batchgenerators_on_noise(size, angles, scale, order):
    big = volume(SIZES[size])
    label = np.random.default_rng(1).integers(0, 4, big.shape).astype(np.int16)
    warp = warp_of(fixed(angles, image_order=order), size, scale)
    found = warp.image(middle(big, warp.box_size))
    assert_equal(found, reference(big, size, angles, scale, order), order)
    found_label = warp.label(middle(label, warp.box_size))
    assert found_label.dtype == np.int16
    assert_equal(found_label, reference(label, size, angles, scale, 0), 0)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("label_order", [0, 1])
def test_equals_batchgenerators_where_a_patch_is_deformed(order, label_order):
    size, angles, scale = (12, 16, 10), (12, -7, 30), 1.15
    rng = np.random.default_rng(3)
    field = rng.normal(0, 1.5, (3, *size)).astype(np.float32)
    big = volume(SIZES[size])
    label = rng.integers(0, 4, big.shape).astype(np.int16)
    warp = warp_of(fixed(angles, image_order=order, label_order=label_order), size, scale, field)
    found = warp.image(middle(big, warp.box_size))
    assert_equal(found, reference(big, size, angles, scale, order, field), order)
    expected = reference(label, size, angles, scale, label_order, field, is_seg=True)
    assert_equal(warp.label(middle(label, warp.box_size)), expected, 0)


def drawn(spec, size, seed=0):
    warp = draw_warp(spec, size, np.random.default_rng(seed))
    assert warp is not None
    return warp


def test_a_drawn_warp_equals_augment_spatial():
    size, angles, scale = (12, 16, 10), (10, -15, 20), 1.25
    big = volume(SIZES[size])
    x, y, z = np.deg2rad(angles)
    expected, _ = augment_spatial(
        big[None, None],
        None,
        size,
        do_elastic_deform=False,
        angle_x=(x, x),
        angle_y=(y, y),
        angle_z=(z, z),
        scale=(scale, scale),
        border_mode_data="constant",
        order_data=3,
        random_crop=False,
    )
    spec = fixed(angles).model_copy(update={"scaling": (scale, scale)})
    warp = drawn(spec, size)
    assert_equal(warp.image(middle(big, warp.box_size)), expected[0, 0], 3)


SIZE = st.one_of(st.integers(2, 14), st.just(1))
PATCHES = st.tuples(SIZE, SIZE, SIZE)


@given(PATCHES, st.sampled_from([0, 1, 3]), st.integers(0, 999))
@settings(deadline=None, max_examples=100)
def test_the_box_holds_all_that_is_looked_at_and_little_more(size, order, seed):
    spec = Spatial(
        rotation_probability=0.6,
        rotation_degrees=((-180, 180),) * 3,
        scaling_probability=0.6,
        elastic_probability=0.4,
        elastic_alpha=(0, 40),
        elastic_sigma=(1, 3),
        image_order=order,
    )
    warp = draw_warp(spec, size, np.random.default_rng(seed))
    if warp is None:
        return
    box = np.array(warp.box_size)
    assert not ((box - size) % 2).any()
    assert (box[np.array(size) == 1] == 1).all()  # nothing leaves the plane of a flat patch
    inside = np.full(box, 5.0, np.float32)
    image = warp.image(inside)
    assert image.shape == size
    assert image.flags.c_contiguous
    assert np.allclose(image, 5, atol=1e-4)  # zero or noise from beyond would show
    assert (warp.label(inside.astype(np.int16)) == 5).all()
    if warp.field is None:
        assert box.max() <= 1.4 * np.linalg.norm(size) + 14


def test_without_a_chance_nothing_happens():
    spec = Spatial(rotation_probability=0, scaling_probability=0)
    assert draw_warp(spec, (8, 8, 8), np.random.default_rng(0)) is None


@given(PATCHES)
@settings(deadline=None, max_examples=20)
def test_a_turn_by_nothing_reads_and_gives_the_patch(size):
    warp = drawn(fixed((0, 0, 0)), size)
    assert warp.box_size == size
    assert np.array_equal(warp.image(volume(size)), volume(size))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("flat", [False, True])
def test_a_quarter_turn_goes_about_the_named_axis(axis, flat):
    x, y, z = (1 if flat and other == axis else 9 for other in range(3))
    angles = [90 if other == axis else 0 for other in range(3)]
    warp = drawn(fixed(angles), (x, y, z))
    box = volume(warp.box_size)
    first, second = (other for other in range(3) if other != axis)
    ways = [np.rot90(middle(box, (x, y, z)), k, (first, second)) for k in (1, -1)]
    way = ways[1 if axis == 1 else 0]  # x to z is the odd way round
    assert np.allclose(warp.image(box), way, atol=1e-4)
    assert np.array_equal(warp.label((100 * box).astype(np.int16)), (100 * way).astype(np.int16))


@pytest.mark.parametrize("flat", [0, 1, 2])
def test_only_turns_in_its_plane_reach_a_flat_patch(flat):
    x, y, z = (1 if axis == flat else 9 for axis in range(3))
    others = [0 if axis == flat else 40 for axis in range(3)]
    warp = drawn(fixed(others), (x, y, z))
    assert np.array_equal(warp.matrix, np.eye(3))


def recorded(monkeypatch, spec, count):
    """The angles and scales that batchgenerators draws for a plan's transform."""
    module = "batchgenerators.augmentations.spatial_transformations"
    angles, scales = [], []

    def turn(coordinates, *drawn):
        angles.append(drawn)
        return coordinates

    def scale(coordinates, drawn):
        scales.append(drawn)
        return coordinates

    monkeypatch.setattr(f"{module}.rotate_coords_3d", turn)
    monkeypatch.setattr(f"{module}.scale_coords", scale)
    x, y, z = (np.deg2rad(limits) for limits in spec.rotation_degrees)
    np.random.seed(1)
    augment_spatial(
        np.zeros((count, 1, 2, 2, 2)),
        None,
        (2, 2, 2),
        do_elastic_deform=False,
        angle_x=x,
        angle_y=y,
        angle_z=z,
        scale=spec.scaling,
        order_data=0,
        random_crop=False,
        p_rot_per_sample=spec.rotation_probability,
        p_scale_per_sample=spec.scaling_probability,
    )
    return np.array(angles), np.array(scales)


@pytest.mark.parametrize("scaling", [(0.7, 1.4), (0.95, 2.0), (1.0, 1.5)])
def test_angles_scales_and_chances_are_drawn_as_in_batchgenerators(monkeypatch, scaling):
    spec = Spatial(
        rotation_probability=0.4,
        rotation_degrees=((-30, 20), (-10, 10), (5, 60)),
        scaling_probability=0.3,
        scaling=scaling,
    )
    count = 3000
    theirs, their_scales = recorded(monkeypatch, spec, count)
    rng = np.random.default_rng(0)
    matrices = [w.matrix for w in (draw_warp(spec, (2, 2, 2), rng) for _ in range(count)) if w]
    found = np.array([np.cbrt(np.linalg.det(matrix)) for matrix in matrices])
    scaled = np.abs(found - 1) > 1e-9
    assert ks_2samp(found[scaled], their_scales).pvalue > 0.01
    assert abs(scaled.sum() - len(their_scales)) < 0.05 * count
    turns = [matrix / scale for matrix, scale in zip(matrices, found, strict=True)]
    turns = [turn.T for turn in turns if not np.allclose(turn, np.eye(3))]
    assert abs(len(turns) - len(theirs)) < 0.05 * count
    angles = np.array([Rotation.from_matrix(turn).as_euler("XYZ") for turn in turns])
    for axis in range(3):
        assert ks_2samp(angles[:, axis], theirs[:, axis]).pvalue > 0.01


# Displacement fields, against the filtered uniform noise of batchgenerators.


def covariance(matrix):
    return matrix.astype(float) @ matrix.T.astype(float)


@given(st.integers(2, 160), st.floats(0.4, 14))
@settings(deadline=None, max_examples=60)
def test_covariance_along_an_axis_is_that_of_the_filter(size, sigma):
    # A cell of a third of sigma stands for its voxels: what is lost is largest at the ends.
    exact = covariance(gaussian_filter1d(np.eye(size), sigma, axis=0, mode="constant"))
    found = covariance(smoothing_operator(size, sigma))
    assert np.abs(found - exact).max() < 0.01 * exact.max()


def test_far_fewer_numbers_are_drawn():
    assert smoothing_operator(160, 9.0).shape == (160, 54)


def test_an_axis_of_one_voxel_stays():
    assert np.array_equal(smoothing_operator(1, 9.0), [[1]])


@pytest.mark.parametrize("shape", [(12, 10, 14), (16, 12, 1)])
def test_displacements_are_distributed_as_those_of_batchgenerators(shape):
    alpha, sigma, count = 30.0, 2.5, 600
    places = ((0, 0, 0), (6, 5, shape[2] // 2))  # a corner and the middle
    rng = np.random.default_rng(0)
    ours = [displacement(shape, alpha, sigma, rng) for _ in range(count)]
    np.random.seed(0)
    plane = tuple(size for size in shape if size > 1)
    still = np.zeros((1, *plane))
    theirs = [elastic_deform_coordinates(still, alpha, sigma).reshape(shape) for _ in range(count)]
    for place in places:
        one, other = [field[place] for field in ours], [field[place] for field in theirs]
        assert ks_2samp(one, other).pvalue > 0.01
        assert np.std(one) == pytest.approx(np.std(other), rel=0.1)
    spread = np.std(ours), np.std(theirs)
    assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_the_random_numbers_decide_alone():
    one, other = (displacement((5, 6, 7), 9.0, 2.0, np.random.default_rng(4)) for _ in range(2))
    assert one.dtype == np.float32
    assert np.array_equal(one, other)
