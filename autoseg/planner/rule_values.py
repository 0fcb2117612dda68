"""From a fingerprint to plan values by rules alone; the result is the same on every machine.

`rules` chooses the configuration as nnU-Net does. Here it is translated to the keys of a plan, with
nnU-Net's preprocessing steps and augmentation.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

from autoseg.fingerprint import Fingerprint
from autoseg.plan.plan import CASCADE
from autoseg.planner.grid import DataFigures
from autoseg.planner.rules import PER_CASE, TABLES, Configuration, decide

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
    sizes = (fingerprint.spacings_mm, fingerprint.shapes_after_crop)
    labels = len(fingerprint.labels) + (fingerprint.ignore_label is not None)
    relative_size = fingerprint.relative_size_after_cropping
    figures = DataFigures(*sizes, fingerprint.channels, labels, relative_size)
    found = decide(figures, planner, memory_gb)
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
    # Instance normalisation, unless the coarsest stage is a single voxel.
    reduction = tuple(prod(along) for along in zip(*configuration.strides, strict=True))
    name, mirrored = configuration.name, [axis for axis in range(3) if patch[axis] > 1]
    loss = {"loss": "dice_cross_entropy", "batch_dice": configuration.batch_dice}
    network = {
        key: [_in_space(configuration, of_stage) for of_stage in getattr(configuration, key)]
        for key in ("strides", "kernels")
    }
    for key in ("features", "blocks_encoder", "blocks_decoder"):
        network[key] = list(getattr(configuration, key))
    norm = "batch" if configuration.patch_size == reduction else "instance"
    values: PlanValues = {
        "task": fingerprint.task,
        "configuration": name,
        "channels": list(fingerprint.channels),
        "labels": {name: list(covered) for name, covered in fingerprint.labels.items()},
        "ignore_label": fingerprint.ignore_label,
        "regions_class_order": None,
        "target_spacing_mm": _in_space(configuration, configuration.spacing_mm, None),
        "preprocessing": _steps(configuration, fingerprint),
        "sampling": {"patch_size": patch, "batch_size": configuration.batch_size},
        "augmentation": augmentation_values(name, len(configuration.axes) == 2, patch, mirrored),
        "network": {**network, "residual": configuration.residual, "norm": norm},
        "training": {"loss": loss},
        "inference": {"overlap": [size // 2 for size in patch], "mirror_axes": mirrored},
    }
    return values, _evidence(configuration)


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


def _in_space(configuration: Configuration, entries: Sequence[float], missing: Any = 1) -> Any:
    """Entries for x, y, z, with `missing` for the axis that a 2d configuration lacks."""
    found = dict(zip(configuration.axes, entries, strict=True))
    return [found.get(axis, missing) for axis in range(3)]


def _steps(configuration: Configuration, fingerprint: Fingerprint) -> list[PlanValues]:
    """Crop, normalise each channel with its scheme, resample."""
    steps: list[PlanValues] = [{"step": "crop_to_nonzero"}]
    for channel, (scheme, masked) in enumerate(
        zip(configuration.normalization, configuration.use_mask, strict=True)
    ):
        if (f := fingerprint.foreground[channel]) is None and scheme == "CTNormalization":
            scheme = PER_CASE
        figures = () if f is None else (f.p00_5, f.p99_5, f.mean, f.std)
        steps += normalisation(channel, scheme, masked, False, figures) or []
    steps.append({"step": "resample", "anisotropy": ANISOTROPY, "label_ties": "nearest"})
    return steps


def normalisation(
    channel: int, scheme: str, masked: bool, fill_holes: bool, figures: Sequence[float]
) -> list[PlanValues] | None:
    """The steps of one of nnU-Net's schemes; None if it is unknown.

    Args:
        channel: its index.
        scheme: nnU-Net's name.
        masked: whether only the non-zero region counts.
        fill_holes: whether holes belong to that region.
        figures: for CT the limits of the window, the mean and the standard deviation.
    """
    of: PlanValues = {"channel": channel}
    match scheme:
        case "CTNormalization":
            low, high, mean, std = figures
            clip = [{"step": "clip", "window": [low, high], **of}] if low < high else []
            return [*clip, {"step": "z_score", "mean": mean, "std": max(std, 1e-8), **of}]
        case "NoNormalization":
            return []
        case "RescaleTo01Normalization":
            return [{"step": "rescale", **of}]
        case "RGBTo01Normalization":
            return [{"step": "z_score", "mean": 0.0, "std": 255.0, **of}]
        case "ZScoreNormalization":
            holes = {"fill_holes": True} if masked and fill_holes else {}
            return [{"step": "z_score", "nonzero": masked, **holes, **of}]
    return None


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
    values: list[PlanValues] = copy.deepcopy(TABLES["augmentation"])
    values[0]["rotation_degrees"] = _rotation(is_2d, patch)
    if mirrored:
        values.append({"transform": "mirror", "axes": list(mirrored)})
    if configuration == CASCADE:
        values += [{"transform": "previous_morphology"}, {"transform": "previous_removal"}]
    return values


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
    rules, figures = TABLES["rules"], configuration.evidence | {"": ""}
    declared = ("channels", "labels", "ignore_label", "regions_class_order")
    found = {key: (rule, figures[name]) for key, (name, rule) in rules.items()}
    return found | dict.fromkeys(declared, (DECLARED, ""))
