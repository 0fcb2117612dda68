"""A trained model on disk: the plan and the weights of its folds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from autoseg.checkpoint import load_checkpoint, load_weights
from autoseg.errors import AutosegError
from autoseg.files import read_json, write_json
from autoseg.networks.build import build_network
from autoseg.networks.unet import UNet
from autoseg.planning.plan import Plan, load_plan

FINAL = "final.safetensors"
PREVIOUS = "previous_stage.json"


@dataclass(frozen=True)
class Model:
    """Networks in evaluation mode that are averaged, and the plan they were trained by."""

    folder: Path
    plan: Plan
    folds: tuple[str, ...]
    networks: tuple[UNet, ...]


def trained_folds(folder: Path) -> list[str]:
    """Names of the finished folds of a model folder: `0`, `1`, ..., `all`."""
    found = sorted(path.parent.name for path in folder.glob(f"fold_*/{FINAL}"))
    return [name.removeprefix("fold_") for name in found]


def load_model(folder: Path, folds: list[str] | None, device: torch.device) -> Model:
    """Load the named folds, or all that are finished.

    Raises:
        AutosegError: not a model folder, a fold that is not there, or weights of another plan.
    """
    if not (folder / "plan.json").is_file():
        raise AutosegError(
            f"{folder} is no model folder: it has no plan.json; give models/TASK/PLAN"
        )
    plan = load_plan(folder / "plan.json")
    there = trained_folds(folder)
    if not there:
        raise AutosegError(f"{folder} has no finished fold; run: autoseg_train {plan.task} fold 0")
    wanted = folds or there
    if missing := sorted(set(wanted) - set(there)):
        raise AutosegError(
            f"{folder} has no finished fold {', '.join(missing)}; there: {', '.join(there)}"
        )
    networks = tuple(
        _load_network(plan, folder / f"fold_{fold}" / FINAL, device) for fold in wanted
    )
    return Model(folder, plan, tuple(wanted), networks)


def save_previous(folder: Path, previous: Plan) -> None:
    """Write beside a cascade's models which plan made the segmentations that they refine."""
    write_json(folder / PREVIOUS, {"plan": previous.name, "plan_id": previous.id})


def load_previous(model: Model, device: torch.device) -> Model:
    """All finished folds of the model that a cascade refines, from the folder beside it.

    Raises:
        AutosegError: it is not there, or another plan trained it than the cascade was trained on.
    """
    folder = model.folder.parent / str(model.plan.previous_stage)
    if not folder.is_dir():
        raise AutosegError(
            f"{model.folder} refines {model.plan.previous_stage}, whose models are missing: put "
            f"them into {folder}"
        )
    previous = load_model(folder, None, device)
    check_previous(model.folder, previous.plan)
    return previous


def check_previous(folder: Path, previous: Plan) -> None:
    """Refuse another previous stage than that of the models that are there.

    Raises:
        AutosegError: it has another plan than `save_previous` wrote down.
    """
    wanted = read_json(folder / PREVIOUS).get("plan_id")
    if wanted != previous.id:
        raise AutosegError(
            f"{folder} refines plan {wanted} of {previous.name}, but that is {previous.id} now; "
            "put the models of that plan back, or train the cascade anew"
        )


def _load_network(plan: Plan, path: Path, device: torch.device) -> UNet:
    tensors, state = load_checkpoint(path)
    if state.get("plan_id") != plan.id:
        raise AutosegError(
            f"{path} was trained by plan {state.get('plan_id')}, but plan.json beside it is "
            f"{plan.id}; put the plan back that it was trained by"
        )
    network = build_network(plan)
    load_weights(network, tensors, path)
    return network.to(device).eval()
