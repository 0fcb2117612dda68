"""Cascades: the previous stage as masks, and its models beside the cascade's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json
from autoseg.image.image import Image, read_label
from autoseg.plan.plan import Plan
from autoseg.prediction.batch import predict_cases
from autoseg.prediction.inputs import FoundInputs, Inputs
from autoseg.prediction.model import load_model, save_previous
from autoseg.prediction.predictor import Predictor
from autoseg.prediction.record import model_id
from tests.dataset.making import write_scan
from tests.making import CASCADE, REGIONS, grid, tiny_plan
from tests.prediction.making import model_of, save_model

CPU = torch.device("cpu")


class Masks(nn.Module):
    """Returns the class whose mask contains the voxel, whatever the image shows."""

    def forward(self, patches: Tensor) -> Tensor:
        masks = patches[:, 1:]
        return 10 * torch.cat([0.5 * torch.ones_like(masks[:, :1]), masks], dim=1)


class MasksOfRegions(nn.Module):
    """Turns the masks of the values 1, 2 and 4 into logits of the regions."""

    def forward(self, patches: Tensor) -> Tensor:
        one, two, four = patches[:, 1], patches[:, 2], patches[:, 3]
        return 20 * torch.stack([one + two + four, two + four, four], dim=1) - 10


def cascade(**changes: Any) -> Plan:
    return tiny_plan(**CASCADE | changes)


def scan(shape: tuple[int, int, int] = (10, 8, 7)) -> Image:
    values = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    return Image(values, grid(shape))


def segmentation(values: tuple[int, ...] = (0, 1, 2)) -> NDArray[np.uint8]:
    return np.random.default_rng(1).choice(np.array(values, np.uint8), scan().geometry.size)


def test_each_patch_gets_its_part_of_the_previous_stage() -> None:
    predictor = Predictor(model_of(cascade(), Masks()), device="cpu")
    before = segmentation()
    assert np.array_equal(predictor.predict(scan(), before), before)


def test_mirrored_patches_get_a_mirrored_previous_stage() -> None:
    plan = cascade(inference={"overlap": [4, 4, 4], "mirror_axes": [0, 1, 2]})
    predictor = Predictor(model_of(plan, Masks()), device="cpu", mirror=True)
    assert np.array_equal(predictor.predict(scan(), segmentation()), segmentation())


def test_masks_are_of_values_not_regions() -> None:
    predictor = Predictor(model_of(cascade(**REGIONS), MasksOfRegions()), device="cpu")
    before = segmentation((0, 1, 2, 4))
    assert np.array_equal(predictor.predict(scan(), before), before)


def test_the_previous_stage_is_cropped_and_resampled() -> None:
    steps = [{"step": "crop_to_nonzero"}, {"step": "resample", "label_order": 0}]
    plan = cascade(preprocessing=steps, target_spacing_mm=[0.5, 0.5, 0.5])
    image = scan()
    image.array[:, :3] = 0
    before = segmentation()
    got = Predictor(model_of(plan, Masks()), device="cpu").predict(image, before)
    assert not got[:3].any()
    assert np.array_equal(got[3:], before[3:])  # every voxel became eight, and one again


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A cascade with two folds beside the three folds that it refines."""
    previous = tiny_plan(name="tiny-3d_lowres", configuration="3d_lowres")
    save_model(previous, tmp_path / "tiny-3d_lowres", "0", "1", "2")
    folder = save_model(cascade(), tmp_path / "tiny-3d_cascade_fullres", "0", "1")
    save_previous(folder, previous)
    return folder


def test_new_scans_go_through_all_folds_of_the_previous_stage_first(models: Path) -> None:
    predictor = Predictor(models, folds=["1"], device="cpu")
    assert predictor.previous is not None
    assert predictor.previous.model.folds == ("0", "1", "2")
    before = Predictor(models.parent / "tiny-3d_lowres", device="cpu").predict(scan())
    assert before.any()
    expected = predictor.predict(scan(), before)
    assert np.array_equal(predictor.predict(scan()), expected)
    other = predictor.predict(scan(), np.zeros_like(before))
    assert not np.array_equal(other, expected)


def test_the_previous_stage_is_mirrored_too(models: Path) -> None:
    predictor = Predictor(models, device="cpu", mirror=True)
    assert predictor.previous is not None
    assert predictor.previous.mirror


def test_the_previous_stage_is_recorded(models: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", scan().array[0])
    inputs: Inputs = {"a": (tmp_path / "in" / "a.nii.gz",)}
    predictor = Predictor(models, device="cpu")
    predict_cases(predictor, FoundInputs(cases=inputs), tmp_path / "new")
    record = read_json(tmp_path / "new" / "predictions.json")
    previous = tiny_plan(name="tiny-3d_lowres", configuration="3d_lowres")
    weights = load_model(models.parent / "tiny-3d_lowres", None, CPU)
    assert record["previous_stage"] == {
        "model_id": model_id(weights),
        "plan_id": previous.id,
        "folds": ["0", "1", "2"],
        "mirrored": False,
    }
    before = Predictor(models.parent / "tiny-3d_lowres", folds=["0"], device="cpu").predict(scan())
    write_scan(tmp_path / "before.nii.gz", before)
    known = {"a": tmp_path / "before.nii.gz"}
    predict_cases(predictor, FoundInputs(cases=inputs), tmp_path / "known", previous=known)
    assert "previous_stage" not in read_json(tmp_path / "known" / "predictions.json")
    found = read_label(tmp_path / "known" / "a.nii.gz")[0]
    assert np.array_equal(found, predictor.predict(scan(), before))


def test_predictions_with_another_previous_stage_are_not_mixed(
    models: Path, tmp_path: Path
) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz", scan().array[0])
    inputs: Inputs = {"a": (tmp_path / "in" / "a.nii.gz",)}
    predict_cases(Predictor(models, device="cpu"), FoundInputs(cases=inputs), tmp_path / "out")
    shutil.rmtree(models.parent / "tiny-3d_lowres" / "fold_2")
    with pytest.raises(AutosegError, match="previous_stage"):
        predict_cases(Predictor(models, device="cpu"), FoundInputs(cases=inputs), tmp_path / "out")


def test_a_cascade_without_its_previous_stage(models: Path) -> None:
    shutil.rmtree(models.parent / "tiny-3d_lowres")
    with pytest.raises(AutosegError) as caught:
        Predictor(models, device="cpu").predict(scan())
    assert str(caught.value).startswith(f"{models} ")
    assert str(models.parent / "tiny-3d_lowres") in str(caught.value)


def test_a_cascade_beside_another_previous_stage(models: Path) -> None:
    other = tiny_plan(name="tiny-3d_lowres", configuration="3d_lowres", training={"seed": 1})
    save_model(other, models.parent / "tiny-3d_lowres", "0", "1", "2")
    with pytest.raises(AutosegError, match=rf"refines plan \w{{12}} of tiny-3d_lowres.*{other.id}"):
        Predictor(models, device="cpu").predict(scan())


def test_other_plans_have_no_previous_stage(tmp_path: Path) -> None:
    model = load_model(save_model(tiny_plan(), tmp_path / "m", "0"), None, CPU)
    assert Predictor(model, device="cpu").previous is None
