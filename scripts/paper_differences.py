"""Measure what each difference from the authors' script changes, with a trained phantom model.

The validation cases of fold 0 are predicted as the plan says and then with one thing changed at a
time; the table compares the label maps. docs/reproduction.md shows its output.

    python scripts/paper_differences.py WORKSPACE [PLAN]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from autoseg import Predictor, read_image
from autoseg.common.files import read_json
from autoseg.image.image import Image
from autoseg.plan.plan import Plan
from autoseg.prediction import sliding_window
from autoseg.prediction.model import load_model
from autoseg.preprocessing.resample import resample_label
from autoseg.preprocessing.steps import prepare

TASK = "Task001_COVID"
LUNGS, INFECTION = (1, 2), 3
Labels = NDArray[np.integer[Any]]


def miscnn_starts(size: int, patch: int, overlap: int) -> list[int]:
    """Steps of equal length; the last patch is moved back to the border."""
    count = max(1, math.ceil((size - overlap) / (patch - overlap)))
    return [max(0, min(k * (patch - overlap), size - patch)) for k in range(count)]


def padded_with_minimum(
    image: NDArray[np.float32], patch: tuple[int, int, int]
) -> tuple[NDArray[np.float32], tuple[int, ...]]:
    """Small scans are padded with their smallest value on both sides."""
    missing = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    before = tuple(m // 2 for m in missing)
    sides = [(0, 0), *((b, m - b) for b, m in zip(before, missing, strict=True))]
    return np.pad(image, sides, constant_values=image.min()), before


def with_precision(plan: Plan, precision: str) -> Plan:
    """The plan with another numerical precision."""
    return plan.model_copy(
        update={"training": plan.training.model_copy(update={"precision": precision})}
    )


@contextmanager
def with_plan(predictor: Predictor, **changes: Any) -> Iterator[None]:
    """Predict with changed plan values."""
    plan = predictor.plan
    predictor.plan = plan.model_copy(update=changes)
    yield
    predictor.plan = plan


def resized_labels(predictor: Predictor, scan: Any) -> Labels:
    """The largest class on the network's grid, then labels on the scan's grid."""
    prepared = predictor.prepare(scan)
    plan, shape = predictor.plan, prepared.image.shape[1:]
    found = np.empty((predictor.classes.outputs, *shape), np.float32)
    patch, inference = plan.sampling.patch_size, plan.inference
    slabs = sliding_window.predict_slabs(
        predictor.probabilities, prepared.image, patch, inference, len(found)
    )
    for slab in slabs:
        slab.mean(slab.first, slab.stop, torch.from_numpy(found)[:, slab.first : slab.stop])
    label = found.argmax(axis=0).astype(np.int16)
    return prepared.turn.inverse().array(
        resample_label(label, prepared.geometry.size, (1, 1, 1), "nearest")
    )


def shortened(scan: Image) -> Image:
    """The lower half of a scan, which is shorter than a patch of the miniature study."""
    x, y, z = scan.geometry.size
    return Image(scan.array[..., : z // 2], replace(scan.geometry, size=(x, y, z // 2)))


def dice(one: Labels, other: Labels, value: int) -> float:
    """Dice of one label."""
    both = np.count_nonzero((one == value) & (other == value))
    total = np.count_nonzero(one == value) + np.count_nonzero(other == value)
    return 2 * both / total if total else math.nan


def scores(label: Labels, truth: Labels) -> tuple[float, float]:
    """Dice of lungs, the mean of both, and of the infection."""
    return float(np.mean([dice(label, truth, lung) for lung in LUNGS])), dice(
        label, truth, INFECTION
    )


def contrast_shift(plan: Plan, scans: list[Any], factor: float = 0.3) -> float:
    """Mean distance of a patch's mean after contrast about its own and about the case's mean."""
    rng, shifts = np.random.default_rng(0), []
    for scan in scans:
        image = prepare(plan, scan).image[0]
        for _ in range(20):
            sides = [min(p, n) for p, n in zip(plan.sampling.patch_size, image.shape, strict=True)]
            starts = [rng.integers(0, n - p + 1) for p, n in zip(sides, image.shape, strict=True)]
            box = tuple(slice(s, s + p) for s, p in zip(starts, sides, strict=True))
            shifts.append(abs((1 - factor) * (image[box].mean() - image.mean())) / image.std())
    return float(np.mean(shifts))


def main() -> None:
    """The command line."""
    workspace, name = Path(sys.argv[1]), (sys.argv[2:] or ["default"])[0]
    raw = workspace / "raw" / TASK
    model = load_model(workspace / "models" / TASK / name, ["0"], torch.device("cpu"))
    predictor, half = (
        Predictor(replace(model, plan=with_precision(model.plan, precision)), device="cpu")
        for precision in ("float32", "bfloat16")
    )
    cases = read_json(workspace / "preprocessed" / TASK / name / "splits.json")[0]["val"]
    scans = [read_image(raw / "imagesTr" / f"{case}_0000.nii.gz") for case in cases]
    truths = [read_image(raw / "labelsTr" / f"{case}.nii.gz").array[0] for case in cases]
    plan = predictor.plan
    x, y, z = plan.sampling.patch_size
    clip = plan.preprocessing[0].model_copy(update={"scaled_scans": "clip"})
    steps = (clip, *plan.preprocessing[1:])
    overlap = plan.inference.model_copy(update={"overlap": (x // 2, y // 2, 3 * z // 8)})
    window = "autoseg.prediction.sliding_window"
    starts = mock.patch(f"{window}.tile_starts", miscnn_starts)
    padding = mock.patch(f"{window}._pad_to_patch", padded_with_minimum)
    usual_way, as_it_is = predictor.predict, nullcontext()
    variants: dict[str, tuple[AbstractContextManager[Any], Callable[[Any], Any]]] = {
        "labels resized, not probabilities": (as_it_is, partial(resized_labels, predictor)),
        "overlap along z 3/8 of a patch (30 of 80)": (
            with_plan(predictor, inference=overlap),
            usual_way,
        ),
        "patches in steps of equal length": (starts, usual_way),
        "padding with the minimum (lower halves of the scans)": (padding, usual_way),
        f"bfloat16 ({half.backend_name})": (as_it_is, half.predict),
        "scaled scans clipped": (with_plan(predictor, preprocessing=steps), usual_way),
    }
    short = [shortened(scan) for scan in scans]
    print(f"{len(cases)} cases, {predictor.backend_name}")
    print("| difference | lungs | infection | largest of a case | voxels that change |")
    print("| --- | --- | --- | --- | --- |")
    for title, (changed, predict) in variants.items():
        some = short if changed is padding else scans
        usual = [predictor.predict(scan) for scan in some]
        with changed:
            labels = [predict(scan) for scan in some]
        known = [
            truth[..., : scan.array.shape[3]] for truth, scan in zip(truths, some, strict=True)
        ]
        before = np.array([scores(*pair) for pair in zip(usual, known, strict=True)])
        after = np.array([scores(*pair) for pair in zip(labels, known, strict=True)])
        means = [
            f"{d:+.4f} from {b:.4f}"
            for d, b in zip(
                np.nanmean(after - before, axis=0), np.nanmean(before, axis=0), strict=True
            )
        ]
        share = np.mean([(a != b).mean() for a, b in zip(labels, usual, strict=True)])
        most = np.nanmax(np.abs(after - before))
        print(f"| {title} | {' | '.join(means)} | {most:.4f} | {share:.3%} |")
    shift = contrast_shift(plan, scans)
    print(f"contrast 0.3 about the mean of the patch, not of the case: shifted by {shift:.2f} std")


if __name__ == "__main__":
    main()
