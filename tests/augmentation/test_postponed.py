from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from autoseg.augmentation.on_device import Postponer, draw_change, finish
from autoseg.augmentation.transforms import Augmenter
from autoseg.plan import augmentation as plans

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


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def augmented(specs: Any, size: Any, seed: int, labels: int = 0) -> Any:
    """A sample whose image and labels are the same numbers, before its changes."""
    drawn = Postponer(specs, size).draw(rng(seed))
    label = rng(0).integers(0, 4, drawn.box_size).astype(np.int16)
    image = label[None].astype(np.float32)
    return drawn(image, np.stack([label] * labels) if labels else label)


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


def test_samples_of_other_box_sizes_make_one_batch() -> None:
    samples = [augmented(SPECS, (8, 8, 8), seed)[0] for seed in range(6)]
    assert len({sample.image.shape for sample in samples}) > 1
    together = finish(samples, CPU)
    assert torch.equal(together, torch.cat([finish([sample], CPU) for sample in samples]))


def test_what_travels_is_little_and_gives_the_same() -> None:
    turned = (plans.Spatial(rotation_probability=1, scaling_probability=1),)
    postponed, _ = augmented(turned, (16, 16, 16), 0)
    sent = pickle.dumps(postponed)
    assert len(sent) < postponed.image.nbytes + 4000  # none of a warp's places
    assert torch.equal(finish([pickle.loads(sent)], CPU), finish([postponed], CPU))


def test_a_cascades_previous_stage_is_moved_and_changed() -> None:
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
    assert postponed.changes == ()


def figures(augment: Any, count: int = 400) -> Any:
    """Spread, mean and least value of what becomes of each of an image's channels."""
    image = rng(0).normal(1, 1, (2, 6, 6, 6)).astype(np.float32)
    found = [augment(image.copy(), seed) for seed in range(count)]
    return np.array([[c.std(), c.mean(), c.min()] for changed in found for c in changed])


@pytest.mark.parametrize("spec", SPECS[1:7], ids=lambda spec: spec.transform)
def test_what_is_drawn_has_the_processors_distribution(spec: Any) -> None:
    size, label = (6, 6, 6), np.zeros((6, 6, 6), np.int16)
    now, later = Augmenter((spec,), size), Postponer((spec,), size)
    theirs = figures(lambda image, seed: now.draw(rng(seed + 10**6))(image, label)[0])
    ours = figures(
        lambda image, seed: finish([later.draw(rng(seed))(image, label)[0]], CPU)[0].numpy()
    )
    for one, other in zip(np.round(theirs, 4).T, np.round(ours, 4).T, strict=True):
        assert ks_2samp(one, other).pvalue > 0.001


def test_each_axis_is_mirrored_half_the_time() -> None:
    drawn = [draw_change(plans.Mirror(axes=(2, 0)), 1, (4, 4, 4), rng(seed)) for seed in range(400)]
    axes = [getattr(change, "axes", ()) for change in drawn]
    assert set(axes) == {(), (0,), (2,), (0, 2)}
    assert all(160 < sum(axis in some for some in axes) < 240 for axis in (0, 2))
