"""Training in a plan: loss, optimiser, schedule, and how long."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from autoseg.planning.part import Count, Part, Positive, Seed, Share


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
