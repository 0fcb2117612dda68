"""Whether a scan can be what a plan was made for; looked at before the network sees it.

Only what cannot be right is refused: an odd scan is segmented, as it may be a rare patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autoseg.common.errors import DataError
from autoseg.common.progress import counted
from autoseg.image.image import Image
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, Rescale, Step, ZScore

SPACING_FACTOR = 30.0  # thick slices are 10 to 20 times as far apart as pixels; metres 1000 times
SMALLEST_SPREAD = 0.05  # of the standard deviation of the training's values
FARTHEST = 20.0  # standard deviations from the training's mean
SMALLEST_PART = 0.01  # of the window


def check_scan(plan: Plan, image: Image) -> None:
    """Check a scan against what the plan says of channels, voxel size and values.

    Steps that take each scan's own range or figures make any scale of values acceptable.

    Args:
        plan: what the model was made for.
        image: the scan as it was read.

    Raises:
        DataError: it cannot be right; the message says what was found and what was expected.
    """
    if fault := _channels(plan, image) or _size(plan, image) or _values(plan, image):
        raise DataError(fault)


def _channels(plan: Plan, image: Image) -> str | None:
    wanted = len(plan.channels)
    if len(image.array) == wanted:
        return None
    return (
        f"the scan has {counted(len(image.array), 'channel')}, the model needs {wanted}: "
        f"{', '.join(plan.channels)}"
    )


def _size(plan: Plan, image: Image) -> str | None:
    geometry = image.geometry
    for axis, size, patch in zip("xyz", geometry.size, plan.sampling.patch_size, strict=True):
        if size == 1 and patch > 1:
            return f"the scan is a single layer along {axis}; the model segments volumes"
    target = plan.target_spacing_of(geometry.spacing_mm)
    factors = [own / wanted for own, wanted in zip(geometry.spacing_mm, target, strict=True)]
    if not plan.resamples or all(1 / SPACING_FACTOR < f < SPACING_FACTOR for f in factors):
        return None
    return (
        f"its voxels measure {_times(geometry.spacing_mm)} mm, those of the model {_times(target)} "
        "mm; correct the spacing in the file (mm are expected)"
    )


def _values(plan: Plan, image: Image) -> str | None:
    limits = [(float(values.min()), float(values.max())) for values in image.array]
    if all(low == high for low, high in limits):
        return f"every voxel has the value {limits[0][0]:g}: there is no picture in it"
    for index, (low, high) in enumerate(limits):
        steps = [
            step for step in plan.preprocessing if getattr(step, "channel", None) in (None, index)
        ]
        if low < high and (fault := _range(steps, low, high)):
            unit = " Hounsfield units" if plan.channels[index].upper() == "CT" else ""
            return (
                f"channel {plan.channels[index]}: {fault}{unit}; give the scan as it was acquired"
            )
    return None


def _range(steps: Iterable[Step], low: float, high: float) -> str | None:
    """What is wrong with values from `low` to `high`, followed through the steps."""
    found = f"its values go from {low:g} to {high:g}"
    window: tuple[float, float] | None = None
    for step in steps:
        match step:
            case Clip():
                window = step.window
                if high <= window[0] or low >= window[1]:
                    return f"{found}, all outside of the model's window {_span(window)}"
                low, high = max(low, window[0]), min(high, window[1])
            case Rescale():
                return None
            case ZScore():
                return _figures(step, low, high, found)
    if window and high - low < SMALLEST_PART * (window[1] - window[0]):
        return f"{found}, next to nothing of the model's window {_span(window)}"
    return None


def _figures(step: ZScore, low: float, high: float, found: str) -> str | None:
    if step.std is None:
        return None
    trained = f"the model was trained on values that spread by {step.std:g}"
    if high - low < SMALLEST_SPREAD * step.std:
        return f"{found}; {trained}"
    if step.mean is not None:
        nearest = min(max(step.mean, low), high)
        if abs(nearest - step.mean) > FARTHEST * step.std:
            return f"{found}; {trained} around {step.mean:g}"
    return None


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)


def _span(window: tuple[float, float]) -> str:
    return f"{window[0]:g} to {window[1]:g}"
