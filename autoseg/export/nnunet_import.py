"""A trained model of nnU-Net v2 as one of ours: `autoseg_import FOLDER -o MODEL`.

The plan reproduces nnU-Net's prediction: what has no equal here is refused, by its key, before
anything is written.
"""

import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from autoseg import __version__
from autoseg.common.errors import AutosegError, raise_if
from autoseg.common.files import CHECKSUMS, read_json, sha256_of, write_json
from autoseg.common.progress import listed, say
from autoseg.export import nnunet
from autoseg.export.model_zip import about_plan, labels_of
from autoseg.export.networks import TEXT, new_folder
from autoseg.export.nnunet import Values
from autoseg.export.nnunet_export import CHECKPOINT, DATASET, PLANS, exported_plan
from autoseg.export.untrusted import CheckpointError, read_untrusted, without_network
from autoseg.fingerprint import Fingerprint
from autoseg.models.archive import extract, is_archive
from autoseg.models.checkpoint import Tensors, load_checkpoint, load_weights, save_checkpoint
from autoseg.models.folder import CARD, FINGERPRINT, NOT_STATED, PLAN, QUALIFICATION, weights_name
from autoseg.networks.unet import build_network
from autoseg.plan.plan import Plan, make_plan
from autoseg.prediction.model import save_previous
from autoseg.prediction.postprocessing import FILE_NAME as POSTPROCESSING
from autoseg.prediction.postprocessing import FORMAT_VERSION as POSTPROCESSING_FORMAT

OLD_PLANS = "plans.pkl"  # of nnU-Net v1
NEEDED = re.compile(
    rf"{PLANS}|{DATASET}|{OLD_PLANS}|{FINGERPRINT}|{PLAN}|{CHECKSUMS}|fold_\w+/checkpoint_\w+\.pth"
    rf"|crossval_results_folds_\w+/{POSTPROCESSING}"
)
OTHER_NETWORKS = re.compile(f".*({'|'.join(nnunet.FACTS['other_networks'])})", re.IGNORECASE)
# nnU-Net's own trainers: any of these words, which change no network (but for BN).
KNOWN_TRAINER = re.compile(f"nnUNet_?Trainer(_?({'|'.join(nnunet.FACTS['trainer_words'])}))*")
KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"
INVALID = (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError)


class _Source(NamedTuple):
    """A folder TRAINER__PLANS__CONFIG.

    Attributes:
        name: of the folder or zip file, for messages.
    """

    folder: Path
    name: Path

    def json(self, file: str) -> dict[str, Any]:
        """An object in a JSON file of the folder."""
        found: dict[str, Any] = read_json(self.folder / file)
        raise_if(not isinstance(found, dict), AutosegError(f"{self.name / file} must be an object"))
        return found

    @property
    def folds(self) -> list[str]:
        """The trained folds; `all` only if it is the only one."""
        found = sorted(path.parent.name[5:] for path in self.folder.glob("fold_*/checkpoint_*.pth"))
        folds = [fold for fold in dict.fromkeys(found) if fold != "all"]
        return folds or found[:1]


class ImportOptions(NamedTuple):
    """What to import.

    Attributes:
        folds: None for all that are trained; `fold_all` counts only if it is the only one.
        configuration: such as 3d_fullres, if there are models of several.
        checkpoint: name of the file of each fold.
    """

    source: Path
    folds: tuple[str, ...] | None = None
    configuration: str | None = None
    checkpoint: str = CHECKPOINT


def import_nnunet(options: ImportOptions, out: Path) -> list[Path]:
    """Write a model, and the model that a cascade refines beside it.

    Returns:
        the written folders, the model's own last.

    Raises:
        AutosegError: `out` exists, there is no such model, or it cannot be reproduced.
    """
    raise_if(out.exists(), AutosegError(f"{out} is there already; choose another -o, or delete it"))
    with _unpacked(options.source) as folder, tempfile.TemporaryDirectory() as temporary:
        source = _find_model(folder, options)
        model = _read_model(source, options, out.name, Path(temporary))
        previous = None
        if model.plan.previous_stage is not None:
            stage = str(model.configuration["previous_stage"])
            name = source.folder.name.rpartition("__")[0] + f"__{stage}"
            before = _Source(source.folder.with_name(name), source.name.with_name(name))
            if not (before.folder / PLANS).is_file():
                raise AutosegError(f"{source.name} refines {stage}: {before.name} is missing")
            every = ImportOptions(options.source, None, stage, options.checkpoint)
            previous = _read_model(before, every, model.plan.previous_stage, Path(temporary))
            _write_model(previous, out.with_name(model.plan.previous_stage), None)
        _write_model(model, out, previous)
    return [out] if previous is None else [out.with_name(previous.plan.name), out]


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """The folder, or the needed files of a zip in a temporary one."""
    if not is_archive(source):
        raise_if(not source.is_dir(), AutosegError(f"{source}: no such folder or zip file"))
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        extract(source, Path(folder), lambda name: bool(NEEDED.search(name)))
        yield Path(folder)


def _find_model(folder: Path, options: ImportOptions) -> _Source:
    """The only model of this configuration in a folder, or up to two levels below."""
    found = [path.parent for level in range(3) for path in folder.glob("*/" * level + PLANS)]
    found = [path for path in found if (path / DATASET).is_file() and any(path.glob("fold_*"))]
    if not found and any(any(folder.glob("*/" * level + OLD_PLANS)) for level in range(5)):
        raise AutosegError(f"{options.source} is of nnU-Net v1; only models of v2 can be imported")
    wanted = options.configuration
    chosen = [p for p in found if wanted in (None, p.name.rpartition("__")[2], p.name)]
    if len(chosen) != 1:
        names = ", ".join(path.name for path in sorted(found)) or "none"
        why = "several models match" if chosen else "there is no such model of nnU-Net v2"
        raise AutosegError(TEXT("not one model", source=options.source, why=why, names=names))
    return _Source(chosen[0], options.source / chosen[0].relative_to(folder))


# Reading.


class _Model(NamedTuple):
    plan: Plan
    weights: dict[str, Tensors]  # of each fold
    postprocessing: dict[str, Any] | None
    fingerprint: dict[str, Any]
    card: dict[str, Any]
    configuration: dict[str, Any]  # of nnU-Net's plans


def _read_model(source: _Source, options: ImportOptions, name: str, temporary: Path) -> _Model:
    """Check and convert everything; nothing is written but temporary files."""
    plans, dataset = source.json(PLANS), source.json(DATASET)
    weights, states = {}, {}
    for fold in options.folds or source.folds:
        file = Path(f"fold_{fold}", options.checkpoint)
        if not re.fullmatch(r"\w+", fold) or not (source.folder / file).is_file():
            found = source.folder.glob("fold_*/*.pth")
            there = ", ".join(sorted(str(path.relative_to(source.folder)) for path in found))
            raise AutosegError(TEXT("no checkpoint", path=source.name / file, there=there))
        target = temporary / f"{source.folder.name}_{fold}.safetensors"
        digest = sha256_of(source.folder / file)
        try:
            read_untrusted(source.folder / file, target)
        except CheckpointError as error:
            raise AutosegError(f"{source.name / file} {error}; nothing was imported") from None
        weights[fold], state = load_checkpoint(target)
        states[fold] = state | {"sha256": digest}
        target.unlink()
    if not states:
        raise AutosegError(f"{source.name} has no trained fold (fold_*/{options.checkpoint})")
    others = {path.name[5:] for path in source.folder.glob("fold_*")} - set(states)
    if others and options.folds is None:
        say(f"{source.name}: {listed('fold', sorted(others))} left out: no checkpoint, or `all`")
    if not without_network():
        say("the network could not be cut off while the checkpoints were read")
    first = next(iter(states.values()))
    for fold, state in states.items():
        for key in ("trainer_name", "configuration", "mirror_axes"):
            if state[key] != first[key]:
                about = {"key": key, "value": state[key], "first": first[key]}
                raise AutosegError(TEXT("folds differ", source=source.name, fold=fold, **about))
    own = exported_plan(source.folder) if options.checkpoint == CHECKPOINT else None
    try:
        configuration = nnunet.configuration_of(plans, first["configuration"])
        _check_known(plans, configuration, first["trainer_name"])
        order = nnunet.axis_order_of(plans, configuration)
        values = {} if own else nnunet.plan_to_ours(plans, configuration, dataset, first, order)
    except AutosegError as error:  # before INVALID: it is a ValueError
        raise AutosegError(f"{source.name}: {error}; it was not imported") from None
    except INVALID as error:
        raise AutosegError(TEXT("invalid plans", source=source.name, error=error)) from None
    values["name"] = name
    if configuration.get("previous_stage"):
        values["previous_stage"] = f"{name}_{configuration['previous_stage']}"
    plan = own or make_plan(values, f"{source.name / PLANS}, as a plan of autoseg")
    for fold, tensors in weights.items():
        try:
            weights[fold] = nnunet.weights_to_ours(tensors, plan.network, order)
            with torch.device("meta"):
                network = build_network(plan)
            load_weights(network, weights[fold], source.name / f"fold_{fold}", assign=True)
        except AutosegError as error:
            text = TEXT("other network", error=error, trainer=first["trainer_name"])
            raise AutosegError(text) from None
    postprocessing = _postprocessing(source, list(weights), plan)
    fingerprint = _fingerprint(source, plans, plan, own is not None)
    card = _card(source, plans, plan, states)
    return _Model(plan, weights, postprocessing, fingerprint, card, configuration)


def _check_known(plans: Values, configuration: Values, trainer: str) -> None:
    """Raise an AutosegError for parts of nnU-Net that have no equal here."""
    if OTHER_NETWORKS.match(trainer):
        raise AutosegError(f"trainer {trainer} builds another network than the plans say")
    if not KNOWN_TRAINER.fullmatch(trainer):
        say(nnunet.FACTS["unknown_trainer"].format(trainer=trainer))
    for where, key, known in (
        (plans, "label_manager", ("LabelManager",)),
        (plans, "image_reader_writer", tuple(nnunet.READERS)),
        (configuration, "preprocessor_name", ("DefaultPreprocessor",)),
    ):
        if (value := where.get(key, known[0])) not in known:
            raise AutosegError(f"{key} is {value}, not {' or '.join(known)}")


def _postprocessing(source: _Source, folds: Sequence[str], plan: Plan) -> dict[str, Any] | None:
    """Our `postprocessing.json`, of the cross-validation of these folds."""
    name = f"crossval_results_folds_{'_'.join(folds)}/{POSTPROCESSING}"
    if not (source.folder / name).is_file():
        if any(source.folder.glob(f"crossval_results_folds_*/{POSTPROCESSING}")):
            say(f"{source.name}: {POSTPROCESSING} was learned on other folds; it is not imported")
        return None
    found, steps = source.json(name), []
    try:
        functions = list(found["postprocessing_fns"])
        for function, given in zip(functions, found["postprocessing_kwargs"], strict=True):
            if function != KEEP_LARGEST or set(given) != {"labels_or_regions"}:
                raise AutosegError(f"{source.name / name} has {function}, which is unknown here")
            nested = given["labels_or_regions"]
            parts = nested if isinstance(nested, list) else [nested]
            values = sorted({int(value) for value in np.hstack(parts)})
            names = [name for name, covered in plan.labels.items() if set(covered) <= set(values)]
            steps.append({"name": ", ".join(names) or str(values), "keep_largest": values})
    except INVALID as error:
        raise AutosegError(f"{source.name / name} is not valid ({error!r})") from None
    if not steps:
        return None
    say(TEXT("postprocessing", path=source.name / name))
    about = {"folds": list(folds), "source": f"nnU-Net: {name}"}
    header = {"format_version": POSTPROCESSING_FORMAT, "plan_id": plan.id}
    return {**header, "steps": steps, "learned_on": about}


def _fingerprint(source: _Source, plans: Values, plan: Plan, is_ours: bool) -> dict[str, Any]:
    """Ours, or what nnU-Net's plans know of the training data: intensities, but no single cases."""
    if is_ours and (source.folder / FINGERPRINT).is_file():
        return source.json(FINGERPRINT)
    foreground: list[Any] = []
    for channel in range(len(plan.channels)):
        found = nnunet.intensities_of(plans).get(str(channel), {})
        values = {}
        with suppress(*INVALID):
            values = {ours: float(found[theirs]) for ours, theirs in nnunet.STATISTICS.items()}
        foreground.append(values if values and all(map(math.isfinite, values.values())) else None)
    declared = (plan.task, plan.channels, plan.labels, plan.ignore_label)
    return Fingerprint(*declared, foreground=tuple(foreground), cases={}).to_json()


def _card(source: _Source, plans: Values, plan: Plan, states: Values) -> dict[str, Any]:
    """Where the model comes from."""
    first = next(iter(states.values()))
    versions = {"autoseg": __version__, "torch": torch.__version__}
    facts: dict[str, Any] = {"format": "nnU-Net v2", "name": source.name.name}
    facts |= {"nnunet_version": NOT_STATED}  # nnU-Net's files do not name it
    facts |= {"trainer": first["trainer_name"], "plans": str(plans.get("plans_name"))}
    facts["configuration"] = first["configuration"]
    keys = ("sha256", "epochs")
    facts["checkpoints"] = {k: {key: of[key] for key in keys} for k, of in states.items()}
    stated = {QUALIFICATION: NOT_STATED, "imported_with": versions, "source": facts}
    return about_plan(plan) | stated


def _write_model(model: _Model, out: Path, previous: _Model | None) -> None:
    with new_folder(out) as folder:
        plan = model.plan
        plan.save(folder / PLAN)
        for fold, tensors in model.weights.items():
            path = folder / weights_name(fold)
            path.parent.mkdir()
            epochs = model.card["source"]["checkpoints"][fold]["epochs"]
            state = {"plan_id": plan.id, "fold": fold, "epoch": (epochs or 0) - 1}
            save_checkpoint(path, tensors, {**state, "source": model.card["source"]})
        write_json(folder / FINGERPRINT, model.fingerprint)
        write_json(folder / CARD, model.card)
        write_json(folder / "labels.json", labels_of(plan))
        if model.postprocessing is not None:
            write_json(folder / POSTPROCESSING, model.postprocessing)
        if previous is not None:
            save_previous(folder, previous.plan)
    folds = listed("fold", list(model.weights))
    say(f"imported {model.card['source']['name']}, {folds}, as {out}")
