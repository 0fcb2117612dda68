"""A trained model on disk, whose weights another run may begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoseg.common.errors import AutosegError
from autoseg.models.archive import is_archive
from autoseg.models.checkpoint import Tensors, without_prefix
from autoseg.models.folder import FINAL, PLAN, FolderFiles, ModelFiles, open_model, plan_in
from autoseg.plan.plan import Plan


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
    """Read the weights of a model folder, a packed model, a fold in one of them, or a file.

    Raises:
        AutosegError: there is no trained model, the plan is not beside it, or it is of another one.
    """
    files, name = _find_weights(path)
    plan = plan_in(files)
    tensors, about = files.checkpoint(name)
    if about.get("plan_id", plan.id) != plan.id:
        raise AutosegError(
            f"--pretrained {path}: {Path(name).name} was trained by plan {about['plan_id']}, but "
            f"{files.path(PLAN)} is {plan.id}; put the plan back that it was trained by"
        )
    digest = files.sha256(name)
    source = {"task": plan.task, "plan": plan.name, "plan_id": plan.id, "sha256": digest}
    return Pretrained(_weights_in(tensors), plan, source)


def _find_weights(path: Path) -> tuple[ModelFiles, str]:
    """The model that a path means, and the name of the weights in it."""
    if is_archive(path) and path.exists():
        return _fold_in(open_model(path), path)
    if is_archive(path.parent) and path.parent.exists():  # model.zip/fold_0
        name = f"{path.name}/{FINAL}"
        packed = open_model(path.parent)
        if packed.has(name):
            return packed, name
    elif path.is_file() and path.suffix == ".safetensors":
        return _beside_plan(path, path)
    elif (path / FINAL).is_file():
        return _beside_plan(path / FINAL, path)
    elif FolderFiles(path).folds():
        _, name = _fold_in(FolderFiles(path), path)
        return _beside_plan(path / name, path)
    raise AutosegError(
        f"--pretrained {path}: there is no trained model; give models/TASK/PLAN, a fold_K in "
        "it, a packed model.zip, or a .safetensors file with its plan.json beside"
    )


def _fold_in(files: ModelFiles, path: Path) -> tuple[ModelFiles, str]:
    """The weights of the fold of all cases, or of the only one."""
    folds = files.folds()
    if len(folds) > 1 and "all" not in folds:
        names = [f"fold_{fold}" for fold in folds]
        raise AutosegError(
            f"--pretrained {path} has several folds: {', '.join(names)}; choose one: "
            f"{path / names[0]}"
        )
    if not folds:
        raise AutosegError(f"--pretrained {path} holds no weights")
    return files, f"fold_{'all' if 'all' in folds else folds[0]}/{FINAL}"


def _beside_plan(file: Path, path: Path) -> tuple[FolderFiles, str]:
    """A file of weights in the folder of its plan, or one below."""
    folder = next((f for f in file.parents[:2] if (f / PLAN).is_file()), None)
    if folder is None:
        raise AutosegError(f"--pretrained {path}: there is no {PLAN} beside {file.name}")
    return FolderFiles(folder), file.relative_to(folder).as_posix()


def _weights_in(tensors: Tensors) -> Tensors:
    """Those that prediction would use: a run's own file holds other tensors, too."""
    for prefix in ("average.module", "network"):
        if found := without_prefix(prefix, tensors):
            return found
    return tensors
