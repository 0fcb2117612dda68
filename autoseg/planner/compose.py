"""From a fingerprint and the user's wishes to the plan of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from autoseg.common.errors import PlanError
from autoseg.common.progress import by_axis
from autoseg.plan.plan import CASCADE, Plan, Splits
from autoseg.plan.reading import make_plan
from autoseg.planner.budget import Timing, Work, budget_layer, short_recipe
from autoseg.planner.grid import find_planner, times
from autoseg.planner.overrides import (
    Layer,
    Reference,
    complete,
    find_reference,
    merge,
    read_layer,
    set_layer,
    stack,
)
from autoseg.planner.patch_rule import patch_layer, strides_without_patch, whole_case_layer
from autoseg.planner.rule_values import (
    A_FOLD_EACH,
    LEFT_OUT,
    Evidence,
    Values,
    configurations,
    rule_values,
)
from autoseg.planner.rules import Configuration

if TYPE_CHECKING:
    from autoseg.fingerprint import Fingerprint


FEWEST_FOLDS = 2


@dataclass(frozen=True)
class Wishes:
    """What the user asks of a plan.

    Attributes:
        name: of the plan, a folder name.
        keep_name: another configuration than the recommended one does not add to the name.
        configuration: `2d`, `3d_lowres`, ...; the recommended one if None.
        planner: rules for plain or residual networks of several sizes.
        memory_gb: graphics memory to plan for.
        use_reference: use a reference plan: that of `reference`, else of the task's name, if any.
        reference: name of a reference plan.
        overrides: a JSON5 file of plan values.
        layers: more plan values, with where they come from, above the file and below `settings`.
        settings: `key=value` texts.
        seconds: time budget of one fold.
        regions_class_order: as the task declares it, for labels that overlap.
        skipped_cases: cases to leave out.
        patients: how many the task has, if known; of fewer than five each gets a fold.
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
    regions_class_order: tuple[int, ...] | None = None
    skipped_cases: tuple[str, ...] = ()
    patients: int | None = None


@dataclass(frozen=True)
class _Rules:
    """What the rules alone choose, and why."""

    values: Values
    evidence: Evidence
    name: str


def compose(
    fingerprint: Fingerprint,
    wishes: Wishes,
    work: Callable[[Plan], Work],
    measure: Callable[[Plan], Timing],
) -> Plan:
    """The plan: rules < reference plan < time budget < overrides file < settings.

    A short time budget also changes the rules' recipe, below the reference plan. Where a layer
    gives the network and none the patch, our own rule chooses it.

    Args:
        fingerprint: what the data is.
        wishes: what the user asks for.
        work: what a run of a plan does besides training; called only with a time budget.
        measure: times a plan on the device at hand; called only with a time budget.

    Raises:
        PlanError: a wish cannot be fulfilled; the message names the key.
    """
    reference = find_reference(fingerprint.task, wishes.reference) if wishes.use_reference else None
    rules = _rules(fingerprint, wishes, reference)
    recipe = None
    if wishes.seconds is not None:
        recipe = short_recipe(make_plan(rules.values, "the rules"), wishes.seconds)
    lower = [] if recipe is None else [recipe]
    lower += [] if reference is None else reference.layers
    users = _users_layers(wishes, rules.values, lower)

    def build(*layers: Layer) -> Plan:
        return stack(rules.values, rules.evidence, [*layers, *users], rules.name)

    if (strides := strides_without_patch([*lower, *users])) is not None:
        trial = build(whole_case_layer(fingerprint, strides), *lower)
        memory_gb = wishes.memory_gb or find_planner(wishes.planner).memory_gb
        lower = [patch_layer(trial, fingerprint, memory_gb), *lower]
    plan = build(*lower)
    if wishes.seconds is None:
        return plan
    if plan.previous_stage is not None:
        raise PlanError(
            f"--time-budget: a {CASCADE} cannot be timed before {plan.previous_stage} is trained; "
            "plan it without, and --set training.epochs or training.seconds"
        )
    budget = budget_layer(wishes.seconds, plan, work, lambda layer: build(*lower, layer), measure)
    return build(*lower, budget)


def compose_unmeasured(fingerprint: Fingerprint, wishes: Wishes) -> Plan:
    """`compose` without a time budget, which needs no measurement."""
    return compose(fingerprint, wishes, _not_needed, _not_needed)


def other_configurations(fingerprint: Fingerprint, wishes: Wishes, plan: Plan) -> list[str]:
    """In a few words each, what the rules would make of the configurations that were not chosen."""
    found = configurations(fingerprint, wishes.planner, wishes.memory_gb)
    return [_in_words(other) for name, other in found.items() if name != plan.configuration]


def other_plans(fingerprint: Fingerprint, wishes: Wishes, plan: Plan) -> list[Plan]:
    """The plans that the rules alone would make of the configurations that were not chosen."""
    found = configurations(fingerprint, wishes.planner, wishes.memory_gb)
    by_rules = replace(
        wishes,
        keep_name=False,
        use_reference=False,
        reference=None,
        overrides=None,
        layers=(),
        settings=(),
        seconds=None,
    )
    return [
        compose_unmeasured(fingerprint, replace(by_rules, configuration=name))
        for name in found
        if name != plan.configuration
    ]


def _not_needed(plan: Plan) -> NoReturn:
    raise AssertionError("a plan without a time budget is not measured")


def _in_words(configuration: Configuration) -> str:
    if configuration.name == CASCADE:
        return f"{CASCADE} (refines 3d_lowres, which is trained first)"
    spacing = by_axis(configuration.spacing_mm, ".3g")
    patch = by_axis(configuration.patch_size)
    return (
        f"{configuration.name} ({spacing} mm, patches of {patch}, batch {configuration.batch_size})"
    )


def _rules(fingerprint: Fingerprint, wishes: Wishes, reference: Reference | None) -> _Rules:
    there = configurations(fingerprint, wishes.planner, wishes.memory_gb)
    recommended = next(iter(there))
    configuration = there[_choose(there, wishes.configuration, reference)]
    values, evidence = rule_values(fingerprint, configuration)
    if configuration.name == CASCADE:
        values["previous_stage"] = f"{wishes.name}-3d_lowres"
    values["regions_class_order"] = wishes.regions_class_order
    if wishes.skipped_cases:
        values["skipped_cases"] = wishes.skipped_cases
        evidence["skipped_cases"] = (LEFT_OUT, "verification.json says why")
    if wishes.patients is not None and wishes.patients < Splits().folds:
        values["splits"] = {"folds": max(FEWEST_FOLDS, wishes.patients)}
        evidence["splits.folds"] = (A_FOLD_EACH, f"{wishes.patients} in the task")
    own = configuration.name in (recommended, reference and reference.configuration)
    name = wishes.name if own or wishes.keep_name else f"{wishes.name}-{configuration.name}"
    return _Rules(complete(values, "the rules"), evidence, name)


def _choose(
    there: Mapping[str, Configuration], wished: str | None, reference: Reference | None
) -> str:
    """The name of the configuration to plan.

    Raises:
        PlanError: it is not there, or not the one that the reference plan is made for.
    """
    fixed = reference.configuration if reference else None
    if reference and fixed and wished not in (None, fixed):
        raise PlanError(
            f"--config {wished}: the reference plan {reference.name} is made for {fixed}; "
            "take --no-reference to plan another configuration by the rules"
        )
    chosen = wished or fixed or next(iter(there))
    if chosen not in there:
        raise PlanError(
            f"configuration {chosen!r} makes no sense for these data{_why_absent(there)}; there: "
            f"{', '.join(there)}"
        )
    return chosen


def _why_absent(there: Mapping[str, Configuration]) -> str:
    if (full := there.get("3d_fullres")) is None:
        return ", whose cases are single slices"
    patch, case = times(full.patch_size), times(full.median_shape)
    return f": a median case of {case} voxels is small enough for patches of {patch}"


def _users_layers(wishes: Wishes, rules: Values, lower: list[Layer]) -> list[Layer]:
    layers = []
    if wishes.overrides is not None:
        layers.append(read_layer(wishes.overrides, f"overrides {wishes.overrides.name}"))
    layers += wishes.layers
    if wishes.settings:
        base = rules
        for layer in [*lower, *layers]:
            base = merge(base, layer.values)
        layers.append(set_layer(wishes.settings, base))
    return layers
