"""Which classes to score: their names, and the values that they have in the label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from autoseg.common.arrays import count_labels
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.files import read_json
from autoseg.common.parallel import in_parallel
from autoseg.dataset.declaration import read_declaration
from autoseg.image.image import read_label
from autoseg.plan.evaluation import DEFAULT_TOLERANCE_MM, Evaluation, class_of
from autoseg.plan.plan import Plan

BACKGROUND = 0
Values = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Labels:
    """The classes of an evaluation.

    Attributes:
        values: name -> the integers that make the class; background is not among them.
        ignore: voxels of this value in the truth don't count; None if there is no such value.
        tolerance_mm: name -> how far its surfaces may lie apart; classes without one have 1 mm.
        merged: rows that stand for several classes together -> their names.
        in_prediction: name -> the integers that make the class in the predictions, where these
            have others than the truth.
        colours: name -> `#RRGGBB` in figures, for the classes that the plan gives one.
    """

    values: Values
    ignore: int | None = None
    tolerance_mm: dict[str, float] = field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    in_prediction: Values = field(default_factory=dict)
    colours: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def planned(values: Values, evaluation: Evaluation, ignore: int | None = None) -> Labels:
        """Foreground classes, with a plan's tolerances and merged rows."""
        return Labels(
            values,
            ignore,
            evaluation.tolerance_of(values),
            evaluation.rows(values),
            colours=evaluation.colours_of(values),
        )

    @staticmethod
    def of_plan(plan: Plan) -> Labels:
        """All foreground classes of a plan, scored as it wants."""
        foreground = dict(list(plan.labels.items())[1:])
        return Labels.planned(foreground, plan.evaluation, plan.ignore_label)

    def tolerance_of(self, name: str) -> float:
        """How far the surfaces of a class may lie apart, in mm."""
        return self.tolerance_mm.get(name, DEFAULT_TOLERANCE_MM)

    def predicted(self, name: str) -> tuple[int, ...]:
        """The integers that make a class in the predictions."""
        return self.in_prediction.get(name, self.values[name])


@dataclass(frozen=True)
class Names:
    """What files beside the label maps say; None where there is no such file.

    Attributes:
        of_truth: the classes in `dataset.json` beside the folder of the truth.
        of_model: those in `labels.json` in the folder of the predictions.
        ignore: voxels of this value in the truth don't count.
        evaluation: how the model's plan wants predictions to be scored.
    """

    of_truth: Values | None
    of_model: Values | None
    ignore: int | None
    evaluation: Evaluation


def read_names(truth: Path, predicted: Path) -> Names:
    """What `labels.json` and `dataset.json` say about two folders of label maps.

    Raises:
        AutosegError: such a file is broken.
    """
    of_model, evaluation = _read_predictions(_side_file(predicted))
    if not (truth.parent / "dataset.json").is_file():
        return Names(None, of_model, None, evaluation)
    declared = read_declaration(truth.parent)
    return Names(_foreground(declared.labels), of_model, declared.ignore_label, evaluation)


def _side_file(predicted: Path) -> Path:
    """Where the model's names are: in older folders, `predictions.json` holds them too."""
    labels = predicted / "labels.json"
    return labels if labels.is_file() else predicted / "predictions.json"


def find_labels(names: Names) -> Labels | None:
    """The classes that the files name, or None if no file does.

    The names come from the model, else from the truth. The value to ignore always comes from the
    truth.
    """
    values = names.of_model or names.of_truth
    return Labels.planned(values, names.evaluation, names.ignore) if values else None


def labels_in(paths: Sequence[Path], ignore: int | None = None, processes: int = 1) -> Labels:
    """One class for every integer that the label maps hold, named after it, but 0 and `ignore`."""
    found = set().union(*in_parallel(_values_in, paths, processes, "looking for classes"))
    return Labels({str(value): (value,) for value in sorted(found - {0, ignore})}, ignore)


def _values_in(path: Path) -> set[int]:
    return set(count_labels(read_label(path)[0]))


def _read_predictions(path: Path) -> tuple[Values | None, Evaluation]:
    """The classes of a model's file, if it is there and names some, and its evaluation."""
    found = read_json(path) if path.is_file() else {}
    try:
        labels = found.get("labels", {})
        values = _foreground({name: tuple(map(int, values)) for name, values in labels.items()})
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f'{path}: "labels" must be like {{"tumour": [1, 2]}}; predict again, or delete the file'
        ) from error
    try:
        return values or None, Evaluation.model_validate(found.get("evaluation", {}))
    except ValidationError as error:
        raise DataError(
            f'{path}: "evaluation" is none of a plan ({error.errors()[0]["msg"]}); predict again, '
            "or delete the file"
        ) from error


def _foreground(labels: Values) -> Values:
    return {name: values for name, values in labels.items() if BACKGROUND not in values}


# What a user asks of an evaluation by `--map`, `--merge` and `--tolerance`.

EVERY = ""  # in tolerances: every class


@dataclass(frozen=True)
class Wishes:
    """What the user asks for.

    Attributes:
        maps: value in the predictions -> the value of the same thing in the truth. With one, only
            the mapped values are scored.
        merged: name of a row -> names or values of the classes whose mean it is.
        tolerances_mm: name or value of a class or a merged row -> mm; `EVERY` for all others.
    """

    maps: dict[int, int] = field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tolerances_mm: dict[str, float] = field(default_factory=dict)


NO_WISHES = Wishes()


def read_wishes(maps: Sequence[str], merges: Sequence[str], tolerance: str | None) -> Wishes:
    """The wishes in the words of the command line.

    Args:
        maps: such as `3:1`: what is 3 in the predictions is 1 in the truth.
        merges: such as `lungs=1,2` or `lungs=left lung,right lung`.
        tolerance: such as `1` or `lungs=1,infection=3`.

    Raises:
        AutosegError: one of them reads differently.
    """
    pairs = [_read_map(text) for text in maps]
    if twice := [value for value, _ in pairs if [v for v, _ in pairs].count(value) > 1]:
        raise AutosegError(f"--map: {twice[0]} is mapped twice; a value can become only one other")
    merged = dict(_read_merge(text) for text in merges)
    return Wishes(dict(pairs), merged, _read_tolerances(tolerance) if tolerance else {})


def mapped_labels(wishes: Wishes, names: Names) -> Labels:
    """The classes of `--map`: one for each value of the truth that something is mapped to.

    Raises:
        AutosegError: the truth's `dataset.json` or the model knows no such value.
    """
    of_truth, of_model = names.of_truth, names.of_model
    for value, target in wishes.maps.items():
        text = f"--map {value}:{target}"
        _must_know(value, of_model, f"{text}: the predictions' model paints no {value}")
        _must_know(target, of_truth, f"{text}: dataset.json of the truth declares no {target}")
    values: Values = {}
    in_prediction: Values = {}
    for target in dict.fromkeys(wishes.maps.values()):
        sources = tuple(value for value, to in wishes.maps.items() if to == target)
        known = {class_of(value, of_model or {}) for value in sources}
        name = class_of(target, of_truth or {}) or (known.pop() if len(known) == 1 else None)
        values[name or str(target)] = (target,)
        in_prediction[name or str(target)] = sources
    # The plan's tolerances belong to the values that its model paints.
    tolerances = names.evaluation.tolerance_of(in_prediction)
    return Labels(values, names.ignore, tolerances, in_prediction=in_prediction)


def apply(wishes: Wishes, labels: Labels) -> Labels:
    """The classes with the merged rows and tolerances that the user asks for.

    Raises:
        AutosegError: a name or value is no class, or a new row has the name of a class.
    """
    merged = dict(labels.merged)
    for name, words in wishes.merged.items():
        option = f"--merge {name}={','.join(words)}"
        if name in labels.values:
            raise AutosegError(f"{option}: {name!r} is a class already; choose another name")
        merged[name] = tuple(dict.fromkeys(_find(word, labels.values, option) for word in words))
        if len(merged[name]) < 2:
            raise AutosegError(f"{option}: give at least two classes to put together")
    every = wishes.tolerances_mm.get(EVERY)
    tolerances = labels.tolerance_mm if every is None else dict.fromkeys(labels.values, every)
    for word, mm in wishes.tolerances_mm.items():
        if word != EVERY:
            option = f"--tolerance {word}={mm:g}"
            classes = merged.get(word) or (_find(word, labels.values, option),)
            tolerances = tolerances | dict.fromkeys(classes, mm)
    return replace(labels, merged=merged, tolerance_mm=tolerances)


def _find(word: str, values: Values, option: str) -> str:
    """The class that a word names, or whose value it is."""
    if word in values:
        return word
    found = class_of(int(word), values) if word.isdecimal() else None
    if found is None:
        raise AutosegError(f"{option}: {word!r} is no class; there are {in_words(values)}")
    return found


def in_words(values: Values) -> str:
    """Classes and their values, for a message."""
    return ", ".join(f"{name} ({', '.join(map(str, of))})" for name, of in values.items())


def _must_know(value: int, known: Values | None, said: str) -> None:
    if known is not None and class_of(value, known) is None:
        raise AutosegError(f"{said}; there are {in_words(known)}")


def _read_map(text: str) -> tuple[int, int]:
    value, _, target = text.partition(":")
    if not (value.isdecimal() and target.isdecimal() and int(value) and int(target)):
        raise AutosegError(
            f"--map {text}: write PREDICTED:TRUE, two labels from 1, such as 3:1 where the "
            "predictions hold 3 and the truth holds 1"
        )
    return int(value), int(target)


def _read_merge(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, words = text.partition("=")
    parts = tuple(word.strip() for word in words.split(",") if word.strip())
    if not name.strip() or not parts:
        raise AutosegError(f"--merge {text}: write NAME=CLASS,CLASS, such as lungs=1,2")
    return name.strip(), parts


def _read_tolerances(text: str) -> dict[str, float]:
    found = {}
    for entry in text.split(","):
        word, _, number = entry.rpartition("=")
        try:
            mm = float(number)
        except ValueError:
            mm = 0.0
        if not 0 < mm < float("inf"):
            raise AutosegError(
                f"--tolerance {text}: {number!r} is no distance in mm; write 1, or "
                "lungs=1,infection=3"
            )
        found[word.strip()] = mm
    return found
