"""The plan: one JSON file that alone decides everything that changes a result.

A `Plan` is frozen and checked when it is made: unknown keys, impossible values and parts that do
not fit each other are errors that name the key. All sizes and spacings are in x, y, z order.
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
from autoseg.plan.augmentation import Mirror, PreviousMorphology, PreviousRemoval, Transform
from autoseg.plan.evaluation import Evaluation
from autoseg.plan.labels import Classes, check_labels, check_regions, classes_of, values_of
from autoseg.plan.sections import (
    FOR_ID,
    Axes,
    Count,
    LabelValue,
    Network,
    Part,
    Positive,
    Resample,
    Seed,
    Share,
    Size3,
    Step,
    Training,
)

FORMAT_VERSION = 1
CASCADE = "3d_cascade_fullres"
ConfigurationName = Literal["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]


class Sampling(Part):
    """Which patches a batch is made of."""

    patch_size: Size3
    batch_size: Count
    foreground_share: Share = Field(
        0.33, description="share of a batch's patches that are centred on a foreground voxel"
    )
    foreground_mode: Literal["last", "chance"] = Field(
        "last",
        description="last: the last patches of a batch; chance: each patch with this probability",
    )


class VolumeShare(Part):
    """A volume that predictions report as a share, such as infection of lungs and infection."""

    label: int
    container: Annotated[tuple[int, ...], Field(min_length=1)] = Field(
        description="labels that, together with `label`, make up the whole"
    )


class Splits(Part):
    """How the cases are parted into folds (a `splits.json` of the user's goes before it)."""

    folds: Annotated[int, Field(ge=2)] = 5
    seed: Seed = 12345


class Inference(Part):
    """How a whole scan is predicted from patches."""

    overlap: Triple = Field(description="voxels that neighbouring patches share along x, y, z")
    weighting: Literal["gaussian", "uniform"] = "gaussian"
    mirror_axes: Axes = Field((), description="axes on which --tta may mirror")


class Provenance(Part):
    """Why a value is what it is."""

    source: str = Field(description="a rule, a reference plan, an overrides file, --set, a budget")
    evidence: str = Field("", description="the figures that were used")
    rule_value: Any = Field(None, description="what the rules alone would have chosen, if replaced")


class Plan(Part):
    """Everything that changes a result, for one configuration of one task.

    >>> import autoseg
    >>> plan = autoseg.load_plan("models/Task004_Hippocampus/default/plan.json")
    >>> isinstance(plan, autoseg.Plan), plan.channels, plan.training.epochs
    (True, ('MRI',), 1)
    """

    format_version: Literal[1] = 1
    task: str
    name: str = Field("default", pattern=r"^\w[\w.-]*$", description="a folder name")
    configuration: ConfigurationName = "3d_fullres"
    previous_stage: str | None = Field(
        None, description="the plan whose segmentation a cascade refines"
    )
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: dict[str, Annotated[tuple[LabelValue, ...], Field(min_length=1)]] = Field(
        description="class name -> label values, background included"
    )
    ignore_label: LabelValue | None = None
    regions_class_order: tuple[LabelValue, ...] | None = Field(
        None, description="the value that each class but the background paints; later ones win"
    )
    skipped_cases: tuple[str, ...] = Field(
        (), description="bad cases that neither planning nor training uses"
    )
    shares: tuple[VolumeShare, ...] = ()
    target_spacing_mm: tuple[Positive | None, Positive | None, Positive | None] = Field(
        description="voxel size for the network; null: each scan keeps its own along that axis"
    )
    preprocessing: tuple[Step, ...]
    sampling: Sampling
    augmentation: tuple[Transform, ...]
    network: Network
    training: Training
    splits: Splits = Splits()
    inference: Inference
    evaluation: Evaluation = Evaluation()
    measured: dict[str, Any] = Field(
        default_factory=dict, description="what a time budget was planned with"
    )
    provenance: dict[str, Provenance] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._check_patch()
        self._check_bottleneck()
        self._check_mirroring()
        self._check_steps()
        self._check_labels()
        self._check_shares()
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
                    f"sampling.patch_size is {size} along {axis}, which the network's strides "
                    f"cannot divide; take {fitting}"
                )
        for axis, size, overlap in zip("xyz", patch, self.inference.overlap, strict=True):
            if not 0 <= overlap < size:
                raise ValueError(
                    f"inference.overlap is {overlap} along {axis}; take 0 to {size - 1}, "
                    f"less than the patch: half of it is {[each // 2 for each in patch]}"
                )

    def _check_bottleneck(self) -> None:
        if self.network.norm == "instance" and self.sampling.patch_size == self.network.reduction:
            raise ValueError(
                "the network's coarsest stage is a single voxel, which instance normalisation "
                "cannot normalise; enlarge sampling.patch_size, or take fewer stages"
            )

    def _check_mirroring(self) -> None:
        mirrored = {
            axis for entry in self.augmentation if isinstance(entry, Mirror) for axis in entry.axes
        }
        if untrained := set(self.inference.mirror_axes) - mirrored:
            raise ValueError(
                f"inference.mirror_axes has {sorted(untrained)}, along which no mirror transform "
                "of the augmentation trains the network; take them out, or train with them"
            )

    def _check_steps(self) -> None:
        order = [step.step for step in self.preprocessing]
        if "resample" in order and "crop_to_nonzero" in order[order.index("resample") :]:
            raise ValueError("preprocessing: crop_to_nonzero comes after resample; put it before")
        for index, step in enumerate(self.preprocessing):
            channel = getattr(step, "channel", None)
            if channel is not None and channel >= len(self.channels):
                raise ValueError(
                    f"preprocessing.{index}.channel is {channel}, but there are "
                    f"{len(self.channels)} channels, counted from 0"
                )

    def _check_labels(self) -> None:
        check_labels(self.labels, self.ignore_label)
        check_regions(self.labels, self.regions_class_order)
        if self.regions_class_order and getattr(self.training.loss, "background", False):
            raise ValueError(
                "training.loss.background: with regions the background is no output of the "
                "network; leave it out"
            )

    def _check_shares(self) -> None:
        values = values_of(self.labels)
        for share in self.shares:
            if share.label in share.container:
                raise ValueError(
                    f"shares: the label {share.label} is in its own container; leave it out there"
                )
            if unknown := sorted({share.label, *share.container} - values):
                raise ValueError(f"shares: no class covers the label {unknown[0]}")

    def _check_stage(self) -> None:
        if (self.configuration == CASCADE) != (self.previous_stage is not None):
            raise ValueError(
                f"previous_stage is {self.previous_stage!r} in a plan of {self.configuration}; "
                f"{CASCADE} names the plan that it refines, the others none"
            )
        if self.previous_stage is None:
            for index, entry in enumerate(self.augmentation):
                if isinstance(entry, PreviousMorphology | PreviousRemoval):
                    raise ValueError(
                        f"augmentation.{index}: {entry.transform} changes a previous stage's "
                        f"segmentation, which only a {CASCADE} has; take it out"
                    )

    @property
    def resamples(self) -> bool:
        """Whether the cases are brought to the target spacing."""
        return any(isinstance(step, Resample) for step in self.preprocessing)

    def target_spacing_of(self, spacing_mm: Sequence[float]) -> tuple[float, float, float]:
        """The spacing that a scan of this spacing is resampled to."""
        pairs = zip(self.target_spacing_mm, spacing_mm, strict=True)
        x, y, z = (own if target is None else target for target, own in pairs)
        return x, y, z

    @property
    def classes(self) -> Classes:
        """What the network learns to tell apart."""
        return classes_of(self.labels, self.regions_class_order)

    @property
    def input_channels(self) -> int:
        """Maps that the network takes: of the image, and one of each part of a previous stage."""
        previous = 0 if self.previous_stage is None else len(self.classes.parts) - 1
        return len(self.channels) + previous

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that change when a value that decides a model changes.

        Keys that came after version 0.1.0 count only where they differ from their default.
        """
        about = {"provenance", "measured", "evaluation"}
        return _digest(self.model_dump(mode="json", exclude=about, context=FOR_ID))

    @property
    def preprocessing_id(self) -> str:
        """The same for the values that decide what a preprocessed case looks like."""
        keys = {"channels", "labels", "ignore_label", "target_spacing_mm", "preprocessing"}
        values = self.model_dump(mode="json", include=keys, context=FOR_ID)
        return _digest(values | ({"regions": True} if self.classes.are_regions else {}))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; its id comes first, for people who compare files."""
        return {"id": self.id, **self.model_dump(mode="json")}

    def save(self, path: Path) -> None:
        """Write the plan, atomically."""
        write_json(path, self.to_json())


def _digest(values: dict[str, Any]) -> str:
    # Keys stay in their order: that of the labels decides the classes' indices.
    text = json.dumps(values, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
