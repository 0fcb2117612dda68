"""A trained model on disk, whose weights another run may begin with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.checkpoint import Tensors, load_checkpoint, without_prefix
from autoseg.errors import AutosegError
from autoseg.planning.plan import Plan, load_plan

FINAL, PLAN = "final.safetensors", "plan.json"


@dataclass(frozen=True)
class Pretrained:
    """A trained model's weights.

    Attributes:
        tensors: the weights that prediction uses, by their names in the network.
        plan: the plan that they were trained by.
        source: what they are, for the records of a run that begins with them.
    """

    tensors: Tensors
    plan: Plan
    source: dict[str, Any]


def read_pretrained(path: Path) -> Pretrained:
    """Read the weights of a model folder, of one of its fold folders, or of a file.

    Raises:
        AutosegError: there is no trained model, the plan is not beside it, or it is of another one.
    """
    file = _find_weights(path)
    plan_path = next((f / PLAN for f in file.parents[:2] if (f / PLAN).is_file()), None)
    if plan_path is None:
        raise AutosegError(f"--pretrained {path}: there is no {PLAN} beside {file.name}")
    plan = load_plan(plan_path)
    tensors, about = load_checkpoint(file)
    if about.get("plan_id", plan.id) != plan.id:
        raise AutosegError(
            f"--pretrained {path}: {file.name} was trained by plan {about['plan_id']}, but "
            f"{plan_path} is {plan.id}; put the plan back that it was trained by"
        )
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    source = {"task": plan.task, "plan": plan.name, "plan_id": plan.id, "sha256": digest}
    return Pretrained(_weights_in(tensors), plan, source)


def _find_weights(path: Path) -> Path:
    """The file of weights that a path means."""
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if (path / FINAL).is_file():
        return path / FINAL
    found = {file.parent.name: file for file in sorted(path.glob(f"fold_*/{FINAL}"))}
    if len(found) > 1 and "fold_all" not in found:
        raise AutosegError(
            f"--pretrained {path} has several folds: {', '.join(found)}; choose one: "
            f"{path / next(iter(found))}"
        )
    if not found:
        raise AutosegError(
            f"--pretrained {path}: there is no trained model; give models/TASK/PLAN, a fold_K in "
            "it, or a .safetensors file with its plan.json beside"
        )
    return found["fold_all"] if "fold_all" in found else next(iter(found.values()))


def _weights_in(tensors: Tensors) -> Tensors:
    """Those that prediction would use: a run's own file holds other tensors, too."""
    for prefix in ("average.module", "network"):
        if found := without_prefix(prefix, tensors):
            return found
    return tensors
