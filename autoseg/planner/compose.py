"""Compose the plan of a task: rules < reference plan < time budget < overrides file < settings."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import chain
from pathlib import Path

from autoseg.common.errors import PlanError
from autoseg.common.files import read_json
from autoseg.common.progress import by_axis
from autoseg.fingerprint import Fingerprint
from autoseg.plan.labels import SegmentCode, check_mirrored, words_of
from autoseg.plan.plan import CASCADE, Plan, make_plan
from autoseg.plan.sections import Splits, is_orientation
from autoseg.planner import overrides, patch_rule, rule_values
from autoseg.planner.budget import Overhead, Timing, budget_layer, frozen_layer, short_recipe
from autoseg.planner.grid import times
from autoseg.planner.overrides import Layer, Reference, merge
from autoseg.planner.rules import TEXT, Configuration, find_planner

FEWEST_FOLDS = 2
OF_TASK = ("regions_class_order", "annotated", "skipped_cases", "patients")  # of `PlanOptions`


@dataclass(frozen=True)
class PlanOptions:
    """The user's options for a plan.

    Attributes:
        name: of the plan; a folder name.
        keep_name: do not add the configuration to the name if it is not the recommended one.
        configuration: `2d`, `3d_lowres`, ...; the recommended one if None.
        planner: rules for plain or residual networks of several sizes.
        memory_gb: graphics memory to plan for.
        use_reference: use a reference plan: `reference`, or else that of the task, if there is one.
        reference: name of a reference plan.
        overrides: a JSON5 file of plan values.
        layers: further plan values, above the overrides file and below `settings`.
        settings: `key=value` strings.
        seconds: time budget of one fold.
        measured: plan with the same time budget, whose choices are used instead of measuring.
        regions_class_order: declared by the task, for overlapping labels.
        codes: of the classes, declared by the task.
        mirrored_labels: declared by the task: names of labels on one side -> on the other.
        annotated: partly annotated case -> its annotated classes.
        skipped_cases: cases to leave out.
        patients: their number, if known; with fewer than five, each gets a fold.
    """

    name: str = "default"
    keep_name: bool = False
    configuration: str | None = None
    planner: str = "default"
    memory_gb: float | None = None
    use_reference: bool = True
    reference: str | None = None
    overrides: Path | None = None
    layers: tuple[Layer, ...] = ()
    settings: tuple[str, ...] = ()
    seconds: float | None = None
    measured: Plan | None = None
    regions_class_order: tuple[int, ...] | None = None
    codes: Mapping[str, SegmentCode] = field(default_factory=dict)
    mirrored_labels: dict[str, str] | None = None
    annotated: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skipped_cases: tuple[str, ...] = ()
    patients: int | None = None


def compose(
    fingerprint: Fingerprint,
    options: PlanOptions,
    overhead: Callable[[Plan], Overhead] | None = None,
    measure: Callable[[Plan], Timing] | None = None,
) -> Plan:
    """Compose the plan of a task.

    A short time budget also replaces the recipe of the rules, below the reference plan. If a layer
    gives the network and none gives the patch, our own rule chooses the patch.

    Args:
        fingerprint: of the data.
        options: of the user.
        overhead: what a run of a plan does besides training; required with a time budget.
        measure: times a plan on the device; required with a time budget.

    Raises:
        PlanError: an option cannot be satisfied; the message names the key.
    """
    reference = None
    if options.use_reference:
        reference = overrides.find_reference(fingerprint.task, options.reference)
    usual, counted = fingerprint.usual_orientation, fingerprint.counted_orientations
    orientation = _orientation(usual, options, reference)
    fingerprint = fingerprint.turned_to(orientation)
    values, evidence, name = _rules(fingerprint, options, reference)
    values["orientation"], evidence["orientation"] = usual, (rule_values.MOST_CASES, counted)
    pairs, names = pairs_of(values["labels"], options.mirrored_labels)
    if options.mirrored_labels == {}:
        names = "off: the task declares none, or its paired labels do not lie side by side"
    if orientation is None and pairs:
        pairs, names = (), f"off for {names}: orientation is null"
    values["mirrored_labels"] = [list(pair) for pair in pairs]
    if names:
        evidence["mirrored_labels"] = (rule_values.EXCHANGED_SIDES, names)
    lower = [*reference.layers] if reference else []
    if (seconds := options.seconds) is not None:
        by_rules, cases = make_plan(values, "the rules"), len(fingerprint.cases)
        recipe = short_recipe(by_rules, seconds, cases, mirror=bool(pairs) or not names)
        lower = lower if recipe is None else [recipe, *lower]
    users = _users_layers(options, values, lower)

    def build(*layers: Layer) -> Plan:
        return overrides.stack(values, evidence, [*layers, *users], name)

    memory_gb = options.memory_gb or (reference and reference.memory_gb)
    memory_gb = memory_gb or find_planner(options.planner).memory_gb
    if (strides := patch_rule.strides_without_patch([*lower, *users])) is not None:
        trial = build(patch_rule.whole_case_layer(fingerprint, strides), *lower)
        lower = [patch_rule.patch_layer(trial, fingerprint, memory_gb), *lower]
    plan = build(*lower)
    if seconds is None:
        return patch_rule.with_own_rules(plan, fingerprint, memory_gb) if reference else plan
    if plan.previous_stage is not None:
        raise PlanError(TEXT("cascade", stage=plan.previous_stage))
    if options.measured is not None:
        return build(*lower, frozen_layer(options.measured))
    assert overhead is not None
    assert measure is not None
    budget = budget_layer(seconds, plan, overhead, lambda each: build(*lower, each), measure)
    return build(*lower, budget)


def other_configurations(fingerprint: Fingerprint, options: PlanOptions, plan: Plan) -> list[str]:
    """A short description of each configuration that the rules offer besides the plan's."""
    turned = fingerprint.turned_to(plan.orientation)
    found = rule_values.configurations(turned, options.planner, options.memory_gb)
    return [_describe(other) for name, other in found.items() if name != plan.configuration]


def other_plans(fingerprint: Fingerprint, options: PlanOptions, plan: Plan) -> list[Plan]:
    """The rules' plans of the configurations besides the plan's."""
    kept = ("name", "planner", "memory_gb", *OF_TASK)
    by_rules = PlanOptions(**{key: getattr(options, key) for key in kept}, use_reference=False)
    turned = fingerprint.turned_to(fingerprint.usual_orientation)
    found = rule_values.configurations(turned, options.planner, options.memory_gb)
    others = [name for name in found if name != plan.configuration]
    return [compose(fingerprint, replace(by_rules, configuration=name)) for name in others]


def _describe(configuration: Configuration) -> str:
    about = f"{by_axis(configuration.spacing_mm, '.3g')} mm, patches of "
    about += f"{times(configuration.patch_size)}, batch {configuration.batch_size}"
    if configuration.name == CASCADE:
        about = "refines 3d_lowres, which is trained first"
    return f"{configuration.name} ({about})"


def _orientation(usual: str, options: PlanOptions, reference: Reference | None) -> str | None:
    """The orientation of the plan, which all figures of the rules mean; by rule the usual one."""
    settings = tuple(text for text in options.settings if text.startswith("orientation="))
    layers = _users_layers(replace(options, settings=settings), {}, [])
    found = usual
    for layer in [*(reference.layers if reference else ()), *layers]:
        found = layer.values.get("orientation", found)
    # An invalid one is an error when the plan is made.
    return found if found is None or is_orientation(found) else usual


def _rules(
    fingerprint: Fingerprint, options: PlanOptions, reference: Reference | None
) -> tuple[rule_values.PlanValues, rule_values.Evidence, str]:
    """The values of the rules alone, their evidence, and the name of the plan."""
    available = rule_values.configurations(fingerprint, options.planner, options.memory_gb)
    configuration = available[_choose(available, options.configuration, reference)]
    values, evidence = rule_values.rule_values(fingerprint, configuration)
    if configuration.name == CASCADE:
        values["previous_stage"] = f"{options.name}-3d_lowres"
    values["regions_class_order"] = options.regions_class_order
    codes = {name: code.model_dump(mode="json") for name, code in options.codes.items()}
    declared = {"codes": codes, "annotated": options.annotated}
    for key in (key for key, value in declared.items() if value):
        values[key], evidence[key] = declared[key], (rule_values.DECLARED, "")
    if options.skipped_cases:
        values["skipped_cases"] = options.skipped_cases
        evidence["skipped_cases"] = (rule_values.SKIPPED, "verification.json says why")
    if options.patients is not None and options.patients < Splits().folds:
        values["splits"] = {"folds": max(FEWEST_FOLDS, options.patients)}
        evidence["splits.folds"] = (rule_values.FOLD_PER_PATIENT, f"{options.patients} in the task")
    usual = (next(iter(available)), reference and reference.configuration)
    has_name = configuration.name in usual or options.keep_name
    name = options.name if has_name else f"{options.name}-{configuration.name}"
    return overrides.complete(values, "the rules"), evidence, name


def _choose(
    available: Mapping[str, Configuration], requested: str | None, reference: Reference | None
) -> str:
    """The name of the configuration to plan.

    Raises:
        PlanError: it is not available, or the reference plan is for another one.
    """
    fixed = reference.configuration if reference else None
    if reference and fixed and requested not in (None, fixed):
        raise PlanError(TEXT("configuration", given=requested, reference=reference))
    chosen = requested or fixed or next(iter(available))
    if chosen not in available:
        found = {"chosen": chosen, "available": ", ".join(available)}
        if (full := available.get("3d_fullres")) is None:
            raise PlanError(TEXT("slices", **found))
        patch, case = times(full.patch_size), times(full.median_shape)
        raise PlanError(TEXT("small cases", case=case, patch=patch, **found))
    return chosen


def _users_layers(
    options: PlanOptions, rules: rule_values.PlanValues, lower: list[Layer]
) -> list[Layer]:
    layers = []
    if (path := options.overrides) is not None:
        layers.append(overrides.read_layer(path, f"overrides {path.name}"))
    layers += options.layers
    if options.settings:
        base = reduce(merge, (layer.values for layer in [*lower, *layers]), rules)
        layers.append(overrides.set_layer(options.settings, base))
    return layers


# Our own rule for labels of the left and the right side, which mirroring exchanges.

Pairs = tuple[tuple[int, int], ...]

# Words for the left and the right side in names of labels; and organs whose two sides are no mirror
# images of each other, as patterns: a mirrored right atrium is no left one.
WORDS, unlike = read_json(Path(__file__).with_name("sides.json")).values()
UNLIKE = re.compile("|".join(unlike))
JOINED = 4  # words of at least so many letters may also be joined to others, as in `leftlung`


def pairs_of(
    labels: Mapping[str, Sequence[int]], declared: Mapping[str, str] | None
) -> tuple[Pairs, str]:
    """The pairs of values to exchange when left and right are mirrored, and the evidence.

    Args:
        labels: name -> values, background first.
        declared: names on one side -> names on the other; None to find them.
    """
    names = by_name(list(labels)[1:]) if declared is None else list(declared.items())
    found = (p for one, other in names for p in zip(labels[one], labels[other], strict=False))
    pairs = list(dict.fromkeys(pair for pair in found if pair[0] != pair[1]))
    evidence = ", ".join(f"{one} and {other}" for one, other in names)
    try:
        check_mirrored({name: tuple(values) for name, values in labels.items()}, pairs)
    except ValueError as error:
        return (), f"off for {evidence}: {error}"
    return tuple(pairs), evidence


def by_name(names: Sequence[str]) -> list[tuple[str, str]]:
    """The names that differ in the words for left and right only, in pairs (left, right).

    Organs that are no mirror images of each other, such as the ventricles of the heart, are left
    out. A name with several partners is left out as well.
    """
    normal = {" ".join(words_of(name)): name for name in names}
    if len(normal) < len(names):
        normal = {name.casefold(): name for name in names}
    pairs = []
    for text, name in normal.items():
        partners = {normal[other] for other in _mirrored(text) if other in normal} - {name}
        if len(partners) == 1 and not UNLIKE.search(text):
            pairs.append((name, partners.pop()))
    named = list(chain.from_iterable(pairs))
    return [pair for pair in pairs if all(named.count(name) == 1 for name in pair)]


def _mirrored(text: str) -> Iterator[str]:
    """The text with each word for the left side replaced by that for the right one."""
    words = text.split(" ")
    for left, right in WORDS:
        if left in words:
            yield " ".join(right if word == left else word for word in words)
        elif len(left) >= JOINED and left in text:
            joined = rf"\b{left}|{left}\b"
            yield re.sub(joined, right, text)
