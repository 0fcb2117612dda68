"""Images changed by torch against the same changes on the processor, on every device there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import kurtosis, skew

from autoseg.augmentation.on_device import Noise, Postponed, Postponer, changed, draw_change, finish
from autoseg.augmentation.spatial import draw_warp
from autoseg.augmentation.transforms import Augmenter
from autoseg.plan import augmentation as plans

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Nothing is left to chance, so that both ways do the same.
CERTAIN: list[Any] = [
    plans.Brightness(probability=1, factor=(1.3, 1.3)),
    plans.Contrast(probability=1, factor=(1.4, 1.4)),
    plans.Contrast(probability=1, factor=(1.4, 1.4), preserve_range=False),
    plans.Gamma(probability=1, gamma=(1.5, 1.5)),
    plans.Gamma(probability=1, gamma=(1.5, 1.5), invert=True, retain_statistics=False),
    plans.GaussianBlur(probability=1, channel_probability=1, sigma=(0.8, 0.8)),
    plans.LowResolution(probability=1, channel_probability=1, zoom=(0.6, 0.6)),
]
TURN = {"rotation_probability": 1, "scaling_probability": 1}
DEFORM = {"elastic_probability": 1, "elastic_alpha": (50, 90), "elastic_sigma": (3, 4)}
IN_PLANE = {"rotation_probability": 1, "rotation_degrees": ((0, 0), (0, 0), (-40, 40))}
WARPS: list[dict[str, Any]] = [
    TURN | {"rotation_degrees": ((0, 0), (0, 0), (0, 0))},
    TURN | {"scaling": (0.6, 1.1)},
    IN_PLANE | {"scaling_probability": 0},
    IN_PLANE | {"scaling_probability": 1},
    DEFORM | {"rotation_probability": 0, "scaling_probability": 0},
    DEFORM | TURN,
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(size: tuple[int, ...], channels: int = 2) -> Any:
    return rng(5).normal(size=(channels, *size)).astype(np.float32)


def by_torch(image: Any, changes: Any, device: str = "cpu") -> Any:
    return finish([Postponed(image, tuple(changes))], torch.device(device))[0].cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(8, 9, 7), (1, 9, 8), (6, 8, 1)])
@pytest.mark.parametrize("spec", CERTAIN, ids=lambda spec: spec.transform)
def test_intensities_are_those_of_the_processor(spec: Any, size: Any, device: str) -> None:
    expected, _ = Augmenter((spec,), size).draw(rng())(noise(size), np.zeros(size, np.int16))
    found = by_torch(noise(size), [draw_change(spec, 2, size, rng())], device)
    assert found.dtype == np.float32
    assert np.abs(expected - noise(size)).max() > 0.05
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(9, 8, 10), (1, 12, 9), (8, 7, 1)])
@pytest.mark.parametrize("values", WARPS)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_warps_are_those_of_the_processor(order: Any, values: Any, size: Any, device: str) -> None:
    spec = plans.Spatial(**{"image_order": order, **values})
    for seed in range(3):
        warp = draw_warp(spec, size, rng(seed))
        assert warp is not None
        image = noise(warp.box_size)
        expected = np.stack([warp.image(channel) for channel in image])
        found = by_torch(image, [warp], device)
        assert found.shape == (2, *size)
        if order == 0:  # rounding decides points in the middle between two voxels
            assert (found != expected).mean() < 0.005
        else:
            assert np.allclose(found, expected, atol=1e-4)


def test_a_channel_of_no_luck_stays() -> None:
    specs: list[Any] = [
        plans.GaussianBlur(probability=1),
        plans.LowResolution(probability=1, zoom=(0.5, 0.5)),
    ]
    for spec in specs:
        kinds = set()
        for seed in range(20):
            change: Any = draw_change(spec, 2, (6, 6, 6), rng(seed))
            found = by_torch(noise((6, 6, 6)), [change])
            same = [bool((a == b).all()) for a, b in zip(found, noise((6, 6, 6)), strict=True)]
            assert same == [by is None for by in change.channels]
            kinds.add(tuple(same))
        assert len(kinds) == 4


def test_blur_is_a_gaussian_filter_of_the_drawn_sigma() -> None:
    spec = plans.GaussianBlur(probability=1, channel_probability=1, sigma=(0.5, 1.5))
    numbers = rng(3)
    numbers.random(2)  # the sample's chance, and the channel's
    expected = gaussian_filter(noise((7, 8, 9), 1)[0].astype(float), numbers.uniform(0.5, 1.5))
    found = by_torch(noise((7, 8, 9), 1), [draw_change(spec, 1, (7, 8, 9), rng(3))])
    assert np.allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_noise_is_normal_and_depends_on_its_seed_alone(device: str) -> None:
    zeros = np.zeros((1, 40, 40, 40), np.float32)
    added = by_torch(zeros, [Noise(0.3, 2**63 - 1)], device)
    assert added.std() == pytest.approx(0.3, rel=0.02)
    assert abs(added.mean()) < 0.005
    assert abs(skew(added, None)) < 0.05
    assert abs(kurtosis(added, None)) < 0.06
    torch.manual_seed(1)
    assert np.array_equal(added, by_torch(zeros, [Noise(0.3, 2**63 - 1)], device))
    assert not np.array_equal(added, by_torch(zeros, [Noise(0.3, 1)], device))


def test_a_change_of_nothing_but_one_value_is_finite() -> None:
    flat = torch.full((1, 4, 4, 4), 3.0)
    for spec in CERTAIN:
        change = draw_change(spec, 1, (4, 4, 4), rng())
        assert change is not None
        assert torch.isfinite(changed(flat, change)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_all_changes_in_the_plans_order(device: str) -> None:
    size = (8, 9, 7)
    turn = plans.Spatial(image_order=1, **TURN)
    specs = (turn, *CERTAIN[:4], turn, *CERTAIN[4:])
    later, now = Postponer(specs, size).draw(rng(1)), Augmenter(specs, size).draw(rng(1))
    assert later.box_size == now.box_size  # the warps are drawn first, and alike
    image = noise(later.box_size)
    label = rng().integers(-1, 3, later.box_size).astype(np.int16)
    postponed, moved = later(image, label)
    expected, expected_label = now(image.copy(), label.copy())
    assert np.array_equal(moved, expected_label)
    found = finish([postponed], torch.device(device))[0].cpu().numpy()
    assert np.allclose(found, expected, atol=2e-3)
