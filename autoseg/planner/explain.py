"""A plan as a table: every value, why it was chosen, and what it replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autoseg.common.progress import by_axis
from autoseg.plan.plan import Plan, Provenance
from autoseg.planner.rule_values import A_FOLD_EACH, DECLARED, LEFT_OUT

# The keys of a plan in plain words, with units: what `--explain` shows.

GROUPS = {
    "data": (
        "configuration",
        "previous_stage",
        "channels",
        "labels",
        "ignore_label",
        "regions_class_order",
        "skipped_cases",
        "shares",
    ),
    "preprocessing": ("target_spacing_mm", "preprocessing"),
    "patches": ("sampling",),
    "augmentation": ("augmentation",),
    "network": ("network",),
    "training": ("training",),
    "cross-validation": ("splits",),
    "prediction": ("inference",),
    "evaluation": ("evaluation",),
}

# key -> words, unit
WORDS = {
    "configuration": ("configuration", ""),
    "previous_stage": ("plan that this one refines", ""),
    "channels": ("image channels", ""),
    "labels": ("classes and their label values", ""),
    "ignore_label": ("label value that nobody annotated", ""),
    "regions_class_order": ("order in which regions are painted", ""),
    "skipped_cases": ("bad cases left out", ""),
    "shares": ("volumes reported as a share", ""),
    "target_spacing_mm": ("voxel size for the network (x, y, z)", "mm"),
    "preprocessing": ("step", ""),
    "sampling.patch_size": ("patch that the network sees (x, y, z)", "voxels"),
    "sampling.batch_size": ("patches in a batch", ""),
    "sampling.foreground_share": ("patches centred on a labelled voxel", "share"),
    "sampling.foreground_mode": ("which of a batch these are", ""),
    "augmentation": ("random change", ""),
    "network.features": ("feature maps of each stage", ""),
    "network.strides": ("reduction on entering each stage", "voxels"),
    "network.kernels": ("convolution kernel of each stage", "voxels"),
    "network.blocks_encoder": ("blocks of each stage, going down", ""),
    "network.blocks_decoder": ("blocks of each stage, going up", ""),
    "network.residual": ("residual blocks going down", ""),
    "network.down": ("how a stage is reduced", ""),
    "network.norm": ("normalisation layers", ""),
    "network.norm_momentum": ("momentum of their running means", ""),
    "network.norm_epsilon": ("smallest variance they divide by", ""),
    "network.activation": ("activation", ""),
    "network.activation_first": ("activation before normalisation", ""),
    "network.convolution_bias": ("convolutions add a constant", ""),
    "network.initialisation": ("first random weights", ""),
    "network.deep_supervision": ("coarser stages are trained, too", ""),
    "training.seed": ("seed of all random numbers", ""),
    "training.epochs": ("epochs", ""),
    "training.steps_per_epoch": ("training steps in an epoch", ""),
    "training.validation_steps": ("validation batches after an epoch", ""),
    "training.augment_validation": ("validation batches are changed, too", ""),
    "training.augment_on": ("where images are changed", ""),
    "training.seconds": ("time for one fold", "s"),
    "training.early_stopping_epochs": ("stop without progress for", "epochs"),
    "training.loss.loss": ("loss", ""),
    "training.loss.batch_dice": ("Dice over the batch as one volume", ""),
    "training.loss.smooth": ("smoothing of the overlap", ""),
    "training.loss.background": ("background counts in the Dice", ""),
    "training.loss.alpha": ("weight of missed voxels", ""),
    "training.loss.beta": ("weight of wrongly found voxels", ""),
    "training.optimizer.optimizer": ("optimiser", ""),
    "training.optimizer.learning_rate": ("learning rate at the start", ""),
    "training.optimizer.momentum": ("momentum", ""),
    "training.optimizer.nesterov": ("Nesterov's momentum", ""),
    "training.optimizer.weight_decay": ("weight decay", ""),
    "training.optimizer.betas": ("Adam's betas", ""),
    "training.optimizer.epsilon": ("Adam's epsilon", ""),
    "training.optimizer.decoupled": ("weight decay apart from the gradient", ""),
    "training.schedule.schedule": ("how the learning rate falls", ""),
    "training.schedule.exponent": ("exponent of that fall", ""),
    "training.schedule.warmup": ("part in which it rises first", "share"),
    "training.schedule.factor": ("factor of each fall", ""),
    "training.schedule.patience_epochs": ("falls after no progress for", "epochs"),
    "training.schedule.min_delta": ("what counts as progress", ""),
    "training.schedule.cooldown_epochs": ("pause after a fall", "epochs"),
    "training.schedule.floor": ("lowest learning rate", ""),
    "training.gradient_clip": ("longest gradient", ""),
    "training.average_decay": ("decay of the averaged weights", ""),
    "training.precision": ("number format", ""),
    "training.compile": ("network compiled before training", ""),
    "training.keep": ("weights that prediction uses", ""),
    "splits.folds": ("folds", ""),
    "splits.seed": ("seed of their shuffle", ""),
    "inference.overlap": ("overlap of neighbouring patches (x, y, z)", "voxels"),
    "inference.weighting": ("weight of a patch's voxels", ""),
    "inference.mirror_axes": ("axes that --tta mirrors", ""),
    "evaluation.tolerance_mm": ("surfaces this close agree", "mm"),
    "evaluation.tolerances": ("surfaces of some classes agree", ""),
    "evaluation.merged": ("classes reported together", ""),
    "evaluation.colours": ("colour of some classes in figures", ""),
}

ORDERS = {0: "nearest", 1: "linear", 3: "cubic"}
CT = "ct"


def group_of(key: str) -> str:
    """The heading that a key stands under."""
    first = key.split(".")[0]
    return next(group for group, keys in GROUPS.items() if first in keys)


def name_of(key: str) -> str:
    """A key in words; entries of a list are counted from 1."""
    words, _ = WORDS.get(key) or WORDS[key.rpartition(".")[0]]
    number = key.rpartition(".")[2]
    return f"{words} {int(number) + 1}" if number.isdecimal() else words


def value_of(key: str, value: Any, channels: Sequence[str]) -> str:
    """A value in words, with its unit.

    Args:
        key: dotted, such as `sampling.patch_size`.
        value: as JSON values.
        channels: the plan's, by which intensities have a unit.
    """
    if isinstance(value, dict) and "step" in value:
        return _step(value, channels)
    if isinstance(value, dict) and "transform" in value:
        return _transform(value)
    if key.startswith("shares."):
        whole = ", ".join(map(str, [value["label"], *value["container"]]))
        return f"label {value['label']} as a part of labels {whole}"
    if key.startswith("evaluation.") and isinstance(value, dict):
        labels = ", ".join(map(str, value["labels"]))
        if "mm" in value:
            return f"labels {labels}: {value['mm']:g} mm"
        if "colour" in value:
            return f"labels {labels}: {value['colour']}"
        return f"{value['name']}: mean of labels {labels}"
    _, unit = WORDS[key]
    if key == "target_spacing_mm":
        return by_axis("each scan's own" if mm is None else f"{mm:.6g}" for mm in value) + " mm"
    if key == "inference.mirror_axes":
        return ", ".join("xyz"[axis] for axis in value) or "none"
    if unit == "share":
        return percent(value)
    text = by_axis(map(_plain, value)) if unit and _is_flat(value) else _plain(value)
    return f"{text} {unit}" if unit and value is not None else text


def percent(share: float) -> str:
    """A share as people write it."""
    return f"{100 * share:.4g} %"


def _step(step: dict[str, Any], channels: Sequence[str]) -> str:
    channel = step.get("channel")
    of = "" if channel is None or len(channels) == 1 else f" ({channels[channel]})"
    names = channels if channel is None else [channels[channel]]
    unit = " HU" if all(name.casefold() == CT for name in names) else ""
    match step["step"]:
        case "crop_to_nonzero":
            return "cut away the border where every channel is 0"
        case "clip":
            return f"limit intensities to {_range(step['window'])}{unit}{of}"
        case "rescale":
            rounded = ", in whole numbers" if step["whole_numbers"] else ""
            return f"map each case's intensities to {_range(step['range'])}{rounded}{of}"
        case "resample":
            ratio = step["anisotropy"]
            coarse = f"; nearest along an axis over {ratio:g} x as coarse" if ratio else ""
            return (
                f"resample to the voxel size: image {ORDERS[step['image_order']]}, labels "
                f"{ORDERS[step['label_order']]}, sizes rounded {_rounding(step)}{coarse}"
            )
        case _:
            return f"{_z_score(step, unit)}{of}"


def _rounding(step: dict[str, Any]) -> str:
    return "down" if step["rounding"] == "down" else "to the nearest"


def _z_score(step: dict[str, Any], unit: str) -> str:
    inside = ", of the voxels that are not 0" if step["nonzero"] else ""
    mean, std = step["mean"], step["std"]
    less = "the case's mean" if mean is None else f"{mean:.6g}{unit}"
    by = "its standard deviation" if std is None else f"{std:.6g}{unit}"
    return f"subtract {less}, divide by {by}{inside}"


def _transform(values: dict[str, Any]) -> str:
    """Name and settings; what has no chance to happen is left out."""
    told = []
    for name, value in values.items():
        kind = name.rpartition("_")[0]
        if name == "transform" or (kind and values.get(f"{kind}_probability") == 0):
            continue
        told.append(f"{name.replace('_', ' ')} {_setting(name, value)}")
    kind = str(values["transform"]).replace("_", " ")
    return f"{kind}: {', '.join(told)}" if told else kind


def _setting(name: str, value: Any) -> str:
    if name.endswith("probability"):
        return percent(value)
    if name.endswith("degrees"):
        turns = [f"{axis} {_range(limits)}°" for axis, limits in zip("xyz", value, strict=True)]
        return " ".join(turns)
    if name == "axes":
        return " ".join("xyz"[axis] for axis in value) or "none"
    if name.endswith("_order"):
        return ORDERS[value]
    if isinstance(value, list):
        return _range(value)
    return _plain(value)


def _range(limits: Sequence[float]) -> str:
    low, high = limits
    return f"{low:.6g} to {high:.6g}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return _list(value)
    return str(value).replace("_", " ")


def _list(value: list[Any]) -> str:
    if not value:
        return "none"
    nested = (by_axis(map(_plain, entry)) if _is_flat(entry) else _plain(entry) for entry in value)
    return ", ".join(nested)


def _is_flat(value: Any) -> bool:
    """One number for each axis?"""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(entry, int | float) for entry in value)
    )


HIDDEN = ("format_version", "provenance", "measured", "task", "name")
DEFAULT = Provenance(source="default")
RULE, REFERENCE = "rule: ", "reference plan "
WIDTH = 120
SOURCES = {  # of rules that are not nnU-Net's
    DECLARED: "dataset.json",
    LEFT_OUT: "--skip-bad-cases",
    A_FOLD_EACH: "own rule",
}


@dataclass(frozen=True)
class Explained:
    """One value of a plan, in words.

    Attributes:
        key: as `--set` takes it.
        name: the key in words.
        value: with its unit.
        rule: which rule chose it, if one did.
        evidence: the figures that decided.
        source: rules, default, reference plan, overrides file, ...
        replaced: what the rules alone would have chosen, where it was replaced.
    """

    key: str
    name: str
    value: str
    rule: str
    evidence: str
    source: str
    replaced: str

    @property
    def why(self) -> str:
        """Rule, evidence and what was replaced, in one cell."""
        parts = [": ".join(part for part in (self.rule, self.evidence) if part)]
        if self.replaced:
            parts.append(f"the rules alone: {self.replaced}")
        return "; ".join(part for part in parts if part)


def explain(plan: Plan) -> None:
    """Print the plan as a table on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # Names and figures may hold brackets and colons: they are text, not rich's markup.
    table = Table(
        title=f"Plan {plan.name} of {plan.task} (id {plan.id})", box=SIMPLE_HEAD, pad_edge=False
    )
    for heading, share in (("what, and its key", 35), ("value", 28), ("why", 32), ("source", 19)):
        table.add_column(heading, overflow="fold", ratio=share)
    found = rows(plan)
    for group in GROUPS:
        table.add_row(group.upper())
        for row in (row for row in found if group_of(row.key) == group):
            table.add_row(f"{row.name}\n  {row.key}", row.value, row.why, row.source)
        table.add_section()
    table.expand = True
    # Without a terminal there is no width to fit; a wide one makes lines that nobody can follow.
    console = Console(markup=False, emoji=False)
    width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    narrow = Console(width=width, markup=False, emoji=False, highlight=False)
    narrow.print(table)
    for name, citation in citations(plan).items():
        narrow.print(f"{REFERENCE}{name}: {citation}")


def citations(plan: Plan) -> dict[str, str]:
    """Reference plan -> where its values come from."""
    sources = {why.source: why.evidence for why in plan.provenance.values()}
    return {
        source.removeprefix(REFERENCE): citation
        for source, citation in sorted(sources.items())
        if source.startswith(REFERENCE) and citation
    }


def rows(plan: Plan) -> list[Explained]:
    """One row for each value, in the plan's order."""
    values = plan.model_dump(mode="json", exclude=set(HIDDEN))
    return [_row(plan, key, value) for key, value in _leaves(values)]


def _row(plan: Plan, key: str, value: Any) -> Explained:
    why, origin = _provenance(plan, key)
    ruled, published = why.source.startswith(RULE), why.source.startswith(REFERENCE)
    told = value_of(key, value, plan.channels)
    if key == "target_spacing_mm" and not plan.resamples:
        told += " (not used: no step resamples)"
    replaced = "" if ruled or why is DEFAULT else _replaced(why.rule_value, key, origin, plan)
    if key not in (origin, f"{origin}.0"):  # of a list, the first entry tells it for all
        why = why.model_copy(update={"evidence": "", "rule_value": None})
    return Explained(
        key=key,
        name=name_of(key),
        value=told,
        rule=why.source.removeprefix(RULE) if ruled and (why.evidence or key == origin) else "",
        evidence="" if published else why.evidence,
        source=_source(why.source),
        replaced="the same" if replaced == told else replaced,
    )


def _source(source: str) -> str:
    if source.startswith(RULE):
        return SOURCES.get(source.removeprefix(RULE), "nnU-Net's rules")
    return source.removeprefix(REFERENCE)


def _replaced(value: Any, key: str, origin: str, plan: Plan) -> str:
    """The rules' value; of a list of steps only their kinds, and only once."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        kinds = [str(next(iter(entry.values()))).replace("_", " ") for entry in value]
        return ", ".join(kinds) if key in (origin, f"{origin}.0") else ""
    if value is None or key != origin:
        return "nothing" if key in (origin, f"{origin}.0") else ""
    return value_of(key, value, plan.channels)


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        whole = f"{path}{key}"
        if isinstance(value, dict) and value and whole != "labels":
            yield from _leaves(value, f"{whole}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, entry in enumerate(value):
                yield f"{whole}.{index}", entry
        else:
            yield whole, value


def _provenance(plan: Plan, key: str) -> tuple[Provenance, str]:
    """That of the key, or of the closest part that it belongs to, and that part's key."""
    parts: Sequence[str] = key.split(".")
    for length in range(len(parts), 0, -1):
        part = ".".join(parts[:length])
        found = plan.provenance.get(part)
        if found is not None:
            return found, part
    return DEFAULT, key
