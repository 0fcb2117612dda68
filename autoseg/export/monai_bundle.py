"""A trained model as a MONAI bundle: `autoseg_export --format monai-bundle`.

The bundle preprocesses with MONAI's transforms as the plan says, to float precision. Its tiles
start at other positions: MONAI shifts the last one, we spread all of them evenly.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoseg import __version__
from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, write_json
from autoseg.common.progress import say
from autoseg.export.networks import new_folder
from autoseg.models.folder import PLAN
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, CropToNonzero, Resample, Rescale, ZScore
from autoseg.prediction.model import Model
from autoseg.preprocessing.resample import axis_orders

MONAI_VERSION = "1.6.1"  # that it was tested with
Transform = dict[str, Any]
RESAMPLE = (
    "$lambda x: (lambda size: SpatialResample(mode={order}, padding_mode='nearest')(x, "
    "dst_affine=x.affine.matmul(torch.as_tensor(scale_affine(x.shape[1:], size))), "
    "spatial_size=size).clamp(x.min(), x.max()))([max(1, {round}) "
    "for n, mm, t in zip(x.shape[1:], x.pixdim, {target})])"
)
ROUND = {"nearest": "round(n * float(mm) / (t or float(mm)))"}
ROUND |= {"down": "int(n * float(mm) / (t or float(mm)) + 1e-6)"}
ROUND |= {"nearest_ratio": "round(float(mm) / (t or float(mm)) * n)"}


def export_monai(model: Model, out: Path) -> None:
    """Write a bundle that `python -m monai.bundle run` executes on a folder of scans.

    Args:
        model: loaded on the CPU.
        out: a new folder, which appears complete or not at all.

    Raises:
        AutosegError: `out` exists, or MONAI's transforms cannot express the plan.
    """
    plan = model.plan
    inference = _inference(plan)
    patches = torch.zeros(2, plan.input_channels, *plan.sampling.patch_size)
    with new_folder(out) as folder, torch.no_grad():
        (folder / "models").mkdir()
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(_Mean(model).eval(), (patches,), dynamic_shapes=({0: batch},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names source files of this machine
        torch.export.save(program, folder / "models" / "model.pt2")
        write_json(folder / "configs" / "inference.json", inference)
        write_json(folder / "configs" / "metadata.json", _metadata(plan))
        plan.save(folder / PLAN)
    say("MONAI places tiles in another way: where a scan is larger than a patch, voxels may differ")
    say(
        f"run: python -m monai.bundle run --config_file {out / 'configs' / 'inference.json'} "
        f"--bundle_root {out} --dataset_dir IN --output_dir OUT"
    )


class _Mean(nn.Module):
    """What the plan averages over folds and mirrored patches: probabilities or logits."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        plan, self.networks = model.plan, nn.ModuleList(model.networks)
        self.logits = plan.inference.average != "probabilities"
        self.regions = plan.classes.are_regions
        axes = [2 + axis for axis in plan.inference.mirror_axes if plan.inference.mirror]
        counts = range(len(axes) + 1)
        self.flips = [flip for count in counts for flip in itertools.combinations(axes, count)]

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (B, channel, *patch) -> (B, output, *patch)."""
        found = []
        for network, flip in itertools.product(self.networks, self.flips):
            logits: Tensor = network(patches.flip(flip)).flip(flip)
            activated = logits.sigmoid() if self.regions else logits.softmax(dim=1)
            found.append(logits if self.logits else activated)
        return torch.stack(found).mean(dim=0)


def _refusal(key: str, reason: str) -> AutosegError:
    return AutosegError(f"a MONAI bundle cannot express {key}: {reason}; nothing was exported")


def _inference(plan: Plan) -> dict[str, Any]:
    """The configuration of the bundle."""
    inference, patch = plan.inference, plan.sampling.patch_size
    if plan.previous_stage is not None:
        raise _refusal("previous_stage", "it has one stage")
    if inference.mirror and plan.mirrored_labels:
        raise _refusal("mirrored_labels", "mirroring does not exchange labels")
    if _is_flat(plan, inference.anisotropy):
        raise _refusal("inference.anisotropy", "all axes are interpolated alike")
    overlap = [o / n for o, n in zip(inference.overlap, patch, strict=True)]
    if inference.tile_step is not None:
        overlap = [1 - inference.tile_step if n > 1 else 0.0 for n in patch]
    count = len(plan.channels)
    datalist = "$[{'image': f} for f in sorted(glob.glob(@dataset_dir + '/*.nii.gz'))]"
    if count > 1:
        each = f"{{f'image_{{i}}': f[:-11] + f'{{i:04d}}.nii.gz' for i in range({count})}}"
        datalist = f"$[{each} for f in sorted(glob.glob(@dataset_dir + '/*_0000.nii.gz'))]"
    config: dict[str, Any] = read_json(Path(__file__).with_name("monai_inference.json"))
    config["datalist"] = datalist
    config["preprocessing"]["transforms"] = list(_preprocessing(plan))
    mode = "constant" if inference.weighting == "uniform" else "gaussian"
    config["inferer"] |= {"roi_size": list(patch), "overlap": overlap, "mode": mode}
    config["postprocessing"]["transforms"] = list(_postprocessing(plan))
    return config


def _preprocessing(plan: Plan) -> Iterator[Transform]:
    channels = range(len(plan.channels))
    keys = ["image"] if len(channels) == 1 else [f"image_{channel}" for channel in channels]
    yield _transform("LoadImaged", keys, reader="NibabelReader", ensure_channel_first=True)
    if plan.orientation is not None:
        yield _transform("Orientationd", keys, axcodes=plan.orientation, labels=None)
    yield _transform("CopyItemsd", keys[:1], names="reference")
    for index, step in enumerate(plan.preprocessing):
        channel = getattr(step, "channel", None)
        of = keys if channel is None else [keys[channel]]
        match step:
            case CropToNonzero():
                yield _transform("ConcatItemsd", keys, name="every")
                yield _transform(
                    "CropForegroundd", keys, source_key="every", select_fn="$lambda x: x != 0"
                )
            case Clip(window=(low, high)):
                limits = {"a_min": low, "a_max": high, "b_min": low, "b_max": high}
                yield _transform("ScaleIntensityRanged", of, **limits, clip=True)
            case Rescale(range=(low, high)):
                yield _transform("ScaleIntensityd", of, minv=low, maxv=high)
                if step.whole_numbers:
                    yield _transform("Lambdad", of, func="$lambda x: x.round()")
            case ZScore():
                earlier = (each.step for each in plan.preprocessing[:index])
                if step.nonzero and (len(keys) > 1 or {*earlier} - {"crop_to_nonzero"}):
                    reason = "the mask is of the only channel, before other steps"
                    raise _refusal(f"preprocessing.{index}.nonzero", reason)
                if step.nonzero and step.fill_holes:
                    raise _refusal(f"preprocessing.{index}.fill_holes", "holes are not filled")
                values = {"subtrahend": step.mean, "divisor": step.std, "nonzero": step.nonzero}
                yield _transform("NormalizeIntensityd", of, **values)
            case Resample():
                if _is_flat(plan, step.anisotropy):
                    key = f"preprocessing.{index}.anisotropy"
                    raise _refusal(key, "all axes are resampled with the same order")
                target, how = list(plan.target_spacing_mm), ROUND[step.rounding]
                func = RESAMPLE.format(order=step.image_order, round=how, target=target)
                yield _transform("Lambdad", keys, func=func)
    if len(keys) > 1:
        yield _transform("ConcatItemsd", keys, name="image")
    yield _transform("EnsureTyped", ["image"], dtype="$torch.float32")


def _is_flat(plan: Plan, anisotropy: float | None) -> bool:
    target = [mm or 1.0 for mm in plan.target_spacing_mm]
    return plan.resamples and 0 in axis_orders(1, target, target, anisotropy)


def _postprocessing(plan: Plan) -> Iterator[Transform]:
    """To the scan's own grid, then to the values of a label map."""
    both = ["pred", "inside"]  # the crop, outside of which all is background
    yield _transform("CopyItemsd", both[:1], names=both[1])
    yield _transform("Lambdad", both[1:], func="$lambda x: torch.ones_like(x[:1])")
    modes = {"mode": ["bilinear", "nearest"], "padding_mode": ["border", "zeros"]}
    yield _transform("ResampleToMatchd", both, key_dst="reference", **modes)
    yield _transform("ConcatItemsd", both, name="pred")
    classes, func = plan.classes, "x[:-1].argmax(0, keepdim=True)"
    if classes.are_regions:  # the last of those that contain a voxel
        least = 0.5 if plan.inference.average == "probabilities" else 0.0
        numbers = f"torch.arange(1, {classes.outputs + 1}, device=x.device).view(-1, 1, 1, 1)"
        func = f"((x[:-1] > {least}) * {numbers}).amax(0, keepdim=True)"
    yield _transform("Lambdad", ["pred"], func=f"$lambda x: {func} * x[-1:]")
    values = {"orig_labels": list(range(len(classes.painted)))}
    yield _transform("MapLabelValued", ["pred"], **values, target_labels=list(classes.painted))
    name = "os.path.basename(meta['filename_or_obj']).removesuffix('.nii.gz')"
    yield _transform(
        "SaveImaged",
        ["pred"],
        output_dir="@output_dir",
        output_postfix="",
        separate_folder=False,
        output_dtype="$torch.uint8" if max(classes.painted) < 256 else "$torch.int32",
        output_name_formatter=f"$lambda meta, _: {{'subject': {name}.removesuffix('_0000')}}",
    )


def _transform(transform: str, keys: Sequence[str], **settings: Any) -> Transform:
    return {"_target_": transform, "keys": list(keys), **settings}


def _metadata(plan: Plan) -> dict[str, Any]:
    what: dict[str, Any] = {
        "type": "image",
        "format": "magnitude",
        "spatial_shape": list(plan.sampling.patch_size),
    }
    what |= {"dtype": "float32", "is_patch_data": True, "value_range": []}
    outputs = dict(enumerate(plan.classes.output_names))
    channels = dict(enumerate(plan.channels))
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by autoseg {__version__}"},
        "monai_version": MONAI_VERSION,
        "pytorch_version": torch.__version__,
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": "5.2", "scipy": "1.13", "pytorch-ignite": "0.5"},
        "name": f"{plan.task}, plan {plan.name}",
        "task": f"segmentation of {', '.join(list(plan.labels)[1:])}",
        "description": f"plan {plan.id} of autoseg",
        "authors": "not stated",
        "copyright": "not stated",
        "network_data_format": {
            "inputs": {"image": {**what, "num_channels": len(channels), "channel_def": channels}},
            "outputs": {"pred": {**what, "num_channels": len(outputs), "channel_def": outputs}},
        },
    }
