"""Two plans of one recipe: they differ only in how long training takes.

A run that was begun by one of them may go on by the other. Everything else that differs makes them
plans of different models.
"""

from __future__ import annotations

from typing import Any

from autoseg.planning.plan import Plan


def recipe_id(plan: Plan) -> str:
    """An id that is the same for all plans that differ only in how long training takes.

    That is in `training.epochs`, `training.seconds` and `training.early_stopping_epochs`.
    """
    length = {"epochs": 1, "seconds": None, "early_stopping_epochs": None}
    return plan.model_copy(update={"training": plan.training.model_copy(update=length)}).id


def is_extension(one: Plan, other: Plan) -> bool:
    """Whether two different plans differ in nothing but how long training takes."""
    return one.id != other.id and recipe_id(one) == recipe_id(other)


def differing_keys(one: Plan, other: Plan) -> list[str]:
    """Dotted keys, such as `training.epochs`, of the values that decide a result and differ."""
    values = [p.model_dump(mode="json", exclude={"provenance", "measured"}) for p in (one, other)]
    return list(_differing(values[0], values[1], ""))


def _differing(one: Any, other: Any, key: str) -> list[str]:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [key]
    if one.keys() == other.keys() and list(one) != list(other):
        return [key]  # the order of the labels decides the classes' indices
    start = f"{key}." if key else ""
    names = [*one, *(name for name in other if name not in one)]
    return [
        found
        for name in names
        for found in _differing(one.get(name), other.get(name), f"{start}{name}")
    ]
