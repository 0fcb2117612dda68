"""From what a Python caller has in hand to a label map, without files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.image.image import Image
from autoseg.prediction.predictor import Predictor, swapped
from tests.making import grid, tiny_plan
from tests.prediction.making import Pointwise, Sided, model_of, save_model

STEPS = [{"step": "crop_to_nonzero"}, {"step": "resample", "anisotropy": None}]
LABELS = {"background": [0], "organ": [3, 4], "tumour": [7]}
OBLIQUE = (0.8, -0.6, 0.0, 0.48, 0.64, -0.6, 0.36, 0.48, 0.8)
SPACING_MM, ORIGIN_MM = (0.7123456789, 0.9, 2.3), (-101.37, 55.1, 1e-3)


def values(shape: tuple[int, ...] = (12, 9, 7)) -> NDArray[np.int16]:
    found = np.random.default_rng(0).integers(0, 3, shape).astype(np.int16)
    return found


def predictor(**changes: Any) -> Predictor:
    return Predictor(model_of(tiny_plan(labels=LABELS, **changes), Pointwise()), device="cpu")


def picture_of(array: NDArray[Any]) -> sitk.Image:
    picture = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    picture.SetSpacing(SPACING_MM)
    picture.SetOrigin(ORIGIN_MM)
    picture.SetDirection(OBLIQUE)
    return picture


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.int32, np.float64, np.float32])
def test_an_array_becomes_an_array(dtype: Any) -> None:
    array = values().astype(dtype)
    for scan in (array, array[None], np.asfortranarray(array), array[::-1].copy()[::-1]):
        found = predictor().predict(scan, spacing_mm=SPACING_MM)
        assert found.dtype == np.uint8
        assert (found == np.array([0, 3, 7])[values()]).all()


def test_the_spacing_of_an_array_counts() -> None:
    model = predictor(preprocessing=STEPS)
    array = values().astype(np.float32)
    image = Image(array[None], grid(array.shape, (2.0, 1.5, 3.0)))
    expected = model.predict(image)
    assert (model.predict(array, spacing_mm=(2.0, 1.5, 3.0)) == expected).all()
    assert (model.predict(array, spacing_mm=(1.0, 1.0, 1.0)) != expected).any()


@pytest.mark.parametrize("steps", [[], STEPS])
def test_a_simpleitk_image_becomes_one_on_exactly_its_grid(steps: Any) -> None:
    model, picture = predictor(preprocessing=steps), picture_of(values())
    found = model.predict(picture)
    assert isinstance(found, sitk.Image)
    assert found.GetPixelID() == sitk.sitkUInt8
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(found, what)() == getattr(picture, what)()
    expected = model.predict(values(), spacing_mm=SPACING_MM)
    assert (expected == sitk.GetArrayFromImage(found).T).all()


def test_components_and_a_fourth_dimension_are_channels() -> None:
    model = predictor(channels=["CT", "MRI"])
    first, second = picture_of(values()), picture_of(2 - values())
    expected = np.array([0, 3, 7])[values()]
    for picture in (sitk.Compose(first, second), sitk.JoinSeries([first, second])):
        found = model.predict(picture)
        assert (expected == sitk.GetArrayFromImage(found).T).all()
        assert found.GetSize() == first.GetSize()


@pytest.mark.parametrize(
    ("array", "spacing_mm", "message"),
    [
        (values((5, 4)), (1, 1, 1), r"the shape \(5, 4\); a scan is \(x, y, z\) or \(channel"),
        (values((5, 4, 0)), (1, 1, 1), r"the shape \(5, 4, 0\)"),
        (values(), (1, 1), r"spacing_mm: \(1, 1\); give the distance of voxels"),
        (values(), (1, 0, 1), r"spacing_mm: \(1, 0, 1\)"),
        (values(), (1, np.nan, 1), "spacing_mm"),
        (values(), None, "an array has no spacing of its own"),
        (values((2, 5, 4, 3)), (1, 1, 1), "2 channels"),
        (np.where(values() > 1, np.nan, 1), (1, 1, 1), "voxels are NaN or infinite"),
    ],
)
def test_what_is_no_scan_is_refused(array: Any, spacing_mm: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        predictor().predict(array, spacing_mm=spacing_mm)


def test_a_flat_picture_is_refused() -> None:
    with pytest.raises(DataError, match="the SimpleITK image: has 2 dimensions"):
        predictor().predict(sitk.Image(5, 4, sitk.sitkInt16))


@pytest.mark.parametrize("steps", [[], STEPS])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_axis_that_patches_slide_along_does_not_count(
    steps: Any, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network tells x, y and z apart, and the patch is no cube."""
    plan = tiny_plan(
        preprocessing=steps,
        target_spacing_mm=[1.3, 0.8, 1.1],
        sampling={"patch_size": [8, 6, 4]},
        inference={"overlap": [2, 3, 1]},
    )
    model = Predictor(model_of(plan, Sided()), device="cpu")
    array = np.random.default_rng(0).normal(size=(1, 13, 11, 12)).astype(np.float32)
    prepared = model.prepare(Image(array, grid(array.shape[1:])))
    shares = []
    for across in (0, axis):
        found = np.zeros((3, *swapped(array.shape[1:], across)))
        for planes in model.planes(prepared, across):
            whole = (slice(0, planes.shape[1]), slice(0, planes.shape[2]))
            for index in range(3):
                found[index, planes.rows] = planes.shares(index, whole)
        shares.append(found.swapaxes(1, 1 + across))
    assert np.abs(shares[0] - shares[1]).max() <= 1e-5
    monkeypatch.setattr("autoseg.prediction.predictor.AXES", (axis,))
    told: list[float] = []
    label = model.segment(prepared, tell=told.append)
    assert told == sorted(told)
    assert told[-1] == 1
    ranked = np.sort(shares[0], axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4
    assert (label == shares[0].argmax(axis=0))[clear].all()


def test_patches_slide_along_the_axis_that_takes_the_least_memory() -> None:
    model = predictor()
    size = {}
    for shape in ((40, 9, 10), (9, 40, 10), (9, 10, 40), (8, 8, 8)):
        prepared = model.prepare(Image(values((1, *shape)), grid(shape)))
        size[shape] = [model.window_bytes(prepared, axis) for axis in range(3)]
    assert [int(np.argmin(sizes)) for sizes in size.values()] == [0, 1, 2, 0]
    assert size[(40, 9, 10)][0] == 4 * (3 + 1) * 8 * 9 * 10
    assert len(set(size[(8, 8, 8)])) == 1


def test_a_model_of_slices(tmp_path: Path) -> None:
    """Slices across x, as of a real network: the same as each slice on its own."""
    plan = tiny_plan(
        configuration="2d",
        sampling={"patch_size": [1, 8, 8]},
        network={"kernels": [[1, 3, 3]] * 2, "strides": [[1, 1, 1], [1, 2, 2]]},
        inference={"overlap": [0, 4, 4]},
    )
    model = Predictor(save_model(plan, tmp_path / "model", "0"), device="cpu")
    array = np.random.default_rng(0).normal(size=(1, 30, 8, 8)).astype(np.float32)
    whole = model.predict(array, spacing_mm=(1, 1, 1))
    for x in (0, 13, 29):
        pair = model.predict(np.repeat(array[:, x : x + 1], 2, axis=1), spacing_mm=(1, 1, 1))
        assert (pair[0] == whole[x]).mean() > 0.98  # but for rounding
