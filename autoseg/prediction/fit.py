"""Does a scan fit a model? It fits, it differs from the training set, or it cannot be segmented.

`check_scan` refuses what cannot be: only what is impossible, as an unusual scan may be of a rare
patient. A `Judge` holds a scan against the training scans. A figure differs if it is farther from
the training scans than they are from each other, with a margin for small training sets
(`margin_of`), and by more than what never matters. `scripts/check_fit.py` measures how often that
is wrong.

Intensities are compared as the network sees them: if the plan normalises each scan by its own range
or statistics, any scale fits, and only the shape of the histogram counts.
"""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from autoseg.common.arrays import Doubles
from autoseg.common.errors import DataError
from autoseg.common.progress import by_axis, counted, say
from autoseg.image.geometry import Geometry, Turn, counted_codes, most_common, orientation_of
from autoseg.image.image import BODY_FRACTIONS, Image, Lengths, appearance_of
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, Rescale, Step, ZScore
from autoseg.prediction.model import TrainingSet
from autoseg.prediction.studies import TEXT

Differences = dict[str, str]  # what differs -> how
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
    for fault in _faults(plan, image):
        raise DataError(fault)


def _faults(plan: Plan, image: Image) -> Iterator[str]:
    """What is wrong with a scan; what follows a fault is not valid."""
    if len(image.array) != (count := len(plan.channels)):
        found = counted(len(image.array), "channel")
        yield f"the scan has {found}, the model needs {count}: {', '.join(plan.channels)}"
    turn = Turn.of(image.geometry, plan.orientation)
    geometry, axes = turn.geometry(image.geometry), turn.triple("xyz")
    for axis, size, patch in zip(axes, geometry.size, plan.sampling.patch_size, strict=True):
        if size == 1 and patch > 1:
            yield f"the scan has a single slice along {axis}; the model segments volumes"
    target = plan.target_spacing_of(geometry.spacing_mm)
    factors = np.divide(geometry.spacing_mm, target)
    if plan.resamples and max(*factors, *1 / factors) >= SPACING_FACTOR:
        about = [by_axis(spacing, ".3g") for spacing in (geometry.spacing_mm, target)]
        yield TEXT("spacing", found=about[0], target=about[1])
    limits = [(float(values.min()), float(values.max())) for values in image.array]
    if all(low == high for low, high in limits):
        yield f"the scan is empty: every voxel has the value {limits[0][0]:g}"
    for index, ((low, high), channel) in enumerate(zip(limits, plan.channels, strict=True)):
        unit = " Hounsfield units" if channel.upper() == "CT" else ""
        for fault in _wrong_range(_steps(plan, index), low, high) if low < high else ():
            yield f"channel {channel}: {fault}{unit}; provide the scan in its original values"


def _steps(plan: Plan, channel: int) -> list[Step]:
    return [s for s in plan.preprocessing if getattr(s, "channel", None) in (None, channel)]


def _wrong_range(steps: Sequence[Step], low: float, high: float) -> Iterator[str]:
    """What is wrong with values from `low` to `high`, followed through the steps."""
    found, first, last = f"the values range from {low:g} to {high:g}", -np.inf, np.inf
    for step in steps:
        match step:
            case Clip():
                first, last = step.window
                if high <= first or low >= last:
                    yield f"{found}, outside of the model's window {first:g} to {last:g}"
                low, high = max(low, first), min(high, last)
            case Rescale() | ZScore(std=None):
                return
            case ZScore(std=float(std), mean=mean):
                trained = f"{found}; the training values have a standard deviation of {std:g}"
                if high - low < SMALLEST_RANGE * std:
                    yield trained
                if mean is not None and abs(min(max(mean, low), high) - mean) > FARTHEST * std:
                    yield f"{trained} and a mean of {mean:g}"
                return
    if last < np.inf and high - low < SMALLEST_PART * (last - first):
        yield f"{found}, too little of the model's window {first:g} to {last:g}"


class Judge:
    """Holds scans against the training set of a model.

    Args:
        plan: of the model.
        training: the scans that trained it; None if they are not known.
        model: its folder, for messages.
    """

    def __init__(self, plan: Plan, training: TrainingSet | None, model: str = "") -> None:
        self.plan, self.model, self.is_warned = plan, model, False
        self.training = training or TrainingSet((), ())
        count = len(plan.channels) if self.training.cases else 0
        self.channels = [_Channel(plan, self.training, index) for index in range(count)]
        self.orientations = tuple(case.orientation for case in self.training.cases)

    @property
    def orientation_of_arrays(self) -> str:
        """The orientation of arrays without a direction: the plan's, or of most training cases."""
        return self.plan.orientation or most_common(self.orientations or ("LPS",))

    def check_orientation(self, grid: Geometry, what: str) -> None:
        """Warn once if the plan has no orientation, and a scan another one than the training."""
        trained, code = self.orientations, orientation_of(grid)
        if self.plan.orientation is not None or self.is_warned or code in trained or not trained:
            return
        self.is_warned = True
        about = {"trained": counted_codes(trained), "usual": most_common(trained)}
        say(TEXT("orientation", what=what, code=code, model=self.model, **about))

    @property
    def not_checked(self) -> str:
        """What cannot be checked, and why; empty if everything is."""
        if not self.training.cases:
            return TEXT("no fingerprint")
        return "" if self.training.has_bodies else TEXT("no bodies", plan=self.plan)

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
        if not self.training.cases:
            return found
        scan, cases, codes = appearance_of(image), self.training.cases, self.orientations
        if self.plan.orientation is None and scan.orientation not in codes:
            found[ORIENTATION] = f"is {scan.orientation} (training scans: {counted_codes(codes)})"
        found |= {
            "spacing": _other_lengths(scan.spacing_mm, [case.spacing_mm for case in cases]),
            "field of view": _other_lengths(scan.extent_mm, [case.extent_mm for case in cases]),
        }
        for of, limits, body in zip(self.channels, scan.ranges, scan.bodies, strict=True):
            found[f"range of {of.name}"] = of.other_range(*limits)
            found[f"histogram of {of.name}"] = of.other_histogram(np.array(body))
        found = {what: how for what, how in found.items() if how}
        larger = math.prod(scan.extent_mm) / max(math.prod(case.extent_mm) for case in cases)
        if larger > LARGEST_FACTOR and found.keys() - {ORIENTATION, "field of view"}:
            differs = differs_from(self.plan, found)
            raise DataError(TEXT("too large", larger=larger, differs=differs))
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
        words = re.sub(r"[^a-z0-9]+", " ", channel.casefold())
        meant = [kind for kind, known in MODALITIES.items() if re.search(rf"\b({known})\b", words)]
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
        steps = _steps(plan, index)
        first = next((s for s in steps if isinstance(s, Clip | Rescale | ZScore)), None)
        # Before anything fixes the scale of the values.
        self.is_scaled = isinstance(first, Rescale) or (
            isinstance(first, ZScore) and None in (first.mean, first.std)
        )
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

    def as_seen(self, body: Doubles) -> Doubles:
        """Quantiles as the network sees them, in standard deviations."""
        if self.is_scaled:
            return np.asarray((body - body.mean()) / (float(body.std()) or 1.0))
        if self.window is not None:  # wider by its own width on either side, so that a shift shows
            low, high = self.window
            body = np.clip(body, 2 * low - high, 2 * high - low)
        return body / self.unit

    def other_range(self, low: float, high: float) -> str:
        """How the values of a scan exceed those of the training scans; empty if they do not.

        Of scans that are scaled by their own values, only the sign tells: a CT has negative values.
        """
        margin = RANGE_PART * (self.highest - self.lowest)
        is_usual = low >= self.lowest - margin and high <= self.highest + margin
        if self.is_scaled:
            is_usual = low >= -RANGE_PART * (high - low) or self.lowest < 0
        if is_usual:
            return ""
        return f"is {low:g} to {high:g} (training scans: {self.lowest:g} to {self.highest:g})"

    def other_histogram(self, body: Doubles) -> str:
        """How the intensities in a body differ from the training scans'; empty if they do not."""
        if not len(self.bodies):
            return ""
        if self.labelled is not None:
            own, *shares = (_share(values, *self.labelled) for values in (body, *self.bodies))
            if own * SHARE_FACTOR * (1 + margin_of(len(shares))) < min(shares):
                about = {"limits": self.labelled, "least": min(shares), "most": max(shares)}
                return TEXT("labelled tissue", own=own, **about)
        nearest = float(_distances(self.seen, self.as_seen(body)).min())
        if len(self.seen) < 2 or nearest <= self.allowed:
            return ""
        return TEXT("histogram", nearest=nearest, allowed=self.allowed)


def _share(body: Doubles, low: float, high: float) -> float:
    """Share of the body with values from `low` to `high`."""
    below_low, below_high = np.interp([low, high], body, BODY_FRACTIONS, left=0, right=1)
    return float(below_high - below_low)


def _distances(bodies: Doubles, body: Doubles) -> Doubles:
    """The earth mover's distance of histograms: the mean difference of their quantiles."""
    return np.asarray(np.abs(bodies - body).mean(axis=1))
