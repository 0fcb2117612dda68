"""Which plan the models in a folder belong to."""

from __future__ import annotations

from pathlib import Path

from autoseg.common.errors import AutosegError
from autoseg.common.progress import say
from autoseg.plan.plan import Plan
from autoseg.plan.reading import differing_keys, is_extension, load_plan

MOST_KEYS = 4


def claim(plan: Plan, folder: Path, fold: str, resume: bool) -> None:
    """Put the plan beside the models in `models/TASK/PLAN`, which belong to it from now on.

    A plan that differs from theirs only in how long training takes may take over: with `resume`,
    which extends the fold's run. Other folds keep their length until they are resumed, too.

    Raises:
        AutosegError: there are models of a plan that differs, or of a shorter one and no `resume`.
    """
    path = folder / "plan.json"
    begun = sorted({file.parent.name for file in folder.glob("fold_*/*.safetensors")})
    if begun:
        _check_owner(load_plan(path), plan, folder, begun, resume)
        others = [name for name in begun if name != f"fold_{fold}"]
        if others and load_plan(path).id != plan.id:
            say(
                f"extend {', '.join(others)} with --resume, too: predicting needs folds of one plan"
            )
    plan.save(path)


def _check_owner(owner: Plan, plan: Plan, folder: Path, begun: list[str], resume: bool) -> None:
    if owner.id == plan.id or (resume and is_extension(owner, plan)):
        return
    found = differing_keys(owner, plan)
    keys = ", ".join(found[:MOST_KEYS]) + (", ..." if len(found) > MOST_KEYS else "")
    folds = ", ".join(begun)
    if is_extension(owner, plan):
        raise AutosegError(
            f"{folder} holds models of a plan that differs only in {keys} ({folds}); extend them "
            "with --resume, or plan with another --name"
        )
    raise AutosegError(
        f"{folder} holds models of another plan ({folds}), which differs in {keys}; plan with "
        "another --name, or move that folder away"
    )
