"""A plan as a table: every value, why it was chosen, and what it replaced."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autoseg.planning.plan import Plan, Provenance

HIDDEN = ("format_version", "provenance", "measured", "task", "name")
DEFAULT = Provenance(source="default")


def explain(plan: Plan) -> None:
    """Print the plan as a table on standard output."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # Names and figures may hold brackets and colons: they are text, not rich's markup.
    table = Table(title=f"Plan {plan.name} of {plan.task} (id {plan.id})", box=SIMPLE_HEAD)
    for heading in ("key", "value", "why", "the rules alone"):
        table.add_column(heading, overflow="fold")
    for row in rows(plan):
        table.add_row(*row)
    # Without a terminal there is no width to fit: do not cut what a file should hold.
    width = None if Console().is_terminal else 180
    Console(width=width, markup=False, emoji=False).print(table)


def rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    """Key, value, reason, and what the rules alone would have chosen where it was replaced."""
    found = []
    for key, value in _leaves(plan.model_dump(mode="json", exclude=set(HIDDEN))):
        why = _provenance(plan, key)
        reason = f"{why.source}: {why.evidence}" if why.evidence else why.source
        found.append((key, _short(value), reason, _ruled(why, key)))
    return found


def _ruled(why: Provenance, key: str) -> str:
    """The rules' value; of a list of steps only how many, and only once."""
    value = why.rule_value
    if value is None:
        return ""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        kinds = [next(iter(entry.values())) for entry in value]
        return ", ".join(map(str, kinds)) if key.endswith(".0") else ""
    return _short(value)


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        whole = f"{path}{key}"
        if isinstance(value, dict) and value and whole != "labels":
            yield from _leaves(value, f"{whole}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, entry in enumerate(value):
                yield f"{whole}.{index}", entry
        else:
            yield whole, value


def _provenance(plan: Plan, key: str) -> Provenance:
    """That of the key, or of the closest part that it belongs to."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        found = plan.provenance.get(".".join(parts[:length]))
        if found is not None:
            return found
    return DEFAULT


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return " x ".join(_short(entry) for entry in value) if _is_flat(value) else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _is_flat(value: list[Any]) -> bool:
    return len(value) > 2 and all(isinstance(entry, int | float) for entry in value)
