"""The patches of a plan: how they are sampled, and the transforms of batchgenerators that they get.

The transforms are in order, with probabilities.
"""

from typing import Annotated, Literal

from pydantic import Field

from autoseg.plan import sections


class Sampling(sections.Section):
    """Which patches a batch consists of."""

    patch_size: sections.Size3
    batch_size: sections.Count
    foreground_share: sections.Share = 0.33
    foreground_mode: Literal["last", "chance"] = "last"
    mix_probability: sections.Share = Field(0.0, json_schema_extra=sections.SINCE_0_2)


Turns = tuple[sections.Range, sections.Range, sections.Range]  # about x, y, z


class Spatial(sections.Section):
    """Rotate, scale and deform about the patch centre, each with its own probability."""

    transform: Literal["spatial"] = "spatial"
    rotation_probability: sections.Share = 0.2
    rotation_degrees: Turns = ((-30, 30), (-30, 30), (-30, 30))
    scaling_probability: sections.Share = 0.2
    scaling: sections.FactorRange = (0.7, 1.4)
    elastic_probability: sections.Share = 0.0
    elastic_alpha: sections.NotNegativeRange = (0, 900)
    elastic_sigma: sections.PositiveRange = (9, 13)
    image_order: Literal[0, 1, 3] = 3
    label_order: Literal[0, 1] = 0
    border: Literal["constant", "nearest"] = "constant"


class Mirror(sections.Section):
    """Flip along each of the axes (0 = x, 1 = y, 2 = z) with probability one half."""

    transform: Literal["mirror"] = "mirror"
    axes: sections.Axes = (0, 1, 2)
    probability: sections.Share = 1.0


class GaussianNoise(sections.Section):
    """Add Gaussian noise with a random variance."""

    transform: Literal["gaussian_noise"] = "gaussian_noise"
    probability: sections.Share = 0.1
    variance: sections.NotNegativeRange = (0, 0.1)


class GaussianBlur(sections.Section):
    """Gaussian blur with a random sigma (voxels)."""

    transform: Literal["gaussian_blur"] = "gaussian_blur"
    probability: sections.Share = 0.2
    channel_probability: sections.Share = 0.5
    sigma: sections.PositiveRange = (0.5, 1.0)


class Brightness(sections.Section):
    """Multiply all intensities by a random factor."""

    transform: Literal["brightness"] = "brightness"
    probability: sections.Share = 0.15
    factor: sections.PositiveRange = (0.75, 1.25)


class Contrast(sections.Section):
    """Scale intensities about their mean by a random factor."""

    transform: Literal["contrast"] = "contrast"
    probability: sections.Share = 0.15
    factor: sections.FactorRange = (0.75, 1.25)
    preserve_range: bool = True


class LowResolution(sections.Section):
    """Simulate a low resolution: downsample, then upsample."""

    transform: Literal["low_resolution"] = "low_resolution"
    probability: sections.Share = 0.25
    channel_probability: sections.Share = 0.5
    zoom: sections.PositiveRange = (0.5, 1.0)


class Gamma(sections.Section):
    """Gamma correction; on the inverted image if `invert`."""

    transform: Literal["gamma"] = "gamma"
    probability: sections.Share = 0.3
    gamma: sections.FactorRange = (0.7, 1.5)
    invert: bool = False
    retain_statistics: bool = True


class PreviousMorphology(sections.Section):
    """Dilate, erode, open or close each class of a cascade's previous segmentation by a ball."""

    transform: Literal["previous_morphology"] = "previous_morphology"
    probability: sections.Share = 0.4
    radius: sections.CountRange = (1, 8)


class PreviousRemoval(sections.Section):
    """Remove one connected component of each class of a cascade's previous segmentation."""

    transform: Literal["previous_removal"] = "previous_removal"
    probability: sections.Share = 0.2
    largest_share: sections.Share = 0.15


Intensity = GaussianNoise | GaussianBlur | Brightness | Contrast | LowResolution | Gamma
Previous = PreviousMorphology | PreviousRemoval
Transform = Annotated[Spatial | Mirror | Intensity | Previous, Field(discriminator="transform")]
