"""A trained model on disk: its plan, the weights of its folds, and what scans it can segment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import write_json
from autoseg.common.progress import by_axis, counted, listed
from autoseg.image.image import Image
from autoseg.image.orientation import CODES, Turn
from autoseg.models.checkpoint import Tensors, load_weights
from autoseg.models.folder import (
    FINGERPRINT,
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
    """The networks of a model's folds in evaluation mode, and the plan that trained them.

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
        AutosegError: it is not a model, a fold is missing, or the weights are of another plan.
    """
    return _load(open_model(folder), folder, folds, device)


def _load(
    files: ModelFiles, folder: Path, folds: Sequence[str] | None, device: torch.device
) -> Model:
    plan = plan_in(files)
    folds = choose_folds(files, folder, plan, folds)
    networks = []
    for fold in folds:
        tensors = read_weights(files, fold, plan)
        with torch.device("meta"):  # allocates nothing: an unknown plan may define any network
            network = build_network(plan)
        load_weights(network, tensors, files.path(weights_name(fold)), assign=True)
        networks.append(network.to(device).eval())
    return Model(folder, plan, tuple(folds), tuple(networks), files)


def choose_folds(
    files: ModelFiles, folder: Path, plan: Plan, wanted: Sequence[str] | None
) -> Sequence[str]:
    """The wanted folds, or all that are finished.

    Raises:
        AutosegError: no fold is finished, or a wanted one is not.
    """
    finished = files.folds()
    if not finished:
        raise AutosegError(f"{folder} has no finished fold; run: autoseg_train {plan.task} fold 0")
    if missing := sorted(set(wanted or ()) - set(finished)):
        raise AutosegError(
            f"{folder} has no finished {listed('fold', missing)}; there: {', '.join(finished)}"
        )
    return wanted or finished


def read_weights(files: ModelFiles, fold: str, plan: Plan) -> Tensors:
    """The weights of a finished fold.

    Raises:
        AutosegError: the file is damaged, or another plan trained it.
    """
    name = weights_name(fold)
    tensors, state = files.checkpoint(name)
    if state.get("plan_id") != plan.id:
        raise AutosegError(
            f"{files.path(name)} was trained by plan {state.get('plan_id')}, but {PLAN} is "
            f"{plan.id}; restore the {PLAN} that it was trained by"
        )
    return tensors


def save_previous(folder: Path, previous: Plan) -> None:
    """Record in a cascade's model folder which plan made the segmentations that it refines."""
    write_json(folder / PREVIOUS, {"plan": previous.name, "plan_id": previous.id})


def load_previous(model: Model, device: torch.device) -> Model:
    """All finished folds of the model that a cascade refines, from the folder beside it.

    Raises:
        AutosegError: it is missing, or the cascade was trained on segmentations of another plan.
    """
    files = model.files or FolderFiles(model.folder)
    before = files.previous(str(model.plan.previous_stage))
    if not before.has(PLAN):
        raise AutosegError(f"{before.path('')} has no {PLAN}; restore it: {model.folder} needs it")
    previous = _load(before, before.path(""), None, device)
    check_previous(model.folder, previous.plan, files)
    return previous


def check_previous(folder: Path, previous: Plan, files: ModelFiles | None = None) -> None:
    """Check that existing models of a cascade refine this plan's segmentations.

    Args:
        folder: of the cascade's models.
        previous: the plan of the previous stage.
        files: of the cascade's models; None: those of `folder`.

    Raises:
        AutosegError: they refine those of another plan, see `save_previous`.
    """
    found = (files or FolderFiles(folder)).json(PREVIOUS)
    wanted = found.get("plan_id") if isinstance(found, dict) else None
    if wanted != previous.id:
        raise AutosegError(
            f"{folder} refines plan {wanted} of {previous.name}, but the plan there is now "
            f"{previous.id}; restore the models of that plan, or train the cascade again"
        )


def load_postprocessing(model: Model) -> Postprocessing | None:
    """The postprocessing learned from the cross-validation of the model's plan, if any.

    Raises:
        AutosegError: it is not valid, or was learned for another plan.
    """
    files = model.files or FolderFiles(model.folder)
    if not files.has(FILE_NAME):
        return None
    where = str(files.path(FILE_NAME))
    found = Postprocessing.from_json(files.json(FILE_NAME), where)
    if found.plan_id != model.plan.id:
        raise AutosegError(
            f"{where} was learned for plan {found.plan_id}, but the model's plan is "
            f"{model.plan.id}; learn it again with autoseg_evaluate TASK, or delete it"
        )
    return found


def training_orientations(model: Model) -> list[str]:
    """The orientation in which each training case is stored; empty if it is not known.

    The fingerprint is in a packed model, else in the workspace of the model's folder.
    """
    plan, files = model.plan, model.files or FolderFiles(model.folder)
    if not files.has(FINGERPRINT):
        workspace = model.folder.absolute().parent.parent.parent
        files = FolderFiles(workspace / "preprocessed" / plan.task / plan.name)
    try:
        found = [case["orientation"] for case in files.json(FINGERPRINT)["cases"].values()]
    except (AutosegError, AttributeError, KeyError, TypeError):
        return []
    return [code for code in found if code in CODES]


# Scans that a model cannot segment. Only what is impossible is refused: an unusual scan may be of a
# rare patient.

SPACING_FACTOR = 30.0  # thick slices are 10 to 20 pixels apart; metres instead of mm give 1000
SMALLEST_RANGE = 0.05  # in standard deviations of the training values
FARTHEST = 20.0  # standard deviations from the training mean
SMALLEST_PART = 0.01  # of the window


def check_scan(plan: Plan, image: Image) -> None:
    """Check the channels, voxel spacing and values of a scan against a plan.

    If a step normalises each scan by its own range or statistics, any scale of values is valid.

    Args:
        plan: of the model.
        image: the scan as it was read.

    Raises:
        DataError: the model cannot segment it; the message says what was found and expected.
    """
    fault = _wrong_channels(plan, image) or _wrong_size(plan, image) or _wrong_values(plan, image)
    if fault:
        raise DataError(fault)


def _wrong_channels(plan: Plan, image: Image) -> str | None:
    if len(image.array) == len(plan.channels):
        return None
    return (
        f"the scan has {counted(len(image.array), 'channel')}, the model needs "
        f"{len(plan.channels)}: {', '.join(plan.channels)}"
    )


def _wrong_size(plan: Plan, image: Image) -> str | None:
    turn = Turn.of(image.geometry, plan.orientation)
    geometry, axes = turn.geometry(image.geometry), turn.triple("xyz")
    for axis, size, patch in zip(axes, geometry.size, plan.sampling.patch_size, strict=True):
        if size == 1 and patch > 1:
            return f"the scan has a single slice along {axis}; the model segments volumes"
    target = plan.target_spacing_of(geometry.spacing_mm)
    factors = [own / wanted for own, wanted in zip(geometry.spacing_mm, target, strict=True)]
    if not plan.resamples or all(1 / SPACING_FACTOR < f < SPACING_FACTOR for f in factors):
        return None
    return (
        f"implausible voxel spacing: {by_axis(geometry.spacing_mm, '.3g')} mm, and the model's is "
        f"{by_axis(target, '.3g')} mm; fix the spacing in the file (in mm)"
    )


def _wrong_values(plan: Plan, image: Image) -> str | None:
    limits = [(float(values.min()), float(values.max())) for values in image.array]
    if all(low == high for low, high in limits):
        return f"the scan is empty: every voxel has the value {limits[0][0]:g}"
    for index, (low, high) in enumerate(limits):
        steps = [
            step for step in plan.preprocessing if getattr(step, "channel", None) in (None, index)
        ]
        if low < high and (fault := _wrong_range(steps, low, high)):
            channel = plan.channels[index]
            unit = " Hounsfield units" if channel.upper() == "CT" else ""
            return f"channel {channel}: {fault}{unit}; provide the scan in its original values"
    return None


def _wrong_range(steps: Iterable[Step], low: float, high: float) -> str | None:
    """What is wrong with values from `low` to `high`, followed through the steps."""
    found = f"the values range from {low:g} to {high:g}"
    window: tuple[float, float] | None = None
    for step in steps:
        match step:
            case Clip():
                window = step.window
                if high <= window[0] or low >= window[1]:
                    return f"{found}, outside of the model's window {window[0]:g} to {window[1]:g}"
                low, high = max(low, window[0]), min(high, window[1])
            case Rescale():
                return None
            case ZScore():
                return _far_from_training(step, low, high, found)
    if window and high - low < SMALLEST_PART * (window[1] - window[0]):
        return f"{found}, too little of the model's window {window[0]:g} to {window[1]:g}"
    return None


def _far_from_training(step: ZScore, low: float, high: float, found: str) -> str | None:
    if step.std is None:
        return None
    trained = f"the training values have a standard deviation of {step.std:g}"
    if high - low < SMALLEST_RANGE * step.std:
        return f"{found}; {trained}"
    if step.mean is not None:
        nearest = min(max(step.mean, low), high)
        if abs(nearest - step.mean) > FARTHEST * step.std:
            return f"{found}; {trained} and a mean of {step.mean:g}"
    return None
