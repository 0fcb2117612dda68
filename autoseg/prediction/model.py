"""A trained model on disk: the plan and the weights of its folds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import read_json, write_json
from autoseg.common.progress import by_axis, counted, listed
from autoseg.image.image import Image
from autoseg.models.checkpoint import load_weights
from autoseg.models.folder import (
    PLAN,
    FolderFiles,
    ModelFiles,
    open_model,
    plan_in,
    weights_name,
)
from autoseg.networks.unet import UNet, build_network
from autoseg.plan.plan import Plan
from autoseg.plan.sections import Clip, Rescale, Step, ZScore
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
    networks = tuple(_load_network(plan, files, weights_name(fold), device) for fold in wanted)
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


# Whether a scan can be what a plan was made for; looked at before the network sees it.
#
# Only what cannot be right is refused: an odd scan is segmented, as it may be a rare patient.

SPACING_FACTOR = 30.0  # thick slices are 10 to 20 times as far apart as pixels; metres 1000 times
SMALLEST_SPREAD = 0.05  # of the standard deviation of the training's values
FARTHEST = 20.0  # standard deviations from the training's mean
SMALLEST_PART = 0.01  # of the window


def check_scan(plan: Plan, image: Image) -> None:
    """Check a scan against what the plan says of channels, voxel size and values.

    Steps that take each scan's own range or figures make any scale of values acceptable.

    Args:
        plan: what the model was made for.
        image: the scan as it was read.

    Raises:
        DataError: it cannot be right; the message says what was found and what was expected.
    """
    if fault := _channels(plan, image) or _size(plan, image) or _values(plan, image):
        raise DataError(fault)


def _channels(plan: Plan, image: Image) -> str | None:
    wanted = len(plan.channels)
    if len(image.array) == wanted:
        return None
    return (
        f"the scan has {counted(len(image.array), 'channel')}, the model needs {wanted}: "
        f"{', '.join(plan.channels)}"
    )


def _size(plan: Plan, image: Image) -> str | None:
    geometry = image.geometry
    for axis, size, patch in zip("xyz", geometry.size, plan.sampling.patch_size, strict=True):
        if size == 1 and patch > 1:
            return f"the scan is a single layer along {axis}; the model segments volumes"
    target = plan.target_spacing_of(geometry.spacing_mm)
    factors = [own / wanted for own, wanted in zip(geometry.spacing_mm, target, strict=True)]
    if not plan.resamples or all(1 / SPACING_FACTOR < f < SPACING_FACTOR for f in factors):
        return None
    return (
        f"its voxels measure {by_axis(geometry.spacing_mm, '.3g')} mm, those of the model "
        f"{by_axis(target, '.3g')} mm; correct the spacing in the file (mm are expected)"
    )


def _values(plan: Plan, image: Image) -> str | None:
    limits = [(float(values.min()), float(values.max())) for values in image.array]
    if all(low == high for low, high in limits):
        return f"every voxel has the value {limits[0][0]:g}: there is no picture in it"
    for index, (low, high) in enumerate(limits):
        steps = [
            step for step in plan.preprocessing if getattr(step, "channel", None) in (None, index)
        ]
        if low < high and (fault := _range(steps, low, high)):
            unit = " Hounsfield units" if plan.channels[index].upper() == "CT" else ""
            return (
                f"channel {plan.channels[index]}: {fault}{unit}; give the scan as it was acquired"
            )
    return None


def _range(steps: Iterable[Step], low: float, high: float) -> str | None:
    """What is wrong with values from `low` to `high`, followed through the steps."""
    found = f"its values go from {low:g} to {high:g}"
    window: tuple[float, float] | None = None
    for step in steps:
        match step:
            case Clip():
                window = step.window
                if high <= window[0] or low >= window[1]:
                    return f"{found}, all outside of the model's window {_span(window)}"
                low, high = max(low, window[0]), min(high, window[1])
            case Rescale():
                return None
            case ZScore():
                return _figures(step, low, high, found)
    if window and high - low < SMALLEST_PART * (window[1] - window[0]):
        return f"{found}, next to nothing of the model's window {_span(window)}"
    return None


def _figures(step: ZScore, low: float, high: float, found: str) -> str | None:
    if step.std is None:
        return None
    trained = f"the model was trained on values that spread by {step.std:g}"
    if high - low < SMALLEST_SPREAD * step.std:
        return f"{found}; {trained}"
    if step.mean is not None:
        nearest = min(max(step.mean, low), high)
        if abs(nearest - step.mean) > FARTHEST * step.std:
            return f"{found}; {trained} around {step.mean:g}"
    return None


def _span(window: tuple[float, float]) -> str:
    return f"{window[0]:g} to {window[1]:g}"
