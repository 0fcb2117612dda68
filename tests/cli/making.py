"""Tiny workspaces for the commands, made by the tests that use them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoseg.image.image import read_label
from autoseg.image.label_writer import write_label
from tests.dataset.making import HIPPOCAMPUS, V2, declare, write_case, write_scan

TINY = (
    "network.features=[4,8,8,8]",
    "sampling.batch_size=2",
    "training.epochs=2",
    "training.steps_per_epoch=2",
    "training.validation_steps=1",
    "splits.folds=2",
)
UNSEEN = ("hippocampus_040.nii.gz", "hippocampus_088.nii.gz")  # of the test set


def settings(*values: str) -> list[str]:
    """`--set` arguments."""
    return [word for value in values for word in ("--set", value)]


def copy_hippocampus(task: Path, cases: int, unseen: Sequence[str] = ()) -> list[str]:
    """Copy the first training cases and some files to test on as a task of their own.

    Returns:
        names of the training cases.
    """
    declared = json.loads((HIPPOCAMPUS / "dataset.json").read_text(encoding="utf-8"))
    declared["training"] = declared["training"][:cases]
    declare(task, declared | {"numTraining": cases, "test": [], "numTest": 0})
    for entry in declared["training"]:
        for file in entry.values():
            (task / file).parent.mkdir(exist_ok=True)
            shutil.copy(HIPPOCAMPUS / file, task / file)
    for folder in ("imagesTs", "labelsTs") if unseen else ():
        (task / folder).mkdir()
        for name in unseen:
            shutil.copy(HIPPOCAMPUS / folder / name, task / folder / name)
    return [Path(entry["image"]).name.removesuffix(".nii.gz") for entry in declared["training"]]


def copy_sparse_regions(task: Path, cases: int) -> list[str]:
    """The same cases as overlapping regions, every second slice of which nobody annotated."""
    declared = json.loads((HIPPOCAMPUS / "dataset.json").read_text(encoding="utf-8"))
    labels = {"background": 0, "whole": [1, 2], "posterior": 2, "ignore": 3}
    changes = {"channel_names": {"0": "MRI"}, "labels": labels, "regions_class_order": [1, 2]}
    declare(task, V2 | changes)
    names = [Path(entry["image"]).name for entry in declared["training"][:cases]]
    for name in names:
        label, geometry = read_label(HIPPOCAMPUS / "labelsTr" / name)
        label[:, :, ::2] = 3
        write_label(task / "labelsTr" / name, label, geometry)
        image = task / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz")
        image.parent.mkdir(exist_ok=True)
        shutil.copy(HIPPOCAMPUS / "imagesTr" / name, image)
    return [name.removesuffix(".nii.gz") for name in names]


def write_ct(task: Path, cases: int = 5, size: int = 16) -> Path:
    """A task of random CT cases with one tumour each."""
    declare(task, V2)
    rng = np.random.default_rng(0)
    for number in range(cases):
        image = rng.normal(0, 100, (size, size, size)).astype(np.float32)
        label = np.zeros(image.shape, np.uint8)
        label[4:9, 4:10, 3:8] = 1
        write_case(task, f"case_{number}", image, label)
    return task


def write_phantom(task: Path, cases: int = 3) -> Path:
    """Coarse chests: a left lung, a right lung and an infection in it, in Hounsfield units."""
    labels = {"background": 0, "left lung": 1, "right lung": 2, "infection": 3}
    declare(task, V2 | {"labels": labels})
    rng = np.random.default_rng(1)
    for number in range(cases):
        label = np.zeros((24, 24, 20), np.uint8)
        label[3:10, 5:19, 3:17] = 1
        label[14:21, 5:19, 3:17] = 2
        label[15 + number : 19, 8:13, 5:12] = 3
        image = np.choose(label, [30.0, -800.0, -820.0, -200.0]) + rng.normal(0, 30, label.shape)
        spacing = (6.0, 6.0, 8.0)
        path = f"coronacases_{number}"
        write_scan(task / "imagesTr" / f"{path}_0000.nii.gz", image.astype(np.float32), spacing)
        write_scan(task / "labelsTr" / f"{path}.nii.gz", label, spacing)
    return task
