"""Scores predictions: one case, two folders of label maps, or the folds of a cross-validation."""

from dataclasses import dataclass, replace
from functools import partial
from math import hypot, prod
from pathlib import Path

from autoseg.common.arrays import mean_of_known, union_of_boxes, value_boxes
from autoseg.common.errors import DataError
from autoseg.common.files import obstacle
from autoseg.common.parallel import in_parallel
from autoseg.common.progress import counted, say
from autoseg.dataset.problems import join_names
from autoseg.evaluation import labels as classes
from autoseg.evaluation.labels import DEFAULT_OPTIONS, EvaluationOptions, ScoredClasses
from autoseg.evaluation.metrics import Volumes, cut_masks, flat_axes, lesions, overlap
from autoseg.evaluation.scores import TEXT, CaseScores, Summary, combine, merge
from autoseg.evaluation.surface import surface
from autoseg.evaluation.tables import Row, Table, number, rows_of_metrics, spread
from autoseg.image.formats import images_among, is_picture, stem_of
from autoseg.image.geometry import check_same_grid
from autoseg.image.image import read_label
from autoseg.models.folder import SUMMARY, fold_folder, folds_in

LabelMapPair = tuple[Path, Path]  # reference, prediction


def evaluate_folders(
    truth: Path | str,
    predicted: Path | str,
    labels: ScoredClasses | None = None,
    processes: int = 1,
) -> Summary:
    """Score each prediction of a folder against the reference of the same name in another.

    Two single files are a pair, whatever their names.

    A reference without a prediction causes a warning and is listed in `Summary.missing`. A
    prediction without a reference causes a warning and is skipped, and so is a pair that cannot be
    scored, which `Summary.refused` explains.

    >>> import autoseg
    >>> truth = "raw/Task004_Hippocampus/labelsTs"
    >>> summary = autoseg.evaluate_folders(truth, truth)
    >>> [case.case for case in summary.cases], summary.foreground_mean("Dice")
    (['hippocampus_040', 'hippocampus_088'], 1.0)

    Args:
        truth: folder of the reference label maps.
        predicted: folder of the label maps to score.
        labels: the classes; None: as `choose_labels`.
        processes: worker processes; the result does not depend on it.

    Raises:
        DataError: a folder is missing or empty, no prediction has a reference, or no pair of files
            can be scored.
        RunError: a worker process was killed.
    """
    truth, predicted = Path(truth), Path(predicted)
    pairs, missing, extra, refused = _pair(truth, predicted)
    if missing:
        total = counted(len(pairs) + len(missing), "case")
        say(f"warning: no prediction for {len(missing)} of {total}: {join_names(missing)}")
    if extra:
        count = counted(len(extra), "prediction")
        say(f"warning: skipped {count} without a reference: {join_names(extra)}")
    if labels is None:
        labels = choose_labels(truth, predicted, processes=processes)
    work = partial(_evaluate_pair, labels=labels)
    cases = []
    for pair, found in zip(pairs, in_parallel(work, pairs, processes, "evaluating"), strict=True):
        if isinstance(found, CaseScores):
            cases.append(found)
        else:
            refused[stem_of(pair[0])] = str(found)
    if not cases:
        raise DataError(next(iter(refused.values())))
    for name, reason in refused.items():
        say(f"refused {name}: {reason}")
    summary = Summary(tuple(cases), (*missing, *refused), tolerances(labels), refused)
    _warn_of_absent(summary, labels)
    return replace(summary, failures=tuple(summary.never_predicted))


def evaluate_case(reference_path: Path, prediction_path: Path, labels: ScoredClasses) -> CaseScores:
    """Score one prediction against its reference.

    Ignored voxels are outside the class in both, also for surfaces and lesions.

    Args:
        reference_path: the reference label map, after which the case is named.
        prediction_path: the label map to score, on the same grid.
        labels: the classes.

    Raises:
        DataError: a file cannot be read, or the grids differ.
    """
    reference, geometry = read_label(reference_path)
    prediction, found = read_label(prediction_path)
    advice = "predict on the grid of the original scan"
    check_same_grid(found, prediction_path, geometry, reference_path, advice)
    spacing, flat = geometry.spacing_mm, flat_axes(geometry.size)
    diagonal = hypot(*(geometry.size[i] * spacing[i] for i in range(3) if i not in flat))
    voxel_ml = prod(spacing) / 1000
    case = CaseScores(stem_of(reference_path), str(reference_path), str(prediction_path), {}, {})
    expected, predicted = value_boxes(reference), value_boxes(prediction)
    for name, values in labels.values.items():
        boxes = [*map(expected.get, values), *map(predicted.get, labels.predicted(name))]
        box = union_of_boxes(boxes) or (slice(0),) * 3
        masks = cut_masks(reference, prediction, values, labels.ignore, labels.predicted(name), box)
        counts = case.labels[name] = overlap(masks)
        case.volume_ml[name] = Volumes(counts.n_ref * voxel_ml, counts.n_pred * voxel_ml)
        case.surfaces[name] = surface(masks, spacing, labels.tolerance_of(name), diagonal)
        case.lesions[name] = lesions(masks)
    return merge(case, labels.merged)


def _evaluate_pair(pair: LabelMapPair, labels: ScoredClasses) -> CaseScores | DataError:
    try:
        return evaluate_case(*pair, labels.of_case(stem_of(pair[0])))
    except DataError as error:
        return error


def tolerances(labels: ScoredClasses) -> dict[str, float]:
    """The surface tolerance of each class, for `Summary`."""
    return {name: labels.tolerance_of(name) for name in labels.values}


def choose_labels(
    truth: Path, predicted: Path, options: EvaluationOptions = DEFAULT_OPTIONS, processes: int = 1
) -> ScoredClasses:
    """The mapped classes, else those of model or reference, else one for each value.

    Raises:
        DataError: all label maps are empty, or one cannot be read.
        AutosegError: an option names an unknown class.
    """
    declared = classes.read_declarations(truth, predicted)
    if options.maps:
        found = classes.mapped_labels(options, declared)
    elif values := options.classes or declared.model or declared.reference:
        found = ScoredClasses.planned(values, declared.evaluation, declared.ignore)
    else:
        paths = [path for pair in _pair(truth, predicted)[0] for path in pair]
        found = classes.labels_in(paths, declared.ignore, processes)
        if not found.values:
            raise DataError(f"{truth}: all label maps are empty, so there is no class to score")
    return replace(classes.apply_options(options, found), channel=declared.channel)


def label_maps(folder: Path) -> dict[str, Path]:
    """The label maps of a folder by case name, sorted.

    Raises:
        DataError: the folder is missing or empty, or two files have the same case name.
    """
    if not folder.is_dir():
        what = "a file; give two files or two folders" if folder.is_file() else "no such folder"
        raise DataError(f"{folder}: {what}")
    found: dict[str, Path] = {}
    for path in images_among(p for p in sorted(folder.iterdir()) if not p.name.startswith(".")):
        if (other := found.setdefault(stem_of(path), path)) != path:
            raise DataError(f"{folder}: {other.name} and {path.name} are the same case; keep one")
    if not found:
        raise DataError(f"{folder}: contains no label map (.nii.gz, .nrrd, ...)")
    return found


def _pair(
    reference: Path, predicted: Path
) -> tuple[list[LabelMapPair], list[str], list[str], dict[str, str]]:
    """The files to compare, the cases without a prediction, those without a reference, and those
    with a file that cannot be read -> why.
    """
    if reference.is_file() and predicted.is_file():  # whatever their names
        return [(reference, predicted)], [], [], {}
    references, predictions = label_maps(reference), label_maps(predicted)
    every = [*predictions.items(), *references.items()]
    refused = {case: reason for case, path in every if (reason := obstacle(path))}
    for case in refused:
        references.pop(case, None)
        predictions.pop(case, None)
    pairs = [(path, predictions[case]) for case, path in references.items() if case in predictions]
    if not pairs and refused:
        raise DataError("; ".join(refused.values()))
    if not pairs:
        about = {"found": join_names(list(predictions)), "expected": join_names(list(references))}
        raise DataError(TEXT("no pair", predicted=predicted, reference=reference, **about))
    missing = [case for case in references if case not in predictions]
    extra = [case for case in predictions if case not in references]
    if (predicted / "summary.json").is_file():  # pictures there may be our figures
        extra = [case for case in extra if not is_picture(predictions[case])]
    return pairs, missing, extra, refused


def _warn_of_absent(summary: Summary, labels: ScoredClasses) -> None:
    """A class that occurs in no file may be a mistake in the labels or in --map."""
    for name, values in labels.values.items():
        maps = {"reference": ("n_ref", values), "predicted": ("n_pred", labels.predicted(name))}
        for kind, (key, expected) in maps.items():
            if (of := summary.counts(name)) and not any(getattr(counts, key) for counts in of):
                label = " or ".join(map(str, expected))
                say(f"warning: {name} (label {label}) occurs in no {kind} label map")


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The scores of the models of all folds on their validation cases.

    Attributes:
        folds: number -> summary of the validation cases, in order.
        missing: folds that are not trained and validated yet.
    """

    folds: dict[int, Summary]
    missing: tuple[int, ...]

    @property
    def combined(self) -> Summary:
        """All validation cases in one summary."""
        failures = (f"fold {k}: {text}" for k, of in self.folds.items() for text in of.failures)
        return replace(combine(list(self.folds.values())), failures=tuple(failures))

    @property
    def note(self) -> str:
        """A sentence on the missing folds; empty if none is missing."""
        return f"Missing folds: {', '.join(map(str, self.missing))}." if self.missing else ""


def gather(folder: Path, fold_count: int = 0) -> CrossValidation:
    """Read `fold_K/validation/summary.json` of all folds.

    Args:
        folder: `models/TASK/PLAN`.
        fold_count: the number of folds, if known. A fold without a summary is missing if it is one
            of them, or if it or a later one was started.

    Raises:
        DataError: no fold has a summary.
        AutosegError: a summary is malformed.
    """
    started = sorted(int(fold) for fold in folds_in(folder) if fold.isdecimal())
    files = {k: fold_folder(folder, k) / SUMMARY for k in started}
    folds = {k: Summary.load(file) for k, file in files.items() if file.is_file()}
    if not folds:
        raise DataError(TEXT("no summary", folder=folder, file=SUMMARY))
    missing = set(range(max(fold_count, max(started) + 1))) - folds.keys()
    return CrossValidation(folds, tuple(sorted(missing)))


def fold_rows(validation: CrossValidation) -> list[Row]:
    """Median Dice of folds x classes: a header, a row for each fold, then the summary rows.

    These are the mean of the medians of the folds (as reported by Müller et al.), the mean ± std
    over all cases, and the number of cases.
    """
    combined = validation.combined
    labels, cases = combined.labels, str(len(combined.cases))
    rows: list[Row] = [("fold", "cases", *labels)]
    medians = []
    for fold, summary in validation.folds.items():
        medians.append([summary.statistic(label).median for label in labels])
        rows.append((f"{fold} (median)", str(len(summary.cases)), *map(number, medians[-1])))
    rows += [(f"{fold}", "0", *["missing"] * len(labels)) for fold in validation.missing]
    of_cases = [combined.statistic(label) for label in labels]
    means = map(mean_of_known, zip(*medians, strict=True))
    return [
        *rows,
        ("mean of the medians", cases, *map(number, means)),
        ("mean ± std of all cases", cases, *map(spread, of_cases)),
        ("n", cases, *(str(of.n) for of in of_cases)),
    ]


def tables(validation: CrossValidation) -> dict[str, Table]:
    """The tables of a cross-validation by file name."""
    combined, note = validation.combined, validation.note
    means = rows_of_metrics("metric", combined, spread)
    medians = rows_of_metrics("metric", combined, lambda s: number(s.median))
    return {
        "dice_of_folds": Table("Median Dice of every fold", fold_rows(validation), note=note),
        "medians": Table("Median over all cases (n)", medians, note=note),
        "means": Table("Mean ± std over all cases (n)", means, note=note),
    }
