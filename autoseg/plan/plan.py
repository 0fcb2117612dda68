"""The plan: one JSON file that decides everything that changes a result.

A `Plan` is frozen and validated when it is created: unknown keys, invalid values and sections that
do not fit together are errors that name the key. All sizes and spacings are in x, y, z order.
A plan is read from JSON, its first error described, and compared with others.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from autoseg.common.errors import PlanError
from autoseg.common.files import read_json, write_json
from autoseg.common.pages import fill
from autoseg.common.progress import counted
from autoseg.plan import augmentation as patches
from autoseg.plan import labels, sections
from autoseg.plan.labels import Classes, Evaluation, SegmentCode
from autoseg.plan.sections import SINCE_0_2, fault_if

FORMAT_VERSION = 1
TABLE = Path(__file__).with_name("plan.html.j2")  # for notebooks
CASCADE = "3d_cascade_fullres"
ConfigurationName = Literal["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class VolumeShare(sections.Section):
    """A volume that predictions report as a share, e.g. infection / (lungs + infection)."""

    label: int
    container: Annotated[tuple[int, ...], Field(min_length=1)]


class Provenance(sections.Section):
    """Why a value was chosen."""

    source: str
    evidence: str = ""
    citation: str = ""
    rule_value: Any = None
    own_rule: Any = None


class Plan(sections.Section):
    """Everything that changes a result, for one configuration of one task.

    >>> import autoseg
    >>> plan = autoseg.load_plan("models/Task004_Hippocampus/default/plan.json")
    >>> isinstance(plan, autoseg.Plan), plan.channels, plan.training.epochs
    (True, ('MRI',), 1)
    """

    format_version: Literal[1] = 1
    task: str
    name: str = Field("default", pattern=r"^\w[\w.-]*$")
    configuration: ConfigurationName = "3d_fullres"
    previous_stage: str | None = None
    channels: Names
    labels: dict[str, Annotated[tuple[sections.LabelValue, ...], Field(min_length=1)]]
    ignore_label: sections.LabelValue | None = None
    regions_class_order: tuple[sections.LabelValue, ...] | None = None
    skipped_cases: tuple[str, ...] = ()
    shares: tuple[VolumeShare, ...] = ()
    annotated: dict[str, Names] = Field(default_factory=dict, json_schema_extra=SINCE_0_2)
    orientation: sections.Orientation | None = Field(None, json_schema_extra=SINCE_0_2)
    mirrored_labels: tuple[sections.Pair, ...] = Field((), json_schema_extra=SINCE_0_2)
    target_spacing_mm: sections.Spacing
    preprocessing: tuple[sections.Step, ...]
    sampling: patches.Sampling
    augmentation: tuple[patches.Transform, ...]
    network: sections.Network
    training: sections.Training
    splits: sections.Splits = sections.Splits()
    inference: sections.Inference
    evaluation: Evaluation = Evaluation()
    codes: dict[str, SegmentCode] = Field(default_factory=dict, json_schema_extra=SINCE_0_2)
    measured: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Provenance] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._check_patch()
        self._check_steps()
        self._check_labels()
        self.evaluation.check(self.labels)
        self._check_stage()
        return self

    def _check_patch(self) -> None:
        patch, reduction = self.sampling.patch_size, self.network.reduction
        for axis, size, factor in zip("xyz", patch, reduction, strict=True):
            below = size // factor * factor
            fitting = f"{below} or {below + factor}" if below else factor
            sizes = {"size": size, "factor": factor, "fitting": fitting}
            fault_if(size % factor, "patch", axis=axis, **sizes)
        half = [size // 2 for size in patch]
        for axis, size, overlap in zip("xyz", patch, self.inference.overlap, strict=True):
            limits = {"most": size - 1, "half": half}
            fault_if(not 0 <= overlap < size, "overlap", overlap=overlap, axis=axis, **limits)
        fault_if(self.network.norm == "instance" and patch == reduction, "instance norm")
        untrained = sorted(set(self.inference.mirror_axes) - self.mirrored_axes)
        fault_if(untrained, "mirror axes", axes=untrained)

    def _check_steps(self) -> None:
        order = [step.step for step in self.preprocessing]
        after = order[order.index("resample") :] if "resample" in order else []
        fault_if("crop_to_nonzero" in after, "crop")
        count = len(self.channels)
        for index, step in enumerate(self.preprocessing):
            found = {"index": index, "channel": getattr(step, "channel", None)}
            is_wrong = (found["channel"] or 0) >= count
            fault_if(is_wrong, "channel", count=counted(count, "channel"), **found)

    def _check_labels(self) -> None:
        labels.check_labels(self.labels, self.ignore_label)
        labels.check_regions(self.labels, self.regions_class_order)
        labels.check_codes(self.codes, self.labels)
        has_background = getattr(self.training.loss, "background", False)
        fault_if(self.regions_class_order and has_background, "background of regions")
        labels.check_mirrored(self.labels, self.mirrored_labels)
        for case, names in self.annotated.items():
            strange = sorted(set(names) - set(self.classes.names[1:]))
            fault_if(strange, "annotated", names=strange, case=case)
        mixed = self.sampling.mix_probability
        fault_if(self.annotated and mixed, "mixed", share=mixed)
        is_known = self.orientation is not None
        fault_if(self.mirrored_labels and not is_known, "mirrored, no orientation")
        for share in self.shares:
            fault_if(share.label in share.container, "share", label=share.label)
            unknown = sorted({share.label, *share.container} - labels.values_of(self.labels))
            fault_if(unknown, "no class", key="shares", values=unknown)

    def _check_stage(self) -> None:
        found, name = self.previous_stage, self.configuration
        is_wrong = (name == CASCADE) != (found is not None)
        fault_if(is_wrong, "stage", found=found, configuration=name)
        for index, entry in enumerate(self.augmentation if found is None else ()):
            is_wrong = isinstance(entry, patches.Previous)
            fault_if(is_wrong, "no stage", index=index, transform=entry.transform)

    @property
    def mirrored_axes(self) -> set[int]:
        """The axes that are mirrored in training."""
        mirrors = [entry for entry in self.augmentation if isinstance(entry, patches.Mirror)]
        return {axis for entry in mirrors for axis in entry.axes}

    @property
    def left_right(self) -> int | None:
        """The axis from one side of the patient to the other; None without an orientation."""
        code = self.orientation or ""
        return next((axis for axis, letter in enumerate(code) if letter in "LR"), None)

    @property
    def exchanged_parts(self) -> tuple[int, ...]:
        """The part (see `Classes`) that each becomes if left and right are exchanged."""
        return labels.exchange(self.classes.parts, self.mirrored_labels)

    @property
    def exchanged_outputs(self) -> tuple[int, ...]:
        """The output of the network that each becomes if left and right are exchanged."""
        sets = list(self.labels.values())
        return labels.exchange(sets[len(sets) - self.classes.outputs :], self.mirrored_labels)

    @property
    def resamples(self) -> bool:
        """Whether the cases are resampled to the target spacing."""
        return any(isinstance(step, sections.Resample) for step in self.preprocessing)

    def target_spacing_of(self, spacing_mm: Sequence[float]) -> tuple[float, float, float]:
        """The spacing to which a scan with this spacing is resampled."""
        pairs = zip(self.target_spacing_mm, spacing_mm, strict=True)
        x, y, z = (own if target is None else target for target, own in pairs)
        return x, y, z

    @property
    def classes(self) -> Classes:
        """What the network learns to distinguish."""
        return labels.classes_of(self.labels, self.regions_class_order)

    def unannotated_outputs(self, case: str) -> list[int]:
        """The outputs of the network for the classes that were not annotated in a case."""
        known = {self.classes.names[0], *self.annotated.get(case, self.classes.names)}
        return [i for i, name in enumerate(self.classes.output_names) if name not in known]

    @property
    def input_channels(self) -> int:
        """Input maps of the network: image channels, plus one per part of a previous stage."""
        previous = 0 if self.previous_stage is None else len(self.classes.parts) - 1
        return len(self.channels) + previous

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that change with every value that affects a model.

        Keys added after version 0.1.0 count only if they differ from their default.
        """
        no_effect = {"provenance", "measured", "evaluation", "codes"}
        return _digest(self.model_dump(mode="json", exclude=no_effect, context=sections.FOR_ID))

    @property
    def preprocessing_id(self) -> str:
        """Like `id`, but only for the values that affect a preprocessed case."""
        keys = {"channels", "labels", "ignore_label", "orientation"}
        keys |= {"target_spacing_mm", "preprocessing"}
        values = self.model_dump(mode="json", include=keys, context=sections.FOR_ID)
        return _digest(values | ({"regions": True} if self.classes.are_regions else {}))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values, preceded by its id."""
        return {"id": self.id, **self.model_dump(mode="json")}

    def _repr_html_(self) -> str:
        """Each value with its reason and source, as in `--explain`, for notebooks."""
        values = self.model_dump(mode="json", exclude={"provenance", "measured"})
        return fill(TABLE, plan=self, values=values, provenance=self.provenance)

    def save(self, path: Path) -> None:
        """Write the plan, atomically."""
        write_json(path, self.to_json())


def _digest(values: dict[str, Any]) -> str:
    # Keys are not sorted: the order of the labels decides the class indices.
    text = json.dumps(values, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


LISTS_OF_KINDS = (("preprocessing",), ("augmentation",))
KINDS = (("training", "loss"), ("training", "optimizer"), ("training", "schedule"))


def load_plan(path: Path | str) -> Plan:
    """Read and validate a plan file.

    >>> import autoseg
    >>> plan = autoseg.load_plan("preprocessed/Task004_Hippocampus/default/plan.json")
    >>> plan.task, plan.sampling.batch_size
    ('Task004_Hippocampus', 2)

    Raises:
        PlanError: the file is not a valid plan. The id in the file is ignored and recomputed.
    """
    return parse_plan(read_json(Path(path)), str(path))


def parse_plan(values: Any, where: str) -> Plan:
    """Like `load_plan`, for the content of a plan file; `where` is named in errors."""
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key != "id"}
    return make_plan(values, where)


def make_plan(values: Any, where: str) -> Plan:
    """Validate `values` and make the plan.

    Args:
        values: the content of a plan file without its id, as plain JSON values.
        where: the source of the values, named in errors, for example the file.

    Raises:
        PlanError: the first error, with its key, the value found, and the valid values.
    """
    if not isinstance(values, dict):
        raise PlanError(f"{where} is not a plan: it holds {type(values).__name__}, not an object")
    version = values.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise PlanError(f"{where} has format {version}, not {FORMAT_VERSION}; plan the task again")
    try:
        return Plan.model_validate_json(json.dumps(values), strict=True)
    except RecursionError:
        raise PlanError(f"{where} is nested too deeply to be a plan") from None
    except ValidationError as error:
        key = ".".join(map(str, _without_kind(error.errors()[0]["loc"]))) or "the plan"
        raise PlanError(f"{where}: {describe_error(error, key, _all_keys())}") from None


def describe_error(error: ValidationError, key: str, keys: Sequence[str]) -> str:
    """Describe the first error in one line, and count the others.

    Args:
        error: raised by pydantic.
        key: the dotted key of the first error.
        keys: the known keys, one of which is suggested for an unknown key.
    """
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key.rsplit(".", 1)[-1], keys, n=1)
        text = f"unknown key {key!r}" + "".join(f"; did you mean {name!r}?" for name in close)
    elif first["type"] == "missing":
        text = f"{key} is missing"
    elif first["type"] == "value_error":
        text = f"{key}: {first['ctx']['error']}" if first["loc"] else str(first["ctx"]["error"])
    else:
        found = repr(first["input"])
        found = found if len(found) < 60 else f"{found[:57]}..."
        text = f"{key} is {found}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return text + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _without_kind(path: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Remove the kind of a step, loss, ..., which pydantic inserts as the third entry."""
    return path[:2] + path[3:] if path[:1] in LISTS_OF_KINDS or path[:2] in KINDS else path


@cache
def _all_keys() -> list[str]:
    """The keys of all sections."""
    schema = Plan.model_json_schema()
    parts = (schema, *schema["$defs"].values())
    return sorted({key for part in parts for key in part["properties"]})


# A training run may be continued with a plan that differs only in the length of the training.
# Any other difference makes it the plan of another model.


def recipe_id(plan: Plan) -> str:
    """An id shared by all plans that differ only in the length of the training.

    That is `training.epochs`, `training.seconds` and `training.early_stopping_epochs`.
    """
    length = {"epochs": 1, "seconds": None, "early_stopping_epochs": None}
    return plan.model_copy(update={"training": plan.training.model_copy(update=length)}).id


def is_extension(one: Plan, other: Plan) -> bool:
    """Whether two different plans differ only in the length of the training."""
    return one.id != other.id and recipe_id(one) == recipe_id(other)


def differing_keys(one: Plan, other: Plan) -> list[str]:
    """Dotted keys, such as `training.epochs`, of the values that differ and affect a result."""
    values = [p.model_dump(mode="json", exclude={"provenance", "measured"}) for p in (one, other)]
    return list(_differing(values[0], values[1], ""))


def _differing(one: Any, other: Any, key: str) -> list[str]:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [key]
    if one.keys() == other.keys() and list(one) != list(other):
        return [key]  # the order of the labels decides the class indices
    start = f"{key}." if key else ""
    pairs = [(one.get(name), other.get(name), f"{start}{name}") for name in {**one, **other}]
    return [found for pair in pairs for found in _differing(*pair)]
