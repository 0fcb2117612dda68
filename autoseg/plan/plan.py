"""The plan: one JSON file that decides everything that changes a result.

A `Plan` is frozen and validated when it is created: unknown keys, invalid values and sections that
do not fit together are errors that name the key. All sizes and spacings are in x, y, z order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from autoseg.common.arrays import Triple
from autoseg.common.files import write_json
from autoseg.common.progress import counted
from autoseg.plan import sections
from autoseg.plan.augmentation import Mirror, PreviousMorphology, PreviousRemoval, Transform
from autoseg.plan.labels import (
    Classes,
    Evaluation,
    SegmentCode,
    check_codes,
    check_labels,
    check_mirrored,
    check_regions,
    classes_of,
    exchange,
    values_of,
)

FORMAT_VERSION = 1
CASCADE = "3d_cascade_fullres"
ConfigurationName = Literal["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]


class Sampling(sections.Section):
    """Which patches a batch consists of."""

    patch_size: sections.Size3
    batch_size: sections.Count
    foreground_share: sections.Share = 0.33
    foreground_mode: Literal["last", "chance"] = "last"


class VolumeShare(sections.Section):
    """A volume that predictions report as a share, e.g. infection / (lungs + infection)."""

    label: int
    container: Annotated[tuple[int, ...], Field(min_length=1)]


class Splits(sections.Section):
    """How the cases are split into folds (a `splits.json` of the user overrides it)."""

    folds: int = Field(5, ge=2)
    seed: sections.Seed = 12345


class Inference(sections.Section):
    """How a scan is predicted from patches."""

    overlap: Triple
    tile_step: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, json_schema_extra=sections.since("0.2.0")
    )
    weighting: Literal["gaussian", "uniform", "nnunet"] = "gaussian"
    average: Literal["probabilities", "logits", "logits_float16"] = Field(
        "probabilities", json_schema_extra=sections.since("0.2.0")
    )
    slide_axis: Literal[0, 1, 2] | None = Field(None, json_schema_extra=sections.since("0.2.0"))
    anisotropy: sections.Positive | None = Field(None, json_schema_extra=sections.since("0.2.0"))
    mirror_axes: sections.Axes = ()
    mirror: bool = Field(False, json_schema_extra=sections.since("0.2.0"))


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
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: dict[str, Annotated[tuple[sections.LabelValue, ...], Field(min_length=1)]]
    ignore_label: sections.LabelValue | None = None
    regions_class_order: tuple[sections.LabelValue, ...] | None = None
    skipped_cases: tuple[str, ...] = ()
    shares: tuple[VolumeShare, ...] = ()
    orientation: sections.Orientation | None = Field(
        None, json_schema_extra=sections.since("0.2.0")
    )
    mirrored_labels: tuple[tuple[sections.LabelValue, sections.LabelValue], ...] = Field(
        (), json_schema_extra=sections.since("0.2.0")
    )
    target_spacing_mm: tuple[
        sections.Positive | None, sections.Positive | None, sections.Positive | None
    ]
    preprocessing: tuple[sections.Step, ...]
    sampling: Sampling
    augmentation: tuple[Transform, ...]
    network: sections.Network
    training: sections.Training
    splits: Splits = Splits()
    inference: Inference
    evaluation: Evaluation = Evaluation()
    codes: dict[str, SegmentCode] = Field(
        default_factory=dict, json_schema_extra=sections.since("0.2.0")
    )
    measured: dict[str, Any] = Field(default_factory=dict)
    provenance: dict[str, Provenance] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._check_patch()
        self._check_mirroring()
        self._check_steps()
        self._check_labels()
        self.evaluation.check(self.labels)
        self._check_stage()
        return self

    def _check_patch(self) -> None:
        patch, reduction = self.sampling.patch_size, self.network.reduction
        for axis, size, factor in zip("xyz", patch, reduction, strict=True):
            if size % factor:
                below = size // factor * factor
                fitting = f"{below} or {below + factor}" if below else factor
                raise ValueError(
                    f"sampling.patch_size is {size} along {axis}, which is not divisible by the "
                    f"product {factor} of the network's strides; use {fitting}"
                )
        for axis, size, overlap in zip("xyz", patch, self.inference.overlap, strict=True):
            if not 0 <= overlap < size:
                raise ValueError(
                    f"inference.overlap is {overlap} along {axis}; use 0 to {size - 1}, less than "
                    f"the patch size (half of it is {[each // 2 for each in patch]})"
                )
        if self.network.norm == "instance" and patch == reduction:
            raise ValueError(
                "the coarsest stage of the network is a single voxel, for which instance "
                "normalisation is undefined; increase sampling.patch_size or use fewer stages"
            )

    def _check_mirroring(self) -> None:
        if untrained := set(self.inference.mirror_axes) - self.mirrored_axes:
            raise ValueError(
                f"inference.mirror_axes has {sorted(untrained)}, but no mirror transform of the "
                "augmentation flips along it; remove it, or add it to the augmentation"
            )

    def _check_steps(self) -> None:
        order = [step.step for step in self.preprocessing]
        if "resample" in order and "crop_to_nonzero" in order[order.index("resample") :]:
            raise ValueError("preprocessing: crop_to_nonzero must come before resample")
        for index, step in enumerate(self.preprocessing):
            channel = getattr(step, "channel", None)
            if channel is not None and channel >= len(self.channels):
                raise ValueError(
                    f"preprocessing.{index}.channel is {channel}, but the plan has "
                    f"{counted(len(self.channels), 'channel')}, counted from 0"
                )

    def _check_labels(self) -> None:
        check_labels(self.labels, self.ignore_label)
        check_regions(self.labels, self.regions_class_order)
        check_codes(self.codes, self.labels)
        if self.regions_class_order and getattr(self.training.loss, "background", False):
            raise ValueError(
                "training.loss.background is true, but regions have no background; set it to false"
            )
        check_mirrored(self.labels, self.mirrored_labels)
        if self.mirrored_labels and self.orientation is None:
            raise ValueError(
                "mirrored_labels is given, but orientation is null, so that the left-right axis is "
                "not known; set orientation, or mirrored_labels to []"
            )
        values = values_of(self.labels)
        for share in self.shares:
            if share.label in share.container:
                raise ValueError(f"shares: label {share.label} is in its own container; remove it")
            if unknown := sorted({share.label, *share.container} - values):
                raise ValueError(f"shares: label {unknown[0]} belongs to no class")

    def _check_stage(self) -> None:
        if (self.configuration == CASCADE) != (self.previous_stage is not None):
            raise ValueError(
                f"previous_stage is {self.previous_stage!r} in a plan for {self.configuration}; "
                f"it must name the refined plan for {CASCADE}, and be null for all others"
            )
        if self.previous_stage is None:
            for index, entry in enumerate(self.augmentation):
                if isinstance(entry, PreviousMorphology | PreviousRemoval):
                    raise ValueError(
                        f"augmentation.{index}: {entry.transform} changes the segmentation of a "
                        f"previous stage, which only {CASCADE} has; remove it"
                    )

    @property
    def mirrored_axes(self) -> set[int]:
        """The axes that are mirrored in training."""
        return {
            axis for entry in self.augmentation if isinstance(entry, Mirror) for axis in entry.axes
        }

    @property
    def left_right(self) -> int | None:
        """The axis from one side of the patient to the other; None without an orientation."""
        code = self.orientation or ""
        return next((axis for axis, letter in enumerate(code) if letter in "LR"), None)

    @property
    def exchanged_parts(self) -> tuple[int, ...]:
        """The part (see `Classes`) that each becomes if left and right are exchanged."""
        return exchange(self.classes.parts, self.mirrored_labels)

    @property
    def exchanged_outputs(self) -> tuple[int, ...]:
        """The output of the network that each becomes if left and right are exchanged."""
        sets = list(self.labels.values())
        return exchange(sets[len(sets) - self.classes.outputs :], self.mirrored_labels)

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
        return classes_of(self.labels, self.regions_class_order)

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

    def save(self, path: Path) -> None:
        """Write the plan, atomically."""
        write_json(path, self.to_json())


def _digest(values: dict[str, Any]) -> str:
    # Keys are not sorted: the order of the labels decides the class indices.
    text = json.dumps(values, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
