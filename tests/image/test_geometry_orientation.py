from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from autoseg.common.errors import DataError
from autoseg.image.geometry import (
    CODES,
    Geometry,
    Turn,
    check_code,
    counted_codes,
    direction_of,
    geometry_of,
    most_common,
    orientation_of,
)


def rotated(angles: tuple[float, float, float]) -> np.ndarray:
    """A rotation about x, y, z by angles in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def picture(direction: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((0.5, 2.0, 3.0))
    image.SetOrigin((-7.0, 11.0, 13.0))
    image.SetDirection(direction.ravel().tolist())
    return image


def xyz(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0)


angle = st.floats(-0.6, 0.6)  # below 45 degrees, so that the nearest axes are clear


@pytest.mark.parametrize("target", CODES)
@pytest.mark.parametrize("source", ["LPS", "RAS", "AIL", "SRP"])
def test_equals_itk(source, target):
    image = sitk.DICOMOrient(picture(np.eye(3)), source)
    expected = sitk.DICOMOrient(image, target)
    grid = geometry_of(image, "source")
    assert orientation_of(grid) == source
    turn = Turn.between(source, target)
    assert np.array_equal(turn.array(xyz(image)), xyz(expected))
    turned = turn.geometry(grid)
    assert orientation_of(turned) == target
    assert not turned.differences(geometry_of(expected, "expected"), tolerance_mm=1e-9)


@given(st.tuples(angle, angle, angle), st.sampled_from(CODES), st.sampled_from(CODES))
def test_oblique_grids_equal_itk(angles, source, target):
    image = sitk.DICOMOrient(picture(np.eye(3)), source)
    image.SetDirection((rotated(angles) @ np.reshape(image.GetDirection(), (3, 3))).ravel())
    filter_ = sitk.DICOMOrientImageFilter()
    grid = geometry_of(image, "oblique")
    filter_.SetDesiredCoordinateOrientation(target)
    expected = filter_.Execute(image)
    turn = Turn.of(grid, target)
    turned = turn.geometry(grid)
    assert np.array_equal(turn.array(xyz(image)), xyz(expected))
    assert not turned.differences(geometry_of(expected, "expected"), tolerance_mm=1e-6)
    assert orientation_of(turned) == target


def test_the_names_of_oblique_grids_are_those_of_itk() -> None:
    name = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines
    rng = np.random.default_rng(0)
    for _ in range(200):
        direction, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        grid = Geometry((2, 2, 2), (1.0,) * 3, (0.0,) * 3, tuple(direction.ravel().tolist()))
        assert orientation_of(grid) == name(grid.direction)


@given(st.sampled_from(CODES), st.sampled_from(CODES))
def test_there_and_back(source, target):
    values = np.random.default_rng(0).random((2, 3, 4, 5))
    turn = Turn.between(source, target)
    turned = turn.array(values)
    assert np.shares_memory(turned, values)
    assert np.array_equal(turn.inverse().array(turned), values)
    assert turn.inverse() == Turn.between(target, source)
    assert turn.then(turn.inverse()) == Turn()
    grid = Geometry((3, 4, 5), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), tuple(np.eye(3).ravel()))
    back = turn.inverse().geometry(turn.geometry(grid))
    assert not grid.differences(back, tolerance_mm=1e-9)


@given(*[st.sampled_from(CODES)] * 3)
def test_turns_are_composed(first, second, third):
    direct, step = Turn.between(first, third), Turn.between(first, second)
    assert step.then(Turn.between(second, third)) == direct


@given(st.sampled_from(CODES), st.sampled_from(CODES))
def test_boxes_are_turned_like_arrays(source, target):
    turn, box = Turn.between(source, target), ((0, 1), (1, 4), (2, 5))
    inside = np.zeros((3, 4, 5))
    inside[tuple(slice(*side) for side in box)] = 1
    turned = turn.array(inside)
    assert turned[tuple(slice(*side) for side in turn.box(box, inside.shape))].all()
    assert turned.sum() == inside.sum()


@pytest.mark.parametrize("code", CODES)
def test_direction_of_a_code(code):
    grid = Geometry((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction_of(code))
    assert orientation_of(grid) == code


def test_the_most_common_code_and_ties():
    assert most_common(["LPS", "RAS", "LPS"]) == "LPS"
    assert most_common(["PSR", "RAS"] * 3) == most_common(["RAS", "PSR"] * 3) == "RAS"
    assert counted_codes(["PSR", "RAS", "PSR"]) == "2 PSR, 1 RAS"


def test_48_codes():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("code", ["RAX", "RRS", "", "RASI", "RLS"])
def test_other_codes_are_refused(code):
    with pytest.raises(DataError, match="orientation"):
        check_code(code)


def test_small_letters_are_fine():
    assert check_code("ras") == "RAS"
