"""Does a scan fit a model? It fits, it differs from the training set, or it cannot be segmented.

`check_scan` refuses what cannot be: only what is impossible, as an unusual scan may be of a rare
patient. A `Judge` holds a scan against the training scans. A figure differs if it is farther from
the training scans than they are from each other, with a margin for small training sets
(`margin_of`), and by more than what never matters. `scripts/check_fit.py` measures how often that
is wrong.

Intensities are compared as the network sees them: if the plan normalises each scan by its own range
or statistics, any scale fits, and only the shape of the histogram counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from autoseg.common.errors import DataError
from autoseg.common.progress import by_axis, counted, say
from autoseg.image.geometry import Turn, counted_codes
from autoseg.image.image import BODY_FRACTIONS, Image, Lengths, appearance_of
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, Rescale, Step, ZScore
from autoseg.prediction.model import TrainingSet

Differences = dict[str, str]  # what differs -> how
Floats = NDArray[np.float64]
ORIENTATION = "orientation"

# What cannot be segmented.
SPACING_FACTOR = 30.0  # thick slices are 10 to 20 pixels apart; metres instead of mm give 1000
SMALLEST_RANGE = 0.05  # in standard deviations of the training values
FARTHEST = 20.0  # standard deviations from the training mean
SMALLEST_PART = 0.01  # of the window

LARGEST_FACTOR = 100.0  # in mm3 of the largest training scan, if it differs in more than its size

# What differs. Smaller differences do not matter:
LENGTH_FACTOR = 2.0  # of spacings and extents
RANGE_PART = 0.25  # of the width of the training range
ROUNDING = 1e-3  # of spacings in files
NEAR = 0.1  # standard deviations between histograms
SHARE_FACTOR = 4.0  # of the voxels that look like labelled tissue
# Words in the name of a channel -> the Modality in DICOM.
MODALITIES = {
    "CT": r"cta?|cbct|hu",
    "MR": r"mri?|mra|t[12]\w*|pdw?|flair|adc|dwi|swi|dce",
    "PT": r"pet|pt|suv|fdg",
    "US": r"us|ultrasound",
}


def check_scan(plan: Plan, image: Image) -> None:
    """Check the channels, voxel spacing and values of a scan against a plan.

    If a step normalises each scan by its own range or statistics, any scale of values is valid.

    Args:
        plan: of the model.
        image: the scan as it was read.

    Raises:
        DataError: the model cannot segment it; the message says what was found and expected.
    """
    fault = _wrong_channels(plan, image) or _wrong_size(plan, image) or _wrong_values(plan, image)
    if fault:
        raise DataError(fault)


def _wrong_channels(plan: Plan, image: Image) -> str | None:
    if len(image.array) == len(plan.channels):
        return None
    return (
        f"the scan has {counted(len(image.array), 'channel')}, the model needs "
        f"{len(plan.channels)}: {', '.join(plan.channels)}"
    )


def _wrong_size(plan: Plan, image: Image) -> str | None:
    turn = Turn.of(image.geometry, plan.orientation)
    geometry, axes = turn.geometry(image.geometry), turn.triple("xyz")
    for axis, size, patch in zip(axes, geometry.size, plan.sampling.patch_size, strict=True):
        if size == 1 and patch > 1:
            return f"the scan has a single slice along {axis}; the model segments volumes"
    target = plan.target_spacing_of(geometry.spacing_mm)
    factors = [own / wanted for own, wanted in zip(geometry.spacing_mm, target, strict=True)]
    if not plan.resamples or all(1 / SPACING_FACTOR < f < SPACING_FACTOR for f in factors):
        return None
    return (
        f"implausible voxel spacing: {by_axis(geometry.spacing_mm, '.3g')} mm, and the model's is "
        f"{by_axis(target, '.3g')} mm; fix the spacing in the file (in mm)"
    )


def _wrong_values(plan: Plan, image: Image) -> str | None:
    limits = [(float(values.min()), float(values.max())) for values in image.array]
    if all(low == high for low, high in limits):
        return f"the scan is empty: every voxel has the value {limits[0][0]:g}"
    for index, (low, high) in enumerate(limits):
        steps = [
            step for step in plan.preprocessing if getattr(step, "channel", None) in (None, index)
        ]
        if low < high and (fault := _wrong_range(steps, low, high)):
            channel = plan.channels[index]
            unit = " Hounsfield units" if channel.upper() == "CT" else ""
            return f"channel {channel}: {fault}{unit}; provide the scan in its original values"
    return None


def _wrong_range(steps: Iterable[Step], low: float, high: float) -> str | None:
    """What is wrong with values from `low` to `high`, followed through the steps."""
    found = f"the values range from {low:g} to {high:g}"
    window: tuple[float, float] | None = None
    for step in steps:
        match step:
            case Clip():
                window = step.window
                if high <= window[0] or low >= window[1]:
                    return f"{found}, outside of the model's window {window[0]:g} to {window[1]:g}"
                low, high = max(low, window[0]), min(high, window[1])
            case Rescale():
                return None
            case ZScore():
                return _far_from_training(step, low, high, found)
    if window and high - low < SMALLEST_PART * (window[1] - window[0]):
        return f"{found}, too little of the model's window {window[0]:g} to {window[1]:g}"
    return None


def _far_from_training(step: ZScore, low: float, high: float, found: str) -> str | None:
    if step.std is None:
        return None
    trained = f"the training values have a standard deviation of {step.std:g}"
    if high - low < SMALLEST_RANGE * step.std:
        return f"{found}; {trained}"
    if step.mean is not None:
        nearest = min(max(step.mean, low), high)
        if abs(nearest - step.mean) > FARTHEST * step.std:
            return f"{found}; {trained} and a mean of {step.mean:g}"
    return None


def warn(what: str, plan: Plan, found: Differences) -> None:
    """Print what differs in one line, unless only the orientation does.

    `Predictor.check_orientation` says that once a run, with what to do.
    """
    if set(found) - {ORIENTATION}:
        say(f"warning: {what} {differs_from(plan, found)}")


class Judge:
    """Holds scans against the training set of a model.

    Args:
        plan: of the model.
        training: the scans that trained it; None if they are not known.
    """

    def __init__(self, plan: Plan, training: TrainingSet | None) -> None:
        self.plan = plan
        self.training = training if training is not None and training.cases else None
        self.channels = [
            _Channel(plan, self.training, index)
            for index in range(len(plan.channels))
            if self.training is not None
        ]

    @property
    def not_checked(self) -> str:
        """What cannot be checked, and why; empty if everything is."""
        if self.training is None:
            missing = "the model has no fingerprint.json, or one without cases"
            return f"spacing, field of view and intensities ({missing})"
        if self.training.has_bodies:
            return ""
        return (
            "histogram inside the body (the model's fingerprint.json is of version 0.1.0; run "
            f"autoseg_plan {self.plan.task} again and copy the new one into the model)"
        )

    def differences(self, image: Image, modalities: Sequence[str | None] = ()) -> Differences:
        """What is different about a scan that passed `check_scan`; empty if it fits.

        Args:
            image: the scan as it was read.
            modalities: DICOM's Modality of each channel; None for files that are not DICOM.

        Raises:
            DataError: the scan is of another part of the body, so that most of the network's work,
                which grows with its size, would be wasted.
        """
        found = dict(_other_modality(self.plan.channels, modalities))
        if self.training is None:
            return found
        scan, cases = appearance_of(image), self.training.cases
        codes = self.training.orientations
        if self.plan.orientation is None and scan.orientation not in codes:
            found[ORIENTATION] = f"is {scan.orientation} (training scans: {counted_codes(codes)})"
        found |= {
            "spacing": _other_lengths(scan.spacing_mm, [case.spacing_mm for case in cases]),
            "field of view": _other_lengths(scan.extent_mm, [case.extent_mm for case in cases]),
        }
        for index, channel in enumerate(self.channels):
            name = channel.name
            found[f"range of {name}"] = channel.other_range(*scan.ranges[index])
            found[f"histogram of {name}"] = channel.other_histogram(np.array(scan.bodies[index]))
        found = {what: how for what, how in found.items() if how}
        larger = math.prod(scan.extent_mm) / max(math.prod(case.extent_mm) for case in cases)
        if larger > LARGEST_FACTOR and found.keys() - {ORIENTATION, "field of view"}:
            raise DataError(
                f"its field of view is {larger:.0f} times that of any training scan (in mm3); "
                f"crop it to that part of the body; it {differs_from(self.plan, found)}"
            )
        return found


def differs_from(plan: Plan, found: Differences) -> str:
    """All differences in one line."""
    each = "; ".join(f"{what} {how}" for what, how in found.items())
    return f"differs from the training scans of {plan.task}: {each}"


def margin_of(count: int) -> float:
    """How far beyond `count` training scans others of their kind may lie, in parts of their spread.

    The spread of a few scans is less than that of all scans of their kind.
    """
    return 4 / (count - 1) if count > 1 else 0.0


def _other_modality(
    channels: Sequence[str], modalities: Sequence[str | None]
) -> Iterator[tuple[str, str]]:
    for channel, modality in zip(channels, modalities, strict=False):
        words = re.split(r"[^a-z0-9]+", channel.casefold())
        meant = [
            kind
            for kind, pattern in MODALITIES.items()
            if any(re.fullmatch(pattern, word) for word in words)
        ]
        if modality in MODALITIES and meant and modality not in meant:
            yield "modality", f"is {modality} (channel of the model: {channel})"


def _other_lengths(own: Lengths, training: Sequence[Lengths]) -> str:
    """How three lengths differ from those of the training scans; empty if they do not."""
    lengths = np.log(training)
    low, high = lengths.min(axis=0), lengths.max(axis=0)
    margin = np.maximum(np.log(LENGTH_FACTOR), margin_of(len(lengths)) * (high - low)) + ROUNDING
    if ((np.log(own) >= low - margin) & (np.log(own) <= high + margin)).all():
        return ""
    usual = " to ".join(dict.fromkeys(by_axis(np.exp(end), ".3g") for end in (low, high)))
    return f"is {by_axis(own, '.3g')} mm (training scans: {usual} mm)"


class _Channel:
    """The intensities of a channel of the training scans.

    Attributes:
        name: of the channel.
        is_scaled: whether each scan is normalised by its own values, so that any scale is valid.
        lowest, highest: ends of the training ranges.
        bodies: quantiles inside the bodies (scan, quantile); empty if they are not known.
        labelled: range of the labelled voxels; None if it does not matter or is not known.
        window: to which values are clipped before they are compared, if any.
        unit: one standard deviation, unless each scan has its own.
        seen: the bodies as the network sees them.
        allowed: distance of a histogram from the nearest training scan.
    """

    def __init__(self, plan: Plan, training: TrainingSet, index: int) -> None:
        self.name, cases = plan.channels[index], training.cases
        steps = [s for s in plan.preprocessing if getattr(s, "channel", None) in (None, index)]
        self.is_scaled = _is_scaled(steps)
        self.lowest = min(case.ranges[index][0] for case in cases)
        self.highest = max(case.ranges[index][1] for case in cases)
        self.labelled = None if self.is_scaled else training.labelled[index]
        self.window = next((step.window for step in steps if isinstance(step, Clip)), self.labelled)
        self.bodies = np.array([c.bodies[index] for c in cases if training.has_bodies], np.float64)
        if not len(self.bodies):
            return
        std = next((step.std for step in steps if isinstance(step, ZScore)), None)
        self.unit = std or float(self.bodies.std(axis=1).mean()) or 1.0
        self.seen = np.array([self.as_seen(body) for body in self.bodies])
        widest = max(_distances(self.seen, each).max() for each in self.seen)
        self.allowed = max(NEAR, float(widest) * (1 + margin_of(len(cases))))

    def as_seen(self, body: Floats) -> Floats:
        """Quantiles as the network sees them, in standard deviations."""
        if self.is_scaled:
            scaled: Floats = (body - body.mean()) / (float(body.std()) or 1.0)
            return scaled
        if self.window is not None:  # wider by its own width on either side, so that a shift shows
            low, high = self.window
            body = np.clip(body, 2 * low - high, 2 * high - low)
        return body / self.unit

    def other_range(self, low: float, high: float) -> str:
        """How the values of a scan exceed those of the training scans; empty if they do not.

        Of scans that are scaled by their own values, only the sign tells: a CT has negative values.
        """
        if self.is_scaled:
            is_usual = low >= -RANGE_PART * (high - low) or self.lowest < 0
        else:
            margin = RANGE_PART * (self.highest - self.lowest)
            is_usual = low >= self.lowest - margin and high <= self.highest + margin
        if is_usual:
            return ""
        return f"is {low:g} to {high:g} (training scans: {self.lowest:g} to {self.highest:g})"

    def other_histogram(self, body: Floats) -> str:
        """How the intensities in a body differ from the training scans'; empty if they do not."""
        if not len(self.bodies):
            return ""
        return self._too_little_tissue(body) or self._far_from_all(body)

    def _too_little_tissue(self, body: Floats) -> str:
        if self.labelled is None:
            return ""
        own, *shares = (_share(values, *self.labelled) for values in (body, *self.bodies))
        if own * SHARE_FACTOR * (1 + margin_of(len(shares))) >= min(shares):
            return ""
        low, high = self.labelled
        return (
            f"has {own:.0%} of the body from {low:g} to {high:g} like labelled tissue (training "
            f"scans: {min(shares):.0%} to {max(shares):.0%})"
        )

    def _far_from_all(self, body: Floats) -> str:
        nearest = float(_distances(self.seen, self.as_seen(body)).min())
        if len(self.seen) < 2 or nearest <= self.allowed:
            return ""
        return (
            f"is {nearest:.2g} standard deviations from the nearest training scan (expected: at "
            f"most {self.allowed:.2g})"
        )


def _is_scaled(steps: Iterable[Step]) -> bool:
    """Whether each scan is normalised by its own values, before anything fixes their scale."""
    for step in steps:
        match step:
            case Clip():
                return False
            case Rescale():
                return True
            case ZScore():
                return step.mean is None or step.std is None
    return False


def _share(body: Floats, low: float, high: float) -> float:
    """Share of the body with values from `low` to `high`."""
    below_low, below_high = np.interp([low, high], body, BODY_FRACTIONS, left=0, right=1)
    return float(below_high - below_low)


def _distances(bodies: Floats, body: Floats) -> Floats:
    """The earth mover's distance of histograms: the mean difference of their quantiles."""
    found: Floats = np.abs(bodies - body).mean(axis=1)
    return found
