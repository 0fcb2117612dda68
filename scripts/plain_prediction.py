"""Predict one CT as a short script would, for comparison in bench_predict.py.

Plain torch in float32, scikit-image for all resampling, the probabilities of the full volume in
memory. The network, its weights, the tiles and their weights are autoseg's.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from skimage.transform import resize

from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, Resample, Rescale, ZScore
from autoseg.prediction.model import Model, load_model
from autoseg.prediction.sliding_window import tile_starts, weight_map

SPACING_MM = (0.69, 0.69, 1.0)


def write_ct(path: Path, size: tuple[int, ...]) -> None:
    """A smooth random volume of the values and the file size of a chest CT."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(-400, 500, [length // 16 + 2 for length in size])
    values = resize(coarse, size, order=1) + rng.normal(0, 20, size)
    picture = sitk.GetImageFromArray(values.clip(-1024, 1500).astype(np.int16).T)
    picture.SetSpacing(SPACING_MM)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(picture, str(path), True)


def predict(model: Model, values: NDArray[np.float32], spacing_mm: Any) -> NDArray[np.uint8]:
    """The class of every voxel."""
    low = preprocessed(model.plan, values, spacing_mm)
    probabilities = slide(model, low)
    shape = values.shape
    wide = [
        resize(each, shape, order=1, mode="edge", anti_aliasing=False) for each in probabilities
    ]
    label: NDArray[np.uint8] = np.argmax(wide, axis=0).astype(np.uint8)
    return label


def preprocessed(plan: Plan, values: NDArray[np.float32], spacing_mm: Any) -> NDArray[np.float32]:
    """The plan's steps, one after the other."""
    for step in plan.preprocessing:
        match step:
            case Clip():
                values = values.clip(*step.window)
            case Rescale():
                low, high = step.range
                values = (values - values.min()) / np.ptp(values) * (high - low) + low
            case Resample():
                target: Any = plan.target_spacing_mm
                scale = np.divide(spacing_mm, target)
                shape = tuple(int(n * s) for n, s in zip(values.shape, scale, strict=True))
                values = resize(values, shape, order=3, mode="edge", anti_aliasing=False)
            case ZScore():
                values = (values - values.mean()) / values.std()
    return values.astype(np.float32)


@torch.inference_mode()
def slide(model: Model, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities (class, x, y, z) of the full volume."""
    plan, (network,) = model.plan, model.networks
    patch, overlap = plan.sampling.patch_size, plan.inference.overlap
    missing = [max(0, p - n) for p, n in zip(patch, image.shape, strict=True)]
    volume = torch.from_numpy(np.pad(image, [(0, m) for m in missing]))
    weights = weight_map(patch, plan.inference.weighting)
    sums = torch.zeros(plan.classes.outputs, *volume.shape)
    totals = torch.zeros(volume.shape)
    starts = [tile_starts(*axis) for axis in zip(volume.shape, patch, overlap, strict=True)]
    for corner in itertools.product(*starts):
        box = tuple(slice(at, at + length) for at, length in zip(corner, patch, strict=True))
        sums[:, *box] += network(volume[box][None, None]).softmax(dim=1)[0] * weights
        totals[box] += weights
    inside = tuple(slice(0, length) for length in image.shape)
    found: NDArray[np.float32] = (sums / totals)[:, *inside].numpy()
    return found


def main() -> None:
    """`plain_prediction.py MODEL SCAN OUT`."""
    model = load_model(Path(sys.argv[1]), None, torch.device("cpu"))
    picture = sitk.ReadImage(sys.argv[2], sitk.sitkFloat32)
    values = sitk.GetArrayFromImage(picture).T
    label = predict(model, values, picture.GetSpacing())
    found = sitk.GetImageFromArray(label.T)
    found.CopyInformation(picture)
    sitk.WriteImage(found, sys.argv[3], True)


if __name__ == "__main__":
    main()
