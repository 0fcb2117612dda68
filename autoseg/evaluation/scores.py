"""The scores of one case, and of all cases of an evaluation: the file `summary.json`."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.common.files import dataclass_from_json, read_json, texts_in, write_json
from autoseg.common.pages import fill
from autoseg.common.progress import counted
from autoseg.evaluation.metrics import COUNTS, METRICS, Lesions, Overlap, Volumes
from autoseg.evaluation.surface import Surface

TEXT = texts_in(Path(__file__).with_name("messages.json"))
Json = dict[str, Any]
Amounts = TypeVar("Amounts", Overlap, Volumes, Lesions)


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case.

    Attributes:
        case: its name.
        reference_file: the reference label map.
        prediction_file: the label map that was scored.
        labels: class -> overlap; in a merged row the sum, as in the next fields.
        volume_ml: class -> volumes.
        surfaces: class -> surface distances; empty in old summaries.
        lesions: class -> lesions; empty in old summaries.
        merged: name of a merged row -> its classes.
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
        """A metric by its name in tables, such as `Dice`; None if it is undefined."""
        which = METRICS[metric]
        if label in self.merged:
            values = [self.value(each, metric) for each in self.merged[label]]
            return sum(v or 0.0 for v in values) if which.unit == "ml" else mean_of_known(values)
        scores = getattr(self, which.group).get(label)
        return which.of(scores) if scores else None

    def penalised(self, label: str, metric: str) -> bool:
        """Whether a metric is the grid's diagonal, as the class is in only one label map."""
        names = self.merged.get(label, (label,)) if METRICS[metric].unit == "mm" else ()
        parts = (self.labels[name] for name in names if name in self.labels)
        return any((of.n_ref == 0) != (of.n_pred == 0) for of in parts)

    def mean(self, metric: str = "Dice") -> float | None:
        """The mean of a metric over the classes for which it is defined."""
        return mean_of_known(self.value(label, metric) for label in self.classes)

    def to_json(self) -> Json:
        """The case as an entry of `summary.json`."""
        found = {
            "case": self.case,
            "reference_file": self.reference_file,
            "prediction_file": self.prediction_file,
            "metrics": {label: self._metrics(label) for label in self.labels},
            "volume_ml": {label: asdict(of) for label, of in self.volume_ml.items()},
            "lesions": {label: _lesion_counts(of) for label, of in self.lesions.items()},
        }
        return found | ({"merged": self.merged} if self.merged else {})

    def _metrics(self, label: str) -> Json:
        known = [name for name, metric in METRICS.items() if getattr(self, metric.group)]
        counts = {name: getattr(self.labels[label], key) for name, key in COUNTS.items()}
        return {name: self.value(label, name) for name in known} | counts

    @staticmethod
    def from_json(found: Json) -> "CaseScores":
        """The reverse of `to_json`; old summaries have no surfaces and lesions."""
        metrics, merged = found["metrics"], found.get("merged", {})
        counts = [entry.name for entry in fields(Lesions)]
        parts = {k: of for k, of in metrics.items() if "NSD" in of and k not in merged}
        return CaseScores(
            found["case"],
            found["reference_file"],
            found["prediction_file"],
            {k: Overlap(of["TP"], of["FP"], of["FN"], of["TN"]) for k, of in metrics.items()},
            {k: Volumes(**of) for k, of in found["volume_ml"].items()},
            {k: Surface(of["HD95_mm"], of["ASSD_mm"], of["NSD"]) for k, of in parts.items()},
            {k: Lesions(*(of[n] for n in counts)) for k, of in found.get("lesions", {}).items()},
            {k: tuple(classes) for k, classes in merged.items()},
        )


def _lesion_counts(of: Lesions) -> Json:
    return asdict(of) | {"missed": of.missed}


def merge(case: CaseScores, rows: Mapping[str, Sequence[str]]) -> CaseScores:
    """Add merged rows, such as one for both lungs.

    Ratios and distances are the means over the classes for which they are defined: the Dice of
    `lungs` is the mean of the Dice of both lungs, as reported by Müller et al., not the Dice of
    their union. Voxels, millilitres and lesions are summed.

    Args:
        case: the scores of the classes.
        rows: name of the row -> names of its classes.
    """
    changed: dict[str, Any] = {"merged": {name: tuple(parts) for name, parts in rows.items()}}
    for group in ("labels", "volume_ml", "lesions"):
        if of := getattr(case, group):
            changed[group] = {row: total([of[n] for n in parts]) for row, parts in rows.items()}
    return replace(case, **{group: getattr(case, group) | of for group, of in changed.items()})


def total(amounts: Sequence[Amounts]) -> Amounts:
    """The sum of each field; at least one is given."""
    names = [entry.name for entry in fields(amounts[0])]
    return type(amounts[0])(*(sum(getattr(of, name) for of in amounts) for name in names))


class Statistic(NamedTuple):
    """Mean, spread and median of some numbers, without those that are None.

    Attributes:
        mean: None without numbers.
        std: the sample standard deviation (n - 1); None for less than two numbers.
        median: None without numbers.
        n: how many numbers there are.
    """

    mean: float | None
    std: float | None
    median: float | None
    n: int

    @staticmethod
    def of(values: Iterable[float | None]) -> "Statistic":
        """The statistic of the values that are not None."""
        known = [value for value in values if value is not None]
        std = statistics.stdev(known) if len(known) > 1 else None
        median = statistics.median(known) if known else None
        return Statistic(mean_of_known(known), std, median, len(known))


@dataclass(frozen=True)
class Summary:
    """The scores of all cases of an evaluation.

    Attributes:
        cases: the scored cases; partly annotated ones lack some classes.
        missing: cases with a reference but without scores; they count in no mean.
        refused: why cases among `missing` that have a prediction were not scored.
        tolerance_mm: class -> surface tolerance of the NSD.
        failures: what went wrong in training or prediction, for the top of the report.
    """

    cases: tuple[CaseScores, ...]
    missing: tuple[str, ...] = ()
    tolerance_mm: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failures: tuple[str, ...] = ()

    @property
    def never_predicted(self) -> list[str]:
        """A sentence for each class that was predicted in no case, although some have it."""
        found = {name: self.counts(name) for name in self.classes}
        never = [n for n, of in found.items() if total(of).n_ref and not total(of).n_pred]
        return [f"{n} was predicted in none of the {counted(len(found[n]), 'case')}" for n in never]

    def counts(self, label: str) -> list[Overlap]:
        """The voxels of a class in each case that has it."""
        return [case.labels[label] for case in self.cases if label in case.labels]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, followed by those of the merged rows."""
        rows = dict.fromkeys(row for case in self._largest_first for row in case.merged)
        return (*self.classes, *rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, without the merged rows."""
        return tuple(dict.fromkeys(n for case in self._largest_first for n in case.classes))

    @property
    def _largest_first(self) -> list[CaseScores]:
        """The cases, those with the most classes first: their order of the classes counts."""
        return sorted(self.cases, key=lambda case: -len(case.labels))

    def values(self, label: str, metric: str = "Dice") -> list[float | None]:
        """One metric of one class in each case."""
        return [case.value(label, metric) for case in self.cases]

    @property
    def dice(self) -> dict[str, list[float | None]]:
        """Class -> its Dice in each case."""
        return {label: self.values(label) for label in self.labels}

    def statistic(self, label: str, metric: str = "Dice") -> Statistic:
        """One metric of one class over the cases."""
        return Statistic.of(self.values(label, metric))

    def lesions(self, label: str) -> Lesions:
        """The lesions of one class pooled over all cases."""
        found = [case.lesions[label] for case in self.cases if label in case.lesions]
        return total([Lesions(0, 0, 0, 0), *found])

    def has_lesions(self, label: str) -> bool:
        """Whether most references of a class have several components, which are then lesions."""
        counts = [case.lesions[label].reference for case in self.cases if label in case.lesions]
        return statistics.median([count for count in counts if count] or [0]) > 1

    def foreground_mean(self, metric: str = "Dice") -> float | None:
        """The mean over the classes of the mean over the cases."""
        return self._over_labels(metric).mean

    def _over_labels(self, metric: str) -> Statistic:
        return Statistic.of(self.statistic(label, metric).mean for label in self.classes)

    def to_json(self) -> Json:
        """The content of `summary.json`; undefined metrics are null."""
        of = {label: {m: self.statistic(label, m) for m in METRICS} for label in self.labels}
        overall = {metric: self._over_labels(metric) for metric in METRICS}
        pooled = {label: self.lesions(label) for label in self.labels}
        ratios = {key: METRICS[f"Lesion{key.capitalize()}"].of for key in ("recall", "precision")}
        return {
            "foreground_mean": _figures(overall, "mean"),
            **{
                figure: {label: _figures(metrics, figure) for label, metrics in of.items()}
                for figure in ("mean", "std", "median")
            },
            "lesions": {
                label: _lesion_counts(of) | {key: ratio(of) for key, ratio in ratios.items()}
                for label, of in pooled.items()
            },
            "tolerance_mm": self.tolerance_mm,
            "metric_per_case": [case.to_json() for case in self.cases],
            "missing": list(self.missing),
            "refused": self.refused,
            "failures": list(self.failures),
        }

    @staticmethod
    def from_json(found: Json) -> "Summary":
        """The reverse of `to_json`; the means are recomputed from the cases."""
        cases = tuple(map(CaseScores.from_json, found["metric_per_case"]))
        tolerances, refused = (dict(found.get(key, {})) for key in ("tolerance_mm", "refused"))
        failures = tuple(found.get("failures", ()))
        return Summary(cases, tuple(found["missing"]), tolerances, refused, failures)

    def _repr_html_(self) -> str:
        """Means over the cases, and a box plot of Dice with a dot for each case, for notebooks."""
        template = Path(__file__).with_name("scores.html.j2")
        return fill(template, summary=self, quantiles=statistics.quantiles)

    def save(self, path: Path) -> None:
        """Write `summary.json`."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> "Summary":
        """Read a `summary.json`.

        Raises:
            AutosegError: the file is missing, not JSON, or not a summary.
        """
        found = read_json(path)
        try:
            return dataclass_from_json(Summary, asdict(Summary.from_json(found)), path)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is not a summary ({error!r}); evaluate again") from error


def _figures(statistics_of: dict[str, Statistic], figure: str) -> Json:
    """One figure of each metric, and under `n` the number of values behind it."""
    figures: Json = {metric: getattr(of, figure) for metric, of in statistics_of.items()}
    figures["n"] = {metric: of.n for metric, of in statistics_of.items()}
    return figures


def combine(summaries: Sequence[Summary]) -> Summary:
    """One summary of the cases of several, such as the folds of a cross-validation.

    Raises:
        DataError: the summaries have different classes or tolerances, or share a case.
    """
    classes = {summary.labels for summary in summaries if summary.cases}
    if len(classes) > 1:
        lists = " and ".join(sorted(", ".join(names) for names in classes))
        raise DataError(TEXT("classes", lists=lists))
    # Summaries without surface metrics have no tolerances.
    tolerances = [summary.tolerance_mm for summary in summaries if summary.tolerance_mm]
    if different := [other for other in tolerances if other != tolerances[0]]:
        raise DataError(TEXT("tolerances", one=tolerances[0], other=different[0]))
    cases = sorted((c for summary in summaries for c in summary.cases), key=lambda c: c.case)
    counts = Counter(case.case for case in cases)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise DataError(TEXT("repeated", count=len(repeated), first=repeated[0]))
    missing = {name for summary in summaries for name in summary.missing} - counts.keys()
    return Summary(tuple(cases), tuple(sorted(missing)), tolerances[0] if tolerances else {})
