"""Augmentation by PyTorch against the same on the CPU, on every available device."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import ks_2samp, kurtosis, skew

from autoseg.augmentation.on_device import (
    AddNoise,
    PostponedImage,
    apply,
    draw_operation,
    finish,
    postpone,
)
from autoseg.augmentation.spatial import draw_warp
from autoseg.augmentation.transforms import Augmenter
from autoseg.plan import augmentation as plans

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Nothing is random, so that both ways give the same.
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


def by_torch(image: Any, operations: Any, device: str = "cpu") -> Any:
    return finish([PostponedImage(image, tuple(operations))], torch.device(device))[0].cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(8, 9, 7), (1, 9, 8), (6, 8, 1)])
@pytest.mark.parametrize("spec", CERTAIN, ids=lambda spec: spec.transform)
def test_intensities_equal_those_of_the_cpu(spec: Any, size: Any, device: str) -> None:
    expected, _ = Augmenter((spec,), size).draw(rng())(noise(size), np.zeros(size, np.int16))
    found = by_torch(noise(size), [draw_operation(spec, 2, size, rng())], device)
    assert found.dtype == np.float32
    assert np.abs(expected - noise(size)).max() > 0.05
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(9, 8, 10), (1, 12, 9), (8, 7, 1)])
@pytest.mark.parametrize("values", WARPS)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_warps_equal_those_of_the_cpu(order: Any, values: Any, size: Any, device: str) -> None:
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


def test_unselected_channels_are_kept() -> None:
    specs: list[Any] = [
        plans.GaussianBlur(probability=1),
        plans.LowResolution(probability=1, zoom=(0.5, 0.5)),
    ]
    for spec in specs:
        kinds = set()
        for seed in range(20):
            operation: Any = draw_operation(spec, 2, (6, 6, 6), rng(seed))
            found = by_torch(noise((6, 6, 6)), [operation])
            same = [bool((a == b).all()) for a, b in zip(found, noise((6, 6, 6)), strict=True)]
            assert same == [by is None for by in operation.channels]
            kinds.add(tuple(same))
        assert len(kinds) == 4


def test_blur_is_a_gaussian_filter_of_the_drawn_sigma() -> None:
    spec = plans.GaussianBlur(probability=1, channel_probability=1, sigma=(0.5, 1.5))
    numbers = rng(3)
    numbers.random(2)  # the sample's chance, and the channel's
    expected = gaussian_filter(noise((7, 8, 9), 1)[0].astype(float), numbers.uniform(0.5, 1.5))
    found = by_torch(noise((7, 8, 9), 1), [draw_operation(spec, 1, (7, 8, 9), rng(3))])
    assert np.allclose(found[0], expected, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_noise_is_normal_and_depends_on_its_seed_alone(device: str) -> None:
    zeros = np.zeros((1, 40, 40, 40), np.float32)
    added = by_torch(zeros, [AddNoise(0.3, 2**63 - 1)], device)
    assert added.std() == pytest.approx(0.3, rel=0.02)
    assert abs(added.mean()) < 0.005
    assert abs(skew(added, None)) < 0.05
    assert abs(kurtosis(added, None)) < 0.06
    torch.manual_seed(1)
    assert np.array_equal(added, by_torch(zeros, [AddNoise(0.3, 2**63 - 1)], device))
    assert not np.array_equal(added, by_torch(zeros, [AddNoise(0.3, 1)], device))


def test_a_constant_image_stays_finite() -> None:
    flat = torch.full((1, 4, 4, 4), 3.0)
    for spec in CERTAIN:
        operation = draw_operation(spec, 1, (4, 4, 4), rng())
        assert operation is not None
        assert torch.isfinite(apply(flat, operation)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_all_operations_in_the_order_of_the_plan(device: str) -> None:
    size = (8, 9, 7)
    turn = plans.Spatial(image_order=1, **TURN)
    specs = (turn, *CERTAIN[:4], turn, *CERTAIN[4:])
    later, now = (Augmenter(specs, size).draw(rng(1)) for _ in range(2))
    image = noise(later.box_size)
    label = rng().integers(-1, 3, later.box_size).astype(np.int16)
    postponed, moved = postpone(later, image, label)
    expected, expected_label = now(image.copy(), label.copy())
    assert np.array_equal(moved, expected_label)
    found = finish([postponed], torch.device(device))[0].cpu().numpy()
    assert np.allclose(found, expected, atol=2e-3)


# What a worker leaves to the device.

CPU = torch.device("cpu")
SPECS = (
    plans.Spatial(rotation_probability=0.5, scaling_probability=0.5, elastic_probability=0.3),
    plans.GaussianNoise(probability=0.5),
    plans.GaussianBlur(probability=0.5),
    plans.Brightness(probability=0.5),
    plans.Contrast(probability=0.5),
    plans.LowResolution(probability=0.5),
    plans.Gamma(probability=0.5),
    plans.Mirror(),
)


def augmented(specs: Any, size: Any, seed: int, labels: int = 0) -> Any:
    """A sample whose image and labels are the same numbers, before its augmentation."""
    drawn = Augmenter(specs, size).draw(rng(seed))
    label = rng(0).integers(0, 4, drawn.box_size).astype(np.int16)
    image = label[None].astype(np.float32)
    return postpone(drawn, image, np.stack([label] * labels) if labels else label)


@pytest.mark.parametrize("size", [(8, 10, 6), (8, 8, 1), (1, 9, 8)])
def test_patches_have_the_patch_shape(size: Any) -> None:
    for seed in range(20):
        postponed, label = augmented(SPECS, size, seed)
        image = finish([postponed], CPU)
        assert image.shape == (1, 1, *size)
        assert torch.isfinite(image).all()
        assert label.shape == size
        assert label.dtype == np.int16
        assert label.flags.c_contiguous
        assert set(np.unique(label)) <= {0, 1, 2, 3}


def test_image_and_label_are_moved_alike() -> None:
    turned = plans.Spatial(rotation_probability=1, scaling_probability=1, image_order=0)
    seen = set()
    for seed in range(20):
        specs = (turned, plans.Mirror(), plans.Mirror(axes=(1,)))
        postponed, label = augmented(specs, (9, 8, 7), seed)
        assert (finish([postponed], CPU)[0, 0].numpy() != label).mean() < 0.01
        seen.add(label.tobytes())
    assert len(seen) == 20


def test_samples_of_different_box_sizes_make_one_batch() -> None:
    samples = [augmented(SPECS, (8, 8, 8), seed)[0] for seed in range(6)]
    assert len({sample.image.shape for sample in samples}) > 1
    together = finish(samples, CPU)
    assert torch.equal(together, torch.cat([finish([sample], CPU) for sample in samples]))


def test_what_is_sent_is_small_and_gives_the_same() -> None:
    turned = (plans.Spatial(rotation_probability=1, scaling_probability=1),)
    postponed, _ = augmented(turned, (16, 16, 16), 0)
    sent = pickle.dumps(postponed)
    assert len(sent) < postponed.image.nbytes + 4000  # without the coordinates of the warp
    assert torch.equal(finish([pickle.loads(sent)], CPU), finish([postponed], CPU))


def test_a_previous_stage_is_moved_and_corrupted() -> None:
    specs = (plans.Mirror(), plans.PreviousMorphology(probability=1, radius=(1, 2)))
    _, labels = augmented(specs, (8, 9, 7), 1, labels=2)
    _, moved = augmented(specs[:1], (8, 9, 7), 1, labels=2)
    assert labels.shape == (2, 8, 9, 7)
    assert labels.flags.c_contiguous
    assert np.array_equal(labels[0], moved[0])
    assert not np.array_equal(labels[1], moved[1])


def test_a_probability_of_zero_changes_nothing() -> None:
    calm = [
        spec.model_copy(update={k: 0.0 for k in type(spec).model_fields if "probability" in k})
        for spec in SPECS
    ]
    postponed, _ = augmented(calm, (6, 7, 8), 0)
    assert postponed.operations == ()


def figures(augment: Any, count: int = 400) -> Any:
    """Spread, mean and least value of what becomes of each of an image's channels."""
    image = rng(0).normal(1, 1, (2, 6, 6, 6)).astype(np.float32)
    found = [augment(image.copy(), seed) for seed in range(count)]
    return np.array([[c.std(), c.mean(), c.min()] for changed in found for c in changed])


@pytest.mark.parametrize("spec", SPECS[1:7], ids=lambda spec: spec.transform)
def test_distributions_equal_those_of_the_cpu(spec: Any) -> None:
    size, label = (6, 6, 6), np.zeros((6, 6, 6), np.int16)
    augmenter = Augmenter((spec,), size)
    theirs = figures(lambda image, seed: augmenter.draw(rng(seed + 10**6))(image, label)[0])
    ours = figures(
        lambda image, seed: finish([postpone(augmenter.draw(rng(seed)), image, label)[0]], CPU)[
            0
        ].numpy()
    )
    for one, other in zip(np.round(theirs, 4).T, np.round(ours, 4).T, strict=True):
        assert ks_2samp(one, other).pvalue > 0.001


def test_each_axis_is_mirrored_half_the_time() -> None:
    drawn = [
        draw_operation(plans.Mirror(axes=(2, 0)), 1, (4, 4, 4), rng(seed)) for seed in range(400)
    ]
    axes = [getattr(operation, "axes", ()) for operation in drawn]
    assert set(axes) == {(), (0,), (2,), (0, 2)}
    assert all(160 < sum(axis in some for some in axes) < 240 for axis in (0, 2))
