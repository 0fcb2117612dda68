"""Augmentation in a plan: the transforms of batchgenerators, in order, with probabilities."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from autoseg.plan.sections import (
    Axes,
    CountRange,
    FactorRange,
    NotNegativeRange,
    PositiveRange,
    Range,
    Section,
    Share,
)


class Spatial(Section):
    """Rotate, scale and deform about the patch centre, each with its own probability."""

    transform: Literal["spatial"] = Field("spatial", title="spatial transform")
    rotation_probability: Share = 0.2
    rotation_degrees: tuple[Range, Range, Range] = ((-30, 30), (-30, 30), (-30, 30))
    scaling_probability: Share = 0.2
    scaling: FactorRange = (0.7, 1.4)
    elastic_probability: Share = 0.0
    elastic_alpha: NotNegativeRange = (0, 900)
    elastic_sigma: PositiveRange = (9, 13)
    image_order: Literal[0, 1, 3] = 3
    label_order: Literal[0, 1] = 0
    border: Literal["constant", "nearest"] = Field(
        "constant", description="padding outside the volume: zeros or the border value"
    )


class Mirror(Section):
    """Flip along each of the axes (0 = x, 1 = y, 2 = z) with probability one half."""

    transform: Literal["mirror"] = Field("mirror", title="mirroring")
    axes: Axes = (0, 1, 2)
    probability: Share = 1.0


class GaussianNoise(Section):
    """Add Gaussian noise with a random variance."""

    transform: Literal["gaussian_noise"] = Field("gaussian_noise", title="Gaussian noise")
    probability: Share = 0.1
    variance: NotNegativeRange = (0, 0.1)


class GaussianBlur(Section):
    """Gaussian blur with a random sigma (voxels)."""

    transform: Literal["gaussian_blur"] = Field("gaussian_blur", title="Gaussian blur")
    probability: Share = 0.2
    channel_probability: Share = 0.5
    sigma: PositiveRange = (0.5, 1.0)


class Brightness(Section):
    """Multiply all intensities by a random factor."""

    transform: Literal["brightness"] = Field("brightness", title="brightness")
    probability: Share = 0.15
    factor: PositiveRange = (0.75, 1.25)


class Contrast(Section):
    """Scale intensities about their mean by a random factor."""

    transform: Literal["contrast"] = Field("contrast", title="contrast")
    probability: Share = 0.15
    factor: FactorRange = (0.75, 1.25)
    preserve_range: bool = True


class LowResolution(Section):
    """Simulate a low resolution: downsample, then upsample."""

    transform: Literal["low_resolution"] = Field("low_resolution", title="simulated low resolution")
    probability: Share = 0.25
    channel_probability: Share = 0.5
    zoom: PositiveRange = (0.5, 1.0)


class Gamma(Section):
    """Gamma correction; on the inverted image if `invert`."""

    transform: Literal["gamma"] = Field("gamma", title="gamma correction")
    probability: Share = 0.3
    gamma: FactorRange = (0.7, 1.5)
    invert: bool = False
    retain_statistics: bool = True


class PreviousMorphology(Section):
    """Dilate, erode, open or close each class of a cascade's previous segmentation by a ball."""

    transform: Literal["previous_morphology"] = Field(
        "previous_morphology", title="morphology of the previous segmentation"
    )
    probability: Share = 0.4
    radius: CountRange = Field((1, 8), description="radius of the ball in voxels")


class PreviousRemoval(Section):
    """Remove one connected component of each class of a cascade's previous segmentation."""

    transform: Literal["previous_removal"] = Field(
        "previous_removal", title="component removal in the previous segmentation"
    )
    probability: Share = 0.2
    largest_share: Share = Field(
        0.15, description="larger components are kept (share of the patch)"
    )


Transform = Annotated[
    Spatial
    | Mirror
    | GaussianNoise
    | GaussianBlur
    | Brightness
    | Contrast
    | LowResolution
    | Gamma
    | PreviousMorphology
    | PreviousRemoval,
    Field(discriminator="transform"),
]
