"""Scores predictions: one case, or two folders of label maps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import hypot, prod
from pathlib import Path

from autoseg.common.errors import DataError
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import counted, say
from autoseg.evaluation.labels import (
    NO_WISHES,
    Labels,
    Wishes,
    apply,
    find_labels,
    labels_in,
    mapped_labels,
    read_names,
)
from autoseg.evaluation.metrics import confusion, cut_masks, lesions, overlap
from autoseg.evaluation.scores import CaseScores, Summary, Volumes, merge
from autoseg.evaluation.surface import surface
from autoseg.image.formats import ending_of, stem_of
from autoseg.image.geometry import check_same_grid
from autoseg.image.image import read_label

Pair = tuple[Path, Path]
NAMES_IN_A_LINE = 10


def evaluate_case(truth_path: Path, prediction_path: Path, labels: Labels) -> CaseScores:
    """Score one prediction against its truth.

    Voxels to ignore are outside of the class in both, for surfaces and lesions, too.

    Args:
        truth_path: the label map that is right; the case is named after it.
        prediction_path: the label map to score, on the same grid.
        labels: the classes.

    Raises:
        DataError: a file cannot be read, or the two lie on different grids.
    """
    truth, geometry = read_label(truth_path)
    prediction, found = read_label(prediction_path)
    advice = "predict on the grid of the original scan"
    check_same_grid(found, prediction_path, geometry, truth_path, advice)
    spacing = geometry.spacing_mm
    diagonal = hypot(*(size * mm for size, mm in zip(geometry.size, spacing, strict=True)))
    case = CaseScores(stem_of(truth_path), str(truth_path), str(prediction_path), {}, {})
    for name, values in labels.values.items():
        masks = cut_masks(truth, prediction, values, labels.ignore, labels.predicted(name))
        of = case.labels[name] = overlap(confusion(masks))
        ml = prod(spacing) / 1000
        case.volume_ml[name] = Volumes.of(of.n_ref * ml, of.n_pred * ml)
        case.surfaces[name] = surface(masks, spacing, labels.tolerance_of(name), diagonal)
        case.lesions[name] = lesions(masks)
    return merge(case, labels.merged)


def evaluate_folders(
    truth: Path | str, predicted: Path | str, labels: Labels | None = None, processes: int = 1
) -> Summary:
    """Score every prediction of a folder against the truth of the same name in another.

    Truths without a prediction are said and become `Summary.missing`; predictions without a truth
    are said and left out.

    >>> import autoseg
    >>> truth = "raw/Task004_Hippocampus/labelsTs"
    >>> summary = autoseg.evaluate_folders(truth, truth)
    >>> [case.case for case in summary.cases], summary.foreground_mean("Dice")
    (['hippocampus_040', 'hippocampus_088'], 1.0)

    Args:
        truth: folder of the right label maps.
        predicted: folder of the label maps to score.
        labels: the classes; None: as `choose_labels`.
        processes: worker processes; the result does not depend on it.

    Raises:
        DataError: a folder is missing or empty, no prediction has a truth, or a pair of files is
            broken or on different grids.
        RunError: a worker process was killed.
    """
    truth, predicted = Path(truth), Path(predicted)
    pairs, missing = _pair(truth, predicted)
    _say_unpaired(truth, predicted)
    if labels is None:
        labels = choose_labels(truth, predicted, processes=processes)
    score = partial(_score, labels=labels)
    cases = in_parallel(score, pairs, processes, "evaluating")
    _say_absent(cases, labels)
    return Summary(tuple(cases), missing, tolerances(labels))


def tolerances(labels: Labels) -> dict[str, float]:
    """The tolerance of every class, for `Summary`."""
    return {name: labels.tolerance_of(name) for name in labels.values}


def choose_labels(
    truth: Path, predicted: Path, wishes: Wishes = NO_WISHES, processes: int = 1
) -> Labels:
    """The classes that the user maps, else those that `find_labels` finds, else every integer.

    In the last case background and the value to ignore make no class.

    Raises:
        DataError: all label maps are empty, or one cannot be read.
        AutosegError: a wish names a class that is not there.
    """
    names = read_names(truth, predicted)
    if wishes.maps:
        return apply(wishes, mapped_labels(wishes, names))
    if named := find_labels(names):
        return apply(wishes, named)
    pairs, _ = _pair(truth, predicted)
    found = labels_in([path for pair in pairs for path in pair], names.ignore, processes)
    if not found.values:
        raise DataError(f"{truth}: all label maps are empty, so there is no class to score")
    return apply(wishes, found)


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


def _score(pair: Pair, labels: Labels) -> CaseScores:
    return evaluate_case(*pair, labels)


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
        cases = counted(len(truths), "case")
        say(f"warning: no prediction for {len(missing)} of {cases}: {_some(missing)}")
    if extra := [name for name in predictions if name not in truths]:
        found = counted(len(extra), "prediction")
        say(f"warning: {found} without truth, left out: {_some(extra)}")


def _say_absent(cases: Sequence[CaseScores], labels: Labels) -> None:
    """A class that no file holds may be a slip in the labels or in --map."""
    for name, values in labels.values.items():
        found = [case.labels[name] for case in cases]
        for which, there, wanted in (
            ("truth", any(of.n_ref for of in found), values),
            ("prediction", any(of.n_pred for of in found), labels.predicted(name)),
        ):
            if not there:
                what = " or ".join(map(str, wanted))
                say(f"warning: no {which} holds {name} (label {what})")


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > NAMES_IN_A_LINE else ""
    return ", ".join(names[:NAMES_IN_A_LINE]) + more
