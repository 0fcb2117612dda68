"""The sections of a plan: preprocessing, network and training, and what all sections share.

Each field carries its own title, unit and description. `--explain`, the report and the JSON schema
show them; they are not written to a plan file and do not change a plan's id.
"""

from __future__ import annotations

import re
from itertools import permutations
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

FOR_ID = {"purpose": "id"}  # serialisation context of the dump that an id is computed from
SINCE, UNIT = "since", "unit"
UNITS: tuple[dict[str, Any], ...] = tuple(
    {UNIT: unit} for unit in ("mm", "voxels", "s", "epochs", "share", "axes")
)
MM, VOXELS, SECONDS, EPOCHS, SHARE, AXES = UNITS


def _is_ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"{list(limits)} is not ascending; write [low, high]")
    return limits


def _reaches_one(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[1] < 1:
        raise ValueError(
            f"{list(limits)} ends below 1; batchgenerators draws half of the factors below 1 and "
            "half above: the upper limit must be at least 1"
        )
    return limits


def is_orientation(code: Any) -> bool:
    """Whether it is one of the 48 orientation codes; see `autoseg.image.orientation`."""
    return isinstance(code, str) and re.fullmatch(ORIENTATIONS, code) is not None


def _orientation(code: str) -> str:
    if not is_orientation(code):
        raise ValueError(
            f"{code!r} is not an orientation; write one letter of R/L, A/P and S/I for each of the "
            "axes x, y, z, for example RAS or LPS"
        )
    return code


ORIENTATIONS = "|".join(map("".join, permutations(("[RL]", "[AP]", "[IS]"))))
Orientation = Annotated[
    str,
    AfterValidator(_orientation),
    Field(json_schema_extra={"pattern": f"^({ORIENTATIONS})$"}),
]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1, json_schema_extra=SHARE)]  # shown in per cent
Seed = Annotated[int, Field(ge=0, lt=2**32)]
LabelValue = Annotated[int, Field(ge=0, lt=2**16)]
NotNegative = Annotated[float, Field(ge=0)]
Range = Annotated[tuple[float, float], AfterValidator(_is_ascending)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_is_ascending)]
FactorRange = Annotated[PositiveRange, AfterValidator(_reaches_one)]
NotNegativeRange = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_is_ascending)]
CountRange = Annotated[tuple[Count, Count], AfterValidator(_is_ascending)]
Size3 = tuple[Count, Count, Count]
Axes = Annotated[tuple[Literal[0, 1, 2], ...], Field(json_schema_extra=AXES)]


def since(version: str) -> dict[str, Any]:
    """Mark a key added after version 0.1.0: `Field(..., json_schema_extra=since("0.2.0"))`.

    Its default must reproduce the behaviour before the key existed, and must never change: a plan
    with the default keeps the id of a plan without the key.
    """
    return {SINCE: version}


class Section(BaseModel):
    """A frozen section of a plan; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _for_id(
        self, values_of: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """Leave out later keys (see `since`) at their default if the values are for an id."""
        values: dict[str, Any] = values_of(self)
        if info.context == FOR_ID:
            for key, field in type(self).model_fields.items():
                if SINCE in extra(field) and getattr(self, key) == field.get_default(
                    call_default_factory=True
                ):
                    values.pop(key, None)
        return values


def extra(field: FieldInfo) -> dict[str, Any]:
    """What a field declares besides its type: `unit` and `since`."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


# Preprocessing: steps in the order in which they are applied.


class CropToNonzero(Section):
    """Crop the volume to the bounding box of the voxels that are not zero in every channel."""

    step: Literal["crop_to_nonzero"] = "crop_to_nonzero"


class Clip(Section):
    """Clip the intensities of one channel to a window (Hounsfield units for CT)."""

    step: Literal["clip"] = "clip"
    window: Range
    channel: Index | None = Field(None, description="null: every channel")
    scaled_scans: Literal["clip", "keep"] = Field(
        "clip",
        description="keep: a channel whose values are all within 0 to 255 was scaled before, and "
        "is not clipped",
        json_schema_extra=since("0.2.0"),
    )

    @model_validator(mode="after")
    def _is_open(self) -> Self:
        if self.window[0] == self.window[1]:
            raise ValueError(f"the window {list(self.window)} is empty; write [low, high]")
        return self


class Rescale(Section):
    """Map the minimum and maximum of each case to a range, optionally rounded to integers."""

    step: Literal["rescale"] = "rescale"
    range: Range = (0.0, 1.0)
    whole_numbers: bool = False
    channel: Index | None = None


class Resample(Section):
    """Resample image and labels to the plan's target spacing."""

    step: Literal["resample"] = "resample"
    image_order: Literal[0, 1, 3] = 3
    label_order: Literal[0, 1] = 1
    label_ties: Literal["smallest", "nearest"] = Field(
        "smallest",
        description="which of several labels that cover the same share of a voxel is chosen: the "
        "smallest value, or that of the nearest voxel",
        json_schema_extra=since("0.2.0"),
    )
    rounding: Literal["nearest", "down", "nearest_ratio"] = Field(
        "nearest",
        description="how size x spacing / target is rounded to a number of voxels; nearest_ratio: "
        "spacing / target is computed first, as in nnU-Net, which differs in rare ties",
    )
    anisotropy: Positive | None = Field(
        3.0, description="above this ratio of spacings the coarse axis is resampled with order 0"
    )
    clip: Literal["volume", "plane"] = Field(
        "volume",
        description="to whose range splines are clipped; plane: if the coarse axis is resampled "
        "with order 0, each plane across it has its own range, as in nnU-Net",
        json_schema_extra=since("0.2.0"),
    )


def whole_sizes(exact: NDArray[np.float64], rounding: str) -> NDArray[np.int64]:
    """Round sizes to whole voxels, at least one, as `Resample.rounding` says."""
    # The tolerance keeps integral sizes from being rounded down by floating-point error.
    whole = np.floor(exact + 1e-6) if rounding == "down" else np.rint(exact)
    return np.maximum(whole, 1).astype(np.int64)


class ZScore(Section):
    """Subtract a mean and divide by a standard deviation.

    Without `mean` and `std`, those of each case are used; with `nonzero`, of its non-zero voxels;
    with `fill_holes`, also of zeros that non-zero voxels enclose.
    """

    step: Literal["z_score"] = "z_score"
    mean: float | None = None
    std: Positive | None = None
    nonzero: bool = False
    fill_holes: bool = Field(False, json_schema_extra=since("0.2.0"))
    channel: Index | None = None


Step = Annotated[CropToNonzero | Clip | Rescale | Resample | ZScore, Field(discriminator="step")]


# The network.

Stride = Literal[1, 2]
Kernel = Literal[1, 3]
Blocks = Annotated[int, Field(ge=1, le=100)]
Maps = Annotated[int, Field(ge=1, le=2**16)]
MOST_STAGES = 100


class Network(Section):
    """A U-Net; stage 0 has the full resolution."""

    features: tuple[Maps, ...] = Field(title="feature maps per stage")
    strides: tuple[tuple[Stride, Stride, Stride], ...] = Field(
        title="stride per stage", description="on entering each stage; the first is 1, 1, 1"
    )
    kernels: tuple[tuple[Kernel, Kernel, Kernel], ...] = Field(title="kernel size per stage")
    blocks_encoder: tuple[Blocks, ...] = Field(
        title="encoder blocks per stage", description="convolutions or residual blocks per stage"
    )
    blocks_decoder: tuple[Blocks, ...] = Field(
        title="decoder blocks per stage", description="convolutions per stage, finest first"
    )
    residual: bool = Field(False, title="residual encoder")
    down: Literal["strided", "max_pool"] = Field("strided", title="downsampling")
    norm: Literal["instance", "batch"] = Field("instance", title="normalisation layers")
    norm_momentum: UnitInterval = Field(
        0.1, title="momentum of batch normalisation", description="as torch defines it"
    )
    norm_epsilon: Positive = Field(1e-5, title="epsilon of the normalisation")
    activation: Literal["leaky_relu", "relu"] = Field("leaky_relu", title="activation function")
    negative_slope: float = Field(
        0.01, title="slope of leaky ReLU below zero", json_schema_extra=since("0.2.0")
    )
    activation_first: bool = Field(False, title="activation before normalisation")
    convolution_bias: bool = Field(True, title="bias in convolutions")
    initialisation: Literal["he", "glorot"] = Field(
        "he", title="weight initialisation", description="He normal or Glorot uniform"
    )
    deep_supervision: bool = Field(
        True, title="deep supervision", description="train outputs of coarser stages as well"
    )

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        stages = len(self.features)
        if stages < 2:
            raise ValueError("a U-Net has at least two stages; give features for each")
        if stages > MOST_STAGES:
            raise ValueError(f"features has {stages} stages; give at most {MOST_STAGES}")
        for key in ("strides", "kernels", "blocks_encoder"):
            if len(getattr(self, key)) != stages:
                raise ValueError(f"{key} has {len(getattr(self, key))} entries, features {stages}")
        if len(self.blocks_decoder) != stages - 1:
            raise ValueError(
                f"blocks_decoder has {len(self.blocks_decoder)} entries; give {stages - 1}, one "
                "fewer than features"
            )
        if self.strides[0] != (1, 1, 1):
            raise ValueError("the stride of the first stage must be 1, 1, 1 (full resolution)")
        return self

    @property
    def supervised(self) -> int:
        """The number of stages with an output, finest first; training uses all of them."""
        return max(1, len(self.features) - 2) if self.deep_supervision else 1

    @property
    def reduction(self) -> Triple:
        """Voxels of the finest stage per voxel of the coarsest, along x, y, z."""
        x, y, z = (prod(axis) for axis in zip(*self.strides, strict=True))
        return x, y, z


# Training: loss, optimiser, schedule and length.


class DiceCrossEntropy(Section):
    """Soft Dice loss (1 - Dice, mean over foreground classes) plus cross-entropy."""

    loss: Literal["dice_cross_entropy"] = Field("dice_cross_entropy", title="loss")
    batch_dice: bool = Field(
        False, title="batch Dice", description="sum the counts over the batch, not per sample"
    )
    smooth: float = Field(1e-5, ge=0, title="smoothing term of the loss")
    background: bool = Field(False, title="background as a class of the Dice term")


class TverskyCrossEntropy(Section):
    """Tversky loss (number of classes minus the sum of indices) plus cross-entropy."""

    loss: Literal["tversky_cross_entropy"] = Field("tversky_cross_entropy", title="loss")
    alpha: float = Field(0.5, ge=0, title="weight of false negatives")
    beta: float = Field(0.5, ge=0, title="weight of false positives")
    smooth: float = Field(1e-6, ge=0, title="smoothing term of the loss")


Loss = Annotated[DiceCrossEntropy | TverskyCrossEntropy, Field(discriminator="loss")]


class Sgd(Section):
    """Stochastic gradient descent."""

    optimizer: Literal["sgd"] = Field("sgd", title="optimiser")
    learning_rate: Positive = Field(1e-2, title="initial learning rate")
    momentum: float = Field(0.99, ge=0, lt=1, title="momentum")
    nesterov: bool = Field(True, title="Nesterov momentum")
    weight_decay: float = Field(3e-5, ge=0, title="weight decay")


class Adam(Section):
    """Adam; AdamW if weight decay is `decoupled`."""

    optimizer: Literal["adam"] = Field("adam", title="optimiser")
    learning_rate: Positive = Field(1e-3, title="initial learning rate")
    betas: tuple[UnitInterval, UnitInterval] = Field((0.9, 0.999), title="Adam's betas")
    epsilon: Positive = Field(1e-8, title="Adam's epsilon")
    weight_decay: float = Field(0.0, ge=0, title="weight decay")
    decoupled: bool = Field(False, title="decoupled weight decay (AdamW)")


Optimizer = Annotated[Sgd | Adam, Field(discriminator="optimizer")]


class Polynomial(Section):
    """Learning rate x (1 - progress) ** exponent."""

    schedule: Literal["polynomial"] = Field("polynomial", title="learning rate schedule")
    exponent: Positive = Field(0.9, title="exponent of the schedule")


class Cosine(Section):
    """Linear warm-up, then cosine annealing to zero."""

    schedule: Literal["cosine"] = Field("cosine", title="learning rate schedule")
    warmup: Annotated[Share, Field(lt=1)] = Field(0.05, title="warm-up, share of the training")


class Plateau(Section):
    """Reduce the learning rate when the training loss stops decreasing."""

    schedule: Literal["plateau"] = Field("plateau", title="learning rate schedule")
    factor: float = Field(0.1, gt=0, lt=1, title="factor of each reduction")
    patience_epochs: Count = Field(15, title="patience", json_schema_extra=EPOCHS)
    min_delta: float = Field(1e-4, ge=0, title="smallest decrease that counts")
    cooldown_epochs: int = Field(1, ge=0, title="cooldown", json_schema_extra=EPOCHS)
    floor: float = Field(1e-5, ge=0, title="minimum learning rate")


Schedule = Annotated[Polynomial | Cosine | Plateau, Field(discriminator="schedule")]


class Training(Section):
    """How the network is trained."""

    seed: Seed = Field(12345, title="random seed of the training")
    epochs: Count = Field(1000, title="epochs")
    steps_per_epoch: Count = Field(250, title="training steps per epoch")
    validation_steps: int = Field(50, ge=0, title="batches of the validation loss per epoch")
    augment_validation: bool = Field(False, title="augmentation of validation batches")
    augment_on: Literal["processor", "device"] = Field(
        "processor",
        title="where augmentation runs",
        description="processor: in worker processes; device: on the training device, which helps "
        "on machines with few cores. Both draw from the same distributions, but not the same "
        "values",
    )
    seconds: Positive | None = Field(
        None,
        title="time budget of one fold",
        description="from start to finish; during training the number of epochs is adjusted only "
        "if the budget would be missed by more than a tenth",
        json_schema_extra=SECONDS,
    )
    early_stopping_epochs: Count | None = Field(
        None,
        title="early stopping",
        description="stop after this many epochs without a lower training loss",
        json_schema_extra=EPOCHS,
    )
    loss: Loss = DiceCrossEntropy()
    optimizer: Optimizer = Sgd()
    schedule: Schedule = Polynomial()
    gradient_clip: Positive | None = Field(12.0, title="maximum gradient norm")
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, title="decay per step of the moving average of the weights"
    )
    precision: Literal["auto", "bfloat16", "float16", "float32", "nnunet"] = Field(
        "auto",
        title="numerical precision",
        description="auto: bfloat16 autocast on devices that compute it fast, else float32; "
        "float16 (with loss scaling) is for CUDA, other devices use auto instead; nnunet: float16 "
        "on CUDA, float32 on other devices",
    )
    compile: bool = Field(False, title="compilation with torch.compile")
    keep: Literal["last", "best_training_loss"] = Field("last", title="weights used for prediction")

    @property
    def steps(self) -> int:
        """The number of training steps in all epochs."""
        return self.epochs * self.steps_per_epoch
