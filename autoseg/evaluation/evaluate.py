"""Scores predictions: one case, or two folders of label maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from pathlib import Path

from autoseg.errors import DataError
from autoseg.evaluation.labels import Labels, find_labels, labels_in
from autoseg.evaluation.metrics import count, overlap
from autoseg.evaluation.summary import CaseScores, Summary, Volumes, combine
from autoseg.image import ending_of, read_label, stem_of
from autoseg.parallel import in_parallel
from autoseg.progress import say

__all__ = ["CaseScores", "Summary", "combine", "evaluate_case", "evaluate_folders"]

Pair = tuple[Path, Path]
NAMES_IN_A_LINE = 10


def evaluate_case(
    truth_path: Path,
    prediction_path: Path,
    labels: dict[str, tuple[int, ...]],
    ignore_label: int | None = None,
) -> CaseScores:
    """Score one prediction against its truth.

    Args:
        truth_path: the label map that is right; the case is named after it.
        prediction_path: the label map to score, on the same grid.
        labels: name -> the integers that make the class.
        ignore_label: voxels of this value in the truth don't count.

    Raises:
        DataError: a file cannot be read, or the two lie on different grids.
    """
    truth, geometry = read_label(truth_path)
    prediction, found = read_label(prediction_path)
    if wrong := geometry.differences(found):
        raise DataError(
            f"{prediction_path}: not on the grid of {truth_path}: {', '.join(wrong)}; "
            "predict on the grid of the original scan"
        )
    scores = {
        name: overlap(count(truth, prediction, values, ignore_label))
        for name, values in labels.items()
    }
    voxel_ml = prod(geometry.spacing_mm) / 1000
    volumes = {
        name: Volumes(reference=of.n_ref * voxel_ml, predicted=of.n_pred * voxel_ml)
        for name, of in scores.items()
    }
    return CaseScores(stem_of(truth_path), str(truth_path), str(prediction_path), scores, volumes)


def evaluate_folders(
    truth: Path,
    predicted: Path,
    labels: dict[str, tuple[int, ...]] | None = None,
    processes: int = 1,
    ignore_label: int | None = None,
) -> Summary:
    """Score every prediction of a folder against the truth of the same name in another.

    Truths without a prediction are said and become `Summary.missing`; predictions without a truth
    are said and left out.

    Args:
        truth: folder of the right label maps.
        predicted: folder of the label maps to score.
        labels: name -> the integers that make the class; None: as `choose_labels`.
        processes: worker processes; the result does not depend on it.
        ignore_label: voxels of this value in the truth don't count; None: as `choose_labels`.

    Raises:
        DataError: a folder is missing or empty, no prediction has a truth, or a pair of files is
            broken or on different grids.
        RunError: a worker process was killed.
    """
    pairs, missing = _pair(truth, predicted)
    _say_unpaired(truth, predicted)
    if ignore_label is None and (named := find_labels(truth, predicted)):
        ignore_label = named.ignore
    if labels is None:
        labels = choose_labels(truth, predicted, ignore_label).values
    score = partial(_score, labels=labels, ignore_label=ignore_label)
    cases = in_parallel(score, pairs, processes, "evaluating")
    return Summary(tuple(cases), missing)


def choose_labels(truth: Path, predicted: Path, ignore: int | None = None) -> Labels:
    """The classes that `find_labels` finds, else one for every integer in the label maps.

    In the second case background and the value `ignore` make no class.

    Raises:
        DataError: all label maps are empty, or one cannot be read.
    """
    if named := find_labels(truth, predicted):
        return named
    pairs, _ = _pair(truth, predicted)
    found = labels_in((path for pair in pairs for path in pair), ignore)
    if not found.values:
        raise DataError(f"{truth}: all label maps are empty, so there is no class to score")
    return found


def label_maps(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by case name, sorted.

    Raises:
        DataError: the folder is missing or empty, or two files have the same case name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not ending_of(path):
            continue
        twin = found.setdefault(stem_of(path), path)
        if twin != path:
            raise DataError(f"{folder}: {twin.name} and {path.name} are one case; remove one")
    if not found:
        raise DataError(f"{folder}: holds no label map (.nii.gz, .nrrd, ...)")
    return found


def _score(pair: Pair, labels: dict[str, tuple[int, ...]], ignore_label: int | None) -> CaseScores:
    return evaluate_case(*pair, labels, ignore_label)


def _pair(truth: Path, predicted: Path) -> tuple[list[Pair], tuple[str, ...]]:
    """The files to compare, and the cases without a prediction."""
    truths, predictions = label_maps(truth), label_maps(predicted)
    missing = tuple(name for name in truths if name not in predictions)
    if len(missing) == len(truths):
        raise DataError(
            f"{predicted}: no prediction is named like a truth in {truth}: "
            f"{_some(list(truths))} against {_some(list(predictions))}; give both the same names"
        )
    return [(truths[name], predictions[name]) for name in truths if name in predictions], missing


def _say_unpaired(truth: Path, predicted: Path) -> None:
    truths, predictions = label_maps(truth), label_maps(predicted)
    if missing := [name for name in truths if name not in predictions]:
        say(f"warning: {len(missing)} of {len(truths)} cases have no prediction: {_some(missing)}")
    if extra := [name for name in predictions if name not in truths]:
        say(f"warning: {len(extra)} predictions have no truth, left out: {_some(extra)}")


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > NAMES_IN_A_LINE else ""
    return ", ".join(names[:NAMES_IN_A_LINE]) + more
