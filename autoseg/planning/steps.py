"""Preprocessing in a plan: steps in the order in which they are applied."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from autoseg.planning.part import Index, Part, Positive, Range


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
