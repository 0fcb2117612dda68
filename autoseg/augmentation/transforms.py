"""The plan's augmentation as batchgenerators' transforms.

Their random numbers come from the global generators of numpy and Python; `seeded` sets both for one
sample and puts them back, so that a sample depends on its position only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg.planning import transforms as plans

Triple = tuple[int, int, int]
BatchTransform = Callable[..., dict[str, NDArray[Any]]]


class Augmenter:
    """Turns one drawn patch into one training sample.

    Attributes:
        draw_size: voxels to draw, larger than the patch where rotation and scaling need a margin.
    """

    def __init__(self, specs: tuple[plans.Transform, ...], patch_size: Triple) -> None:
        self.patch_size = patch_size
        spatial = [spec for spec in specs if isinstance(spec, plans.Spatial)]
        self.draw_size = _with_margin(patch_size, spatial[0]) if spatial else patch_size
        self.transforms = [
            _build(spec, patch_size)
            for spec in specs
            if not (isinstance(spec, plans.Mirror) and not spec.axes)  # mirrors nothing
        ]

    def __call__(
        self, image: NDArray[np.float32], label: NDArray[np.int16], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
        """Augment image (channel, x, y, z) and label (x, y, z); both come back patch-sized."""
        batch = {
            "data": image[None].astype(np.float32),
            "seg": label[None, None].astype(np.float32),
        }
        with seeded(rng):
            for transform in self.transforms:
                batch = transform(**batch)
        return (
            np.ascontiguousarray(batch["data"][0], dtype=np.float32),
            np.rint(batch["seg"][0, 0]).astype(np.int16),
        )


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Let the global generators of numpy and Python continue from `rng` for the block."""
    before, before_python = np.random.get_state(), random.getstate()
    np.random.seed(rng.integers(2**32, size=4, dtype=np.uint32))
    random.seed(int(rng.integers(2**63)))  # batchgenerators draws the variance of noise from it
    try:
        yield
    finally:
        np.random.set_state(before)
        random.setstate(before_python)


def _with_margin(patch_size: Triple, spatial: plans.Spatial) -> Triple:
    """The box that holds the patch, enlarged and turned about one axis as far as the plan allows.

    Turned about several axes at once, a few corner voxels reach beyond it; a box for them too would
    be twice as large. The margin is the same on both sides, so that the patch's own voxels stay
    voxels of the box.
    """
    half = np.asarray(patch_size) / 2
    reach = half.copy()
    if spatial.rotation_probability > 0:
        corners = np.array(np.meshgrid(*[[-h, h] for h in half])).reshape(3, -1)
        for axis, (low, high) in enumerate(spatial.rotation_degrees):
            most = min(max(abs(low), abs(high)), 90.0)
            for degrees in np.linspace(0, most, 91):
                turned = np.abs(_rotation(axis, degrees) @ corners).max(axis=1)
                reach = np.maximum(reach, turned)
        reach = np.minimum(reach, np.linalg.norm(half))
    if spatial.scaling_probability > 0:
        reach = reach * max(1.0, spatial.scaling[1])
    if spatial.elastic_probability > 0:
        reach = reach + 8
    flat = np.asarray(patch_size) == 1
    margin = np.where(flat, 0, np.ceil(reach - half - 1e-9))
    x, y, z = patch_size + 2 * margin
    return int(x), int(y), int(z)


def _rotation(axis: int, degrees: float) -> NDArray[np.float64]:
    radians = np.deg2rad(degrees)
    cos, sin = np.cos(radians), np.sin(radians)
    matrix = np.eye(3)
    first, second = [other for other in range(3) if other != axis]
    matrix[first, first] = matrix[second, second] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix


def _build(spec: plans.Transform, patch_size: Triple) -> Any:
    """The batchgenerators transform of one entry of the plan."""
    from batchgenerators.transforms.color_transforms import (
        BrightnessMultiplicativeTransform,
        ContrastAugmentationTransform,
        GammaTransform,
    )
    from batchgenerators.transforms.noise_transforms import (
        GaussianBlurTransform,
        GaussianNoiseTransform,
    )
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
    from batchgenerators.transforms.spatial_transforms import MirrorTransform

    match spec:
        case plans.Spatial():
            return _build_spatial(spec, patch_size)
        case plans.Mirror():
            return MirrorTransform(axes=spec.axes, p_per_sample=spec.probability)
        case plans.GaussianNoise():
            return GaussianNoiseTransform(spec.variance, p_per_sample=spec.probability)
        case plans.GaussianBlur():
            return GaussianBlurTransform(
                spec.sigma,
                p_per_sample=spec.probability,
                p_per_channel=spec.channel_probability,
            )
        case plans.Brightness():
            return BrightnessMultiplicativeTransform(spec.factor, p_per_sample=spec.probability)
        case plans.Contrast():
            return ContrastAugmentationTransform(
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
                ignore_axes=[axis for axis in range(3) if patch_size[axis] == 1],
            )
        case plans.Gamma():
            return GammaTransform(
                spec.gamma,
                invert_image=spec.invert,
                per_channel=True,
                retain_stats=spec.retain_statistics,
                p_per_sample=spec.probability,
            )


def _build_spatial(spec: plans.Spatial, patch_size: Triple) -> Any:
    from batchgenerators.transforms.spatial_transforms import SpatialTransform

    angles = [tuple(np.deg2rad(limits)) for limits in spec.rotation_degrees]
    flat = [axis for axis in range(3) if patch_size[axis] == 1]
    in_plane = len(flat) == 1
    if in_plane:  # batchgenerators' only angle in two dimensions is the first
        angles = [angles[flat[0]]] * 3
    transform = SpatialTransform(
        [size for size in patch_size if size > 1] if in_plane else patch_size,
        do_elastic_deform=spec.elastic_probability > 0,
        alpha=spec.elastic_alpha,
        sigma=spec.elastic_sigma,
        p_el_per_sample=spec.elastic_probability,
        do_rotation=spec.rotation_probability > 0,
        angle_x=angles[0],
        angle_y=angles[1],
        angle_z=angles[2],
        p_rot_per_sample=spec.rotation_probability,
        do_scale=spec.scaling_probability > 0,
        scale=spec.scaling,
        p_scale_per_sample=spec.scaling_probability,
        order_data=spec.image_order,
        order_seg=spec.label_order,
        border_mode_data=spec.border,
        border_mode_seg=spec.border,
        random_crop=False,  # the sampler has already chosen where
    )
    return _InPlane(transform, flat[0]) if in_plane else transform


class _InPlane:
    """Transforms patches that are one voxel thick in their plane: beyond it lies nothing."""

    def __init__(self, transform: BatchTransform, flat_axis: int) -> None:
        self.transform, self.axis = transform, 2 + flat_axis

    def __call__(self, **batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        slices = {name: array.squeeze(self.axis) for name, array in batch.items()}
        turned = self.transform(**slices)
        return {name: np.expand_dims(array, self.axis) for name, array in turned.items()}
