"""Sums, planes and labels on a card: the same label maps, and memory by numbers.

The code runs on the CPU here; tests/pretended_card counts what it copies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from autoseg.common.parallel import GB
from autoseg.image.image import Image
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan
from autoseg.prediction import predictor as module
from autoseg.prediction.predictor import Ensemble, Predictor
from autoseg.preprocessing.steps import Prepared
from tests.making import CASCADE, REGIONS, grid, tiny_plan
from tests.prediction.making import model_of

FINER = {"target_spacing_mm": [0.8, 0.7, 1.0], "preprocessing": [{"step": "resample"}]}
COARSER = {"target_spacing_mm": [1.0, 1.6, 2.0], "preprocessing": [{"step": "resample"}]}
CROPPED = {"preprocessing": [{"step": "crop_to_nonzero"}, {"step": "resample"}]}
TWO_D = {
    "sampling": {"patch_size": [8, 8, 1]},
    "inference": {"overlap": [4, 4, 0]},
    "network": {"strides": [[1, 1, 1], [2, 2, 1]], "kernels": [[3, 3, 1]] * 2},
}
MIRRORED = {"inference": {"mirror": True, "mirror_axes": [0, 1, 2]}}
LOGITS = {"inference": {"average": "logits"}}
FLOAT16 = {"inference": {"average": "logits_float16", "weighting": "nnunet", "tile_step": 0.5}}
PLANS: dict[str, dict[str, Any]] = {
    "plain": {},
    "finer": FINER,
    "coarser": COARSER,
    "cropped": CROPPED,
    "mirrored": FINER | MIRRORED,
    "regions": FINER | REGIONS,
    "2d": TWO_D,
    "logits": FINER | LOGITS,
    "float16": FINER | FLOAT16,
    "regions of logits": COARSER | REGIONS | LOGITS,
    "turned": FINER | {"orientation": "SAR"},
}


def noise(shape: tuple[int, ...] = (21, 19, 37)) -> Image:
    """Blobs in a scan whose borders are empty."""
    rng = np.random.default_rng(0)
    values = np.zeros((1, *shape), np.float32)
    values[:, 2:-3, 1:-1, 4:] = rng.normal(0, 2, (1, shape[0] - 5, shape[1] - 2, shape[2] - 4))
    return Image(values, grid(shape, (1.0, 1.1, 1.3)))


def untrained(plan: Plan, folds: int = 2) -> Predictor:
    networks = []
    for seed in range(folds):
        torch.manual_seed(seed)
        networks.append(build_network(plan).eval())
    return Predictor(model_of(plan, *networks), device="cpu", backend="torch")


def on_card(model: Predictor, image: Image, patch: pytest.MonkeyPatch) -> NDArray[Any]:
    with patch.context() as context:
        context.setattr(Predictor, "_holds", lambda *_: True)
        return model.segment(model.prepare(image))


@pytest.mark.parametrize("name", PLANS)
def test_label_maps_equal_those_of_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = untrained(tiny_plan(**PLANS[name])), noise()
    host = model.segment(model.prepare(image))
    card = on_card(model, image, monkeypatch)
    assert card.dtype == host.dtype
    assert len(np.unique(host)) > 1
    assert np.mean(card == host) > 0.99999


def test_a_cascade_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny_plan(**CASCADE | FINER)
    model = untrained(plan)
    model.previous = untrained(tiny_plan(**COARSER))
    image = noise()
    host = model.segment(model.prepare(image))
    assert np.mean(on_card(model, image, monkeypatch) == host) > 0.99999


def test_saved_probabilities_and_ensembles_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Ensemble([untrained(tiny_plan(**FINER)), untrained(tiny_plan(**COARSER | LOGITS), 1)])
    image = noise()
    host = both.segment(both.prepare(image))
    assert np.mean(on_card(both, image, monkeypatch) == host) > 0.99999
    model = both.members[0]
    prepared = model.prepare(image)
    expected = list(model.planes(prepared, 2))
    monkeypatch.setattr(Predictor, "_holds", lambda *_: True)
    for own, planes in zip(expected, model.planes(prepared, 2), strict=True):
        area = slice(3, 11), slice(5, 18)
        for index in range(3):
            found = planes.probabilities(index, area)
            assert found == pytest.approx(own.probabilities(index, area), abs=1e-5)


def large(classes: int) -> tuple[Predictor, Prepared]:
    """A model of nnU-Net's patches, and a prepared CT that takes no memory."""
    labels = {"background": [0]} | {f"organ {n}": [n] for n in range(1, classes)}
    plan = tiny_plan(labels=labels, sampling={"patch_size": [128, 128, 128]})
    model = Predictor(model_of(plan, torch.nn.Identity()), device="cpu", backend="torch")
    image = np.broadcast_to(np.zeros(1, np.float32), (1, 512, 512, 600))
    where = grid((512, 512, 600))
    box = tuple((0, n) for n in where.size)
    return model, Prepared(image, None, where, box, where.spacing_mm)


@pytest.mark.parametrize(("gb", "holds"), [(80, True), (141, True), (40, False), (16, False)])
def test_118_classes_fit_half_of_a_large_card(
    gb: int, holds: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, scan = large(118)
    model.device = torch.device("cuda", 0)
    monkeypatch.setattr(module, "free_bytes", lambda device: gb * GB)
    axis = min(model.axes, key=lambda axis: model.window_bytes(scan, axis))
    assert model.window_bytes(scan, axis) == 4 * 119 * 128 * 512 * 512
    assert model.placement(scan, axis).on_card == holds
    told = capsys.readouterr().err
    assert told.count("\n") == (0 if holds else 1)
    if not holds:
        assert "cuda:0" in told
        assert f"{gb} GB" in told
    if holds:  # the host keeps the scan, twice while it is prepared, and two label maps
        assert 2 * scan.image.nbytes + 2 * 512 * 512 * 600 < 12e9


def test_models_of_an_ensemble_share_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    model, scan = large(118)
    model.device = torch.device("cuda", 0)
    monkeypatch.setattr(module, "free_bytes", lambda device: 80 * GB)
    assert model.placement(scan, 2).on_card
    Ensemble([model, large(118)[0]])
    assert not model.placement(scan, 2).on_card


def test_few_classes_fit_a_small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    model, scan = large(4)
    model.device = torch.device("cuda", 0)
    monkeypatch.setattr(module, "free_bytes", lambda device: 8 * GB)
    assert model.placement(scan, 2).on_card
