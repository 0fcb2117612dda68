"""Augmentation in a plan: batchgenerators' transforms in order, each with its chance."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from autoseg.plan.sections import (
    Axes,
    CountRange,
    FactorRange,
    NotNegativeRange,
    Part,
    PositiveRange,
    Range,
    Share,
)


class Spatial(Part):
    """Rotate, scale and deform about the patch centre, each with its own chance."""

    transform: Literal["spatial"] = "spatial"
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
        "constant", description="what lies outside the volume: zero, or its border's value"
    )


class Mirror(Part):
    """Flip along each of the axes (0 = x, 1 = y, 2 = z) with a chance of one half."""

    transform: Literal["mirror"] = "mirror"
    axes: Axes = (0, 1, 2)
    probability: Share = 1.0


class GaussianNoise(Part):
    """Add Gaussian noise of a random variance."""

    transform: Literal["gaussian_noise"] = "gaussian_noise"
    probability: Share = 0.1
    variance: NotNegativeRange = (0, 0.1)


class GaussianBlur(Part):
    """Blur with a random sigma (voxels)."""

    transform: Literal["gaussian_blur"] = "gaussian_blur"
    probability: Share = 0.2
    channel_probability: Share = 0.5
    sigma: PositiveRange = (0.5, 1.0)


class Brightness(Part):
    """Multiply all intensities by a random factor."""

    transform: Literal["brightness"] = "brightness"
    probability: Share = 0.15
    factor: PositiveRange = (0.75, 1.25)


class Contrast(Part):
    """Stretch intensities about their mean by a random factor."""

    transform: Literal["contrast"] = "contrast"
    probability: Share = 0.15
    factor: FactorRange = (0.75, 1.25)
    preserve_range: bool = True


class LowResolution(Part):
    """Simulate a scan of lower resolution: sample down, then up."""

    transform: Literal["low_resolution"] = "low_resolution"
    probability: Share = 0.25
    channel_probability: Share = 0.5
    zoom: PositiveRange = (0.5, 1.0)


class Gamma(Part):
    """Gamma correction, on the inverted image if `invert`."""

    transform: Literal["gamma"] = "gamma"
    probability: Share = 0.3
    gamma: FactorRange = (0.7, 1.5)
    invert: bool = False
    retain_statistics: bool = True


class PreviousMorphology(Part):
    """Grow, shrink, open or close each class of a cascade's previous segmentation by a ball."""

    transform: Literal["previous_morphology"] = "previous_morphology"
    probability: Share = 0.4
    radius: CountRange = Field((1, 8), description="of the ball, in voxels")


class PreviousRemoval(Part):
    """Remove one connected component of each class of a cascade's previous segmentation."""

    transform: Literal["previous_removal"] = "previous_removal"
    probability: Share = 0.2
    largest_share: Share = Field(0.15, description="components above this share of the patch stay")


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
