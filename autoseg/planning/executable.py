"""What a plan may say that training cannot do yet."""

from __future__ import annotations

from autoseg.errors import PlanError
from autoseg.planning.plan import CASCADE, Plan, find_overlap


def check_executable(plan: Plan) -> None:
    """Stop before a plan is executed that only a later autoseg can train.

    Raises:
        PlanError: the plan has overlapping regions, or refines another plan.
    """
    if found := find_overlap(plan.labels):
        first, second, value = found
        raise PlanError(
            f"plan {plan.name}: the regions {first!r} and {second!r} overlap (value {value}); "
            "autoseg cannot train that yet: plan the task with labels that do not overlap"
        )
    if plan.configuration == CASCADE:
        raise PlanError(
            f"plan {plan.name}: a {CASCADE} refines {plan.previous_stage}, which autoseg cannot "
            f"train yet; train {plan.previous_stage} or a plan of 3d_fullres"
        )
