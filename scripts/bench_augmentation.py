"""Time autoseg's augmentation against batchgenerators' transforms of the same settings.

    python scripts/bench_augmentation.py
    python scripts/bench_augmentation.py --plan WORKSPACE/preprocessed/TASK/default/plan.json

CPU time on one core: the mean over samples that alternate between both. Each row of the first table
is one transform that acts on every sample; the last row is the unchanged plan. Patches are cut from
a smooth random volume in memory. batchgenerators draws its random numbers after the patch was cut,
so its box must hold every rotation about one axis, the largest scale, and a margin of 8 voxels if
patches are deformed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy import ndimage
from side_by_side import Cost, print_table
from threadpoolctl import threadpool_limits

from autoseg.augmentation.spatial import rotation
from autoseg.augmentation.transforms import Augmenter, seeded
from autoseg.common.arrays import Triple
from autoseg.plan import augmentation as plans
from autoseg.planner.overrides import plans_folder, read_layer

Specs = tuple[plans.Transform, ...]
Volume = NDArray[np.float32]
PAPER = plans_folder() / "Task001_COVID.json5"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plan", type=Path, default=PAPER, help="plan file (default: the paper's)")
    parser.add_argument("--samples", type=int, default=20, help="of each; 0: the plan only")
    parser.add_argument("--plan-samples", type=int, default=100, help="of the plan (default: 100)")
    arguments = parser.parse_args()
    values = read_layer(arguments.plan, "the plan").values
    specs: Specs = TypeAdapter(Specs).validate_python(values["augmentation"])
    x, y, z = values["sampling"]["patch_size"]
    torch.set_num_threads(1)
    if arguments.samples:
        print_each(specs, (x, y, z), arguments.samples)
    with threadpool_limits(limits=1):
        slow, fast = milliseconds(specs, (x, y, z), arguments.plan_samples)
    what = f"augment a patch of {x} x {y} x {z}, one core"
    print_table(what, Cost(fast / 1000), "batchgenerators", Cost(slow / 1000))


def print_each(specs: Specs, patch: Triple, samples: int) -> None:
    """Print a table of the single transforms."""
    x, y, z = patch
    print(f"| {x} x {y} x {z} voxels, ms a patch | batchgenerators | autoseg | times faster |")
    print("|---|--:|--:|--:|")
    with threadpool_limits(limits=1):
        for name, alone in rows_of(specs):
            slow, fast = milliseconds(alone, patch, samples)
            print(f"| {name} | {slow:.1f} | {fast:.1f} | {slow / fast:.1f} |", flush=True)


def rows_of(specs: Specs) -> list[tuple[str, Specs]]:
    """Each transform of a plan made to act on every sample, the spatial ones one by one."""
    rows: list[tuple[str, Specs]] = []
    for spec in specs:
        if isinstance(spec, plans.Spatial):
            kinds = ("rotation_probability", "scaling_probability", "elastic_probability")
            for kind in kinds:
                if getattr(spec, kind) > 0:
                    only = {other: float(other == kind) for other in kinds}
                    rows.append((kind.removesuffix("_probability"), (changed(spec, **only),)))
        else:
            always = {key: 1.0 for key in type(spec).model_fields if key.endswith("probability")}
            rows.append((spec.transform, (changed(spec, **always),)))
    return rows


def changed(spec: plans.Transform, **values: float) -> plans.Transform:
    """A transform with other probabilities."""
    return spec.model_copy(update=values)


def milliseconds(specs: Specs, patch: Triple, samples: int) -> tuple[float, float]:
    """Core time of a patch by batchgenerators and by autoseg, measured alternately."""
    ours = Ours(specs, patch)
    theirs = Theirs(specs, patch)
    volume = smooth(theirs.box)
    label = (volume > volume.mean()).astype(np.int16)
    seconds = []
    for number in range(samples + 1):
        pair = []
        for side in (theirs, ours):
            started = time.process_time()
            side.make(volume, label, np.random.default_rng(number))
            pair.append(time.process_time() - started)
        seconds.append(pair)
    slow, fast = 1000 * np.mean(seconds[1:], axis=0)
    return float(slow), float(fast)


class Ours:
    """autoseg's."""

    def __init__(self, specs: Specs, patch: Triple) -> None:
        self.augmenter = Augmenter(specs, patch)

    def make(self, volume: Volume, label: NDArray[np.int16], rng: np.random.Generator) -> None:
        """Make one sample."""
        drawn = self.augmenter.draw(rng)
        drawn(cut(volume, drawn.box_size)[None], cut(label, drawn.box_size))


class Theirs:
    """batchgenerators' transforms, of which the spatial one cuts the patch from the box."""

    def __init__(self, specs: Specs, patch: Triple) -> None:
        self.box = largest_box(specs, patch)
        self.transforms = [build(spec, patch) for spec in specs]

    def make(self, volume: Volume, label: NDArray[np.int16], rng: np.random.Generator) -> None:
        """Make one sample."""
        batch = {
            "data": cut(volume, self.box)[None, None],
            "seg": cut(label, self.box)[None, None].astype(np.float32),
        }
        with seeded(rng):
            for transform in self.transforms:
                batch = transform(**batch)


def largest_box(specs: Specs, patch: Triple) -> Triple:
    """The number of voxels that the largest warp of a patch needs."""
    half = np.asarray(patch) / 2
    reach = half.copy()
    for spec in specs:
        if not isinstance(spec, plans.Spatial):
            continue
        if spec.rotation_probability > 0:
            corners = np.array(np.meshgrid(*[[-h, h] for h in half])).reshape(3, -1)
            for axis, limits in enumerate(spec.rotation_degrees):
                most = min(float(np.abs(limits).max()), 90.0)
                for degrees in np.linspace(0, most, 91):
                    angles = np.where(np.arange(3) == axis, np.deg2rad(degrees), 0)
                    reach = np.maximum(reach, np.abs(rotation(*angles) @ corners).max(axis=1))
        if spec.scaling_probability > 0:
            reach = reach * max(1.0, spec.scaling[1])
        if spec.elastic_probability > 0:
            reach = reach + 8
    margin = np.where(np.asarray(patch) == 1, 0, np.ceil(reach - half - 1e-9)).astype(int)
    x, y, z = (np.asarray(patch) + 2 * margin).tolist()
    return x, y, z


def build(spec: plans.Transform, patch: Triple) -> Any:
    """The batchgenerators transform of one entry of the plan."""
    from batchgenerators.transforms import color_transforms as color
    from batchgenerators.transforms import noise_transforms as noise
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
    from batchgenerators.transforms.spatial_transforms import MirrorTransform

    match spec:
        case plans.Spatial():
            return build_spatial(spec, patch)
        case plans.Mirror():
            return MirrorTransform(axes=spec.axes, p_per_sample=spec.probability)
        case plans.GaussianNoise():
            return noise.GaussianNoiseTransform(spec.variance, p_per_sample=spec.probability)
        case plans.GaussianBlur():
            return noise.GaussianBlurTransform(
                spec.sigma,
                p_per_sample=spec.probability,
                p_per_channel=spec.channel_probability,
            )
        case plans.Brightness():
            return color.BrightnessMultiplicativeTransform(
                spec.factor, p_per_sample=spec.probability
            )
        case plans.Contrast():
            return color.ContrastAugmentationTransform(
                spec.factor, preserve_range=spec.preserve_range, p_per_sample=spec.probability
            )
        case plans.LowResolution():
            return SimulateLowResolutionTransform(
                spec.zoom,
                per_channel=True,
                p_per_channel=spec.channel_probability,
                order_downsample=0,
                order_upsample=3,
                p_per_sample=spec.probability,
                ignore_axes=[axis for axis in range(3) if patch[axis] == 1],
            )
        case plans.Gamma():
            return color.GammaTransform(
                spec.gamma,
                invert_image=spec.invert,
                per_channel=True,
                retain_stats=spec.retain_statistics,
                p_per_sample=spec.probability,
            )
    raise SystemExit(f"batchgenerators has no {spec.transform}")


def build_spatial(spec: plans.Spatial, patch: Triple) -> Any:
    """The spatial transform of batchgenerators, which cuts the patch from the middle of the box."""
    from batchgenerators.transforms.spatial_transforms import SpatialTransform

    x, y, z = (tuple(np.deg2rad(limits)) for limits in spec.rotation_degrees)
    return SpatialTransform(
        patch,
        do_elastic_deform=spec.elastic_probability > 0,
        alpha=spec.elastic_alpha,
        sigma=spec.elastic_sigma,
        p_el_per_sample=spec.elastic_probability,
        do_rotation=spec.rotation_probability > 0,
        angle_x=x,
        angle_y=y,
        angle_z=z,
        p_rot_per_sample=spec.rotation_probability,
        do_scale=spec.scaling_probability > 0,
        scale=spec.scaling,
        p_scale_per_sample=spec.scaling_probability,
        order_data=spec.image_order,
        order_seg=spec.label_order,
        border_mode_data=spec.border,
        border_mode_seg=spec.border,
        random_crop=False,
    )


def cut(volume: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """A copy of the middle of a volume; beyond its border it is repeated."""
    starts = [(n - s) // 2 for n, s in zip(volume.shape, size, strict=True)]
    if min(starts) < 0:
        margin = [
            (max(0, -start), max(0, s - n - min(0, start)))
            for start, s, n in zip(starts, size, volume.shape, strict=True)
        ]
        return np.pad(volume, margin, mode="edge")
    return volume[tuple(slice(s, s + n) for s, n in zip(starts, size, strict=True))].copy()


def smooth(shape: Sequence[int]) -> Volume:
    """Smooth shapes with some noise, of mean 0 and standard deviation 1."""
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal([max(2, n // 12) for n in shape])
    zoom = [n / c for n, c in zip(shape, coarse.shape, strict=True)]
    volume = ndimage.zoom(coarse, zoom, order=1) + 0.2 * rng.standard_normal(shape)
    return np.asarray((volume - volume.mean()) / volume.std(), np.float32)


if __name__ == "__main__":
    main()
