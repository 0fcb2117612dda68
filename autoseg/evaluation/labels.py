"""The classes that an evaluation scores: from files, from a plan, or from command-line options."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import BaseModel

from autoseg.common.errors import AutosegError
from autoseg.common.files import dataclass_from_json, read_json
from autoseg.common.parallel import in_parallel
from autoseg.dataset.declaration import declaration_of, read_declaration
from autoseg.dataset.task import values_in
from autoseg.evaluation.scores import TEXT
from autoseg.plan.labels import DEFAULT_TOLERANCE_MM, Evaluation, class_of
from autoseg.plan.plan import Plan

BACKGROUND = 0
ALL_CLASSES = ""  # a key of `EvaluationOptions.tolerances_mm`
ClassValues = Mapping[str, tuple[int, ...]]  # class -> its label values


@dataclass(frozen=True)
class ScoredClasses:
    """The classes of an evaluation.

    Attributes:
        values: class -> its label values, without the background.
        ignore: voxels with this value in the reference are ignored; None if there is none.
        tolerance_mm: class -> surface tolerance; 1 mm for classes that are not listed.
        merged: name of a merged row -> its classes.
        in_prediction: class -> its label values in the predictions, if they differ.
        colours: class -> `#RRGGBB` in figures, for the classes to which the plan assigns one.
        channel: what the scans are, such as `CT`, which decides how they are shown.
        annotated: partly annotated case -> its annotated classes; others are not scored there.
    """

    values: ClassValues
    ignore: int | None = None
    tolerance_mm: dict[str, float] = field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    in_prediction: ClassValues = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)
    channel: str = ""
    annotated: Mapping[str, Collection[str]] = field(default_factory=dict)

    def of_case(self, case: str) -> ScoredClasses:
        """The classes to score in a case, and the merged rows that have all their classes."""
        names = self.annotated.get(case)
        if names is None:
            return self
        values = {name: of for name, of in self.values.items() if name in names}
        rows = {row: parts for row, parts in self.merged.items() if set(parts) <= set(names)}
        return replace(self, values=values, merged=rows)

    @staticmethod
    def planned(values: ClassValues, rules: Evaluation, ignore: int | None = None) -> ScoredClasses:
        """Foreground classes with the tolerances, merged rows and colours of a plan."""
        tolerances, rows = rules.tolerance_of(values), rules.rows(values)
        return ScoredClasses(values, ignore, tolerances, rows, colours=rules.colours_of(values))

    @staticmethod
    def of_plan(plan: Plan) -> ScoredClasses:
        """All foreground classes of a plan."""
        foreground = dict(list(plan.labels.items())[1:])
        scored = ScoredClasses.planned(foreground, plan.evaluation, plan.ignore_label)
        return replace(scored, annotated=plan.annotated, channel=plan.channels[0])

    def tolerance_of(self, name: str) -> float:
        """The surface tolerance of a class in mm."""
        return self.tolerance_mm.get(name, DEFAULT_TOLERANCE_MM)

    def predicted(self, name: str) -> tuple[int, ...]:
        """The label values of a class in the predictions."""
        return self.in_prediction.get(name, self.values[name])


@dataclass(frozen=True)
class Declarations:
    """What the files beside two folders of label maps declare.

    Attributes:
        model: classes in `labels.json` in the folder of the predictions; None without that file.
        evaluation: the evaluation section of the model's plan.
        reference: classes in `dataset.json` beside the reference folder; None without that file.
        ignore: voxels with this value in the reference are ignored.
        channel: the name of the first image channel; empty if unknown.
    """

    model: ClassValues | None
    evaluation: Evaluation
    reference: ClassValues | None = None
    ignore: int | None = None
    channel: str = ""


class _ModelFile(BaseModel):
    """The keys of `labels.json` (in older folders, of `predictions.json`) that are read here."""

    labels: dict[str, tuple[int, ...]] = {}
    evaluation: Evaluation = Evaluation()


def read_declarations(reference: Path, predicted: Path) -> Declarations:
    """Read `dataset.json` and `labels.json` of two folders of label maps, or of two files.

    Raises:
        AutosegError: a file is malformed.
    """
    reference, predicted = (p.parent if p.is_file() else p for p in (reference, predicted))
    paths = (predicted / "labels.json", predicted / "predictions.json")
    path = next(filter(Path.is_file, paths), None)
    model = _ModelFile() if path is None else _read_model_file(path)
    found = Declarations(_foreground(model.labels) or None, model.evaluation)
    if not (reference.parent / "dataset.json").is_file():
        return found
    task = read_declaration(reference.parent)
    classes, ignore = _foreground(task.labels), task.ignore_label
    return replace(found, reference=classes, ignore=ignore, channel=task.channels[0])


def _read_model_file(path: Path) -> _ModelFile:
    advice = "predict again or delete the file"
    return dataclass_from_json(_ModelFile, read_json(path), path, advice, extra=None)


def _foreground(labels: ClassValues) -> ClassValues:
    return {name: values for name, values in labels.items() if BACKGROUND not in values}


def labels_in(paths: Sequence[Path], ignore: int | None, processes: int) -> ScoredClasses:
    """One class for each value in the label maps, named after it, except 0 and `ignore`."""
    found = set().union(*in_parallel(values_in, paths, processes, "finding classes"))
    values = sorted(found - {BACKGROUND, ignore})
    return ScoredClasses({str(value): (value,) for value in values}, ignore)


@dataclass(frozen=True)
class EvaluationOptions:
    """The options `--labels`, `--map`, `--merge` and `--tolerance`.

    Attributes:
        classes: class -> its values; None: those that files beside the label maps declare.
        maps: value in the predictions -> value in the reference. If there are any, only the mapped
            values are scored.
        merged: name of a row -> names or values of the classes whose mean it is.
        tolerances_mm: name or value of a class, or name of a merged row -> mm; `ALL_CLASSES` for
            all others.
    """

    classes: ClassValues | None = None
    maps: dict[int, int] = field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tolerances_mm: dict[str, float] = field(default_factory=dict)


DEFAULT_OPTIONS = EvaluationOptions()


def parse_options(
    maps: Sequence[str], merges: Sequence[str], tolerance: str | None, classes: str | None = None
) -> EvaluationOptions:
    """Parse the options of the command line.

    Args:
        maps: such as `3:1`: 3 in the predictions is 1 in the reference.
        merges: such as `lungs=1,2` or `lungs=left lung,right lung`.
        tolerance: such as `1` or `lungs=1,infection=3`.
        classes: such as `liver=1,all=1+2`, or the path of a `dataset.json` or `labels.json`.

    Raises:
        AutosegError: an option is malformed.
    """
    if classes and maps:
        raise AutosegError("--labels and --map both choose the classes; give one of them")
    pairs = [_parse_map(text) for text in maps]
    values = [value for value, _ in pairs]
    if repeated := [value for value in values if values.count(value) > 1]:
        raise AutosegError(f"--map: {repeated[0]} is mapped twice; map each value only once")
    merged = dict(_parse_merge(text) for text in merges)
    tolerances = _parse_tolerances(tolerance) if tolerance else {}
    named = _parse_classes(classes) if classes else None
    return EvaluationOptions(named, dict(pairs), merged, tolerances)


def mapped_labels(options: EvaluationOptions, declared: Declarations) -> ScoredClasses:
    """The classes of `--map`: one for each reference value that is a target.

    Raises:
        AutosegError: a value is not declared.
    """
    reference, model = declared.reference, declared.model
    owners = {"the model of the predictions": model, "dataset.json of the reference": reference}
    for pair in options.maps.items():
        for number, (owner, classes) in zip(pair, owners.items(), strict=True):
            if classes is not None and class_of(number, classes) is None:
                known = _listed(classes)
                raise AutosegError(TEXT("map", pair=pair, owner=owner, number=number, known=known))
    values, in_prediction = {}, {}
    for target in dict.fromkeys(options.maps.values()):
        sources = tuple(value for value, to in options.maps.items() if to == target)
        names = {class_of(value, model or {}) for value in sources}
        fallback = names.pop() if len(names) == 1 else None
        name = class_of(target, reference or {}) or fallback or str(target)
        values[name], in_prediction[name] = (target,), sources
    # The tolerances of the plan refer to the values that its model predicts.
    tolerances = declared.evaluation.tolerance_of(in_prediction)
    return ScoredClasses(values, declared.ignore, tolerances, in_prediction=in_prediction)


def apply_options(options: EvaluationOptions, labels: ScoredClasses) -> ScoredClasses:
    """Add the merged rows and tolerances of the options.

    Raises:
        AutosegError: an option names an unknown class, or a merged row has the name of a class.
    """
    merged = dict(labels.merged)
    for name, classes in options.merged.items():
        option = f"--merge {name}={','.join(classes)}"
        if name in labels.values:
            raise AutosegError(f"{option}: {name!r} is already a class; choose another name")
        merged[name] = tuple(dict.fromkeys(_find(each, labels.values, option) for each in classes))
        if len(merged[name]) < 2:
            raise AutosegError(f"{option}: give at least two different classes")
    given = dict(options.tolerances_mm)
    default = given.pop(ALL_CLASSES, None)
    tolerances = labels.tolerance_mm if default is None else dict.fromkeys(labels.values, default)
    for name, mm in given.items():
        classes = merged.get(name) or (_find(name, labels.values, f"--tolerance {name}={mm:g}"),)
        tolerances = tolerances | dict.fromkeys(classes, mm)
    return replace(labels, merged=merged, tolerance_mm=tolerances)


def _find(text: str, values: ClassValues, option: str) -> str:
    """The class with this name or value."""
    if text in values:
        return text
    if text.isdecimal() and (found := class_of(int(text), values)) is not None:
        return found
    raise AutosegError(f"{option}: {text!r} is not a class; choose from {_listed(values)}")


def _listed(values: ClassValues) -> str:
    return ", ".join(f"{name} ({', '.join(map(str, of))})" for name, of in values.items())


def _parse_map(text: str) -> tuple[int, int]:
    value, _, target = text.partition(":")
    if not (value.isdecimal() and target.isdecimal() and int(value) and int(target)):
        raise AutosegError(f"--map {text}: write PREDICTED:REFERENCE (labels from 1), as in 3:1")
    return int(value), int(target)


def _parse_classes(text: str) -> ClassValues:
    path = Path(text)
    if path.is_file():
        content = read_json(path)
        is_task = "channel_names" in content or "modality" in content
        found = declaration_of(content, path).labels if is_task else _read_model_file(path).labels
    else:
        entries = [entry.rpartition("=") for entry in text.split(",")]
        values = {name.strip(): numbers.split("+") for name, _, numbers in entries}
        good = all(name and all(map(str.isdecimal, of)) for name, of in values.items())
        found = {name: tuple(map(int, of)) for name, of in values.items()} if good else {}
    if not (found := dict(_foreground(found))):
        raise AutosegError(TEXT("labels", text=text))
    return found


def _parse_merge(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, classes = text.partition("=")
    parts = tuple(part.strip() for part in classes.split(",") if part.strip())
    if not name.strip() or not parts:
        raise AutosegError(f"--merge {text}: write NAME=CLASS,CLASS, such as lungs=1,2")
    return name.strip(), parts


def _parse_tolerances(text: str) -> dict[str, float]:
    found = {}
    for entry in text.split(","):
        name, _, number = entry.rpartition("=")
        try:
            mm = float(number)
        except ValueError:
            mm = 0.0
        if not 0 < mm < float("inf"):
            raise AutosegError(f"--tolerance {text}: give mm, as in 1 or lungs=1,infection=3")
        found[name.strip()] = mm
    return found
