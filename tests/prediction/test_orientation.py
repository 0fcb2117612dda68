"""A scan has one label map, in whatever order its axes are stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoseg.common.errors import DataError
from autoseg.common.files import read_json
from autoseg.image.geometry import CODES, orientation_of
from autoseg.image.image import Image, from_array, read_image, read_label
from autoseg.plan.plan import Plan
from autoseg.prediction.batch import Options, predict_cases
from autoseg.prediction.inputs import FoundInputs
from autoseg.prediction.postprocessing import KeepLargest, Postprocessing
from autoseg.prediction.predictor import Ensemble, Predictor
from tests.dicom_series import write_series
from tests.making import CASCADE, REGIONS, grid, tiny_plan
from tests.planner.making import fingerprint
from tests.prediction.making import Layers, Sided, model_of
from tests.prediction.orders import SPACING_MM, in_order, scan_in_order, upright

STEPS = [{"step": "crop_to_nonzero"}, {"step": "z_score", "nonzero": True}, {"step": "resample"}]
FEW = ("LPS", "RAS", "PIR", "SAL", "IRP", "ALI")


class Uneven(Sided):
    """Tells all mirror images and exchanges of axes apart, and lets every class win somewhere."""

    def forward(self, patches: Tensor) -> Tensor:
        x, y, z = (torch.linspace(-1, 1, size) for size in patches.shape[2:])
        ramp = x[:, None, None] + 2 * y[:, None] ** 3 + torch.sin(3 * z)
        value = patches[:, :1] + ramp
        previous = patches[:, 1:].sum(dim=1, keepdim=True)
        return torch.cat([torch.zeros_like(value), value, 0.5 - value - previous], dim=1)


def plan_of(orientation: str | None = "RAS", **changes: Any) -> Plan:
    return tiny_plan(
        **{
            "orientation": orientation,
            "preprocessing": STEPS,
            "target_spacing_mm": [1.3, 0.8, 1.9],
            "sampling": {"patch_size": [8, 6, 4]},
            "inference": {"overlap": [4, 3, 1]},
        }
        | changes
    )


def predictor_of(plan: Plan, **options: Any) -> Predictor:
    return Predictor(model_of(plan, Uneven()), device="cpu", **options)


def values(seed: int = 0) -> NDArray[np.float32]:
    """A scan (x, y, z) with a margin of zeros that is not the same on both sides."""
    found = np.zeros((11, 14, 9), np.float32)
    found[1:, 2:-1, :-1] = np.random.default_rng(seed).normal(size=(10, 11, 8))
    return found


def check_all(segmenter: Predictor | Ensemble, codes: tuple[str, ...]) -> NDArray[Any]:
    """Check that the orders have the same label map, which is returned in the order LPS."""
    found = []
    for code in codes:
        image = scan_in_order(values()[None], code)
        assert orientation_of(image.geometry) == code
        label = segmenter.predict(image)
        assert label.shape == image.geometry.size
        found.append(upright(label, image.geometry))
    assert all(np.array_equal(each, found[0]) for each in found)
    assert set(np.unique(found[0])) == {0, 1, 2}
    return found[0]


def test_48_orders_have_one_label_map() -> None:
    check_all(predictor_of(plan_of()), CODES)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_spacing_mm": [None, 0.8, None], "sampling": {"patch_size": [1, 8, 6]}}
        | {"network": {"strides": [[1, 1, 1], [1, 2, 2]], "kernels": [[1, 3, 3]] * 2}}
        | {"inference": {"overlap": [0, 4, 3]}, "configuration": "2d"},
        {"preprocessing": [{"step": "crop_to_nonzero"}]},
        {"orientation": "PIR"},
    ],
)
def test_other_plans(changes: dict[str, Any]) -> None:
    check_all(predictor_of(plan_of(**changes)), FEW)


def test_mirroring_and_postprocessing() -> None:
    axes = {"overlap": [4, 3, 1], "mirror_axes": [0, 2]}
    plan = plan_of(inference=axes)
    model = predictor_of(plan, mirror=True)
    whole = check_all(model, FEW)
    model.postprocessing = Postprocessing(plan.id, (KeepLargest("organ", (1,)),))
    assert (check_all(model, FEW) != whole).any()


def test_members_of_an_ensemble_may_have_other_orientations() -> None:
    one, other = predictor_of(plan_of()), predictor_of(plan_of("PIL"))
    both = check_all(Ensemble([one, other]), FEW)
    assert (both != check_all(one, FEW[:1])).any()
    assert (both != check_all(other, FEW[:1])).any()
    same = Ensemble([one, predictor_of(plan_of())])
    assert np.array_equal(check_all(same, FEW[:2]), check_all(one, FEW[:1]))


def test_the_members_see_their_own_axes() -> None:
    """The mean of a model with itself, planned for other axes, is what the model finds."""
    plan = plan_of("LPS", preprocessing=[], inference={"overlap": [0, 0, 0]})
    exact = [8, 12, 8]  # whole patches along every axis, in whatever order they are seen
    array = np.random.default_rng(3).normal(size=exact).astype(np.float32)
    turned = plan.model_copy(update={"orientation": "RPI"})

    class Mirrored(Uneven):
        def forward(self, patches: Tensor) -> Tensor:
            return super().forward(patches.flip(2, 4)).flip(2, 4)

    one = predictor_of(plan)
    other = Predictor(model_of(turned, Mirrored()), device="cpu")
    image = from_array(array, SPACING_MM)
    assert np.array_equal(Ensemble([one, other]).predict(image), one.predict(image))


def test_a_cascade_turns_its_previous_stage() -> None:
    model = predictor_of(plan_of(**CASCADE))
    model.previous = predictor_of(plan_of("AIL"))
    alone = check_all(model.previous, FEW)
    found = check_all(model, FEW)
    assert (found != alone).any()
    for code in FEW:  # the previous stage is known, on the grid of the scan
        image = scan_in_order(values()[None], code)
        before = sitk.GetArrayFromImage(in_order(alone, code)).T
        assert np.array_equal(upright(model.predict(image, before), image.geometry), found)


@pytest.mark.parametrize("regions", [False, True])
def test_probabilities_are_on_the_grid_of_the_scan(tmp_path: Path, regions: bool) -> None:
    network = Layers(3) if regions else Uneven()
    plan = plan_of(**REGIONS) if regions else plan_of()
    model, found = Predictor(model_of(plan, network), device="cpu"), []
    for code in FEW:
        image = scan_in_order(values()[None], code)
        model.segment(model.prepare(image), tmp_path / code)
        shares = blosc2.open(str(tmp_path / code), mode="r")[:].astype(np.float32)
        assert shares.shape == (3, *image.geometry.size)
        found.append([upright(share, image.geometry) for share in shares])
    assert all(np.array_equal(each, found[0]) for each in found)


def test_arrays_have_the_orientation_of_the_plan() -> None:
    model = predictor_of(plan_of("SAL"))
    image = scan_in_order(values()[None], "SAL")
    spacing_mm = image.geometry.spacing_mm
    expected = model.predict(image)
    for order in ("C", "F"):
        array = np.array(image.array[0], order=order)
        assert np.array_equal(model.predict(array, spacing_mm=spacing_mm), expected)
    like = model.predict(in_order(values(), "RIP"))
    assert np.array_equal(sitk.GetArrayFromImage(sitk.DICOMOrient(like, "SAL")).T, expected)


def test_files_of_several_orders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs: dict[str, tuple[Path, ...]] = {}
    for code in FEW:
        inputs[code] = (tmp_path / f"{code}.nii.gz",)
        sitk.WriteImage(in_order(values(), code), str(inputs[code][0]))
    model = predictor_of(plan_of())
    outcome = predict_cases(model, FoundInputs(cases=inputs), tmp_path / "out")
    assert not list(outcome.missing())
    found = []
    for code in FEW:
        label, geometry = read_label(tmp_path / "out" / f"{code}.nii.gz")
        assert geometry == read_image(inputs[code]).geometry
        found.append(upright(label, geometry))
    assert all(np.array_equal(each, found[0]) for each in found)
    record = read_json(tmp_path / "out" / "predictions.json")
    assert record["orientation"] == "RAS"
    assert {name: case["orientation"] for name, case in record["cases"].items()} == {
        code: code for code in FEW
    }
    assert "--orientation" not in capsys.readouterr().err


def test_dicom_series_of_several_orders(tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    array = (100 * values()).astype(np.int16)
    inputs: dict[str, tuple[Path, ...]] = {}
    expected = {}
    for code in ("LPS", "LIP", "PIR", "RAS"):  # axial, coronal, sagittal, feet first
        image = in_order(array, code)
        x, y, z = image.GetSpacing()
        inputs[code] = (tmp_path / code,)
        write_series(
            tmp_path / code,
            sitk.GetArrayFromImage(image).T,
            [z * index for index in range(image.GetSize()[2])],
            np.reshape(image.GetDirection(), (3, 3))[:, :2].T.ravel().tolist(),
            PixelSpacing=[y, x],
            SliceThickness=z,
        )
    model = predictor_of(plan_of())
    predict_cases(model, FoundInputs(cases=inputs), tmp_path / "out")
    predict_cases(
        model, FoundInputs(cases=inputs), tmp_path / "seg", options=Options(format="dicom-seg")
    )
    for code in inputs:
        label, geometry = read_label(tmp_path / "out" / f"{code}.nii.gz")
        assert orientation_of(geometry) == code
        expected[code] = upright(label, geometry)
        segments = pydicom.dcmread(tmp_path / "seg" / f"{code}.dcm")
        assert segments.pixel_array.sum() == (label > 0).sum()
    assert all(np.array_equal(each, expected["LPS"]) for each in expected.values())
    assert set(np.unique(expected["LPS"])) == {0, 1, 2}


def old_model(folder: Path, *trained: str) -> Predictor:
    """A model without an orientation, in a workspace that knows its training scans."""
    plan = plan_of(None)
    known = fingerprint(task=plan.task)
    case = known.cases["case_0"]
    cases = {str(index): case.turned_to(code) for index, code in enumerate(trained)}
    planned = folder / "preprocessed" / plan.task / plan.name
    replace(known, cases=cases).save(planned / "fingerprint.json")
    where = folder / "models" / plan.task / plan.name
    for each in (planned, where):
        plan.save(each / "plan.json")
    return Predictor(model_of(plan, Uneven(), folder=where), device="cpu")


def test_an_old_plan_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = old_model(tmp_path, "RAS", "RAS", "LAS")
    usual = scan_in_order(values()[None], "RAS")
    expected = model.predict(usual)
    model.predict(scan_in_order(values()[None], "LAS"))
    array = model.predict(usual.array, spacing_mm=usual.geometry.spacing_mm)
    assert np.array_equal(array, expected)
    assert "--orientation" not in capsys.readouterr().err
    for code in ("LPS", "PIR", "LPS"):
        model.predict(scan_in_order(values()[None], code))
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "--orientation" in line]
    assert "LPS" in line
    assert "2 RAS, 1 LAS" in line
    assert "--orientation RAS" in line


def test_an_old_plan_takes_the_scan_as_it_is_stored() -> None:
    """As version 0.1.0: the axes are those of the array, whatever their direction is."""
    model, image = predictor_of(plan_of(None)), scan_in_order(values()[None], "SAL")
    same = Image(image.array, grid(image.array.shape[1:], image.geometry.spacing_mm))
    assert np.array_equal(model.predict(image), model.predict(same))


def test_an_orientation_for_one_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = predictor_of(plan_of(None), orientation="ras")
    assert np.array_equal(check_all(old, FEW), check_all(predictor_of(plan_of()), FEW[:1]))
    assert old.model.plan.orientation is None
    scan = tmp_path / "a.nii.gz"
    sitk.WriteImage(in_order(values(), "PIR"), str(scan))
    predict_cases(old, FoundInputs(cases={"a": (scan,)}), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (record["plan_id"], record["orientation"]) == (old.model.plan.id, "RAS")
    assert not capsys.readouterr().err.count("orientation")
    with pytest.raises(DataError, match="RAX"):
        predictor_of(plan_of(), orientation="RAX")
