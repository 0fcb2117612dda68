"""From an array or image in memory to a label map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from skimage.transform import resize

from autoseg.common.errors import DataError
from autoseg.common.progress import counted
from autoseg.image.geometry import SWAPS
from autoseg.image.image import Image
from autoseg.models.folder import write_calibration
from autoseg.prediction.model import load_model
from autoseg.prediction.predictor import Predictor
from autoseg.preprocessing.steps import prepare
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
def test_an_array_gives_an_array(dtype: Any) -> None:
    array = values().astype(dtype)
    for scan in (array, array[None], np.asfortranarray(array), array[::-1].copy()[::-1]):
        found = predictor().predict(scan, spacing_mm=SPACING_MM)
        assert found.dtype == np.uint8
        assert (found == np.array([0, 3, 7])[values()]).all()


def test_the_spacing_of_an_array_is_used() -> None:
    model = predictor(preprocessing=STEPS)
    array = values().astype(np.float32)
    image = Image(array[None], grid(array.shape, (2.0, 1.5, 3.0)))
    expected = model.predict(image)
    assert (model.predict(array, spacing_mm=(2.0, 1.5, 3.0)) == expected).all()
    assert (model.predict(array, spacing_mm=(1.0, 1.0, 1.0)) != expected).any()


@pytest.mark.parametrize("steps", [[], STEPS])
def test_a_simpleitk_image_gives_one_on_exactly_its_grid(steps: Any) -> None:
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
        (values((5, 4)), (1, 1, 1), r"\(5, 4\)"),
        (values((5, 4, 0)), (1, 1, 1), r"\(5, 4, 0\)"),
        (values(), (1, 1), r"spacing_mm.*\(1, 1\)"),
        (values(), (1, 0, 1), r"spacing_mm.*\(1, 0, 1\)"),
        (values(), (1, np.nan, 1), "spacing_mm"),
        (values(), None, "spacing_mm"),
        (values((2, 5, 4, 3)), (1, 1, 1), "2 channels"),
        (np.where(values() > 1, np.nan, 1), (1, 1, 1), "voxels are NaN or infinite"),
    ],
)
def test_invalid_arrays_are_refused(array: Any, spacing_mm: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        predictor().predict(array, spacing_mm=spacing_mm)


def test_a_two_dimensional_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"the SimpleITK image: .*2 dimensions"):
        predictor().predict(sitk.Image(5, 4, sitk.sitkInt16))


@pytest.mark.parametrize("steps", [[], STEPS])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_sliding_axis_does_not_change_the_result(
    steps: Any, axis: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network treats x, y and z differently, and the patch is not a cube."""
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
        found = np.zeros((3, *SWAPS[across].triple(array.shape[1:])))
        for planes in model.planes(prepared, across):
            whole = (slice(0, planes.shape[1]), slice(0, planes.shape[2]))
            for index in range(3):
                found[index, planes.rows] = planes.probabilities(index, whole)
        shares.append(found.swapaxes(1, 1 + across))
    assert np.abs(shares[0] - shares[1]).max() <= 1e-5
    monkeypatch.setattr(Predictor, "axes", (axis,))
    reported: list[float] = []
    label = model.segment(prepared, report=reported.append)
    assert reported == sorted(reported)
    assert reported[-1] == 1
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


def test_a_2d_model(tmp_path: Path) -> None:
    """A real network on slices across x gives the same as on each slice alone."""
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


ALL_AXES = {"overlap": [4, 4, 4], "mirror_axes": [0, 1, 2]}


def scan(array: Any, spacing_mm: Any = (1.0, 1.0, 1.0)) -> Image:
    values = np.asarray(array, np.float32)
    return Image(values, grid(values.shape[1:], spacing_mm))


def classes(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """A scan whose values are its classes for `Pointwise`, with noise."""
    rng = np.random.default_rng(seed)
    wobbling = rng.integers(0, 3, shape) + rng.uniform(-0.4, 0.4, shape)
    return wobbling.astype(np.float32)


def patches(seed: int = 0, size: tuple[int, int, int] = (8, 8, 8)) -> torch.Tensor:
    return torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8, 8), (2, 2, 2), (3, 9, 17), (20, 5, 8)])
def test_classes_are_written_as_the_label_values_of_the_task(shape: tuple[int, int, int]) -> None:
    array = classes(1, *shape)
    plan = tiny_plan(labels=LABELS)
    got = Predictor(model_of(plan, Pointwise()), device="cpu").predict(scan(array))
    assert got.dtype == np.uint8
    assert (got == np.array([0, 3, 7])[np.rint(array[0]).astype(int)]).all()


def test_values_above_255_take_two_bytes() -> None:
    plan = tiny_plan(labels={"background": [0], "organ": [255], "tumour": [256]})
    array = classes(1, 9, 8, 7)
    got = Predictor(model_of(plan, Pointwise()), device="cpu").predict(scan(array))
    assert got.dtype == np.uint16
    assert (got == np.array([0, 255, 256])[np.rint(array[0]).astype(int)]).all()


def test_a_crop_is_undone() -> None:
    array = np.zeros((1, 14, 13, 12), np.float32)
    array[:, 3:9, 2:12, 5:6] = classes(1, 6, 10, 1)
    plan = tiny_plan(preprocessing=[{"step": "crop_to_nonzero"}])
    got = Predictor(model_of(plan, Pointwise()), device="cpu").predict(scan(array))
    assert (got == np.rint(array[0])).all()


def test_outside_the_crop_is_background() -> None:
    array = np.zeros((1, 10, 10, 10), np.float32)
    array[:, 2:5, 3:9, 4:8] = 1
    plan = tiny_plan(preprocessing=[{"step": "crop_to_nonzero"}], labels=LABELS)
    always_tumour = Pointwise(shift=9.0)
    got = Predictor(model_of(plan, always_tumour), device="cpu").predict(scan(array))
    assert (got[2:5, 3:9, 4:8] == 7).all()
    assert np.count_nonzero(got) == 3 * 6 * 4


@pytest.mark.parametrize("target", [[1.6, 0.7, 1.0], [0.5, 2.0, 3.0], [3.0, 1.0, 1.0]])
def test_a_resampled_scan_is_segmented_on_its_own_grid(target: list[float]) -> None:
    array = np.zeros((1, 15, 14, 13), np.float32)
    array[:, 1:14, 2:13, 1:12] = classes(1, 13, 11, 11) * 3
    steps = [{"step": "crop_to_nonzero"}, {"step": "resample", "anisotropy": None}]
    plan = tiny_plan(preprocessing=steps, target_spacing_mm=target)
    network, image = Pointwise(), scan(array)
    low = torch.from_numpy(prepare(plan, image).image)[None]
    shares = torch.softmax(network(low), dim=1)[0].double().numpy()
    wide = np.stack(
        [resize(s, (13, 11, 11), order=1, mode="edge", anti_aliasing=False) for s in shares]
    )
    ranked = np.sort(wide, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4
    got = Predictor(model_of(plan, network), device="cpu").predict(image)
    assert (got[1:14, 2:13, 1:12] == wide.argmax(axis=0))[clear].all()
    assert clear.mean() > 0.9
    got[1:14, 2:13, 1:12] = 0
    assert not got.any()


@pytest.mark.parametrize("axes", [[], [2], [0, 1], [0, 1, 2]])
def test_mirroring_is_the_mean_over_all_flips(axes: list[int]) -> None:
    plan = tiny_plan(inference={"mirror_axes": axes})
    network, batch = Sided(), patches(size=(8, 6, 4))
    flips: list[tuple[int, ...]] = [()]
    for axis in axes:
        flips += [(*flip, axis + 2) for flip in flips]
    assert len(flips) == 2 ** len(axes)
    expected = sum(
        torch.softmax(network(batch.flip(flip)).double(), dim=1).flip(flip) for flip in flips
    ) / len(flips)
    got = Predictor(model_of(plan, network), device="cpu", mirror=True).probabilities(batch)
    assert torch.allclose(got.double(), torch.as_tensor(expected), atol=1e-6)
    plain = Predictor(model_of(plan, network), device="cpu").probabilities(batch)
    assert torch.allclose(plain, torch.softmax(network(batch), dim=1), atol=1e-6)
    assert torch.allclose(plain, got, atol=1e-3) == (not axes)


def test_an_ensemble_is_the_mean_of_the_probabilities_not_of_the_logits() -> None:
    networks = [Pointwise(slope=1), Pointwise(slope=2, shift=-1), Pointwise(shift=0.5)]
    batch = patches()
    expected = sum(torch.softmax(network(batch).double(), dim=1) for network in networks) / 3
    got = Predictor(model_of(tiny_plan(), *networks), device="cpu").probabilities(batch)
    assert torch.allclose(got.double(), torch.as_tensor(expected), atol=1e-6)
    mixed = torch.softmax(sum(network(batch) for network in networks) / 3, dim=1)
    assert not torch.allclose(got, mixed, atol=1e-2)


def test_an_ensemble_may_be_mirrored_too() -> None:
    plan = tiny_plan(inference=ALL_AXES)
    batch = patches()
    each = [
        Predictor(model_of(plan, network), device="cpu", mirror=True).probabilities(batch)
        for network in (Sided(), Pointwise())
    ]
    both = Predictor(model_of(plan, Sided(), Pointwise()), device="cpu", mirror=True)
    assert torch.allclose(both.probabilities(batch), (each[0] + each[1]) / 2, atol=1e-6)


def test_probabilities_sum_to_one_in_bfloat16_too() -> None:
    plan = tiny_plan(training={"precision": "bfloat16"})
    got = Predictor(model_of(plan, Pointwise()), device="cpu").probabilities(patches())
    assert got.dtype is torch.float32
    assert torch.allclose(got.sum(dim=1), torch.ones(1, 8, 8, 8), atol=1e-5)


@pytest.mark.parametrize(("has", "needs"), [(1, 2), (2, 1)])
def test_another_number_of_channels_is_refused(has: int, needs: int) -> None:
    channels = ["CT", "MRI"][:needs]
    predictor = Predictor(model_of(tiny_plan(channels=channels), Pointwise()), device="cpu")
    there = counted(has, "channel")
    message = f"the scan has {there}, the model needs {needs}: {', '.join(channels)}"
    with pytest.raises(DataError, match=message):
        predictor.predict(scan(np.zeros((has, 8, 8, 8))))


def test_channels_keep_their_order() -> None:
    plan = tiny_plan(channels=["CT", "MRI"])
    array = np.concatenate([classes(1, 8, 8, 8), classes(1, 8, 8, 8, seed=1)])
    got = Predictor(model_of(plan, Pointwise()), device="cpu").predict(scan(array))
    assert (got == np.rint(array[0])).all()  # the network looks at the first alone


def test_prediction_is_deterministic(tmp_path: Path) -> None:
    plan = tiny_plan(preprocessing=[{"step": "z_score"}], inference=ALL_AXES)
    folder = save_model(plan, tmp_path / "Modèle 1", "0", "1")
    image = scan(np.random.default_rng(0).normal(size=(1, 11, 9, 6)))
    predictor = Predictor(folder, device="cpu", mirror=True)
    first = predictor.predict(image)
    assert first.shape == (11, 9, 6)
    assert len(np.unique(first)) > 1
    assert (predictor.predict(image) == first).all()
    assert (Predictor(folder, device="cpu", mirror=True).predict(image) == first).all()
    assert Predictor(folder, folds=["1"], device="cpu").model.folds == ("1",)


def test_a_learned_temperature_changes_saved_probabilities_alone(tmp_path: Path) -> None:
    plan = tiny_plan()
    model = load_model(save_model(plan, tmp_path / "m", "0"), [], torch.device("cpu"))
    scan = Image(np.random.default_rng(0).normal(size=(1, 9, 8, 10)), grid((9, 8, 10)))
    found = []
    for temperature in (1.0, 2.0):
        write_calibration(tmp_path / "m", "temperature", {"plan_id": plan.id, "value": temperature})
        predictor = Predictor(model, device="cpu")
        assert predictor.temperature == temperature
        label = predictor.segment(predictor.prepare(scan), tmp_path / f"{temperature}.b2nd")
        saved = blosc2.open(str(tmp_path / f"{temperature}.b2nd"), mode="r")
        assert dict(saved.vlmeta.getall()).get("temperature", 1.0) == temperature
        found.append((label, saved[:].astype(float)))
    (one, plain), (other, heated) = found
    assert (one == other).all()
    expected = plain**0.5 / (plain**0.5).sum(axis=0)
    np.testing.assert_allclose(heated, expected, atol=2e-3)
    write_calibration(tmp_path / "m", "temperature", {"plan_id": "another", "value": 2.0})
    assert Predictor(model, device="cpu").temperature == 1.0
