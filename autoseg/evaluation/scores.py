"""The scores of one case: every metric of every class."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.common.files import dataclass_from_json, read_json, write_json
from autoseg.evaluation.metrics import COUNTS, METRICS, Lesions, Overlap, pool, ratio
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


# The scores of many cases, and what they are on average: the file `summary.json`.


@dataclass(frozen=True)
class Statistic:
    """What some numbers are together; None counts for nothing.

    Attributes:
        mean: None if there is no number.
        std: the sample standard deviation (n - 1); None below two numbers.
        median: None if there is no number.
        n: how many numbers there are.
    """

    mean: float | None
    std: float | None
    median: float | None
    n: int

    @staticmethod
    def of(values: Iterable[float | None]) -> Statistic:
        """The statistic of the values that are not None."""
        known = [value for value in values if value is not None]
        if not known:
            return Statistic(None, None, None, 0)
        std = statistics.stdev(known) if len(known) > 1 else None
        return Statistic(mean_of_known(known), std, statistics.median(known), len(known))


@dataclass(frozen=True)
class Summary:
    """The scores of all cases of an evaluation.

    Attributes:
        cases: the scored cases, all with the same classes.
        missing: cases with a truth but without a prediction; they count in no mean.
        tolerance_mm: class -> how far its surfaces may lie apart in the NSD.
    """

    cases: tuple[CaseScores, ...]
    missing: tuple[str, ...] = ()
    tolerance_mm: dict[str, float] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, and after them of the merged rows."""
        return tuple(self.cases[0].labels) if self.cases else ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes alone."""
        return self.cases[0].classes if self.cases else ()

    def values(self, label: str, metric: str = "Dice") -> list[float | None]:
        """One metric of one class in every case."""
        return [case.value(label, metric) for case in self.cases]

    def statistic(self, label: str, metric: str = "Dice") -> Statistic:
        """One metric of one class over the cases."""
        return Statistic.of(self.values(label, metric))

    def lesions(self, label: str) -> Lesions:
        """The lesions of one class in all cases together: each lesion counts the same."""
        return pool(case.lesions[label] for case in self.cases if label in case.lesions)

    def foreground_mean(self, metric: str = "Dice") -> float | None:
        """The mean over the classes of the mean over the cases."""
        return self._over_labels(metric).mean

    def _over_labels(self, metric: str) -> Statistic:
        return Statistic.of(self.statistic(label, metric).mean for label in self.classes)

    def to_json(self) -> Json:
        """The content of `summary.json`: null where there is no number."""
        found = {label: {m: self.statistic(label, m) for m in METRICS} for label in self.labels}
        overall = {metric: self._over_labels(metric) for metric in METRICS}
        return {
            "foreground_mean": _figures(overall, "mean"),
            "mean": {label: _figures(of, "mean") for label, of in found.items()},
            "std": {label: _figures(of, "std") for label, of in found.items()},
            "median": {label: _figures(of, "median") for label, of in found.items()},
            "lesions": {label: _pooled(self.lesions(label)) for label in self.labels},
            "tolerance_mm": self.tolerance_mm,
            "metric_per_case": [to_json(case) for case in self.cases],
            "missing": list(self.missing),
        }

    def save(self, path: Path) -> None:
        """Write `summary.json`."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> Summary:
        """Read what `save` wrote.

        Raises:
            AutosegError: the file is missing, not JSON, or not a summary.
        """
        found = read_json(path)
        try:
            made = Summary.from_json(found)
            return dataclass_from_json(Summary, asdict(made), path)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path} is not a summary of autoseg_evaluate ({type(error).__name__}: {error}); "
                "evaluate again"
            ) from error

    @staticmethod
    def from_json(found: Json) -> Summary:
        """The summary that `to_json` gave; the means are computed again from the cases."""
        cases = tuple(from_json(case) for case in found["metric_per_case"])
        return Summary(cases, tuple(found["missing"]), dict(found.get("tolerance_mm", {})))


def combine(summaries: Sequence[Summary]) -> Summary:
    """One summary of the cases of several, for example of the folds of a cross-validation.

    Raises:
        DataError: the summaries have different classes or tolerances, or a case is in two of them.
    """
    classes = {summary.labels for summary in summaries if summary.cases}
    if len(classes) > 1:
        lists = " and ".join(sorted(", ".join(names) for names in classes))
        raise DataError(f"the summaries have different classes: {lists}; evaluate them alike")
    # What was written before surfaces were measured has no tolerance.
    tolerances = [summary.tolerance_mm for summary in summaries if summary.tolerance_mm]
    if any(other != tolerances[0] for other in tolerances):
        raise DataError(
            f"the summaries have different tolerances (mm): {tolerances[0]} and others; "
            "evaluate them alike"
        )
    cases = sorted((c for summary in summaries for c in summary.cases), key=lambda c: c.case)
    times = Counter(case.case for case in cases)
    if twice := [name for name, n in times.items() if n > 1]:
        raise DataError(
            f"{len(twice)} cases are in more than one summary ({twice[0]}, ...): "
            "the folds come from different splits; train them anew"
        )
    missing = {name for summary in summaries for name in summary.missing} - times.keys()
    return Summary(tuple(cases), tuple(sorted(missing)), tolerances[0] if tolerances else {})


def _figures(of: dict[str, Statistic], figure: str) -> Json:
    """One figure of each metric, and beside it how many numbers it is of."""
    figures: Json = {metric: getattr(statistic, figure) for metric, statistic in of.items()}
    figures["n"] = {metric: statistic.n for metric, statistic in of.items()}
    return figures


def _pooled(of: Lesions) -> Json:
    return lesions_to_json(of) | {"recall": of.recall, "precision": of.precision}
