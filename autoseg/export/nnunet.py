"""nnU-Net v2's names and values for ours: axes, weights, networks (in both directions) and plans.

Arrays of nnU-Net are (channel, z, y, x), permuted by `transpose_forward`; its 2d networks lack the
first of these axes. Kernels are (output, input, *axes) in the same order.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autoseg.common.arrays import Triple
from autoseg.common.errors import AutosegError, raise_if
from autoseg.common.files import read_json
from autoseg.export.untrusted import COPIES
from autoseg.models.checkpoint import Tensors
from autoseg.plan.plan import CASCADE
from autoseg.plan.sections import Network
from autoseg.planner.rule_values import augmentation_values, normalisation

# Names in nnU-Net's files that stand for behaviour of ours, and what its files always have.
FACTS: dict[str, Any] = read_json(Path(__file__).with_name("nnunet.json"))
PACKAGE = "dynamic_network_architectures"
BLOCKS: dict[str, str] = FACTS["blocks"]  # network -> its key for the blocks of the encoder
PLAIN, RESIDUAL = BLOCKS
# Of `arch_kwargs` -> of our network, and the default.
LAYERS = {"kernel_sizes": "kernels", "strides": "strides"}
VALUES: dict[str, tuple[str, Any]] = FACTS["values"]
STATISTICS: dict[str, str] = FACTS["statistics"]  # of intensities; our name -> nnU-Net's
READERS: dict[str, str | None] = FACTS["readers"]  # -> the orientation that they bring scans to
# Trainers that build another network than the plans say.
BATCH_NORM_TRAINER, ONE_HEAD_TRAINER = "nnUNetTrainerBN", "nnUNetTrainerNoDeepSupervision"
LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Our heads, and what nnU-Net stores twice (`COPIES`), are not in `layer_names`.
HEADS = "decoder.seg_layers."
CROP = {"step": "crop_to_nonzero"}
Values = Mapping[str, Any]  # of nnU-Net's files


class AxisOrder(NamedTuple):
    """Where our axes x, y, z are in nnU-Net's arrays.

    Attributes:
        transpose_forward: of nnU-Net's plans.
        is_2d: whether the network lacks the first axis.
    """

    transpose_forward: Triple = (0, 1, 2)
    is_2d: bool = False

    @property
    def places(self) -> Triple:
        """For each of x, y, z the axis of nnU-Net's arrays."""
        x, y, z = (self.transpose_forward.index(2 - axis) for axis in range(3))
        return x, y, z

    def to_ours(self, entries: Sequence[Any], missing: Any = 1) -> list[Any]:
        """Entries for x, y, z, with `missing` for the axis that a 2d network lacks."""
        found = [missing, *entries] if self.is_2d else list(entries)
        return [found[place] for place in self.places]

    def to_nnunet(self, entries: Sequence[Any]) -> list[Any]:
        """Entries for nnU-Net's axes, from those for x, y, z."""
        return [entries[2 - axis] for axis in self.transpose_forward][int(self.is_2d) :]

    def weight_to_ours(self, weight: Tensor) -> Tensor:
        """A tensor of the network; all but kernels have no axes in space."""
        if weight.ndim < 3:
            return weight
        weight = weight.unsqueeze(2) if self.is_2d else weight
        return weight.permute(0, 1, *(2 + place for place in self.places)).contiguous()

    def weight_to_nnunet(self, weight: Tensor) -> Tensor:
        """The reverse of `weight_to_ours`."""
        if weight.ndim < 3:
            return weight
        weight = weight.permute(0, 1, *(4 - axis for axis in self.transpose_forward))
        return (weight[:, :, 0] if self.is_2d else weight).contiguous()


def layer_names(network: Network) -> dict[str, str]:
    """Our name of each layer with weights -> nnU-Net's; `up.*` and `heads.*` included."""
    names, stages = {}, len(network.features)
    norm = 2 if network.activation_first else 1

    def add(ours: str, theirs: str, norm: int = norm) -> None:
        names[f"{ours}.0"], names[f"{ours}.{norm}"] = f"{theirs}.conv", f"{theirs}.norm"

    if network.residual:
        add("stem", "encoder.stem.convs.0")
    for stage, count in enumerate(network.blocks_encoder):
        for index in range(count):
            ours = f"encoder.{stage}.{index}"
            if not network.residual:
                add(ours, f"encoder.stages.{stage}.0.convs.{index}")
                continue
            theirs = f"encoder.stages.{stage}.blocks.{index}"
            add(f"{ours}.first", f"{theirs}.conv1")
            add(f"{ours}.second", f"{theirs}.conv2", norm=1)
            if stage and index == 0 and network.features[stage] != network.features[stage - 1]:
                at = int(network.strides[stage] != (1, 1, 1))  # after the pooling, if any
                names[f"{ours}.shortcut.{at}"] = f"{theirs}.skip.{at}.conv"
                names[f"{ours}.shortcut.{at + 1}"] = f"{theirs}.skip.{at}.norm"
    for index, count in enumerate(reversed(network.blocks_decoder)):  # coarsest first
        names[f"up.{index}"] = f"decoder.transpconvs.{index}"
        for convolution in range(count):
            add(f"decoder.{index}.{convolution}", f"decoder.stages.{index}.convs.{convolution}")
    for head in range(network.supervised):
        names[f"heads.{head}"] = f"{HEADS}{stages - 2 - head}"
    return names


def weights_to_ours(weights: Mapping[str, Tensor], network: Network, order: AxisOrder) -> Tensors:
    """nnU-Net's weights under our names.

    Raises:
        AutosegError: there are weights that such a network does not have.
    """
    found: Tensors = {}
    taken = set()
    for ours, theirs in layer_names(network).items():
        for leaf in LEAVES:
            if (name := f"{theirs}.{leaf}") in weights:
                taken.add(name)
                is_bias = name.endswith(".conv.bias")
                if not is_bias or network.convolution_bias or weights[name].any():  # no zeros
                    found[f"{ours}.{leaf}"] = order.weight_to_ours(weights[name])
        if ours.startswith("up.") and f"{ours}.weight" in found:  # ours always has a bias
            found.setdefault(f"{ours}.bias", torch.zeros(found[f"{ours}.weight"].shape[1]))
    for name in weights.keys() - taken:
        if not name.startswith(HEADS) and not any(copy in name for copy in COPIES):
            raise AutosegError(f"{name!r} is not in the network of its plans")
    return found


# The network: nnU-Net's `architecture` and our `network`.


def network_to_ours(architecture: Values, order: AxisOrder) -> dict[str, Any]:
    """The values of our `network` for an `architecture` of nnU-Net's plans.

    Raises:
        AutosegError: our U-Net cannot be this network; the message names the key.
    """
    name, given = architecture["network_class_name"], dict(architecture["arch_kwargs"])
    package, _, kind = name.rpartition(".")
    if kind not in BLOCKS or not f"{package}.".startswith(f"{PACKAGE}."):
        raise AutosegError(f"the network is {name}; {PLAIN} and {RESIDUAL} can be imported")
    for key in ("norm_op_kwargs", "nonlin_kwargs"):
        given |= {f"{key}.{name}": value for name, value in (given.pop(key, None) or {}).items()}
    stages, dimensions = given.pop("n_stages"), "2d" if order.is_2d else "3d"
    norm, activation = (_last(given.get(key)) for key in ("norm_op", "nonlin"))
    features = _for_each(given.pop("features_per_stage"), stages)
    values = {
        "features": features,
        "blocks_encoder": _for_each(given.pop(BLOCKS[kind]), stages),
        "blocks_decoder": _for_each(given.pop("n_conv_per_stage_decoder"), stages - 1)[::-1],
        "residual": kind == RESIDUAL,
        "norm": FACTS["norms"].get(norm.removesuffix(dimensions)),
        "activation": FACTS["activations"].get(activation),
        **{ours: _axes(given.pop(theirs), stages, order) for theirs, ours in LAYERS.items()},
        **{ours: given.pop(theirs, default) for theirs, (ours, default) in VALUES.items()},
    }
    if values["residual"] and values["activation_first"]:
        given["nonlin_first"] = True
    given.setdefault("norm_op_kwargs.affine", norm.startswith("BatchNorm"))
    known = FACTS["known"] | {"conv_op": f"Conv{dimensions}", "stem_channels": str(features[0])}
    known |= {"norm_op": norm} if values["norm"] else {}
    known |= {"nonlin": activation} if values["activation"] else {}
    for key, value in given.items():
        if value is not None and key not in FACTS["not_used"] and _last(value) != known.get(key):
            raise AutosegError(f"the network has {key} {value}, which our U-Net does not have")
    return values


def _last(value: Any) -> str:
    """The last part of a dotted name."""
    return str(value).rpartition(".")[2]


def _for_each(value: Any, stages: int) -> list[Any]:
    return [value] * stages if isinstance(value, int) else list(value)


def _axes(values: Any, stages: int, order: AxisOrder) -> list[list[int]]:
    axes = 2 if order.is_2d else 3
    return [order.to_ours(_for_each(value, axes)) for value in _for_each(values, stages)]


def architecture_of(configuration: Values, is_2d: bool) -> dict[str, Any]:
    """The `architecture` of a configuration; plans of nnU-Net before 2.4 state it in other keys."""
    if "architecture" in configuration:
        return dict(configuration["architecture"])
    kind, dimensions = configuration["UNet_class_name"], "2d" if is_2d else "3d"
    first, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
    blocks = list(configuration["n_conv_per_stage_encoder"])
    values = FACTS["old_architecture"] | {"n_stages": len(blocks)}
    values["features_per_stage"] = [min(first * 2**i, most) for i in range(len(blocks))]
    values |= {"conv_op": f"Conv{dimensions}", "norm_op": f"InstanceNorm{dimensions}"}
    values |= {key: configuration[old] for key, old in FACTS["old_keys"].items()}
    values[BLOCKS.get(kind, "n_conv_per_stage")] = blocks
    name = f"{PACKAGE}.architectures.unet.{kind}"
    return {"network_class_name": name, "arch_kwargs": values}


# The plan.


def configuration_of(plans: Values, name: str, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration of nnU-Net's plans with what it inherits; `heirs` inherit from it."""
    if name in heirs:
        raise AutosegError(f"the configurations {', '.join(heirs)} inherit from each other")
    own = dict(plans["configurations"][name])
    if (parent := own.pop("inherits_from", None)) is None:
        return own
    return configuration_of(plans, parent, (*heirs, name)) | own


def axis_order_of(plans: Values, configuration: Values) -> AxisOrder:
    """The axes of a configuration."""
    forward = plans.get("transpose_forward", [0, 1, 2])
    raise_if(sorted(forward) != [0, 1, 2], AutosegError(f"transpose_forward is {forward}"))
    return AxisOrder(tuple(forward), len(configuration["patch_size"]) == 2)


def plan_to_ours(
    plans: Values, configuration: Values, dataset: Values, state: Values, order: AxisOrder
) -> dict[str, Any]:
    """The values of our plan."""
    network = network_to_ours(architecture_of(configuration, order.is_2d), order)
    network["deep_supervision"] = state["trainer_name"] != ONE_HEAD_TRAINER
    if state["trainer_name"] == BATCH_NORM_TRAINER:
        network |= {"norm": "batch", "norm_epsilon": 1e-5, "norm_momentum": 0.1}
    channels = dataset["modality" if "modality" in dataset else "channel_names"]
    channels = [str(channels[key]) for key in sorted(channels, key=int)]
    name = state["configuration"]
    kind = CASCADE if configuration.get("previous_stage") else "3d_fullres"
    kind = "2d" if order.is_2d else "3d_lowres" if name == "3d_lowres" else kind
    patch = order.to_ours(configuration["patch_size"])
    mirror = sorted(order.places.index(axis + order.is_2d) for axis in state["mirror_axes"] or ())
    resampling, logits = _resampling(configuration)
    given = {"source": f"nnU-Net: {state['trainer_name']}, {plans.get('plans_name')}, {name}"}
    guessed = {"source": "nnU-Net's default; a trainer's own values are not in its files"}
    normalisation_steps = _normalisation(plans, configuration, len(channels))
    loss = {"loss": "dice_cross_entropy", "batch_dice": bool(configuration.get("batch_dice"))}
    inference = FACTS["inference"] | {"overlap": [size // 2 for size in patch]}
    inference |= {"slide_axis": order.places.index(0), "anisotropy": logits}
    inference |= {"mirror_axes": mirror, "mirror": bool(mirror)}
    provenance = dict.fromkeys(("preprocessing", "sampling", "network", "inference"), given)
    provenance |= dict.fromkeys(("augmentation", "training"), guessed)
    return {
        "task": str(plans["dataset_name"]),
        "configuration": kind,
        "channels": channels,
        **_labels(dataset),
        "orientation": READERS[plans["image_reader_writer"]],
        "target_spacing_mm": order.to_ours(configuration["spacing"], None),
        "preprocessing": [CROP, *normalisation_steps, FACTS["resample"] | resampling],
        "sampling": {"patch_size": patch, "batch_size": configuration["batch_size"]},
        "augmentation": augmentation_values(kind, order.is_2d, patch, mirror),
        "network": network,
        "training": {"epochs": state["epochs"] or 1000, "loss": loss, "precision": "nnunet"},
        "inference": inference,
        "provenance": provenance,
    }


def _labels(dataset: Values) -> dict[str, Any]:
    """Our `labels`, `ignore_label` and `regions_class_order`."""
    sets = {
        name: [int(value) for value in (found if isinstance(found, list) else [found])]
        for name, found in dataset["labels"].items()
    }
    ignored = sets.pop("ignore", None)
    background = sets.pop("background")
    if any(len(values) > 1 for values in sets.values()):
        order = [int(value) for value in dataset["regions_class_order"]]
        foreground = {name: values for name, values in sets.items() if set(values) != {0}}
    else:  # the outputs of the network are in the order of the values
        order, foreground = None, dict(sorted(sets.items(), key=lambda item: item[1]))
        values = [value for covered in foreground.values() for value in covered]
        if values != list(range(1, len(values) + 1)):
            raise AutosegError(f"the labels are {values}, not consecutive numbers from 1")
    labels = {"background": background, **foreground}
    ignore_label = ignored and ignored[0]
    return {"labels": labels, "ignore_label": ignore_label, "regions_class_order": order}


def _normalisation(plans: Values, configuration: Values, channels: int) -> Iterator[dict[str, Any]]:
    """The steps for each channel's scheme."""
    schemes, masks = configuration["normalization_schemes"], configuration["use_mask_for_norm"]
    if not len(schemes) == len(masks) == channels:
        raise AutosegError(f"normalization_schemes has {len(schemes)} entries for {channels}")
    for channel, (scheme, masked) in enumerate(zip(schemes, masks, strict=True)):
        figures: list[float] = []
        if scheme == "CTNormalization":
            found = intensities_of(plans)[str(channel)]
            figures = [float(found[STATISTICS[key]]) for key in ("p00_5", "p99_5", "mean", "std")]
            if not figures[0] < figures[1]:
                raise AutosegError(f"the intensities of channel {channel} have no range to clip to")
        if (steps := normalisation(channel, scheme, masked, True, figures)) is None:
            raise AutosegError(f"normalization_schemes has {scheme}")
        yield from steps


def intensities_of(plans: Values) -> dict[str, Any]:
    """Channel number -> statistics of the foreground."""
    found = plans.get("foreground_intensity_properties_by_modality", {})
    return dict(plans.get("foreground_intensity_properties_per_channel", found))


def _resampling(configuration: Values) -> tuple[dict[str, Any], float | None]:
    """Orders and anisotropy of the image and label maps, and anisotropy of the logits."""
    found = {}
    for what, orders in FACTS["resampling_orders"].items():
        key = f"resampling_fn_{what}"
        if (name := configuration[key]) != "resample_data_or_seg_to_shape":
            raise AutosegError(f"{key} is {name}, not resample_data_or_seg_to_shape")
        given = dict(configuration[f"{key}_kwargs"])
        order, order_z = given.pop("order", 3), given.pop("order_z", 0)
        limit = given.pop("separate_z_anisotropy_threshold", 3.0)
        if (forced := given.pop("force_separate_z", False)) is not None:
            limit = 0.5 if forced else None  # every ratio of spacings is above the one
        if order not in orders or (order_z != 0 and limit is not None):
            raise AutosegError(f"{key}_kwargs has order {order} and order_z {order_z}")
        if given.pop("is_seg", what == "seg") != (what == "seg") or given:
            raise AutosegError(f"{key}_kwargs has unknown values: {sorted(given) or 'is_seg'}")
        found[what] = order, limit
    if found["seg"][1] != found["data"][1] and configuration.get("previous_stage"):
        raise AutosegError("resampling_fn_seg_kwargs separates other axes than those of data")
    image, anisotropy = found["data"]
    orders_of = {"image_order": image, "label_order": found["seg"][0]}
    return orders_of | {"anisotropy": anisotropy}, found["probabilities"][1]
