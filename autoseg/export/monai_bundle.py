"""A trained model as a MONAI bundle: `autoseg_export --format monai-bundle`.

The bundle preprocesses with MONAI's transforms as the plan says, to float precision. Its tiles
start at other positions: MONAI shifts the last one, we spread all of them evenly.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoseg import __version__
from autoseg.common.errors import AutosegError, raise_if
from autoseg.common.files import read_json, write_json
from autoseg.common.progress import say
from autoseg.export.networks import TEXT, new_folder
from autoseg.models.folder import PLAN
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, CropToNonzero, Resample, Rescale, ZScore
from autoseg.prediction.model import Model
from autoseg.prediction.postprocessing import FILE_NAME as POSTPROCESSING
from autoseg.preprocessing.resample import axis_orders

# The parts of a bundle that no plan changes, and the reasons of refusals.
FIXED = Path(__file__).with_name("monai.json")
Transform = dict[str, Any]


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
    if model.where.has(POSTPROCESSING):
        say(f"{POSTPROCESSING} is not part of the bundle, which does not postprocess")
    say("MONAI places tiles in another way: where a scan is larger than a patch, voxels may differ")
    say(TEXT("bundle", config=out / "configs" / "inference.json", out=out))


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


def _refusal(key: str) -> AutosegError:
    reason = read_json(FIXED)["refused"][re.sub(r"\.\d+", "", key)]
    return AutosegError(f"a MONAI bundle cannot express {key}: {reason}; nothing was exported")


def _inference(plan: Plan) -> dict[str, Any]:
    """The configuration of the bundle."""
    inference, patch, count = plan.inference, plan.sampling.patch_size, len(plan.channels)
    raise_if(plan.previous_stage is not None, _refusal("previous_stage"))
    raise_if(inference.mirror and plan.mirrored_labels, _refusal("mirrored_labels"))
    raise_if(_is_flat(plan, inference.anisotropy), _refusal("inference.anisotropy"))
    overlap = [o / n for o, n in zip(inference.overlap, patch, strict=True)]
    if inference.tile_step is not None:
        overlap = [1 - inference.tile_step if n > 1 else 0.0 for n in patch]
    fixed = read_json(FIXED)
    found: dict[str, Any] = fixed["inference"]
    if count > 1:
        found["datalist"] = fixed["channels"].format(count=count)
    found["preprocessing"]["transforms"] = list(_preprocessing(plan, fixed))
    found["postprocessing"]["transforms"] = list(_postprocessing(plan, fixed))
    found["inferer"] |= {"roi_size": list(patch), "overlap": overlap}
    if inference.weighting == "uniform":
        found["inferer"]["mode"] = "constant"
    return found


def _preprocessing(plan: Plan, fixed: dict[str, Any]) -> Iterator[Transform]:
    channels = range(len(plan.channels))
    keys = ["image"] if len(channels) == 1 else [f"image_{channel}" for channel in channels]
    yield _transform("LoadImaged", keys, reader="NibabelReader", ensure_channel_first=True)
    if plan.orientation is not None:
        yield _transform("Orientationd", keys, axcodes=plan.orientation, labels=None)
    yield _transform("CopyItemsd", keys[:1], names="reference")
    for index, step in enumerate(plan.preprocessing):
        name, channel = f"preprocessing.{index}", getattr(step, "channel", None)
        of = keys if channel is None else [keys[channel]]
        match step:
            case CropToNonzero():
                yield _transform("ConcatItemsd", keys, name="every")
                crop = {"source_key": "every", "select_fn": "$lambda x: x != 0"}
                yield _transform("CropForegroundd", keys, **crop)
            case Clip(window=(low, high)):
                raise_if(step.scaled_scans == "keep", _refusal(f"{name}.scaled_scans"))
                limits = {"a_min": low, "a_max": high, "b_min": low, "b_max": high}
                yield _transform("ScaleIntensityRanged", of, **limits, clip=True)
            case Rescale(range=(low, high)):
                yield _transform("ScaleIntensityd", of, minv=low, maxv=high)
                if step.whole_numbers:
                    yield _transform("Lambdad", of, func="$lambda x: x.round()")
            case ZScore():
                earlier = (each.step for each in plan.preprocessing[:index])
                is_other = len(keys) > 1 or {*earlier} - {"crop_to_nonzero"}  # than MONAI's mask
                raise_if(step.nonzero and is_other, _refusal(f"{name}.nonzero"))
                raise_if(step.nonzero and step.fill_holes, _refusal(f"{name}.fill_holes"))
                values = {"subtrahend": step.mean, "divisor": step.std, "nonzero": step.nonzero}
                yield _transform("NormalizeIntensityd", of, **values)
            case Resample():
                raise_if(_is_flat(plan, step.anisotropy), _refusal(f"{name}.anisotropy"))
                target, how = list(plan.target_spacing_mm), fixed["round"][step.rounding]
                func = fixed["resample"].format(order=step.image_order, round=how, target=target)
                yield _transform("Lambdad", keys, func=func)
    if len(keys) > 1:
        yield _transform("ConcatItemsd", keys, name="image")
    yield _transform("EnsureTyped", ["image"], dtype="$torch.float32")


def _is_flat(plan: Plan, anisotropy: float | None) -> bool:
    target = [mm or 1.0 for mm in plan.target_spacing_mm]
    return plan.resamples and 0 in axis_orders(1, target, target, anisotropy)


def _postprocessing(plan: Plan, fixed: dict[str, Any]) -> Iterator[Transform]:
    """To the scan's own grid, then to the values of a label map; background outside of the crop."""
    yield from fixed["to_the_grid"]
    classes, func = plan.classes, "x[:-1].argmax(0, keepdim=True)"
    if classes.are_regions:  # the last of those that contain a voxel
        least = 0.5 if plan.inference.average == "probabilities" else 0.0
        numbers = f"torch.arange(1, {classes.outputs + 1}, device=x.device).view(-1, 1, 1, 1)"
        func = f"((x[:-1] > {least}) * {numbers}).amax(0, keepdim=True)"
    yield _transform("Lambdad", ["pred"], func=f"$lambda x: {func} * x[-1:]")
    values = {"orig_labels": list(range(len(classes.painted)))}
    yield _transform("MapLabelValued", ["pred"], **values, target_labels=list(classes.painted))
    kind = "$torch.uint8" if max(classes.painted) < 256 else "$torch.int32"
    yield _transform("SaveImaged", ["pred"], output_dtype=kind, **fixed["save"])


def _transform(transform: str, keys: Sequence[str], **settings: Any) -> Transform:
    return {"_target_": transform, "keys": list(keys), **settings}


def _metadata(plan: Plan) -> dict[str, Any]:
    fixed = read_json(FIXED)
    patch = fixed["array"] | {"spatial_shape": list(plan.sampling.patch_size)}
    image, pred = (
        patch | {"num_channels": len(names), "channel_def": dict(enumerate(names))}
        for names in (plan.channels, plan.classes.output_names)
    )
    formats = {"inputs": {"image": image}, "outputs": {"pred": pred}}
    found: dict[str, Any] = fixed["metadata"]
    found["changelog"] = {found["version"]: f"exported by autoseg {__version__}"}
    found |= {"pytorch_version": torch.__version__, "numpy_version": np.__version__}
    found["name"] = f"{plan.task}, plan {plan.name}"
    found["task"] = f"segmentation of {', '.join(list(plan.labels)[1:])}"
    return found | {"description": f"plan {plan.id} of autoseg", "network_data_format": formats}
