"""Tiny data sets, made by the tests that use them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HIPPOCAMPUS = Path(__file__).parents[1] / "data" / "Task004_Hippocampus"

V2: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "tumour": 1},
    "file_ending": ".nii.gz",
}
MSD: dict[str, Any] = {
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "tumour"},
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
}


def declare(folder: Path, fields: Mapping[str, Any]) -> Path:
    """Write `dataset.json` into `folder` and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def touch(folder: Path, *names: str) -> None:
    """Make empty files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_scan(
    path: Path,
    array: NDArray[Any],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    origin_mm: Sequence[float] = (0.0, 0.0, 0.0),
    direction: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
) -> None:
    """Write an array (x, y, z) with SimpleITK alone."""
    import SimpleITK as sitk

    picture = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    picture.SetSpacing([float(value) for value in spacing_mm])
    picture.SetOrigin([float(value) for value in origin_mm])
    picture.SetDirection([float(value) for value in direction])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(picture, str(path))


def write_4d(path: Path, array: NDArray[Any]) -> None:
    """Write an array (channel, x, y, z) as one four-dimensional file, as the Decathlon does."""
    import SimpleITK as sitk

    path.parent.mkdir(parents=True, exist_ok=True)
    volumes = [sitk.GetImageFromArray(np.ascontiguousarray(channel.T)) for channel in array]
    sitk.WriteImage(sitk.JoinSeries(volumes), str(path))


def write_case(folder: Path, name: str, image: NDArray[Any], label: NDArray[Any]) -> None:
    """Write a case with one channel in nnU-Net v2's layout."""
    write_scan(folder / "imagesTr" / f"{name}_0000.nii.gz", image)
    write_scan(folder / "labelsTr" / f"{name}.nii.gz", label)
