"""Our own rule for a time budget: the width, patch, batch and schedule that fit it.

The rule: measure a training step with half of the rules' feature maps; shrink the patch until
`STEPS_FOR_THE_PATCH` steps fit, then the width until the steps suffice for it. Before a patch shows
less of a case, the grid becomes coarser, as long as the labels survive it. If the steps fit at
once, widen the network, then enlarge the batch, while enough steps remain. Short runs also get a
recipe of their own (`short_recipe`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, inf, prod
from pathlib import Path

import numpy as np

from autoseg.common.errors import PlanError
from autoseg.common.parallel import used_by_others
from autoseg.common.progress import by_axis, counted, in_words, say
from autoseg.fingerprint import Fingerprint
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Size3, Spacing
from autoseg.planner.grid import Topology, pool_and_kernels, times
from autoseg.planner.overrides import Layer, read_layer
from autoseg.planner.rule_values import ANISOTROPY, PlanValues
from autoseg.planner.rules import TEXT

FEW_CASES = 10  # up to so many need more variation; head and neck, 18 cases, loses by it
SHORT = 12 * 3600.0  # seconds; shorter runs get `short_recipe`
AIM = 0.95  # share of the budget to plan; the run itself corrects errors of the measurement
START_SECONDS = 8.0  # imports, start of the workers, slow first steps
EPOCHS, SHORTEST_EPOCH = 30, 3.0  # seconds; each epoch ends with a validation and a checkpoint
SHRINKAGE, SMALLEST_SIDE = 0.7, 24  # of a patch, along each axis
# With too few steps the network does not learn; too small a patch shows too little context. Dice
# (steps) at about equal time, one run each: Hippocampus 40 x 56 x 40 voxels 0.855 (270),
# 32 x 40 x 32 0.876 (570), 24 x 32 x 24 0.879 (1020); head and neck in 6 minutes 48 x 80 x 96 0.000
# (180), 24 x 32 x 48 0.703 (1650), in 4 minutes 28 x 40 x 56 0.604 (690), 24 x 28 x 40 0.681
# (1920); sarcoma MR 80 x 80 x 40 0.122 (90), 56 x 56 x 28 0.404 (300), 40 x 40 x 24 0.321 (780),
# 28 x 28 x 24 0.047 (1110).
STEPS_FOR_THE_PATCH = 750
LABELS_KEPT = 0.95  # Dice of the labels on a coarser grid, at least
BUSY = 0.25  # of the cores, from which timings are distorted
COARSE = (1e3, 1e3, 1e3)  # mm; placeholder for the spacing of axes that are not resampled
# Share of the rules' feature maps, and the number of steps from which it outperforms the previous
# one. One run each on the Hippocampus set: in 1 minute 16 maps (140 steps) reach Dice 0.849, 8 maps
# 0.826; in 4 minutes 16 maps reach 0.883, 24 maps (350 steps) 0.871. The 3000 is a guess.
WIDTHS = ((0.25, 0), (0.5, 100), (0.75, 1000), (1.0, 3000))
LIKELY_WIDTH = 1
FEWEST_STEPS = 100  # for the budget to recommend if none fits
TIME = re.compile(
    r"(\d+(?:\.\d+)?)\s*(s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?)"
    r"(?![a-z])[\s,]*"
)
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PLENTY_OF_STEPS = 6_000  # with more steps, a larger batch is better


@dataclass(frozen=True)
class Timing:
    """Seconds per training step, predicted patch and preprocessed case on a device.

    `labels_kept` is the mean Dice of label maps that are brought to the plan's grid and back.
    """

    step_seconds: float
    patch_seconds: float
    case_seconds: float
    device: str
    labels_kept: float = 1.0


@dataclass(frozen=True)
class Overhead:
    """What a run does besides training: cases to preprocess and patches to predict."""

    cases: int
    patches: int


@dataclass(frozen=True)
class Choice:
    """What a budget decides: feature maps as a share of the plan's, patch, batch size, spacing."""

    share: float
    patch_size: Size3
    batch_size: int
    spacing_mm: Spacing


def budget_layer(
    seconds: float,
    plan: Plan,
    overhead: Callable[[Plan], Overhead],
    build: Callable[[Layer], Plan],
    measure: Callable[[Plan], Timing],
) -> Layer:
    """Choose network width, patch, batch size and schedule for a time budget.

    Args:
        seconds: for `autoseg_train` of one fold, from start to finish.
        plan: the plan without a budget.
        overhead: what a run of a plan does besides training.
        build: makes a plan from a layer, with the user's values on top.
        measure: times a plan on the device.

    Raises:
        PlanError: even the smallest choice leaves no time for a step.
    """
    tried: dict[str, Trial] = {}
    say("measuring training steps on this device, which takes a minute or more")
    busy = used_by_others()
    if busy > BUSY:
        say(TEXT("busy", busy=busy))

    def attempt(choice: Choice, least_steps: int = 0) -> Trial:
        """Measure a choice once: the user's values may make several choices the same plan.

        With fewer steps than a larger patch had, one of the two was disturbed: measure again.
        """
        chosen = build(_layer(plan, choice, seconds, steps=1, epochs=1))
        key = chosen.model_dump_json(include={"network", "sampling", "target_spacing_mm"})
        if key not in tried:
            tried[key] = _try(chosen, seconds, overhead(chosen), measure)
            if tried[key].steps < least_steps:
                again = _try(chosen, seconds, overhead(chosen), measure)
                tried[key] = max(tried[key], again, key=lambda trial: trial.steps)
        return tried[key]

    choice, trial = _choose(plan, attempt)
    if choice.spacing_mm != plan.target_spacing_mm:
        mm, rules = (by_axis(of, ".3g") for of in (choice.spacing_mm, plan.target_spacing_mm))
        say(TEXT("coarser", mm=mm, rules=rules, kept=trial.labels_kept))
    if trial.steps < 1:
        least = in_words(trial.least_seconds)
        raise PlanError(TEXT("no time", budget=in_words(seconds), least=least))
    epochs = max(1, min(EPOCHS, trial.steps, int(trial.training_seconds / SHORTEST_EPOCH)))
    layer = _layer(plan, choice, seconds, trial.steps, epochs)
    figures = [entry.figures for entry in tried.values()]
    measured: PlanValues = {"seconds": seconds, "used_by_others": round(busy, 2)}
    measured |= {"tried": figures, "decided": layer.values}
    return Layer(layer.source, layer.values | {"measured": measured}, f"{trial.steps} steps fit")


def frozen_layer(plan: Plan) -> Layer:
    """What a time budget decided in a plan, for another plan that is to be compared with it."""
    values = plan.measured["decided"] | {"measured": plan.measured}
    return Layer(f"time budget as measured for plan {plan.name}", values)


@dataclass(frozen=True)
class Trial:
    """A measured choice: the steps that fit, their duration, and the figures to record.

    `least_seconds` is a budget that would fit `FEWEST_STEPS`.
    """

    steps: int
    training_seconds: float
    least_seconds: float
    labels_kept: float
    figures: PlanValues


def _try(
    chosen: Plan, seconds: float, overhead: Overhead, measure: Callable[[Plan], Timing]
) -> Trial:
    timing = measure(chosen)
    spent = START_SECONDS + overhead.cases * timing.case_seconds
    spent += overhead.patches * timing.patch_seconds
    steps = max(0, int((AIM * seconds - spent) / timing.step_seconds))
    features, sampling, grid = chosen.network.features, chosen.sampling, chosen.target_spacing_mm
    maps = f"{features[0]} to {features[-1]} feature maps"
    patches = f"{counted(sampling.batch_size, 'patch')} of {times(sampling.patch_size)}"
    time = f"{timing.step_seconds:.2f} s per step, time for {counted(steps, 'step')}"
    mm = by_axis("own" if each is None else f"{each:.3g}" for each in grid)
    say(f"{maps}, {patches}, {mm} mm: {time}")
    figures: PlanValues = {"features": list(features), "patch_size": list(sampling.patch_size)}
    figures |= {"target_spacing_mm": list(grid)}
    figures |= {"batch_size": sampling.batch_size, "steps": steps}
    for name, value in asdict(timing).items():
        figures[name] = float(f"{value:.3g}") if isinstance(value, float) else value
    least = (spent + FEWEST_STEPS * timing.step_seconds) / AIM
    return Trial(steps, steps * timing.step_seconds, least, timing.labels_kept, figures)


def _choose(plan: Plan, attempt: Callable[..., Trial]) -> tuple[Choice, Trial]:
    """Apply the rule that the module describes; slow choices are measured only if they may win."""
    origin = plan.provenance.get("target_spacing_mm")
    by_rule = origin is not None and origin.source.startswith("rule")
    index, sampling, spacing = LIKELY_WIDTH, plan.sampling, plan.target_spacing_mm
    batch_size = min(2, sampling.batch_size)
    choice = Choice(WIDTHS[index][0], sampling.patch_size, batch_size, spacing)
    trial, to_coarsen = attempt(choice), plan.resamples and None not in spacing and by_rule
    while trial.steps < STEPS_FOR_THE_PATCH and (smaller := _smaller(plan, choice)):
        if to_coarsen:
            coarser = _coarser(plan, choice)
            tried = attempt(coarser, trial.steps)
            if to_coarsen := tried.labels_kept >= LABELS_KEPT:
                choice, trial = coarser, tried
                continue
        choice, trial = smaller, attempt(smaller, trial.steps)
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


def _smaller(plan: Plan, choice: Choice) -> Choice | None:
    """A patch with about a third of the voxels that fits the strides; None if it is too small."""
    sides = [max(min(size, SMALLEST_SIDE), round(SHRINKAGE * size)) for size in choice.patch_size]
    x, y, z = _topology(plan, choice.spacing_mm, sides).patch
    is_smaller = x * y * z < 0.9 * prod(choice.patch_size)
    return replace(choice, patch_size=(x, y, z)) if is_smaller else None


def _coarser(plan: Plan, choice: Choice) -> Choice:
    """About the same patch in mm on a coarser grid: the fine axes are coarsened first."""
    spacing, coarsest = np.array(choice.spacing_mm, float), max(mm or 0 for mm in choice.spacing_mm)
    fine = spacing < 0.9 * coarsest
    wider = np.minimum(spacing / SHRINKAGE, coarsest) if fine.any() else spacing / SHRINKAGE
    mm = (float(wider[0]), float(wider[1]), float(wider[2]))
    sides = np.array(choice.patch_size) * spacing / wider
    x, y, z = _topology(plan, mm, np.maximum(1, np.rint(sides)).astype(int).tolist()).patch
    return replace(choice, patch_size=(x, y, z), spacing_mm=mm)


def _topology(plan: Plan, spacing_mm: Spacing, sides: Sequence[int]) -> Topology:
    """The strides and kernels for a patch; axes that are not resampled count as coarse."""
    found = plan.model_copy(update={"target_spacing_mm": spacing_mm})
    return pool_and_kernels(found.target_spacing_of(COARSE), sides)


def _network(plan: Plan, choice: Choice) -> PlanValues:
    """The plan's network with fewer maps and, for another patch, the stages that fit its size."""
    features = plan.network.features
    if choice.patch_size == plan.sampling.patch_size:
        return {"features": _narrowed(features, choice.share)}
    topology = _topology(plan, choice.spacing_mm, choice.patch_size)
    flat = np.array(choice.patch_size) == 1
    kernels = np.where(flat, 1, topology.kernels).tolist()
    stages = min(len(topology.strides), len(features))
    strides, network = [list(stride) for stride in topology.strides[:stages]], plan.network
    narrowed = _narrowed(features[:stages], choice.share)
    values: PlanValues = {"features": narrowed, "strides": strides}
    values |= {"kernels": kernels[:stages], "blocks_encoder": [*network.blocks_encoder[:stages]]}
    return values | {"blocks_decoder": [*network.blocks_decoder[: stages - 1]]}


def _narrowed(features: Sequence[int], share: float) -> list[int]:
    """Fewer feature maps, in multiples of eight, which are fastest on CPUs."""
    return [max(8, round(count * share / 8) * 8) for count in features]


def _layer(plan: Plan, choice: Choice, seconds: float, steps: int, epochs: int) -> Layer:
    validation_steps = min(plan.training.validation_steps, max(1, steps // epochs // 8))
    training: PlanValues = {"epochs": epochs, "steps_per_epoch": max(1, steps // epochs)}
    training |= {"validation_steps": validation_steps, "seconds": seconds}
    values: PlanValues = {
        "network": _network(plan, choice),
        "sampling": {"batch_size": choice.batch_size},
        "training": {**training, "early_stopping_epochs": None},
    }
    if choice.patch_size != plan.sampling.patch_size:
        values["sampling"]["patch_size"] = list(choice.patch_size)
        values["inference"] = {"overlap": [size // 2 for size in choice.patch_size]}
    if choice.spacing_mm != plan.target_spacing_mm:
        values["target_spacing_mm"] = list(choice.spacing_mm)
    if seconds < SHORT:
        # The average covers about a twentieth of the steps, but at least a hundred.
        decay = 1 - 1 / min(1000, max(100, steps // 20))
        recipe = {"schedule": {"schedule": "cosine"}, "average_decay": decay, "keep": "last"}
        values["training"] |= recipe
    return Layer(f"time budget of {in_words(seconds)}", values)


def short_recipe(plan: Plan, seconds: float, cases: int, mirror: bool) -> Layer | None:
    """The recipe that learns most in few steps, instead of the rules' recipe for long runs.

    A network that sees few cases again and again learns them by heart. Then the rules' norm and
    transforms stay, with more turns and scalings, with elastic deformation, and mirrored from side
    to side only. Boxes of half of the patches come from another case, unless some cases are partly
    annotated. See docs/plan.md for figures.

    On the Hippocampus set, 4 minutes on two cores, one run each: Dice 0.883, with mirroring 0.833,
    with instance normalisation 0.883 (in 1 minute 0.828, against 0.840 and 0.849 with batch
    normalisation). In 100 seconds on Hippocampus and 4 minutes on head and neck, one core: two of
    three patches centred on the foreground 0.879 and 0.701, the rules' sampling 0.875 and 0.681
    (another seed 0.876 and 0.683), nnU-Net's SGD 0.040 on the second.

    Args:
        plan: of the rules.
        seconds: the time budget.
        cases: their number.
        mirror: whether patches may be mirrored, so that labels of sides stay right.
    """
    if seconds >= SHORT:
        return None
    patch = plan.sampling.patch_size
    flat = max(patch) / min(patch) > ANISOTROPY
    rotation = [[-20, 20] if not flat or size == min(patch) else [0, 0] for size in patch]
    path = Path(__file__).with_name("short_recipe.json5")
    recipe = read_layer(path, f"recipe for runs under {in_words(SHORT)}")
    varied = recipe.values.pop("few_cases")
    if cases > FEW_CASES:
        recipe.values["augmentation"][0]["rotation_degrees"] = rotation
        return recipe
    del recipe.values["network"]
    spatial, *others = plan.model_dump(mode="json")["augmentation"]
    kind = "few cases"
    if not plan.annotated:  # a patch has one set of annotated classes
        kind = "few cases, mixed"
        recipe.values["sampling"]["mix_probability"] = varied["mix_probability"]
    kept = [each for each in others if each["transform"] != "mirror"]
    if mirror and plan.left_right in plan.mirrored_axes:
        kept.append({"transform": "mirror", "axes": [plan.left_right]})
    recipe.values["augmentation"] = [spatial | varied["spatial"], *kept]
    source, evidence = f"{recipe.source} and up to {FEW_CASES} cases", counted(cases, "case")
    say(TEXT(kind, cases=evidence))
    return replace(recipe, source=source, evidence=evidence)


def expected_overhead(fingerprint: Fingerprint, plan: Plan) -> Overhead:
    """What a run of one fold does besides training, from the shapes of the raw cases."""
    fingerprint = fingerprint.turned_to(plan.orientation)
    scale = [np.divide(mm, plan.target_spacing_of(mm)) for mm in fingerprint.spacings_mm.tolist()]
    shapes = np.maximum(1, np.rint(fingerprint.shapes_after_crop * scale)).astype(int)
    patch, overlap = plan.sampling.patch_size, plan.inference.overlap
    cases = (zip(shape, patch, overlap, strict=True) for shape in shapes.tolist())
    patches = sum(prod(ceil(max(0, n - p) / (p - o)) + 1 for n, p, o in each) for each in cases)
    return Overhead(len(shapes), round(patches / plan.splits.folds))


def parse_seconds(text: str) -> float:
    """Parse `90`, `90s`, `5 minutes`, `1.5h`, `1h 30min` or `2d` to seconds.

    Raises:
        PlanError: the text has another form, or is less than 20 seconds.
    """
    given = text.strip().lower()
    given += "s" if re.fullmatch(r"[\d.]+", given) else ""
    seconds = 0.0
    if re.fullmatch(f"({TIME.pattern})+", given):
        seconds = sum(float(number) * SECONDS[unit[0]] for number, unit in TIME.findall(given))
    if not 20 <= seconds < inf:
        raise PlanError(f"--time-budget {text!r}: give at least 20s, as in 90s, 5m or 1.5h")
    return seconds
