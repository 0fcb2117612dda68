"""From a fingerprint to plan values by rules alone; the result is the same on every machine.

`rules` chooses the configuration as nnU-Net does. Here it is translated to the keys of a plan, with
nnU-Net's preprocessing steps and augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from autoseg.fingerprint import Fingerprint
from autoseg.plan.plan import CASCADE
from autoseg.planner.grid import DataFigures
from autoseg.planner.rules import Configuration, decide

PlanValues = dict[str, Any]
Evidence = dict[str, tuple[str, str]]  # dotted key -> rule, figures
ANISOTROPY = 3.0
LONG_SLICE = 1.5  # length / width above which slices are rotated little
# Names of rules in a plan's provenance.
DECLARED, SKIPPED = "as declared", "bad cases are left out"
MOST_CASES = "as most cases are stored"
EXCHANGED_SIDES = "our own: labels of the left and the right side are exchanged by mirroring"
FOLD_PER_PATIENT = "a fold for each patient"


def configurations(
    fingerprint: Fingerprint, planner: str = "default", memory_gb: float | None = None
) -> dict[str, Configuration]:
    """Every configuration that is useful for the data, the recommended one first.

    Args:
        fingerprint: of the data.
        planner: `default`, `resenc_m`, `resenc_l` or `resenc_xl`.
        memory_gb: graphics memory to plan for; by default, that of the planner.

    Raises:
        PlanError: the planner is unknown, or the memory is too small for any patch.
    """
    found = decide(_figures(fingerprint), planner, memory_gb)
    recommended = "3d_fullres" if "3d_fullres" in found else "2d"
    return {recommended: found[recommended]} | found


def rule_values(
    fingerprint: Fingerprint, configuration: Configuration
) -> tuple[PlanValues, Evidence]:
    """The plan values that the rules alone choose, and the evidence for them.

    Args:
        fingerprint: of the data.
        configuration: one of `configurations(fingerprint)`.
    """
    configuration = _with_two_stages(configuration)
    patch = _in_space(configuration, configuration.patch_size)
    mirrored = [axis for axis in range(3) if patch[axis] > 1]
    values: PlanValues = {
        "task": fingerprint.task,
        "configuration": configuration.name,
        "channels": list(fingerprint.channels),
        "labels": {name: list(covered) for name, covered in fingerprint.labels.items()},
        "ignore_label": fingerprint.ignore_label,
        "regions_class_order": None,
        "target_spacing_mm": _in_space(configuration, configuration.spacing_mm, None),
        "preprocessing": _steps(configuration, fingerprint),
        "sampling": {"patch_size": patch, "batch_size": configuration.batch_size},
        "augmentation": augmentation_values(
            configuration.name, len(configuration.axes) == 2, patch, mirrored
        ),
        "network": {
            "features": list(configuration.features),
            "strides": [_in_space(configuration, s) for s in configuration.strides],
            "kernels": [_in_space(configuration, k) for k in configuration.kernels],
            "blocks_encoder": list(configuration.blocks_encoder),
            "blocks_decoder": list(configuration.blocks_decoder),
            "residual": configuration.residual,
            "norm": _norm(configuration),
        },
        "training": {
            "loss": {"loss": "dice_cross_entropy", "batch_dice": configuration.batch_dice}
        },
        "inference": {
            "overlap": [size // 2 for size in patch],
            "mirror_axes": mirrored,
        },
    }
    return values, _evidence(configuration)


def _figures(fingerprint: Fingerprint) -> DataFigures:
    ignored = 0 if fingerprint.ignore_label is None else 1
    return DataFigures(
        spacings_mm=fingerprint.spacings_mm,
        shapes=fingerprint.shapes_after_crop,
        channels=fingerprint.channels,
        label_count=len(fingerprint.labels) + ignored,
        relative_size_after_cropping=fingerprint.relative_size_after_cropping,
    )


def _with_two_stages(configuration: Configuration) -> Configuration:
    """Add a second stage, which a U-Net needs, if the scans are too small for the rules' one."""
    if len(configuration.features) > 1:
        return configuration
    patch, (first,) = configuration.patch_size, configuration.features
    return replace(
        configuration,
        patch_size=tuple(size + size % 2 if size > 1 else 1 for size in patch),
        features=(first, 2 * first),
        strides=(*configuration.strides, tuple(min(size, 2) for size in patch)),
        kernels=(*configuration.kernels, (3,) * len(patch)),
        blocks_encoder=configuration.blocks_encoder * 2,
        blocks_decoder=(1 if configuration.residual else 2,),
    )


def _norm(configuration: Configuration) -> str:
    """Instance normalisation, unless the coarsest stage is a single voxel."""
    reduction = tuple(prod(along) for along in zip(*configuration.strides, strict=True))
    return "batch" if configuration.patch_size == reduction else "instance"


def _in_space(configuration: Configuration, entries: Sequence[float], missing: Any = 1) -> Any:
    """Entries for x, y, z, with `missing` for the axis that a 2d configuration lacks."""
    found = dict(zip(configuration.axes, entries, strict=True))
    return [found.get(axis, missing) for axis in range(3)]


def _steps(configuration: Configuration, fingerprint: Fingerprint) -> list[PlanValues]:
    """Crop, normalise each channel with its scheme, resample."""
    steps: list[PlanValues] = [{"step": "crop_to_nonzero"}]
    for channel, scheme in enumerate(configuration.normalization):
        steps += _normalisation(channel, scheme, configuration, fingerprint)
    steps.append({"step": "resample", "anisotropy": ANISOTROPY, "label_ties": "nearest"})
    return steps


def _normalisation(
    channel: int, scheme: str, configuration: Configuration, fingerprint: Fingerprint
) -> list[PlanValues]:
    foreground = fingerprint.foreground[channel]
    if scheme == "CTNormalization" and foreground is not None:
        window = [foreground.p00_5, foreground.p99_5]
        steps: list[PlanValues] = []
        if window[0] < window[1]:
            steps.append({"step": "clip", "window": window, "channel": channel})
        shift = {"mean": foreground.mean, "std": max(foreground.std, 1e-8)}
        return [*steps, {"step": "z_score", "channel": channel, **shift}]
    if scheme == "NoNormalization":
        return []
    if scheme == "RescaleTo01Normalization":
        return [{"step": "rescale", "channel": channel}]
    if scheme == "RGBTo01Normalization":
        return [{"step": "z_score", "channel": channel, "mean": 0.0, "std": 255.0}]
    return [{"step": "z_score", "channel": channel, "nonzero": configuration.use_mask[channel]}]


def augmentation_values(
    configuration: str, is_2d: bool, patch: Sequence[int], mirrored: Sequence[int]
) -> list[PlanValues]:
    """nnU-Net's transforms and probabilities.

    Args:
        configuration: its name.
        is_2d: whether the patch is a slice.
        patch: its size along x, y, z.
        mirrored: the axes along which patches are mirrored.
    """
    last: list[PlanValues] = [{"transform": "mirror", "axes": list(mirrored)}] if mirrored else []
    if configuration == CASCADE:
        last += [{"transform": "previous_morphology"}, {"transform": "previous_removal"}]
    return [
        {"transform": "spatial", "rotation_degrees": _rotation(is_2d, patch)},
        {"transform": "gaussian_noise"},
        {"transform": "gaussian_blur"},
        {"transform": "brightness"},
        {"transform": "contrast"},
        {"transform": "low_resolution"},
        {"transform": "gamma", "probability": 0.1, "invert": True},
        {"transform": "gamma"},
        *last,
    ]


def _rotation(is_2d: bool, patch: Sequence[int]) -> list[list[int]]:
    """Range of rotation about each axis in degrees; only about the short axis of a flat patch.

    Long slices are rotated little, as they would not fit the patch otherwise.
    """
    if not is_2d and max(patch) / min(patch) <= ANISOTROPY:
        return [[-30, 30]] * 3
    coarse, most = patch.index(min(patch)), 180
    if is_2d:
        _, short, long = sorted(patch)
        most = 15 if long / short > LONG_SLICE else 180
    return [[-most, most] if axis == coarse else [0, 0] for axis in range(3)]


def _evidence(configuration: Configuration) -> Evidence:
    """Key of the plan -> the rule that chose its value, and the figures it used."""
    rules = {
        "target_spacing_mm": ("spacing_mm", "median voxel size"),
        "sampling.patch_size": ("patch_size", "largest patch for data and memory"),
        "sampling.batch_size": ("batch_size", "largest batch for data and memory"),
        "network.features": ("features", "width by stage"),
        "network.strides": ("strides", "halve the fine axes first"),
        "network.kernels": ("kernels", "across an axis once it is not much coarser"),
        "network.blocks_encoder": ("blocks_encoder", "blocks by stage"),
        "network.blocks_decoder": ("blocks_decoder", "blocks by stage"),
        "network.residual": ("residual", "kind of network"),
        "preprocessing": ("normalization", "by the kind of each channel"),
        "training.loss.batch_dice": ("batch_dice", "where a patch sees little of a case"),
    }
    found = {key: (rule, configuration.evidence[name]) for key, (name, rule) in rules.items()}
    for key in ("channels", "labels", "ignore_label", "regions_class_order"):
        found[key] = (DECLARED, "")
    found["configuration"] = ("3d_fullres where there are slices to stack", "")
    found["augmentation"] = ("augmentation by patch shape", configuration.evidence["patch_size"])
    found["inference.overlap"] = ("half a patch", configuration.evidence["patch_size"])
    return found
