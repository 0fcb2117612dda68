"""From a fingerprint and the user's wishes to the plan of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.planning.budget import Timing, Work, budget_layer, short_recipe
from autoseg.planning.check import make_plan
from autoseg.planning.defaults import rule_values
from autoseg.planning.layers import Layer, complete, merge, read_layer, set_layer, stack
from autoseg.planning.plan import Plan
from autoseg.planning.reference import reference_layer

if TYPE_CHECKING:
    from autoseg.fingerprint import Fingerprint


@dataclass(frozen=True)
class Wishes:
    """What the user asks of a plan.

    Attributes:
        name: of the plan, a folder name.
        planner: rules for plain or residual networks of several sizes.
        memory_gb: graphics memory to plan for.
        reference: use the reference plan of the task's name, if there is one.
        overrides: a JSON5 file of plan values.
        settings: `key=value` texts.
        seconds: time budget of one fold.
    """

    name: str = "default"
    planner: str = "default"
    memory_gb: float | None = None
    reference: bool = True
    overrides: Path | None = None
    settings: tuple[str, ...] = ()
    seconds: float | None = None


def compose(
    fingerprint: Fingerprint,
    wishes: Wishes,
    work: Callable[[Plan], Work],
    measure: Callable[[Plan], Timing],
) -> Plan:
    """The plan: rules < reference plan < time budget < overrides file < settings.

    A short time budget also changes the rules' recipe, below the reference plan.

    Args:
        fingerprint: what the data is.
        wishes: what the user asks for.
        work: what a run of a plan does besides training; called only with a time budget.
        measure: times a plan on the device at hand; called only with a time budget.

    Raises:
        PlanError: a wish cannot be fulfilled; the message names the key.
    """
    rules, evidence = rule_values(fingerprint, wishes.planner, wishes.memory_gb)
    rules = complete(rules, "the rules")
    lower = _lower_layers(fingerprint.task, wishes, make_plan(rules, "the rules"))
    users = _users_layers(wishes, rules, lower)

    def build(*layers: Layer) -> Plan:
        return stack(rules, evidence, [*layers, *users], wishes.name)

    plan = build(*lower)
    if wishes.seconds is None:
        return plan
    budget = budget_layer(
        wishes.seconds, plan, work(plan), lambda layer: build(*lower, layer), measure
    )
    return build(*lower, budget)


def _lower_layers(task: str, wishes: Wishes, ruled: Plan) -> list[Layer]:
    """What stands between the rules and the user's own values, but for the time budget."""
    recipe = None if wishes.seconds is None else short_recipe(ruled, wishes.seconds)
    reference = reference_layer(task) if wishes.reference else None
    return [layer for layer in (recipe, reference) if layer is not None]


def _users_layers(wishes: Wishes, rules: dict[str, object], lower: list[Layer]) -> list[Layer]:
    layers = []
    if wishes.overrides is not None:
        layers.append(read_layer(wishes.overrides, f"overrides {wishes.overrides.name}"))
    if wishes.settings:
        base = rules
        for layer in [*lower, *layers]:
            base = merge(base, layer.values)
        layers.append(set_layer(wishes.settings, base))
    return layers
