"""What all parts of a plan share."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from autoseg.common.arrays import Triple

FOR_ID = {"purpose": "id"}  # the context of a dump that an id is made of
SINCE = "since"


def _is_upright(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"{list(limits)} is upside down; write [low, high]")
    return limits


def _reaches_one(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[1] < 1:
        raise ValueError(
            f"{list(limits)} ends below 1; batchgenerators draws half of all below 1 "
            "and half above: write a range that reaches 1"
        )
    return limits


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
LabelValue = Annotated[int, Field(ge=0, lt=2**16)]
NotNegative = Annotated[float, Field(ge=0)]
Range = Annotated[tuple[float, float], AfterValidator(_is_upright)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_is_upright)]
FactorRange = Annotated[PositiveRange, AfterValidator(_reaches_one)]
NotNegativeRange = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_is_upright)]
CountRange = Annotated[tuple[Count, Count], AfterValidator(_is_upright)]
Size3 = tuple[Count, Count, Count]
Axes = tuple[Literal[0, 1, 2], ...]


def since(version: str) -> dict[str, Any]:
    """Mark a key that came after version 0.1.0: `Field(..., json_schema_extra=since("0.2.0"))`.

    Its default must do what was done before there was the key, and never change: where a plan has
    the default, its id is that of a plan without the key.
    """
    return {SINCE: version}


class Part(BaseModel):
    """A frozen part of a plan that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _for_id(
        self, values_of: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        values: dict[str, Any] = values_of(self)
        if info.context == FOR_ID:
            for key, field in _later_keys(type(self)).items():
                if getattr(self, key) == field.get_default(call_default_factory=True):
                    values.pop(key, None)
        return values


def _later_keys(kind: type[Part]) -> dict[str, FieldInfo]:
    """The keys that are marked by `since`."""
    return {
        key: field
        for key, field in kind.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and SINCE in field.json_schema_extra
    }


# Training in a plan: loss, optimiser, schedule, and how long.


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
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="share of the training")


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

    seed: Seed = 12345
    epochs: Count = 1000
    steps_per_epoch: Count = 250
    validation_steps: int = Field(50, ge=0, description="batches of the monitored validation loss")
    augment_validation: bool = False
    augment_on: Literal["processor", "device"] = Field(
        "processor",
        description="where images are augmented: on the processor by the workers, or on the "
        "training device, which spares a machine of few cores; drawn alike, but not the same draws",
    )
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
    precision: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="auto: bfloat16 autocast where the device computes it fast, else float32; "
        "float16 (with a scaled loss) is for CUDA, other devices take what auto means there",
    )
    compile: bool = Field(False, description="compile the network with torch.compile")
    keep: Literal["last", "best_training_loss"] = Field(
        "last", description="which weights prediction uses"
    )

    @property
    def steps(self) -> int:
        """Of all epochs."""
        return self.epochs * self.steps_per_epoch


# Preprocessing in a plan: steps in the order in which they are applied.


class CropToNonzero(Part):
    """Cut the volume to the box in which any channel is not zero."""

    step: Literal["crop_to_nonzero"] = "crop_to_nonzero"


class Clip(Part):
    """Clip one channel's intensities to a window (Hounsfield units for CT)."""

    step: Literal["clip"] = "clip"
    window: Range
    channel: Index | None = Field(None, description="null: every channel")

    @model_validator(mode="after")
    def _is_open(self) -> Self:
        if self.window[0] == self.window[1]:
            raise ValueError(f"the window {list(self.window)} is empty; write [low, high]")
        return self


class Rescale(Part):
    """Map each case's own minimum and maximum to a range, optionally rounded to integers."""

    step: Literal["rescale"] = "rescale"
    range: Range = (0.0, 1.0)
    whole_numbers: bool = False
    channel: Index | None = None


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


def whole_sizes(exact: NDArray[np.float64], rounding: str) -> NDArray[np.int64]:
    """Whole numbers of voxels, at least one, as `Resample.rounding` wants them."""
    # A size that is whole but for the rounding of floats is not rounded down.
    whole = np.floor(exact + 1e-6) if rounding == "down" else np.rint(exact)
    return np.maximum(whole, 1).astype(np.int64)


class ZScore(Part):
    """Subtract a mean and divide by a standard deviation.

    Without `mean` and `std` each case's own are taken, inside the non-zero voxels if `nonzero`.
    """

    step: Literal["z_score"] = "z_score"
    mean: float | None = None
    std: Positive | None = None
    nonzero: bool = False
    channel: Index | None = None


Step = Annotated[CropToNonzero | Clip | Rescale | Resample | ZScore, Field(discriminator="step")]


# The network in a plan.

Stride = Literal[1, 2]
Kernel = Literal[1, 3]


Blocks = Annotated[int, Field(ge=1, le=100)]
Maps = Annotated[int, Field(ge=1, le=2**16)]
MOST_STAGES = 100


class Network(Part):
    """A U-Net; stage 0 has the full resolution."""

    features: tuple[Maps, ...] = Field(description="feature maps per stage")
    strides: tuple[tuple[Stride, Stride, Stride], ...] = Field(
        description="reduction on entering each stage; the first is 1, 1, 1"
    )
    kernels: tuple[tuple[Kernel, Kernel, Kernel], ...]
    blocks_encoder: tuple[Blocks, ...] = Field(
        description="convolutions or residual blocks a stage"
    )
    blocks_decoder: tuple[Blocks, ...] = Field(description="convolutions a stage, finest first")
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
        if stages > MOST_STAGES:
            raise ValueError(f"features has {stages} stages; give at most {MOST_STAGES}")
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
    def supervised(self) -> int:
        """How many stages have a head, the finest first; training learns from all of them."""
        return max(1, len(self.features) - 2) if self.deep_supervision else 1

    @property
    def reduction(self) -> Triple:
        """Voxels of the finest stage per voxel of the coarsest, along x, y, z."""
        x, y, z = (prod(axis) for axis in zip(*self.strides, strict=True))
        return x, y, z
