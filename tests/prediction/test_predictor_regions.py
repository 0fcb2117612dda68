"""Regions: from the sigmoids of the network to label maps and volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.transform import resize

from autoseg.common.files import read_json
from autoseg.image.image import Image, read_label
from autoseg.plan.plan import Plan
from autoseg.prediction.batch import predict_cases
from autoseg.prediction.inputs import FoundInputs, Inputs
from autoseg.prediction.predictor import Predictor
from autoseg.preprocessing.steps import prepare
from tests.dataset.making import write_scan
from tests.making import REGIONS, grid, tiny_plan
from tests.prediction.making import Layers, model_of

PAINTED = np.array([0, 1, 2, 4])


def regions(**changes: Any) -> Plan:
    return tiny_plan(**REGIONS | changes)


def nested(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """A scan whose values are the number of nested regions around a voxel, with noise."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 4, shape) + rng.uniform(-0.4, 0.4, shape)).astype(np.float32)


def predictor(plan: Plan, *networks: Layers) -> Predictor:
    return Predictor(model_of(plan, *(networks or (Layers(3),))), device="cpu")


@pytest.mark.parametrize("shape", [(8, 8, 8), (3, 9, 17)])
def test_regions_are_painted_with_their_values(shape: tuple[int, int, int]) -> None:
    array = nested(1, *shape)
    got = predictor(regions()).predict(Image(array, grid(shape)))
    assert got.dtype == np.uint8
    assert (got == PAINTED[np.rint(array[0]).astype(int)]).all()


def test_later_regions_paint_over_earlier_ones() -> None:
    backwards = {"enhancing": [4], "core": [2, 4], "whole": [1, 2, 4]}
    labels = {"background": [0], **backwards}
    plan = tiny_plan(labels=labels, regions_class_order=[4, 2, 1])
    array = nested(1, 8, 8, 8)
    got = predictor(plan).predict(Image(array, grid((8, 8, 8))))
    assert (got == np.array([0, 4, 2, 1])[np.rint(array[0]).astype(int)]).all()


def test_sigmoids_are_averaged_over_folds() -> None:
    networks = [Layers(3), Layers(3, slope=2)]
    batch = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = sum(torch.sigmoid(network(batch).double()) for network in networks) / 2
    got = predictor(regions(), *networks).probabilities(batch)
    assert got.shape == (1, 3, 8, 8, 8)
    assert torch.allclose(got.double(), torch.as_tensor(expected), atol=1e-6)


@pytest.mark.parametrize("target", [[1.6, 0.7, 1.0], [0.5, None, 3.0]])
def test_probabilities_are_resampled_before_they_are_painted(target: list[float | None]) -> None:
    array, shape = nested(1, 13, 11, 10) * 3, (13, 11, 10)
    steps = [{"step": "resample", "anisotropy": None}]
    plan = regions(preprocessing=steps, target_spacing_mm=target)
    image, network = Image(array, grid(shape)), Layers(3)
    low = prepare(plan, image).image
    assert (low.shape[2] == 11) == (target[1] is None)
    shares = torch.sigmoid(network(torch.from_numpy(low)[None]))[0].double().numpy()
    wide = np.stack([resize(s, shape, order=1, mode="edge", anti_aliasing=False) for s in shares])
    expected = np.zeros(shape, int)
    for value, share in zip(PAINTED[1:], wide, strict=True):
        expected[share > 0.5] = value
    clear = (np.abs(wide - 0.5) > 1e-4).all(axis=0)
    assert clear.mean() > 0.9
    assert (predictor(plan, network).predict(image) == expected)[clear].all()


def test_volumes_and_shares_of_regions(tmp_path: Path) -> None:
    array = np.zeros((8, 8, 8), np.float32)
    array[:4] = 1
    array[:2] = 2
    array[0] = 3
    write_scan(tmp_path / "in" / "a.nii.gz", array, (1, 1, 2))
    plan = regions(shares=[{"label": 4, "container": [1, 2]}])
    inputs: Inputs = {"a": (tmp_path / "in" / "a.nii.gz",)}
    predict_cases(predictor(plan), FoundInputs(cases=inputs), tmp_path / "out")
    found = read_label(tmp_path / "out" / "a.nii.gz")[0]
    assert (found == PAINTED[array.astype(int)]).all()
    record = read_json(tmp_path / "out" / "predictions.json")
    case = record["cases"]["a"]
    assert case["volume_ml"] == {"whole": 0.512, "core": 0.256, "enhancing": 0.128}
    assert case["share"] == {"enhancing": 0.25}  # of the whole, which counts no voxel twice
    labels = read_json(tmp_path / "out" / "labels.json")
    assert labels["labels"]["core"] == [2, 4]
