"""A trained model as one of nnU-Net v2: `autoseg_export --format nnunet`.

What nnU-Net cannot express is refused, by its key. What it computes in another way with nearly the
same result, such as the mean of the tiles, is said by its key and recorded.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoseg.common.errors import AutosegError, raise_if
from autoseg.common.files import is_as_written, write_checksums, write_json
from autoseg.common.progress import say
from autoseg.export import nnunet
from autoseg.export.networks import TEXT, new_folder
from autoseg.fingerprint import Fingerprint
from autoseg.models.checkpoint import Tensors
from autoseg.models.folder import FINGERPRINT, PLAN, fold_name
from autoseg.plan.plan import Plan, load_plan
from autoseg.plan.sections import Clip, CropToNonzero, Network, Resample, Rescale, Step, ZScore
from autoseg.prediction.model import Model, with_fingerprint
from autoseg.prediction.postprocessing import FILE_NAME as POSTPROCESSING
from autoseg.preprocessing.resample import axis_orders

PLANS, DATASET, CHECKPOINT = "plans.json", "dataset.json", "checkpoint_final.pth"
INTENSITIES = "foreground_intensity_properties_per_channel"
RESAMPLED = ("data", "seg", "probabilities")


def export_nnunet(model: Model, out: Path) -> None:
    """Write a folder that nnU-Net predicts with; it has our plan, too, which an import restores.

    Args:
        model: loaded on the CPU.
        out: a new folder, which appears complete or not at all.

    Raises:
        AutosegError: `out` exists, or nnU-Net cannot express the plan.
    """
    plan, files = model.plan, model.where
    order = _axis_order(plan)
    measured = None
    if (found := with_fingerprint(files)) is not None:
        measured = Fingerprint.parse(found.json(FINGERPRINT), found.path(FINGERPRINT))
    plans, dataset = _plans(plan, order, measured), _dataset(plan, measured)
    exchanged = plan.left_right if plan.mirrored_labels else None
    flipped = [axis for axis in plan.inference.mirror_axes if axis != exchanged]
    axes = tuple(sorted(order.places[axis] - order.is_2d for axis in flipped))
    trainer = "nnUNetTrainer" if plan.network.deep_supervision else nnunet.ONE_HEAD_TRAINER
    checkpoint = nnunet.FACTS["checkpoint"] | {"current_epoch": plan.training.epochs}
    checkpoint |= {"trainer_name": trainer, "inference_allowed_mirroring_axes": axes or None}
    init: dict[str, Any] = {"plans": plans, "configuration": plan.configuration}
    init |= {"dataset_json": dataset, "device": torch.device("cpu")}
    with new_folder(out) as folder:
        for fold, network in zip(model.folds, model.networks, strict=True):
            checkpoint["network_weights"] = _weights(network.state_dict(), plan, order)
            checkpoint["init_args"] = init | {"fold": int(fold) if fold.isdecimal() else fold}
            path = folder / fold_name(fold) / CHECKPOINT
            path.parent.mkdir()
            torch.save(checkpoint, path)
        write_json(folder / PLANS, plans)
        write_json(folder / DATASET, dataset)
        cases = _cases(plan, measured) | {INTENSITIES: plans[INTENSITIES]}
        write_json(folder / "dataset_fingerprint.json", cases)
        plan.save(folder / PLAN)
        if measured is not None:
            measured.save(folder / FINGERPRINT)
        write_checksums(folder, _own_files(folder))
    if differences := plans["autoseg"]["computed_in_another_way"]:
        say(f"nnU-Net computes {', '.join(differences)} in another way; a few voxels may differ")
    if exchanged in plan.inference.mirror_axes:
        say("nnU-Net cannot exchange mirrored_labels; it will not mirror the left-right axis")
    if files.has(POSTPROCESSING):
        say(f"{POSTPROCESSING} is not exported; nnUNetv2_predict does not postprocess")
    options = "" if plan.inference.mirror else " --disable_tta"
    if (step := _tile_step(plan)) is None:
        say("nnU-Net cannot overlap tiles by inference.overlap; by half a patch, results differ")
    elif step != nnunet.FACTS["inference"]["tile_step"]:
        options += f" -step_size {step:g}"
    say(TEXT("nnUNet run", out=out, folds=" ".join(model.folds), options=options))
    name = f"{trainer}__{plans['plans_name']}__{plan.configuration}"
    say(f"for nnUNetv2_predict, move it to $nnUNet_results/{plans['dataset_name']}/{name}")


def exported_plan(folder: Path) -> Plan | None:
    """Our plan in a folder of `export_nnunet`; None if a file is not as it was written."""
    return load_plan(folder / PLAN) if is_as_written(folder, _own_files(folder)) else None


def _own_files(folder: Path) -> list[str]:
    checkpoints = sorted(folder.glob(f"fold_*/{CHECKPOINT}"))
    return [PLAN, PLANS, DATASET, *(f"{path.parent.name}/{CHECKPOINT}" for path in checkpoints)]


def _refusal(key: str, about: str = "") -> AutosegError:
    reason = nnunet.FACTS["refused"][about or re.sub(r"\.\d+.*?(?=\.|$)", "", key)]
    return AutosegError(f"nnU-Net cannot express {key}: {reason}; nothing was exported")


def _axis_order(plan: Plan) -> nnunet.AxisOrder:
    """The coarsest axis first, as in nnU-Net's plans; its 2d networks lack that axis."""
    spacing = plan.target_spacing_mm if plan.resamples else (None,) * 3
    free = [axis for axis, mm in enumerate(spacing) if mm is None]
    is_2d = len(free) in (1, 2)
    first = free[0] if is_2d else max((2, 1, 0), key=lambda axis: spacing[axis] or 1.0)
    layers = (*plan.network.kernels, *plan.network.strides, plan.sampling.patch_size)
    if is_2d and (len(free) == 2 or any(layer[first] != 1 for layer in layers)):
        raise _refusal("target_spacing_mm")
    rest = [axis for axis in range(3) if axis != 2 - first]
    return nnunet.AxisOrder((2 - first, rest[0], rest[1]), is_2d)


# The plan.


def _plans(plan: Plan, order: nnunet.AxisOrder, measured: Fingerprint | None) -> dict[str, Any]:
    readers = {None: "SimpleITKIO", "RAS": "NibabelIOWithReorient"}  # that early versions have
    if plan.orientation not in readers:
        raise _refusal(f"orientation {plan.orientation}", "orientation")
    steps, resample = _steps(plan)
    schemes, masks, figures = zip(*map(_scheme, steps), strict=True)
    spacing, sampling = [mm or 1.0 for mm in plan.target_spacing_mm], plan.sampling
    configuration: dict[str, Any] = {"data_identifier": f"autoseg_{plan.configuration}"}
    configuration["preprocessor_name"] = "DefaultPreprocessor"
    configuration["batch_size"] = sampling.batch_size
    configuration["batch_dice"] = getattr(plan.training.loss, "batch_dice", False)
    configuration["patch_size"] = order.to_nnunet(sampling.patch_size)
    configuration["spacing"] = order.to_nnunet(spacing)
    configuration |= {"normalization_schemes": list(schemes), "use_mask_for_norm": list(masks)}
    configuration |= _resampling(plan, resample)
    configuration["architecture"] = _architecture(plan.network, order)
    if plan.previous_stage is not None:
        configuration["previous_stage"] = "3d_lowres"
    found = re.fullmatch(r"[A-Za-z]+(\d{1,3})_(.+)", plan.task)
    number, name = (int(found[1]), found[2]) if found else (999, plan.task)
    intensities = {str(n): _intensities(measured, n) | given for n, given in enumerate(figures)}
    about = {"plan_id": plan.id, "computed_in_another_way": _differences(plan)}
    return {
        "dataset_name": f"Dataset{number:03d}_{name}",
        "plans_name": f"autoseg-{plan.name}".replace("__", "_"),  # which separates in nnU-Net
        "image_reader_writer": readers[plan.orientation],
        "transpose_forward": list(order.transpose_forward),
        "transpose_backward": [order.transpose_forward.index(axis) for axis in range(3)],
        "configurations": {plan.configuration: configuration},
        **nnunet.FACTS["plans"],
        INTENSITIES: intensities,
        "autoseg": {**about, "tile_step": _tile_step(plan)},
    }


def _steps(plan: Plan) -> tuple[list[list[tuple[int, Step]]], Resample | None]:
    """The numbered steps that change the intensities of each channel, and the resampling."""
    steps = list(enumerate(plan.preprocessing))
    if not steps or not isinstance(steps.pop(0)[1], CropToNonzero):
        raise _refusal("preprocessing")
    last = steps.pop()[1] if steps and isinstance(steps[-1][1], Resample) else None
    for index, step in steps:
        raise_if(isinstance(step, Resample | CropToNonzero), _refusal(f"preprocessing.{index}"))
    numbers = range(len(plan.channels))
    own = [[s for s in steps if getattr(s[1], "channel", None) in (None, n)] for n in numbers]
    return own, last if isinstance(last, Resample) else None


def _scheme(steps: list[tuple[int, Step]]) -> tuple[str, bool, dict[str, Any]]:
    """nnU-Net's scheme for a channel, whether it uses the mask, and the figures that it needs."""
    match [step for _, step in steps]:
        case []:
            return "NoNormalization", False, {}
        case [Rescale(range=(0.0, 1.0), whole_numbers=False)]:
            return "RescaleTo01Normalization", False, {}
        case [ZScore(mean=None, std=None, nonzero=nonzero)]:
            return "ZScoreNormalization", nonzero, {}
        case [ZScore(mean=0.0, std=255.0, nonzero=False)]:
            return "RGBTo01Normalization", False, {}
        case [
            Clip(window=(low, high), scaled_scans="clip"),
            ZScore(mean=float(), std=float(), nonzero=False) as z,
        ]:
            window = {"percentile_00_5": low, "percentile_99_5": high}
            return "CTNormalization", False, window | {"mean": z.mean, "std": z.std}
    names = ", ".join(f"preprocessing.{index} ({step.step})" for index, step in steps)
    raise _refusal(names, "scheme")


def _resampling(plan: Plan, step: Resample | None) -> dict[str, Any]:
    if step is None or set(plan.target_spacing_mm) == {None}:
        functions: dict[str, Any] = dict.fromkeys(RESAMPLED, ("no_resampling_hack", {}))
    elif step.rounding == "down":
        raise _refusal(f"preprocessing.{plan.preprocessing.index(step)}.rounding")
    else:
        orders = (step.image_order, step.label_order, 1)
        limits = (step.anisotropy, step.anisotropy, plan.inference.anisotropy)
        functions = {}
        for name, order, limit in zip(RESAMPLED, orders, limits, strict=True):
            values: dict[str, Any] = {"is_seg": name == "seg", "order": order, "order_z": 0}
            values["force_separate_z"] = None if limit else False
            values |= {} if limit in (None, 3.0) else {"separate_z_anisotropy_threshold": limit}
            functions[name] = ("resample_data_or_seg_to_shape", values)
    names = {f"resampling_fn_{key}": name for key, (name, _) in functions.items()}
    return names | {f"resampling_fn_{key}_kwargs": values for key, (_, values) in functions.items()}


def _tile_step(plan: Plan) -> float | None:
    """nnU-Net's step between tiles, a share of the patch; None if the overlaps are of several."""
    if plan.inference.tile_step is not None:
        return plan.inference.tile_step
    sizes = zip(plan.inference.overlap, plan.sampling.patch_size, strict=True)
    steps = {round(1 - overlap / size, 6) for overlap, size in sizes if size > 1}
    return steps.pop() if len(steps) == 1 else None


def _differences(plan: Plan) -> list[str]:
    """The keys that nnU-Net computes in another way, with nearly the same result."""
    inference, target = plan.inference, [mm or 1.0 for mm in plan.target_spacing_mm]
    found = {
        "inference.weighting": inference.weighting != "nnunet",
        "inference.average": inference.average != "logits_float16",
    }
    for index, step in enumerate(plan.preprocessing):
        key = f"preprocessing.{index}"
        if isinstance(step, ZScore):
            found[f"{key}.fill_holes"] = step.nonzero and not step.fill_holes
        if isinstance(step, Resample):
            is_flat = 0 in axis_orders(1, target, target, step.anisotropy)
            found[f"{key}.clip"] = is_flat and step.clip == "volume"
            found[f"{key}.label_ties"] = bool(plan.previous_stage) and step.label_ties != "nearest"
    return [key for key, differs in found.items() if differs]


def _architecture(network: Network, order: nnunet.AxisOrder) -> dict[str, Any]:
    raise_if(network.down != "strided", _refusal("network.down"))
    raise_if(network.residual and network.activation_first, _refusal("network.activation_first"))
    kind = nnunet.RESIDUAL if network.residual else nnunet.PLAIN
    dimensions = "2d" if order.is_2d else "3d"
    known = nnunet.FACTS["norms"] | nnunet.FACTS["activations"]
    theirs_of = {ours: theirs for theirs, ours in known.items()}
    norm, activation = theirs_of[network.norm], theirs_of[network.activation]
    # Biases are of all layers or of none, and ours upsamples always with one.
    values = nnunet.FACTS["new_architecture"] | {
        "n_stages": len(network.features),
        "features_per_stage": list(network.features),
        "conv_op": f"torch.nn.Conv{dimensions}",
        nnunet.BLOCKS[kind]: list(network.blocks_encoder),
        "n_conv_per_stage_decoder": list(reversed(network.blocks_decoder)),
        "norm_op": f"torch.nn.{norm}{dimensions}",
        "norm_op_kwargs": {"affine": True},
        "nonlin": f"torch.nn.{activation}",
        "nonlin_kwargs": {"inplace": not network.activation_first},
    }
    for theirs, ours in nnunet.LAYERS.items():
        values[theirs] = [order.to_nnunet(of_stage) for of_stage in getattr(network, ours)]
    for theirs, (ours, default) in nnunet.VALUES.items():
        if ours == "negative_slope" and network.activation != "leaky_relu":
            continue
        if theirs not in values and (value := getattr(network, ours)) != default:
            nested, _, key = theirs.rpartition(".")
            (values[nested] if nested else values)[key] = value
    name = f"{nnunet.PACKAGE}.architectures.unet.{kind}"
    return {"network_class_name": name, "arch_kwargs": values, **nnunet.FACTS["imported"]}


# The data set.


def _dataset(plan: Plan, measured: Fingerprint | None) -> dict[str, Any]:
    classes, order = plan.classes, plan.regions_class_order
    if order is None and classes.painted != tuple(range(len(classes.painted))):
        raise _refusal("labels")
    if order and all(len(plan.labels[name]) == 1 for name in classes.output_names):
        raise _refusal("regions_class_order")
    labels: dict[str, Any] = {"background": 0}
    for name, value in zip(classes.names[1:], classes.painted[1:], strict=True):
        labels[name] = list(plan.labels[name]) if order else value
    if plan.ignore_label == max(value for part in classes.parts for value in part) + 1:
        labels["ignore"] = plan.ignore_label
    return {
        "name": plan.task,
        "channel_names": {str(number): name for number, name in enumerate(plan.channels)},
        "labels": labels,
        **({"regions_class_order": list(order)} if order else {}),
        "numTraining": len(measured.cases) if measured else 0,
        "file_ending": ".nii.gz",
    }


def _intensities(measured: Fingerprint | None, channel: int) -> dict[str, float]:
    if measured is None or (found := measured.foreground[channel]) is None:
        return {}
    return {theirs: getattr(found, ours) for ours, theirs in nnunet.STATISTICS.items()}


def _cases(plan: Plan, measured: Fingerprint | None) -> dict[str, Any]:
    cases = list(measured.turned_to(plan.orientation).cases.values()) if measured else []
    size = measured.relative_size_after_cropping if measured and cases else 1.0
    return {
        "spacings": [case.spacing_mm[::-1] for case in cases],
        "shapes_after_crop": [case.shape_after_crop[::-1] for case in cases],
        "median_relative_size_after_cropping": size,
    }


# The weights.


def _weights(tensors: Mapping[str, Tensor], plan: Plan, order: nnunet.AxisOrder) -> Tensors:
    """The weights under nnU-Net's names, which has some of them several times."""
    network, found = plan.network, {}
    for ours, theirs in nnunet.layer_names(network).items():
        for leaf in nnunet.LEAVES:
            if (tensor := tensors.get(f"{ours}.{leaf}")) is not None:
                found[f"{theirs}.{leaf}"] = order.weight_to_nnunet(tensor)
        if theirs.endswith(".conv") and ".skip." not in theirs:  # see `_architecture`
            found.setdefault(f"{theirs}.bias", torch.zeros(len(found[f"{theirs}.weight"])))
    finest = len(network.features) - 2
    for stage in range(network.supervised, finest + 1):  # nnU-Net has a head at each stage
        kernel = torch.zeros(plan.classes.outputs, network.features[stage], 1, 1, 1)
        found[f"{nnunet.HEADS}{finest - stage}.weight"] = order.weight_to_nnunet(kernel)
        found[f"{nnunet.HEADS}{finest - stage}.bias"] = torch.zeros(plan.classes.outputs)
    numbers = {"conv": 0, "norm": 2 if network.activation_first else 1}
    for name, tensor in list(found.items()):
        block, layer, leaf = name.rsplit(".", 2)
        if layer in numbers:
            found[f"{block}.all_modules.{numbers[layer]}.{leaf}"] = tensor
    copies = {f"decoder.{name}": t for name, t in found.items() if name.startswith("encoder.")}
    return found | copies
