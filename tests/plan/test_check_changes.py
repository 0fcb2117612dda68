"""Any change of any value of a plan gives a plan, or one line of what is wrong with it."""

from __future__ import annotations

import copy
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from autoseg.common.errors import PlanError
from autoseg.plan.plan import Plan
from autoseg.plan.reading import make_plan
from tests.plan.test_plan import full_plan

VALID = full_plan(shares=[{"label": 2, "container": [1]}]).model_dump(mode="json")


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, entry in entries:
        found.append((*path, key))
        if isinstance(entry, dict | list):
            found += paths(entry, (*path, key))
    return found


BAD: list[Any] = [-1, 0, 1, 3, 10**30, -(10**30), 1e308, -0.5, math.nan, math.inf, True, None]
BAD += ["", "adam", "\ud800", [], [0], [[1, 1, 1]], [3, 2], {}, {"step": "clip"}, {"a": {}}]


def plan_or_message(values: Any) -> Plan | str:
    try:
        return make_plan(values, "changed")
    except PlanError as error:
        return str(error)


@given(st.sampled_from(paths(VALID)), st.sampled_from([*BAD, "delete"]))
@settings(deadline=None, max_examples=1500)
def test_any_change_gives_a_plan_or_a_plan_error(path: tuple[Any, ...], value: Any) -> None:
    values = copy.deepcopy(VALID)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if value == "delete":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    made = plan_or_message(values)
    if isinstance(made, Plan):
        assert len(made.id) == 12
        assert make_plan(made.model_dump(mode="json"), "again") == made
    else:
        assert made.startswith("changed")
        assert "\n" not in made
