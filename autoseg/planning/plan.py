"""The plan: one JSON file that alone decides everything that changes a result.

A `Plan` is frozen and checked when it is made: unknown keys, impossible values and parts that do
not fit each other are errors that name the key. All sizes and spacings are in x, y, z order.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from autoseg.files import read_json, write_json

FORMAT_VERSION = 1

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]
Size3 = tuple[Count, Count, Count]
Stride = Literal[1, 2]


class Part(BaseModel):
    """A frozen part of a plan that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# --- preprocessing: steps in the order in which they are applied ---


class CropToNonzero(Part):
    """Cut the volume to the box in which any channel is not zero."""

    step: Literal["crop_to_nonzero"] = "crop_to_nonzero"


class Clip(Part):
    """Clip one channel's intensities to a window (Hounsfield units for CT)."""

    step: Literal["clip"] = "clip"
    window: Range
    channel: Annotated[int, Field(ge=0)] | None = Field(None, description="null: every channel")

    @model_validator(mode="after")
    def _is_upright(self) -> Self:
        if self.window[0] >= self.window[1]:
            raise ValueError(f"the window {list(self.window)} is upside down; write [low, high]")
        return self


class Rescale(Part):
    """Map each case's own minimum and maximum to a range, optionally rounded to integers."""

    step: Literal["rescale"] = "rescale"
    range: Range = (0.0, 1.0)
    whole_numbers: bool = False
    channel: Annotated[int, Field(ge=0)] | None = None


class Resample(Part):
    """Bring image and labels to the plan's target spacing."""

    step: Literal["resample"] = "resample"
    image_order: Literal[0, 1, 3] = 3
    label_order: Literal[0, 1] = 1
    rounding: Literal["nearest", "down"] = Field(
        "nearest", description="how size x spacing / target becomes a whole number of voxels"
    )
    anisotropy: Positive | None = Field(
        3.0, description="above this ratio of spacings the coarse axis is resampled by order 0"
    )


class ZScore(Part):
    """Subtract a mean and divide by a standard deviation.

    Without `mean` and `std` each case's own are taken, inside the non-zero voxels if `nonzero`.
    """

    step: Literal["z_score"] = "z_score"
    mean: float | None = None
    std: Positive | None = None
    nonzero: bool = False
    channel: Annotated[int, Field(ge=0)] | None = None


Step = Annotated[CropToNonzero | Clip | Rescale | Resample | ZScore, Field(discriminator="step")]


# --- augmentation: batchgenerators' transforms in order ---


class Spatial(Part):
    """Rotate, scale and deform about the patch centre, each with its own chance."""

    transform: Literal["spatial"] = "spatial"
    rotation_probability: Share = 0.2
    rotation_degrees: tuple[Range, Range, Range] = ((-30, 30), (-30, 30), (-30, 30))
    scaling_probability: Share = 0.2
    scaling: Range = (0.7, 1.4)
    elastic_probability: Share = 0.0
    elastic_alpha: Range = (0, 900)
    elastic_sigma: Range = (9, 13)
    image_order: Literal[0, 1, 3] = 3
    label_order: Literal[0, 1] = 0
    border: Literal["constant", "nearest"] = Field(
        "constant", description="what lies outside the volume: zero, or its border's value"
    )


class Mirror(Part):
    """Flip along each of the axes (0 = x, 1 = y, 2 = z) with a chance of one half."""

    transform: Literal["mirror"] = "mirror"
    axes: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    probability: Share = 1.0


class GaussianNoise(Part):
    """Add Gaussian noise of a random variance."""

    transform: Literal["gaussian_noise"] = "gaussian_noise"
    probability: Share = 0.1
    variance: Range = (0, 0.1)


class GaussianBlur(Part):
    """Blur with a random sigma (voxels)."""

    transform: Literal["gaussian_blur"] = "gaussian_blur"
    probability: Share = 0.2
    channel_probability: Share = 0.5
    sigma: Range = (0.5, 1.0)


class Brightness(Part):
    """Multiply all intensities by a random factor."""

    transform: Literal["brightness"] = "brightness"
    probability: Share = 0.15
    factor: Range = (0.75, 1.25)


class Contrast(Part):
    """Stretch intensities about their mean by a random factor."""

    transform: Literal["contrast"] = "contrast"
    probability: Share = 0.15
    factor: Range = (0.75, 1.25)
    preserve_range: bool = True


class LowResolution(Part):
    """Simulate a scan of lower resolution: sample down, then up."""

    transform: Literal["low_resolution"] = "low_resolution"
    probability: Share = 0.25
    channel_probability: Share = 0.5
    zoom: Range = (0.5, 1.0)


class Gamma(Part):
    """Gamma correction, on the inverted image if `invert`."""

    transform: Literal["gamma"] = "gamma"
    probability: Share = 0.3
    gamma: Range = (0.7, 1.5)
    invert: bool = False
    retain_statistics: bool = True


Transform = Annotated[
    Spatial | Mirror | GaussianNoise | GaussianBlur | Brightness | Contrast | LowResolution | Gamma,
    Field(discriminator="transform"),
]


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


# --- network ---


class Network(Part):
    """A U-Net; stage 0 has the full resolution."""

    features: tuple[Count, ...] = Field(description="feature maps per stage")
    strides: tuple[tuple[Stride, Stride, Stride], ...] = Field(
        description="reduction on entering each stage; the first is 1, 1, 1"
    )
    kernels: tuple[tuple[Literal[1, 3], Literal[1, 3], Literal[1, 3]], ...]
    blocks_encoder: tuple[Count, ...] = Field(description="convolutions or residual blocks a stage")
    blocks_decoder: tuple[Count, ...] = Field(description="convolutions a stage, finest first")
    residual: bool = False
    down: Literal["strided", "max_pool"] = "strided"
    norm: Literal["instance", "batch"] = "instance"
    norm_momentum: Share = Field(0.1, description="in torch's sense, for batch normalisation")
    norm_epsilon: Positive = 1e-5
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    activation_first: bool = Field(False, description="activation before the normalisation")
    convolution_bias: bool = True
    initialisation: Literal["he", "glorot"] = Field(
        "he", description="He's normal or Glorot's uniform distribution of the first weights"
    )
    deep_supervision: bool = True

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        stages = len(self.features)
        if stages < 2:
            raise ValueError("a U-Net has at least two stages; give features for each")
        for key in ("strides", "kernels", "blocks_encoder"):
            if len(getattr(self, key)) != stages:
                raise ValueError(
                    f"{key} has {len(getattr(self, key))} entries for {stages} stages of features"
                )
        if len(self.blocks_decoder) != stages - 1:
            raise ValueError(f"blocks_decoder needs {stages - 1} entries, one less than features")
        if self.strides[0] != (1, 1, 1):
            raise ValueError("the first stage keeps the full resolution: its stride is 1, 1, 1")
        return self

    @property
    def reduction(self) -> tuple[int, int, int]:
        """Voxels of the finest stage per voxel of the coarsest, along x, y, z."""
        x, y, z = np.prod(self.strides, axis=0)
        return int(x), int(y), int(z)


# --- training ---


class DiceCrossEntropy(Part):
    """Soft Dice loss (1 - Dice, mean over foreground classes) plus cross-entropy."""

    loss: Literal["dice_cross_entropy"] = "dice_cross_entropy"
    batch_dice: bool = Field(False, description="pool the counts over the batch, not per sample")
    smooth: float = Field(1e-5, ge=0)
    background: bool = Field(False, description="count the background as a class of the Dice part")


class TverskyCrossEntropy(Part):
    """Tversky loss (number of classes minus the sum of indices) plus cross-entropy."""

    loss: Literal["tversky_cross_entropy"] = "tversky_cross_entropy"
    alpha: float = Field(0.5, ge=0, description="weight of false negatives")
    beta: float = Field(0.5, ge=0, description="weight of false positives")
    smooth: float = Field(1e-6, ge=0)


Loss = Annotated[DiceCrossEntropy | TverskyCrossEntropy, Field(discriminator="loss")]


class Sgd(Part):
    """Stochastic gradient descent."""

    optimizer: Literal["sgd"] = "sgd"
    learning_rate: Positive = 1e-2
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    nesterov: bool = True
    weight_decay: float = Field(3e-5, ge=0)


class Adam(Part):
    """Adam; with `decoupled` weight decay it is AdamW."""

    optimizer: Literal["adam"] = "adam"
    learning_rate: Positive = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    decoupled: bool = False


Optimizer = Annotated[Sgd | Adam, Field(discriminator="optimizer")]


class Polynomial(Part):
    """Learning rate x (1 - progress) ** exponent."""

    schedule: Literal["polynomial"] = "polynomial"
    exponent: Positive = 0.9


class Cosine(Part):
    """Linear warm-up, then half a cosine down to zero."""

    schedule: Literal["cosine"] = "cosine"
    warmup: Share = Field(0.05, description="share of the training")


class Plateau(Part):
    """Lower the learning rate when the training loss stops falling."""

    schedule: Literal["plateau"] = "plateau"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience_epochs: Count = 15
    min_delta: float = Field(1e-4, ge=0)
    cooldown_epochs: int = Field(1, ge=0)
    floor: float = Field(1e-5, ge=0)


Schedule = Annotated[Polynomial | Cosine | Plateau, Field(discriminator="schedule")]


class Training(Part):
    """How the network's weights are found."""

    seed: Annotated[int, Field(ge=0)] = 12345
    epochs: Count = 1000
    steps_per_epoch: Count = 250
    validation_steps: int = Field(50, ge=0, description="batches of the monitored validation loss")
    augment_validation: bool = False
    seconds: Positive | None = Field(
        None,
        description="budget of one fold from start to finish; the epochs are re-counted while it "
        "runs only where they would miss it by more than a tenth",
    )
    early_stopping_epochs: Count | None = Field(
        None, description="stop after so many epochs without a lower training loss"
    )
    loss: Loss = DiceCrossEntropy()
    optimizer: Optimizer = Sgd()
    schedule: Schedule = Polynomial()
    gradient_clip: Positive | None = 12.0
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay a step of the exponential moving average of the weights"
    )
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 autocast where the device computes it fast"
    )
    keep: Literal["last", "best_training_loss"] = Field(
        "last", description="which weights prediction uses"
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
    seed: Annotated[int, Field(ge=0)] = 12345


class Inference(Part):
    """How a whole scan is predicted from patches."""

    overlap: tuple[int, int, int] = Field(
        description="voxels that neighbouring patches share along x, y, z"
    )
    weighting: Literal["gaussian", "uniform"] = "gaussian"
    mirror_axes: tuple[Literal[0, 1, 2], ...] = Field(
        (), description="axes on which --tta may mirror"
    )


# --- provenance and the whole ---


class Provenance(Part):
    """Why a value is what it is."""

    source: str = Field(description="a rule, a reference plan, an overrides file, --set, a budget")
    evidence: str = Field("", description="the figures that were used")
    rule_value: Any = Field(None, description="what the rules alone would have chosen, if replaced")


class Plan(Part):
    """Everything that changes a result, for one configuration of one task."""

    format_version: Literal[1] = 1
    task: str
    name: str = "default"
    channels: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: dict[str, tuple[int, ...]] = Field(
        description="class name -> label values, background included"
    )
    ignore_label: int | None = None
    shares: tuple[VolumeShare, ...] = ()
    target_spacing_mm: tuple[Positive, Positive, Positive]
    preprocessing: tuple[Step, ...]
    sampling: Sampling
    augmentation: tuple[Transform, ...]
    network: Network
    training: Training
    splits: Splits = Splits()
    inference: Inference
    measured: dict[str, Any] = Field(
        default_factory=dict, description="what a time budget was planned with"
    )
    provenance: dict[str, Provenance] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        patch, reduction = self.sampling.patch_size, self.network.reduction
        for axis, size, factor in zip("xyz", patch, reduction, strict=True):
            if size % factor:
                raise ValueError(
                    f"sampling.patch_size is {size} along {axis}, which the network's strides "
                    f"cannot divide; take {size // factor * factor or factor} or "
                    f"{(size // factor + 1) * factor}"
                )
        for axis, size, overlap in zip("xyz", patch, self.inference.overlap, strict=True):
            if not 0 <= overlap < size:
                raise ValueError(
                    f"inference.overlap is {overlap} along {axis}; take 0 to {size - 1}, "
                    "less than the patch"
                )
        mirrored = {
            axis for entry in self.augmentation if isinstance(entry, Mirror) for axis in entry.axes
        }
        if untrained := set(self.inference.mirror_axes) - mirrored:
            raise ValueError(
                f"inference.mirror_axes has {sorted(untrained)}, along which no mirror transform "
                "of the augmentation trains the network; take them out, or train with them"
            )
        for index, step in enumerate(self.preprocessing):
            channel = getattr(step, "channel", None)
            if channel is not None and channel >= len(self.channels):
                raise ValueError(
                    f"preprocessing.{index}.channel is {channel}, but there are "
                    f"{len(self.channels)} channels, counted from 0"
                )
        values = [value for covered in self.labels.values() for value in covered]
        if not self.labels or 0 not in next(iter(self.labels.values())):
            raise ValueError("labels: the first class is the background, which covers the value 0")
        for share in self.shares:
            if unknown := sorted({share.label, *share.container} - set(values)):
                raise ValueError(f"shares: no class covers the label {unknown[0]}")
        return self

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that change when a value that decides a result changes."""
        return _digest(self.model_dump(mode="json", exclude={"provenance", "measured"}))

    @property
    def preprocessing_id(self) -> str:
        """The same for the values that decide what a preprocessed case looks like."""
        keys = {"channels", "labels", "ignore_label", "target_spacing_mm", "preprocessing"}
        return _digest(self.model_dump(mode="json", include=keys))

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; its id comes first, for people who compare files."""
        return {"id": self.id, **self.model_dump(mode="json")}

    def save(self, path: Path) -> None:
        """Write the plan, atomically."""
        write_json(path, self.to_json())


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_plan(path: Path) -> Plan:
    """Read and check a plan file.

    Raises:
        PlanError: it is not a plan, or was changed by hand without its id.
    """
    from autoseg.planning.check import make_plan

    values = read_json(path)
    if isinstance(values, dict):
        values.pop("id", None)
    return make_plan(values, str(path))
