"""Predict many cases into a folder: whole files only, and one bad case does not stop the rest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoseg import __version__
from autoseg.errors import AutosegError, DataError
from autoseg.files import read_json, write_json
from autoseg.image import Geometry, read_image, read_label, write_label
from autoseg.planning.plan import Plan, VolumeShare
from autoseg.prediction.inputs import Inputs
from autoseg.prediction.predictor import Predictor
from autoseg.progress import progress, say

RECORD = "predictions.json"


@dataclass(frozen=True)
class Outcome:
    """What became of every case: name -> its record, or why it failed."""

    predicted: dict[str, dict[str, Any]]
    skipped: tuple[str, ...]
    failed: dict[str, str]

    def raise_failures(self) -> None:
        """Stop if a case failed.

        Raises:
            DataError: names the first one and how many more there are.
        """
        if self.failed:
            reason = next(iter(self.failed.values()))
            more = f" (and {len(self.failed) - 1} more)" if len(self.failed) > 1 else ""
            raise DataError(f"{reason}{more}")


def output_path(folder: Path, case: str) -> Path:
    """Where a case's prediction goes."""
    return folder / f"{case}.nii.gz"


def predict_cases(
    predictor: Predictor,
    inputs: Inputs,
    out: Path,
    overwrite: bool,
    previous: Mapping[str, Path] | None = None,
) -> Outcome:
    """Predict every case that is not there yet; write `predictions.json` beside the label maps.

    Args:
        predictor: a loaded model.
        inputs: case -> its files.
        out: folder for the label maps.
        overwrite: predict what is there already, too.
        previous: for a cascade, case -> the label map of its previous stage, where it is there.

    Raises:
        AutosegError: an output would replace a scan, or the cases that are there already were
            predicted by another plan.
    """
    _protect_scans(inputs, out)
    wanted = [name for name in inputs if overwrite or not output_path(out, name).exists()]
    skipped = tuple(name for name in inputs if name not in wanted)
    origin = _origin(predictor, known=previous is not None)
    earlier = _earlier_records(origin, out, skipped)
    predicted: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    with progress("predicting", len(wanted)) as bar:
        for name in wanted:
            try:
                before = previous[name] if previous else None
                predicted[name] = _predict_case(predictor, name, inputs[name], out, before)
                # After each case: a run that is stopped keeps the records of what it has done.
                _write_record(predictor.plan, origin, out, earlier | predicted)
            except DataError as error:
                failed[name] = str(error)
                say(f"skipped {name}: {error}")
            bar.advance(name)
    _write_record(predictor.plan, origin, out, earlier | predicted)
    return Outcome(predicted, skipped, failed)


def _protect_scans(inputs: Inputs, out: Path) -> None:
    for name, files in inputs.items():
        path = output_path(out, name)
        if path.resolve() in [file.resolve() for file in files]:
            raise AutosegError(f"{path}: the prediction would replace its scan; choose another -o")


def _predict_case(
    predictor: Predictor, name: str, files: tuple[Path, ...], out: Path, previous: Path | None
) -> dict[str, Any]:
    started = time.perf_counter()
    image = read_image(files, own_type=True)
    try:
        label = predictor.predict(image, None if previous is None else read_label(previous)[0])
    except DataError as error:
        raise DataError(f"{files[0]}: {error}") from error
    path = output_path(out, name)
    write_label(path, label, image.geometry)
    return {
        "file": path.name,
        "inputs": [str(file) for file in files],
        "seconds": round(time.perf_counter() - started, 3),
        **volumes(label, image.geometry, predictor.plan),
    }


def volumes(label: NDArray[Any], geometry: Geometry, plan: Plan) -> dict[str, Any]:
    """Volume of each class in ml, and the shares that the plan names."""
    highest = max(value for covered in plan.labels.values() for value in covered)
    counts = np.bincount(label.ravel(), minlength=highest + 1)
    voxel_ml = prod(geometry.spacing_mm) / 1000
    classes = dict(list(plan.labels.items())[1:])
    record: dict[str, Any] = {
        "volume_ml": {
            name: round(float(counts[list(covered)].sum() * voxel_ml), 6)
            for name, covered in classes.items()
        }
    }
    if plan.shares:
        record["share"] = {
            _name_of(share.label, plan.labels): _share(counts, share, plan) for share in plan.shares
        }
    return record


def _share(counts: NDArray[np.intp], share: VolumeShare, plan: Plan) -> float | None:
    part = _voxels(counts, {share.label}, plan)
    whole = part + _voxels(counts, set(share.container), plan)
    return round(part / whole, 6) if whole else None


def _voxels(counts: NDArray[np.intp], labels: set[int], plan: Plan) -> int:
    """Voxels of the classes of these labels; a prediction holds one value for a whole class."""
    if plan.classes.are_regions:  # it holds the values of regions, in which classes overlap
        return int(counts[list(labels)].sum())
    classes = [covered for covered in plan.labels.values() if labels & set(covered)]
    return sum(int(counts[list(covered)].sum()) for covered in classes)


def _name_of(value: int, classes: dict[str, tuple[int, ...]]) -> str:
    """The class of a value; of regions the smallest one."""
    covering = [name for name, covered in classes.items() if value in covered]
    return min(covering, key=lambda name: len(classes[name]))


def _earlier_records(origin: dict[str, Any], out: Path, skipped: tuple[str, ...]) -> dict[str, Any]:
    """The records of cases that an earlier run predicted in the same way into the same folder."""
    path = out / RECORD
    if not path.exists():
        return {}
    try:
        record = read_json(path)
    except AutosegError:
        say(f"{path} is damaged; it is written anew")
        return {}
    differing = [key for key, value in origin.items() if record.get(key) != value]
    if not differing:
        return dict(record.get("cases", {}))
    if skipped:
        raise AutosegError(
            f"{out}: the predictions there have another {' and '.join(differing)} than this run "
            f"(see {path.name}); choose another -o, or --overwrite them"
        )
    return {}


def _origin(predictor: Predictor, known: bool) -> dict[str, Any]:
    """What decides a prediction, besides the scan and a previous stage that is known."""
    origin: dict[str, Any] = {
        "plan_id": predictor.plan.id,
        "folds": list(predictor.model.folds),
        "mirrored": len(predictor.flips) > 1,
    }
    if not known and predictor.previous is not None:
        origin["previous_stage"] = _origin(predictor.previous, known=False)
    return origin


def _write_record(plan: Plan, origin: dict[str, Any], out: Path, cases: dict[str, Any]) -> None:
    record = {
        "autoseg": __version__,
        "task": plan.task,
        "plan": plan.name,
        **origin,
        "labels": {name: list(values) for name, values in plan.labels.items()},
        "ignore_label": plan.ignore_label,
        "cases": dict(sorted(cases.items())),
    }
    write_json(out / RECORD, record)
