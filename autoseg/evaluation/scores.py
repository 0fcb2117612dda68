"""The scores of one case: every metric of every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

from autoseg.common.arrays import mean_of_known
from autoseg.evaluation.lesions import Lesions
from autoseg.evaluation.metrics import COUNTS, METRICS, Overlap, ratio
from autoseg.evaluation.surface import Surface

Json = dict[str, Any]
OVERLAP = {name: of.attribute for name, of in METRICS.items() if of.part == "labels"} | COUNTS
SURFACE = {name: of.attribute for name, of in METRICS.items() if of.part == "surfaces"}


@dataclass(frozen=True)
class Volumes:
    """The volume of one class in one case, in millilitres.

    Attributes:
        reference: in the truth.
        predicted: in the prediction.
        difference: predicted - reference, so positive where the prediction is too large.
        relative_difference: difference / reference; None where the truth is empty.
    """

    AMOUNTS: ClassVar = ("reference", "predicted", "difference")

    reference: float
    predicted: float
    difference: float
    relative_difference: float | None

    @staticmethod
    def of(reference: float, predicted: float) -> Volumes:
        """From the two volumes alone."""
        difference = predicted - reference
        return Volumes(reference, predicted, difference, ratio(difference, reference))


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case.

    Attributes:
        case: its name.
        reference_file: the label map that is the truth.
        prediction_file: the label map that was scored.
        labels: the overlap of every class, by its name.
        volume_ml: the volumes of every class.
        surfaces: the surface distances of every class; a summary.json of before has none.
        lesions: the lesions of every class; a summary.json of before has none.
        merged: rows that stand for several classes together -> those classes.
    """

    case: str
    reference_file: str
    prediction_file: str
    labels: dict[str, Overlap]
    volume_ml: dict[str, Volumes]
    surfaces: dict[str, Surface] = field(default_factory=dict)
    lesions: dict[str, Lesions] = field(default_factory=dict)
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, without the merged rows."""
        return tuple(name for name in self.labels if name not in self.merged)

    def value(self, label: str, metric: str) -> float | None:
        """A metric by its name in tables, for example `Dice`; None where there is no number."""
        which = METRICS[metric]
        scores = getattr(self, which.part).get(label)
        value: float | None = getattr(scores, which.attribute) if scores else None
        return value

    def mean(self, metric: str = "Dice") -> float | None:
        """The mean of a metric over the classes that have one."""
        return mean_of_known(self.value(label, metric) for label in self.classes)


Scores = TypeVar("Scores", Overlap, Surface, Volumes, Lesions)


def merge(case: CaseScores, rows: Mapping[str, Sequence[str]]) -> CaseScores:
    """Add rows that stand for several classes together, such as both lungs.

    Every ratio and distance is the mean over the classes that have one: the Dice of `lungs` is the
    mean of the two lungs' Dice, as Müller et al. report it, and not the Dice of their union.
    Voxels, millilitres and lesions are added up.

    Args:
        case: the scores of the classes.
        rows: name of the row -> names of its classes.
    """

    def with_rows(of: dict[str, Scores]) -> dict[str, Scores]:
        new = {name: _merged([of[part] for part in parts]) for name, parts in rows.items() if of}
        return of | new

    return replace(
        case,
        labels=with_rows(case.labels),
        volume_ml=with_rows(case.volume_ml),
        surfaces=with_rows(case.surfaces),
        lesions=with_rows(case.lesions),
        merged=case.merged | {name: tuple(parts) for name, parts in rows.items()},
    )


def _merged(parts: Sequence[Scores]) -> Scores:
    kind = type(parts[0])
    values: Json = {}
    for entry in fields(kind):
        of = [getattr(part, entry.name) for part in parts]
        values[entry.name] = sum(of) if entry.name in kind.AMOUNTS else mean_of_known(of)
    return kind(**values)


def to_json(case: CaseScores) -> Json:
    """One case as `summary.json` holds it."""
    found = {
        "case": case.case,
        "reference_file": case.reference_file,
        "prediction_file": case.prediction_file,
        "metrics": {label: _metrics_to_json(case, label) for label in case.labels},
        "volume_ml": {
            label: {"reference": of.reference, "predicted": of.predicted}
            for label, of in case.volume_ml.items()
        },
        "lesions": {label: lesions_to_json(of) for label, of in case.lesions.items()},
    }
    if case.merged:
        found["merged"] = {name: list(parts) for name, parts in case.merged.items()}
    return found


def _metrics_to_json(case: CaseScores, label: str) -> Json:
    scores = case.labels[label]
    counts = {name: getattr(scores, attribute) for name, attribute in COUNTS.items()}
    there = [metric for metric, which in METRICS.items() if getattr(case, which.part)]
    return {metric: case.value(label, metric) for metric in there} | counts


def lesions_to_json(of: Lesions) -> Json:
    """The counts in words, and what follows from them."""
    return {**{name: getattr(of, name) for name in Lesions.AMOUNTS}, "missed": of.missed}


def from_json(found: Json) -> CaseScores:
    """The case that `to_json` gave, with fewer keys before surfaces were measured."""
    metrics, volumes, lesions = found["metrics"], found["volume_ml"], found.get("lesions", {})
    return CaseScores(
        case=found["case"],
        reference_file=found["reference_file"],
        prediction_file=found["prediction_file"],
        labels={
            label: Overlap(**{attribute: scores[name] for name, attribute in OVERLAP.items()})
            for label, scores in metrics.items()
        },
        volume_ml={label: _volumes(of, metrics[label]) for label, of in volumes.items()},
        surfaces={
            label: Surface(**{attribute: scores[name] for name, attribute in SURFACE.items()})
            for label, scores in metrics.items()
            if "NSD" in scores
        },
        lesions={label: _lesions(of, metrics[label]) for label, of in lesions.items()},
        merged={name: tuple(parts) for name, parts in found.get("merged", {}).items()},
    )


def _volumes(found: Json, metrics: Json) -> Volumes:
    made = Volumes.of(**found)
    if "VolumeDifference_ml" not in metrics:
        return made
    return replace(
        made,
        difference=metrics["VolumeDifference_ml"],
        relative_difference=metrics["RelativeVolumeDifference"],
    )


def _lesions(found: Json, metrics: Json) -> Lesions:
    counts = {name: found[name] for name in Lesions.AMOUNTS}
    return Lesions(**counts, recall=metrics["LesionRecall"], precision=metrics["LesionPrecision"])
