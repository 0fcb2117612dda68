"""The sections of a plan, such as preprocessing, network and training, and what they share.

`fields.json` has the title, unit and description of each field, which `--explain` and the JSON
schema show; they are not written to a plan file and do not change a plan's id.
"""

import re
from itertools import permutations
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from autoseg.common.arrays import Doubles, Triple
from autoseg.common.files import read_json, texts_in

FOR_ID = {"purpose": "id"}  # serialisation context of the dump that an id is computed from
SINCE = "since"
FIELDS: dict[str, dict[str, dict[str, str]]] = read_json(Path(__file__).with_name("fields.json"))
FAULTS = texts_in(Path(__file__).with_name("faults.json"))


def fault_if(wrong: object, kind: str, **found: Any) -> None:
    """Raise a ValueError with the text of this kind in `faults.json` if a plan is wrong."""
    if wrong:
        raise ValueError(FAULTS(kind, **found))


def _is_ascending(limits: tuple[float, float]) -> tuple[float, float]:
    fault_if(limits[0] > limits[1], "not ascending", limits=list(limits))
    return limits


def _reaches_one(limits: tuple[float, float]) -> tuple[float, float]:
    fault_if(limits[1] < 1, "below one", limits=list(limits))
    return limits


def is_orientation(code: Any) -> bool:
    """Whether it is one of the 48 orientation codes; see `autoseg.image.geometry`."""
    return isinstance(code, str) and re.fullmatch(ORIENTATIONS, code) is not None


def _orientation(code: str) -> str:
    fault_if(not is_orientation(code), "orientation", code=code)
    return code


ORIENTATIONS = "|".join(map("".join, permutations(("[RL]", "[AP]", "[IS]"))))
PATTERN = Field(json_schema_extra={"pattern": f"^({ORIENTATIONS})$"})
Orientation = Annotated[str, AfterValidator(_orientation), PATTERN]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
LabelValue = Annotated[int, Field(ge=0, lt=2**16)]
NotNegative = Annotated[float, Field(ge=0)]
Range = Annotated[tuple[float, float], AfterValidator(_is_ascending)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_is_ascending)]
FactorRange = Annotated[PositiveRange, AfterValidator(_reaches_one)]
NotNegativeRange = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_is_ascending)]
CountRange = Annotated[tuple[Count, Count], AfterValidator(_is_ascending)]
Size3 = tuple[Count, Count, Count]
Spacing = tuple[Positive | None, Positive | None, Positive | None]
Pair = tuple[LabelValue, LabelValue]
Axes = tuple[Literal[0, 1, 2], ...]


def since(version: str) -> dict[str, Any]:
    """Mark a key added after version 0.1.0: `Field(..., json_schema_extra=SINCE_0_2)`.

    Its default must reproduce the behaviour before the key existed, and must never change: a plan
    with the default keeps the id of a plan without the key.
    """
    return {SINCE: version}


SINCE_0_2 = since("0.2.0")


class Section(BaseModel):
    """A frozen section of a plan; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @pydantic.model_serializer(mode="wrap")
    def _for_id(
        self, values_of: pydantic.SerializerFunctionWrapHandler, info: pydantic.SerializationInfo
    ) -> dict[str, Any]:
        """Leave out later keys (see `since`) at their default if the values are for an id."""
        values: dict[str, Any] = values_of(self)
        if info.context == FOR_ID:
            for key, field in type(self).model_fields.items():
                default = field.get_default(call_default_factory=True)
                is_later = isinstance(extra := field.json_schema_extra, dict) and SINCE in extra
                if is_later and getattr(self, key) == default:
                    values.pop(key, None)
        return values


def about(section: type[Section], key: str) -> dict[str, str]:
    """Title, unit and description of a field, as far as it has them."""
    return FIELDS.get(section.__name__, {}).get(key, {})


# Preprocessing: steps in the order in which they are applied.


class CropToNonzero(Section):
    """Crop the volume to the bounding box of the voxels that are not zero in every channel."""

    step: Literal["crop_to_nonzero"] = "crop_to_nonzero"


class Clip(Section):
    """Clip the intensities of one channel to a window (Hounsfield units for CT)."""

    step: Literal["clip"] = "clip"
    window: Range
    channel: Index | None = None
    scaled_scans: Literal["clip", "keep"] = Field("clip", json_schema_extra=SINCE_0_2)

    @model_validator(mode="after")
    def _is_open(self) -> Self:
        fault_if(self.window[0] == self.window[1], "empty window", window=list(self.window))
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
    label_ties: Literal["smallest", "nearest"] = Field("smallest", json_schema_extra=SINCE_0_2)
    rounding: Literal["nearest", "down", "nearest_ratio"] = "nearest"
    anisotropy: Positive | None = 3.0
    clip: Literal["volume", "plane"] = Field("volume", json_schema_extra=SINCE_0_2)


def whole_sizes(exact: Doubles, rounding: str) -> NDArray[np.int64]:
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
    fill_holes: bool = Field(False, json_schema_extra=SINCE_0_2)
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

    features: tuple[Maps, ...]
    strides: tuple[tuple[Stride, Stride, Stride], ...]
    kernels: tuple[tuple[Kernel, Kernel, Kernel], ...]
    blocks_encoder: tuple[Blocks, ...]
    blocks_decoder: tuple[Blocks, ...]
    residual: bool = False
    down: Literal["strided", "max_pool"] = "strided"
    norm: Literal["instance", "batch"] = "instance"
    norm_momentum: Share = 0.1
    norm_epsilon: Positive = 1e-5
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    negative_slope: float = Field(0.01, json_schema_extra=SINCE_0_2)
    activation_first: bool = False
    convolution_bias: bool = True
    initialisation: Literal["he", "glorot"] = "he"
    deep_supervision: bool = True

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        stages = len(self.features)
        fault_if(stages < 2, "one stage")
        fault_if(stages > MOST_STAGES, "many stages", stages=stages, most=MOST_STAGES)
        for key in ("strides", "kernels", "blocks_encoder"):
            count = len(getattr(self, key))
            fault_if(count != stages, "entries", key=key, count=count, stages=stages)
        count = len(self.blocks_decoder)
        fault_if(count != stages - 1, "decoder", count=count, needed=stages - 1)
        fault_if(self.strides[0] != (1, 1, 1), "first stride")
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

    loss: Literal["dice_cross_entropy"] = "dice_cross_entropy"
    batch_dice: bool = False
    smooth: float = Field(1e-5, ge=0)
    background: bool = False


class TverskyCrossEntropy(Section):
    """Tversky loss (number of classes minus the sum of indices) plus cross-entropy."""

    loss: Literal["tversky_cross_entropy"] = "tversky_cross_entropy"
    alpha: float = Field(0.5, ge=0)
    beta: float = Field(0.5, ge=0)
    smooth: float = Field(1e-6, ge=0)


Loss = Annotated[DiceCrossEntropy | TverskyCrossEntropy, Field(discriminator="loss")]


class Sgd(Section):
    """Stochastic gradient descent."""

    optimizer: Literal["sgd"] = "sgd"
    learning_rate: Positive = 1e-2
    momentum: float = Field(0.99, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(3e-5, ge=0)


class Adam(Section):
    """Adam; AdamW if weight decay is `decoupled`."""

    optimizer: Literal["adam"] = "adam"
    learning_rate: Positive = 1e-3
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    decoupled: bool = False


Optimizer = Annotated[Sgd | Adam, Field(discriminator="optimizer")]


class Polynomial(Section):
    """Learning rate x (1 - progress) ** exponent."""

    schedule: Literal["polynomial"] = "polynomial"
    exponent: Positive = 0.9


class Cosine(Section):
    """Linear warm-up, then cosine annealing to zero."""

    schedule: Literal["cosine"] = "cosine"
    warmup: Annotated[Share, Field(lt=1)] = 0.05


class Plateau(Section):
    """Reduce the learning rate when the training loss stops decreasing."""

    schedule: Literal["plateau"] = "plateau"
    factor: float = Field(0.1, gt=0, lt=1)
    patience_epochs: Count = 15
    min_delta: float = Field(1e-4, ge=0)
    cooldown_epochs: int = Field(1, ge=0)
    floor: float = Field(1e-5, ge=0)


Schedule = Annotated[Polynomial | Cosine | Plateau, Field(discriminator="schedule")]


class Training(Section):
    """How the network is trained."""

    seed: Seed = 12345
    epochs: Count = 1000
    steps_per_epoch: Count = 250
    validation_steps: int = Field(50, ge=0)
    augment_validation: bool = False
    augment_on: Literal["processor", "device"] = "processor"
    seconds: Positive | None = None
    early_stopping_epochs: Count | None = None
    loss: Loss = DiceCrossEntropy()
    optimizer: Optimizer = Sgd()
    schedule: Schedule = Polynomial()
    gradient_clip: Positive | None = 12.0
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["auto", "bfloat16", "float16", "float32", "nnunet"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    keep: Literal["last", "best_training_loss"] = "last"

    @pydantic.field_serializer("compile")
    def _in_id(self, value: Any, info: pydantic.FieldSerializationInfo) -> Any:
        """`auto` has the id of false, the former default: results differ in rounding only."""
        return False if value == "auto" and info.context == FOR_ID else value

    @property
    def steps(self) -> int:
        """The number of training steps in all epochs."""
        return self.epochs * self.steps_per_epoch


# Cross-validation and prediction.

Average = Literal["probabilities", "logits", "logits_float16"]


class Splits(Section):
    """How the cases are split into folds (a `splits.json` of the user overrides it)."""

    folds: int = Field(5, ge=2)
    seed: Seed = 12345


class Inference(Section):
    """How a scan is predicted from patches."""

    overlap: Triple
    tile_step: Annotated[float, Field(gt=0, le=1)] | None = Field(None, json_schema_extra=SINCE_0_2)
    weighting: Literal["gaussian", "uniform", "nnunet"] = "gaussian"
    average: Average = Field("probabilities", json_schema_extra=SINCE_0_2)
    slide_axis: Literal[0, 1, 2] | None = Field(None, json_schema_extra=SINCE_0_2)
    anisotropy: Positive | None = Field(None, json_schema_extra=SINCE_0_2)
    mirror_axes: Axes = ()
    mirror: bool = Field(False, json_schema_extra=SINCE_0_2)
