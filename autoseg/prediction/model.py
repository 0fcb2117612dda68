"""A trained model on disk: its plan, the weights of its folds, and the scans that trained it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoseg.common.errors import AutosegError
from autoseg.common.files import dataclass_from_json, write_json
from autoseg.common.progress import listed
from autoseg.image.image import Appearance, on_patient_axes
from autoseg.models import folder as layout
from autoseg.models.checkpoint import Tensors, load_weights
from autoseg.models.folder import FINGERPRINT, PLAN, FolderFiles, ModelFiles
from autoseg.networks.unet import UNet, build_network
from autoseg.plan.plan import Plan
from autoseg.prediction.postprocessing import FILE_NAME, TEMPERATURE, Postprocessing
from autoseg.prediction.studies import TEXT

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

    @property
    def where(self) -> ModelFiles:
        """The files beside its weights."""
        return self.files or FolderFiles(self.folder)


def load_model(folder: Path, folds: list[str] | None, device: torch.device) -> Model:
    """Load the named folds, or all that are finished, of a model folder or a packed model (.zip).

    Raises:
        AutosegError: it is not a model, a fold is missing, or the weights are of another plan.
    """
    return _load(layout.open_model(folder), folds, device)


def _load(files: ModelFiles, folds: Sequence[str] | None, device: torch.device) -> Model:
    folder, plan = files.path(""), layout.plan_in(files)
    folds = choose_folds(files, folder, plan, folds)
    networks = []
    for fold in folds:
        tensors = read_weights(files, fold, plan)
        with torch.device("meta"):  # allocates nothing: an unknown plan may define any network
            network = build_network(plan)
        load_weights(network, tensors, files.path(layout.weights_name(fold)), assign=True)
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
        about = {"missing": listed("fold", missing), "there": ", ".join(finished)}
        raise AutosegError(TEXT("fold", folder=folder, **about))
    return wanted or finished


def read_weights(files: ModelFiles, fold: str, plan: Plan) -> Tensors:
    """The weights of a finished fold.

    Raises:
        AutosegError: the file is damaged, or another plan trained it.
    """
    name = layout.weights_name(fold)
    tensors, state = files.checkpoint(name)
    if state.get("plan_id") != plan.id:
        about = {"path": files.path(name), "found": state.get("plan_id"), "name": PLAN}
        raise AutosegError(TEXT("other plan", plan=plan, **about))
    return tensors


def save_previous(folder: Path, previous: Plan) -> None:
    """Record in a cascade's model folder which plan made the segmentations that it refines."""
    write_json(folder / PREVIOUS, {"plan": previous.name, "plan_id": previous.id})


def load_previous(model: Model, device: torch.device) -> Model:
    """All finished folds of the model that a cascade refines, from the folder beside it.

    Raises:
        AutosegError: it is missing, or the cascade was trained on segmentations of another plan.
    """
    before = model.where.previous(str(model.plan.previous_stage))
    if not before.has(PLAN):
        raise AutosegError(f"{before.path('')} has no {PLAN}; restore it: {model.folder} needs it")
    previous = _load(before, None, device)
    check_previous(model.folder, previous.plan, model.where)
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
        raise AutosegError(TEXT("previous stage", folder=folder, wanted=wanted, previous=previous))


def check_same_classes(plan: Plan, other: Plan) -> None:
    """Check that the probabilities of two plans can be averaged.

    Raises:
        AutosegError: they do not segment the same classes of the same channels.
    """
    for key in ("channels", "labels", "regions_class_order"):
        values = [getattr(each, key) for each in (plan, other)]
        # The order of the labels is that of the classes, so it has to be the same, too.
        if str(values[0]) != str(values[1]):
            raise AutosegError(TEXT("classes", plan=plan, other=other, key=key, values=values))


def load_postprocessing(model: Model) -> Postprocessing | None:
    """The postprocessing learned from the cross-validation of the model's plan, if any.

    Raises:
        AutosegError: it is not valid, or was learned for another plan.
    """
    files = model.where
    if not files.has(FILE_NAME):
        return None
    where = str(files.path(FILE_NAME))
    found = Postprocessing.from_json(files.json(FILE_NAME), where)
    if found.plan_id != model.plan.id:
        raise AutosegError(TEXT("postprocessing", where=where, found=found, plan=model.plan))
    return found


def load_temperature(model: Model) -> float:
    """The temperature of saved probabilities, if the cross-validation of the plan has shown one."""
    found = layout.read_calibration(model.where).get(TEMPERATURE, {})
    return float(found["value"]) if found.get("plan_id") == model.plan.id else 1.0


ADVICE = "restore it; the model was trained on the data that it describes"


@dataclass(frozen=True)
class TrainingSet:
    """The training scans.

    Attributes:
        cases: the figures of each; those of fingerprints before format 3 have no `bodies`.
        labelled: for each channel the 0.5 and the 99.5 percentile of the labelled voxels, or None.
    """

    cases: tuple[Appearance, ...]
    labelled: tuple[tuple[float, float] | None, ...]

    @property
    def has_bodies(self) -> bool:
        """Whether the intensities inside the body are known of every scan."""
        return all(all(case.bodies) for case in self.cases)


def training_set_of(files: ModelFiles) -> TrainingSet | None:
    """The training set of a model; None if the model came without its fingerprint.

    Raises:
        AutosegError: the fingerprint is damaged.
    """
    found = with_fingerprint(files)
    if found is None:
        return None
    values, where = found.json(FINGERPRINT), found.path(FINGERPRINT)
    try:
        labelled = [each and (each["p00_5"], each["p99_5"]) for each in values["foreground"]]
        made = {"cases": list(_cases(values["cases"])), "labelled": labelled}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AutosegError(f"{where}: not a fingerprint ({error!r}); {ADVICE}") from error
    return dataclass_from_json(TrainingSet, made, where, ADVICE)


def with_fingerprint(files: ModelFiles) -> ModelFiles | None:
    """Where the fingerprint of a model is: in it, or where the same plan was planned."""
    if files.has(FINGERPRINT):
        return files
    if isinstance(files, FolderFiles) and len((path := files.folder.absolute()).parts) > 3:
        planned = FolderFiles(path.parents[2] / "preprocessed" / path.parent.name / path.name)
        is_whole = planned.has(PLAN) and planned.has(FINGERPRINT)
        if is_whole and layout.plan_in(planned).id == layout.plan_in(files).id:
            return planned
    return None


def _cases(cases: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for case in cases.values():
        code, spacing = case["orientation"], case["spacing_mm"]
        x, y, z = (size * mm for size, mm in zip(case["shape_after_crop"], spacing, strict=True))
        yield {
            "orientation": code,
            "spacing_mm": on_patient_axes(spacing, code),
            "extent_mm": on_patient_axes((x, y, z), code),
            "ranges": [(c["image"]["p00_5"], c["image"]["p99_5"]) for c in case["channels"]],
            "bodies": [channel.get("body", ()) for channel in case["channels"]],
        }
