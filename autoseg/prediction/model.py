"""A trained model on disk: the plan and the weights of its folds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoseg.common.errors import AutosegError
from autoseg.common.files import read_json, write_json
from autoseg.common.progress import listed
from autoseg.models.checkpoint import load_weights
from autoseg.models.folder import FINAL, PLAN, FolderFiles, ModelFiles, open_model, plan_in
from autoseg.networks.unet import UNet, build_network
from autoseg.plan.plan import Plan
from autoseg.prediction.postprocessing import FILE_NAME, Postprocessing

PREVIOUS = "previous_stage.json"


@dataclass(frozen=True)
class Model:
    """Networks in evaluation mode that are averaged, and the plan they were trained by.

    Attributes:
        folder: the model's folder, or the zip that it is packed in.
        files: the files there; None: those of `folder`.
    """

    folder: Path
    plan: Plan
    folds: tuple[str, ...]
    networks: tuple[UNet, ...]
    files: ModelFiles | None = None


def load_model(folder: Path, folds: list[str] | None, device: torch.device) -> Model:
    """Load the named folds, or all that are finished, of a model folder or a packed model (.zip).

    Raises:
        AutosegError: not a model, a fold that is not there, or weights of another plan.
    """
    return _load(open_model(folder), folder, folds, device)


def _load(files: ModelFiles, folder: Path, folds: list[str] | None, device: torch.device) -> Model:
    plan = plan_in(files)
    there = files.folds()
    if not there:
        raise AutosegError(f"{folder} has no finished fold; run: autoseg_train {plan.task} fold 0")
    wanted = folds or there
    if missing := sorted(set(wanted) - set(there)):
        raise AutosegError(
            f"{folder} has no finished {listed('fold', missing)}; there: {', '.join(there)}"
        )
    networks = tuple(_load_network(plan, files, f"fold_{fold}/{FINAL}", device) for fold in wanted)
    return Model(folder, plan, tuple(wanted), networks, files)


def save_previous(folder: Path, previous: Plan) -> None:
    """Write beside a cascade's models which plan made the segmentations that they refine."""
    write_json(folder / PREVIOUS, {"plan": previous.name, "plan_id": previous.id})


def load_previous(model: Model, device: torch.device) -> Model:
    """All finished folds of the model that a cascade refines, from the folder beside it.

    Raises:
        AutosegError: it is not there, or another plan trained it than the cascade was trained on.
    """
    files = _files(model)
    before = files.previous(str(model.plan.previous_stage))
    if not before.has(PLAN):
        raise AutosegError(
            f"{before.path('')} is no model folder: it has no {PLAN}; put the models that "
            f"{model.folder} refines there"
        )
    previous = _load(before, before.path(""), None, device)
    _check_previous(files.json(PREVIOUS), str(model.folder), previous.plan)
    return previous


def check_previous(folder: Path, previous: Plan) -> None:
    """Refuse another previous stage than that of the models that are there.

    Raises:
        AutosegError: it has another plan than `save_previous` wrote down.
    """
    _check_previous(read_json(folder / PREVIOUS), str(folder), previous)


def _check_previous(found: Any, where: str, previous: Plan) -> None:
    wanted = found.get("plan_id") if isinstance(found, dict) else None
    if wanted != previous.id:
        raise AutosegError(
            f"{where} refines plan {wanted} of {previous.name}, but that is {previous.id} now; "
            "put the models of that plan back, or train the cascade anew"
        )


def load_postprocessing(model: Model) -> Postprocessing | None:
    """What the cross-validation of the model's plan has shown to be good; None if nothing is there.

    Raises:
        AutosegError: it is broken, or was learned for another plan.
    """
    files = _files(model)
    if not files.has(FILE_NAME):
        return None
    where = str(files.path(FILE_NAME))
    found = Postprocessing.from_json(files.json(FILE_NAME), where)
    if found.plan_id != model.plan.id:
        raise AutosegError(
            f"{where} was learned for plan {found.plan_id}, but the model's is {model.plan.id}; "
            "learn it anew with autoseg_evaluate TASK, or delete it"
        )
    return found


def _files(model: Model) -> ModelFiles:
    return model.files or FolderFiles(model.folder)


def _load_network(plan: Plan, files: ModelFiles, name: str, device: torch.device) -> UNet:
    path = files.path(name)
    tensors, state = files.checkpoint(name)
    if state.get("plan_id") != plan.id:
        raise AutosegError(
            f"{path} was trained by plan {state.get('plan_id')}, but plan.json beside it is "
            f"{plan.id}; put the plan back that it was trained by"
        )
    with torch.device("meta"):  # no memory: a stranger's plan may ask for any network
        network = build_network(plan)
    load_weights(network, tensors, path, assign=True)
    return network.to(device).eval()
