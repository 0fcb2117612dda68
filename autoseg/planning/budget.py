"""A plan for the time at hand: measured on this device, chosen to end inside the budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil, inf, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from autoseg.errors import PlanError
from autoseg.planning.defaults import ANISOTROPY, Values
from autoseg.planning.layers import Layer
from autoseg.planning.plan import Plan
from autoseg.progress import in_words, say

if TYPE_CHECKING:
    from autoseg.fingerprint import Fingerprint

AIM = 0.95  # of the budget; the run itself corrects what the measurement missed
START_SECONDS = 8.0  # importing, starting workers, the first slow steps
EPOCHS = 30
STEPS_WORTH_AN_EPOCH = 10  # each epoch ends with a validation and a checkpoint
# Share of the rules' feature maps, and the steps that it takes to do better than the one before.
# Measured on the Hippocampus set: in 1 minute 16 maps reach more than 8 (Dice 0.849 and 0.826), in
# 4 minutes 16 more than 24 (0.883 and 0.871).
WIDTHS = ((0.25, 0), (0.5, 100), (0.75, 1000), (1.0, 3000))
LIKELY_WIDTH = 1
PLENTY_OF_STEPS = 6_000  # with more, a larger batch serves better
SHORT = 12 * 3600.0  # seconds: from here on the rules' own recipe has the time that it needs


@dataclass(frozen=True)
class Timing:
    """Seconds of one training step, of one patch predicted, and of preparing one case."""

    step_seconds: float
    patch_seconds: float
    case_seconds: float
    device: str


@dataclass(frozen=True)
class Work:
    """What a run does besides training steps: cases to prepare, patches to predict at the end."""

    cases: int
    patches: int


def expected_work(fingerprint: Fingerprint, plan: Plan) -> Work:
    """What a run of one fold does besides training, from the shapes of the raw cases."""
    scale = fingerprint.spacings_mm / np.asarray(plan.target_spacing_mm)
    shapes = np.maximum(1, np.rint(fingerprint.shapes_after_crop * scale)).astype(int)
    patch, overlap = plan.sampling.patch_size, plan.inference.overlap
    patches = sum(
        prod(
            ceil(max(0, n - p) / (p - o)) + 1 for n, p, o in zip(shape, patch, overlap, strict=True)
        )
        for shape in shapes.tolist()
    )
    return Work(len(shapes), round(patches / plan.splits.folds))


def parse_seconds(text: str) -> float:
    """`90`, `90s`, `5m`, `1.5h` or `2d` in seconds.

    Raises:
        PlanError: anything else, or less than 20 seconds.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    seconds = 0.0
    if found:
        number, unit = found.groups()
        seconds = float(number) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    if not 20 <= seconds < inf:
        raise PlanError(f"--time-budget {text!r}: write at least 20s, as in 90s, 5m or 1.5h")
    return seconds


def budget_layer(
    seconds: float,
    plan: Plan,
    work: Work,
    build: Callable[[Layer], Plan],
    measure: Callable[[Plan], Timing],
) -> Layer:
    """Choose network width, batch size and schedule so that a run uses the time well.

    Args:
        seconds: for one fold's `autoseg_train`, from start to finish.
        plan: the plan without a budget.
        work: what the run does besides.
        build: makes the plan of a layer, with the user's own values on top.
        measure: times a plan on the device at hand.

    Raises:
        PlanError: not even the narrowest network can take a step in that time.
    """
    tried: dict[tuple[tuple[int, ...], int], dict[str, Any]] = {}

    def attempt(features: Sequence[int], batch_size: int) -> int:
        """Measure one choice; returns the steps that it has time for."""
        trial = build(_layer(plan, features, batch_size, seconds, steps=1))
        chosen = (trial.network.features, trial.sampling.batch_size)  # the user's own, if set
        if chosen not in tried:
            tried[chosen] = _try(trial, seconds, work, measure)
        return int(tried[chosen]["steps"])

    batch_size = min(2, plan.sampling.batch_size)
    features, steps = _widest(plan, lambda maps: attempt(maps, batch_size))
    while steps > PLENTY_OF_STEPS and 2 * batch_size <= plan.sampling.batch_size:
        more = attempt(features, 2 * batch_size)
        if more < PLENTY_OF_STEPS:
            break
        steps, batch_size = more, 2 * batch_size
    if steps < 1:
        raise PlanError(
            f"a budget of {in_words(seconds)} leaves no time for training on this device after "
            f"preparing {work.cases} cases; give more time"
        )
    layer = _layer(plan, features, batch_size, seconds, steps)
    measured = {"seconds": seconds, "tried": list(tried.values())}
    return Layer(layer.source, layer.values | {"measured": measured}, f"{steps} steps fit")


def _try(
    trial: Plan, seconds: float, work: Work, measure: Callable[[Plan], Timing]
) -> dict[str, Any]:
    """The figures of one choice, and the steps that it has time for."""
    features, batch_size = trial.network.features, trial.sampling.batch_size
    timing = measure(trial)
    spent = START_SECONDS + work.cases * timing.case_seconds
    spent += work.patches * timing.patch_seconds
    steps = int((AIM * seconds - spent) / timing.step_seconds)
    say(
        f"{features[0]} to {features[-1]} feature maps, batch {batch_size}: "
        f"{timing.step_seconds:.2f} s a step, time for {max(0, steps)} steps"
    )
    figures = {
        name: float(f"{value:.3g}") if isinstance(value, float) else value
        for name, value in asdict(timing).items()
    }
    return {"features": list(features), "batch_size": batch_size, **figures, "steps": steps}


def _widest(plan: Plan, attempt: Callable[[list[int]], int]) -> tuple[list[int], int]:
    """The widest network that has the steps it needs, and how many it has.

    The search starts at the likely width and goes up while that pays, else down: slow networks are
    measured only where they may be chosen.
    """
    index = LIKELY_WIDTH
    features = _narrowed(plan.network.features, WIDTHS[index][0])
    steps = attempt(features)
    while index > 0 and steps < WIDTHS[index][1]:
        index -= 1
        features = _narrowed(plan.network.features, WIDTHS[index][0])
        steps = attempt(features)
    while LIKELY_WIDTH <= index < len(WIDTHS) - 1 and steps >= WIDTHS[index + 1][1]:
        index += 1
        wider = _narrowed(plan.network.features, WIDTHS[index][0])
        more = attempt(wider)
        if more < WIDTHS[index][1]:
            break
        features, steps = wider, more
    return features, steps


def _narrowed(features: Sequence[int], share: float) -> list[int]:
    """Fewer feature maps, in eights, which processors compute fastest."""
    return [max(8, round(count * share / 8) * 8) for count in features]


def _layer(
    plan: Plan, features: Sequence[int], batch_size: int, seconds: float, steps: int
) -> Layer:
    epochs = max(1, min(EPOCHS, steps // STEPS_WORTH_AN_EPOCH))
    values: Values = {
        "network": {"features": list(features)},
        "sampling": {"batch_size": batch_size},
        "training": {
            "epochs": epochs,
            "steps_per_epoch": max(1, steps // epochs),
            "validation_steps": min(plan.training.validation_steps, max(1, steps // epochs // 8)),
            "seconds": seconds,
            "early_stopping_epochs": None,
        },
    }
    if seconds < SHORT:
        # About a twentieth of the steps, but never fewer than a hundred, are averaged.
        values["training"] |= {
            "schedule": {"schedule": "cosine"},
            "average_decay": 1 - 1 / min(1000, max(100, steps // 20)),
            "keep": "last",
        }
    return Layer(f"time budget of {in_words(seconds)}", values)


def short_recipe(plan: Plan, seconds: float) -> Layer | None:
    """What learns most in few steps, in place of the rules' recipe for long runs.

    Measured on the Hippocampus set: Adam, batch normalisation and an average of the weights reach
    in minutes what the rules' recipe reaches in hours; mirroring and strong augmentation cost more
    steps than they bring.
    """
    if seconds >= SHORT:
        return None
    patch = plan.sampling.patch_size
    flat = max(patch) / min(patch) > ANISOTROPY
    turns = [[-20, 20] if not flat or size == min(patch) else [0, 0] for size in patch]
    values: Values = {
        "network": {"norm": "batch", "convolution_bias": False},
        "augmentation": [
            {
                "transform": "spatial",
                "rotation_probability": 0.3,
                "rotation_degrees": turns,
                "scaling_probability": 0.3,
                "scaling": [0.8, 1.25],
                "image_order": 1,
            },
            {"transform": "brightness"},
            {"transform": "contrast"},
            {"transform": "gamma"},
        ],
        "training": {
            "loss": {"batch_dice": True},
            "optimizer": {
                "optimizer": "adam",
                "learning_rate": 2e-3,
                "weight_decay": 1e-2,
                "decoupled": True,
            },
        },
        "inference": {"mirror_axes": []},
    }
    return Layer(f"recipe for runs under {in_words(SHORT)}", values)
