"""The plan's values for the report: those that somebody or some rule chose, and the defaults."""

from __future__ import annotations

from dataclasses import dataclass

from autoseg.plan.plan import Plan
from autoseg.planner.explain import DEFAULT, GROUPS, Explained, group_of, rows


@dataclass(frozen=True)
class Decisions:
    """The values under one heading.

    Attributes:
        heading: what they are about.
        chosen: values with a source other than the defaults.
        defaults: the others.
    """

    heading: str
    chosen: tuple[Explained, ...]
    defaults: tuple[Explained, ...]


def decisions(plan: Plan) -> list[Decisions]:
    """All values of a plan, heading by heading."""
    found = rows(plan)
    return [
        Decisions(
            heading,
            tuple(row for row in found if _is_of(row, heading) and row.source != DEFAULT.source),
            tuple(row for row in found if _is_of(row, heading) and row.source == DEFAULT.source),
        )
        for heading in GROUPS
    ]


def _is_of(row: Explained, heading: str) -> bool:
    return group_of(row.key) == heading
