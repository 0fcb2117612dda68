"""A plan for the time at hand: measured on this device, chosen to end inside the budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, inf, prod
from typing import TYPE_CHECKING

import numpy as np

from autoseg.common.errors import PlanError
from autoseg.common.progress import by_axis, counted, in_words, say
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Size3
from autoseg.planner.grid import pool_and_kernels
from autoseg.planner.overrides import Layer
from autoseg.planner.rule_values import ANISOTROPY, Values

if TYPE_CHECKING:
    from autoseg.fingerprint import Fingerprint


# The recipe of short runs: augmentation, normalisation and optimiser.

SHORT = 12 * 3600.0  # seconds: from here on the rules' own recipe has the time that it needs


def short_recipe(plan: Plan, seconds: float) -> Layer | None:
    """What learns most in few steps, in place of the rules' recipe for long runs.

    On the Hippocampus set, 4 minutes on two cores, one run each: Dice 0.883, with mirroring 0.833,
    with instance normalisation 0.883 (in 1 minute 0.828, against 0.840 and 0.849 with batch
    normalisation). On 100 seconds of Hippocampus and 4 minutes of head and neck, one core: two
    patches of three around the foreground 0.879 and 0.701, the rules' sampling 0.875 and 0.681
    (another seed 0.876 and 0.683), nnU-Net's SGD 0.040 on the second.
    """
    if seconds >= SHORT:
        return None
    patch = plan.sampling.patch_size
    flat = max(patch) / min(patch) > ANISOTROPY
    turns = [[-20, 20] if not flat or size == min(patch) else [0, 0] for size in patch]
    values: Values = {
        "sampling": {"foreground_share": 0.67, "foreground_mode": "chance"},
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


AIM = 0.95  # of the budget; the run itself corrects what the measurement missed
START_SECONDS = 8.0  # importing, starting workers, the first slow steps
EPOCHS, SHORTEST_EPOCH = 30, 3.0  # seconds: each ends with a validation and a checkpoint
SHRINKAGE, SMALLEST_SIDE = 0.7, 24  # of a patch, along each axis
# Too few steps learn nothing, too small a patch shows too little around it. Dice (steps) at about
# equal time, one run each: Hippocampus 40 x 56 x 40 voxels 0.855 (270), 32 x 40 x 32 0.876 (570),
# 24 x 32 x 24 0.879 (1020); head and neck in 6 minutes 48 x 80 x 96 0.000 (180), 24 x 32 x 48 0.703
# (1650), in 4 minutes 28 x 40 x 56 0.604 (690), 24 x 28 x 40 0.681 (1920); sarcoma MR 80 x 80 x 40
# 0.122 (90), 56 x 56 x 28 0.404 (300), 40 x 40 x 24 0.321 (780), 28 x 28 x 24 0.047 (1110).
STEPS_FOR_THE_PATCH = 500
COARSE = (1e3, 1e3, 1e3)  # mm: stands for the spacing of an axis that is not resampled
# Share of the rules' feature maps, and the steps that it takes to do better than the one before.
# One run each on the Hippocampus set: in 1 minute 16 maps (140 steps) reach Dice 0.849, 8 maps
# 0.826; in 4 minutes 16 maps reach 0.883, 24 maps (350 steps) 0.871. The 3000 is a guess.
WIDTHS = ((0.25, 0), (0.5, 100), (0.75, 1000), (1.0, 3000))
LIKELY_WIDTH = 1
FEWEST_STEPS = 100  # what to advise where none fits
PLENTY_OF_STEPS = 6_000  # with more, a larger batch serves better


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
    scale = [np.divide(mm, plan.target_spacing_of(mm)) for mm in fingerprint.spacings_mm.tolist()]
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


@dataclass(frozen=True)
class Choice:
    """What a budget chooses of a plan: feature maps as a share of the plan's, patch, batch."""

    share: float
    patch_size: Size3
    batch_size: int


def budget_layer(
    seconds: float,
    plan: Plan,
    work: Callable[[Plan], Work],
    build: Callable[[Layer], Plan],
    measure: Callable[[Plan], Timing],
) -> Layer:
    """Choose network width, batch size and schedule so that a run uses the time well.

    Where a patch of the rules leaves too few steps, a smaller one is chosen, too.

    Args:
        seconds: for one fold's `autoseg_train`, from start to finish.
        plan: the plan without a budget.
        work: what a run of a plan does besides.
        build: makes the plan of a layer, with the user's own values on top.
        measure: times a plan on the device at hand.

    Raises:
        PlanError: not even the smallest choice can take a step in that time.
    """
    tried: dict[str, Trial] = {}
    say("measuring training steps on this device, which takes a minute or more")

    def attempt(choice: Choice) -> Trial:
        """Measure one choice, or recall it where the user's own values leave no other."""
        chosen = build(_layer(plan, choice, seconds, steps=1, epochs=1))
        known = chosen.model_dump_json(include={"network", "sampling"})
        if known not in tried:
            tried[known] = _try(chosen, seconds, work(chosen), measure)
        return tried[known]

    choice, trial = _choose(plan, attempt)
    if trial.steps < 1:
        raise PlanError(
            f"a budget of {in_words(seconds)} leaves no time for training on this device after "
            f"preparing the cases; give at least {in_words(trial.least_seconds)}"
        )
    epochs = max(1, min(EPOCHS, trial.steps, int(trial.training_seconds / SHORTEST_EPOCH)))
    layer = _layer(plan, choice, seconds, trial.steps, epochs)
    measured = {"seconds": seconds, "tried": [entry.figures for entry in tried.values()]}
    return Layer(layer.source, layer.values | {"measured": measured}, f"{trial.steps} steps fit")


@dataclass(frozen=True)
class Trial:
    """A measured choice: the steps that fit, the seconds that they take, and what to record.

    `least_seconds` is a budget with which `FEWEST_STEPS` would fit.
    """

    steps: int
    training_seconds: float
    least_seconds: float
    figures: Values


def _try(chosen: Plan, seconds: float, work: Work, measure: Callable[[Plan], Timing]) -> Trial:
    timing = measure(chosen)
    spent = START_SECONDS + work.cases * timing.case_seconds
    spent += work.patches * timing.patch_seconds
    steps = max(0, int((AIM * seconds - spent) / timing.step_seconds))
    features, sampling = chosen.network.features, chosen.sampling
    batch = f"{counted(sampling.batch_size, 'patch')} of {by_axis(sampling.patch_size)}"
    say(
        f"{features[0]} to {features[-1]} feature maps, {batch}: "
        f"{timing.step_seconds:.2f} s a step, time for {counted(steps, 'step')}"
    )
    figures = {
        "features": list(features),
        "patch_size": list(sampling.patch_size),
        "batch_size": sampling.batch_size,
        "steps": steps,
    }
    for name, value in asdict(timing).items():
        figures[name] = float(f"{value:.3g}") if isinstance(value, float) else value
    least = (spent + FEWEST_STEPS * timing.step_seconds) / AIM
    return Trial(steps, steps * timing.step_seconds, least, figures)


def _choose(plan: Plan, attempt: Callable[[Choice], Trial]) -> tuple[Choice, Trial]:
    """Start at the likely width; shrink the patch, then the width, until enough steps fit.

    If they fit at once, widen the network, then enlarge the batch, while that pays: slow choices
    are measured only where they may be taken.
    """
    index = LIKELY_WIDTH
    patch = plan.sampling.patch_size
    choice = Choice(WIDTHS[index][0], patch, min(2, plan.sampling.batch_size))
    trial = attempt(choice)
    while trial.steps < STEPS_FOR_THE_PATCH and (smaller := _smaller(plan, choice.patch_size)):
        choice = replace(choice, patch_size=smaller)
        trial = attempt(choice)
    while index > 0 and trial.steps < WIDTHS[index][1]:
        index -= 1
        choice = replace(choice, share=WIDTHS[index][0])
        trial = attempt(choice)
    while index + 1 < len(WIDTHS) and trial.steps >= WIDTHS[index + 1][1]:
        wider = replace(choice, share=WIDTHS[index + 1][0])
        slower = attempt(wider)
        if slower.steps < WIDTHS[index + 1][1]:
            break
        index, choice, trial = index + 1, wider, slower
    while trial.steps > PLENTY_OF_STEPS and 2 * choice.batch_size <= plan.sampling.batch_size:
        larger = replace(choice, batch_size=2 * choice.batch_size)
        slower = attempt(larger)
        if slower.steps < PLENTY_OF_STEPS:
            break
        choice, trial = larger, slower
    return choice, trial


def _smaller(plan: Plan, patch: Size3) -> Size3 | None:
    """A patch of about a third of the voxels that strides can divide; None below the smallest."""
    shrunk = [max(min(size, SMALLEST_SIDE), round(SHRINKAGE * size)) for size in patch]
    x, y, z = pool_and_kernels(plan.target_spacing_of(COARSE), shrunk).patch
    return (x, y, z) if x * y * z < 0.9 * prod(patch) else None


def _network(plan: Plan, choice: Choice) -> Values:
    """The plan's network narrowed; for another patch with the stages that its size allows."""
    features = plan.network.features
    if choice.patch_size == plan.sampling.patch_size:
        return {"features": _narrowed(features, choice.share)}
    topology = pool_and_kernels(plan.target_spacing_of(COARSE), choice.patch_size)
    flat = [size == 1 for size in choice.patch_size]
    kernels = [
        [1 if thin else width for thin, width in zip(flat, kernel, strict=True)]
        for kernel in topology.kernels
    ]
    stages = min(len(topology.strides), len(features))
    return {
        "features": _narrowed(features[:stages], choice.share),
        "strides": [list(stride) for stride in topology.strides[:stages]],
        "kernels": kernels[:stages],
        "blocks_encoder": list(plan.network.blocks_encoder[:stages]),
        "blocks_decoder": list(plan.network.blocks_decoder[: stages - 1]),
    }


def _narrowed(features: Sequence[int], share: float) -> list[int]:
    """Fewer feature maps, in eights, which processors compute fastest."""
    return [max(8, round(count * share / 8) * 8) for count in features]


def _layer(plan: Plan, choice: Choice, seconds: float, steps: int, epochs: int) -> Layer:
    values: Values = {
        "network": _network(plan, choice),
        "sampling": {"batch_size": choice.batch_size},
        "training": {
            "epochs": epochs,
            "steps_per_epoch": max(1, steps // epochs),
            "validation_steps": min(plan.training.validation_steps, max(1, steps // epochs // 8)),
            "seconds": seconds,
            "early_stopping_epochs": None,
        },
    }
    if choice.patch_size != plan.sampling.patch_size:
        values["sampling"]["patch_size"] = list(choice.patch_size)
        values["inference"] = {"overlap": [size // 2 for size in choice.patch_size]}
    if seconds < SHORT:
        # About a twentieth of the steps, but never fewer than a hundred, are averaged.
        values["training"] |= {
            "schedule": {"schedule": "cosine"},
            "average_decay": 1 - 1 / min(1000, max(100, steps // 20)),
            "keep": "last",
        }
    return Layer(f"time budget of {in_words(seconds)}", values)
