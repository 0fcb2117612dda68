"""Training whose images are augmented on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoseg.augmentation.on_device import postpone
from autoseg.augmentation.transforms import Augmenter
from autoseg.plan.augmentation import Brightness, Spatial
from autoseg.training import monitor
from autoseg.training.learner import Learner
from tests.making import CASCADE, tiny_plan
from tests.training.making import (
    assert_same_run,
    log_of,
    start,
    store_of,
    training_plan,
    without_pictures,
)

SIZE = (8, 8, 8)
SPECS = (
    Spatial(rotation_probability=1, scaling_probability=1),
    Brightness(probability=1, factor=(1.2, 1.2)),
)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch)


def samples(on_device: bool, labels: int) -> Any:
    """Two samples of different boxes: their images, and their labels stacked."""
    images: list[Any] = []
    moved = []
    for seed in range(2):
        drawn = Augmenter(SPECS, SIZE).draw(np.random.default_rng(seed))
        rng = np.random.default_rng(9)
        box = rng.normal(size=(1, *drawn.box_size)).astype(np.float32)
        label = rng.integers(0, 3, (labels, *drawn.box_size)).astype(np.int16)
        if labels == 1:
            label = label[0]
        image, patch = postpone(drawn, box, label) if on_device else drawn(box, label)
        images.append(image)
        moved.append(patch)
    return images, np.stack(moved)


@pytest.mark.parametrize("cascade", [False, True])
def test_the_network_sees_what_it_would_see_from_the_processor(cascade: bool) -> None:
    learner = Learner(tiny_plan(**(CASCADE if cascade else {})), torch.device("cpu"))
    images, label = samples(False, 1 + cascade)
    expected = learner.to_device({"data": np.stack(images), "label": label})
    postponed, label = samples(True, 1 + cascade)
    found = learner.to_device({"postponed": postponed, "label": label})
    assert found[0].shape == (2, 3 if cascade else 1, *SIZE)
    assert torch.allclose(found[0], expected[0], atol=2e-4)
    assert found[0].stride() == expected[0].stride()
    assert torch.equal(found[1], expected[1])


def test_a_run_repeats_whatever_the_workers_and_where_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = training_plan(augment_on="device", augment_validation=True)
    store = store_of(tmp_path, plan)
    start(plan, store, tmp_path / "one")
    start(plan, store, tmp_path / "two", workers=1)
    assert_same_run(tmp_path / "two", tmp_path / "one")

    def cut(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(
            monitor, "write_log", cut
        )  # after the last step of the first epoch is saved
        with pytest.raises(KeyboardInterrupt):
            start(plan, store, tmp_path / "cut", save_seconds=0.0)
    start(plan, store, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "cut", tmp_path / "one")


def test_the_plan_decides_where(tmp_path: Path) -> None:
    """Other random numbers, and validation patches only where the plan augments them."""
    logs, losses = {}, set()
    for where in ("processor", "device"):
        for augmented in (False, True):
            still = {"optimizer": "sgd", "learning_rate": 1e-30}
            plan = training_plan(
                norm="instance",
                optimizer=still,
                augment_on=where,
                augment_validation=augmented,
                epochs=2,
            )
            folder = tmp_path / f"{where} {augmented}"
            start(plan, store_of(tmp_path, plan), folder)
            logs[where, augmented] = [line["validation_loss"] for line in log_of(folder)]
            losses.add(log_of(folder)[0]["training_loss"])
    assert len(losses) == 2
    assert logs["device", False] == logs["processor", False]
    assert logs["device", False][0] == logs["device", False][1]
    assert logs["device", True][0] != logs["device", True][1]
    assert logs["device", True] != logs["processor", True]
