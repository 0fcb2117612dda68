"""The scores of many cases, and what they are on average: the file `summary.json`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoseg.errors import DataError
from autoseg.evaluation.metrics import COUNTS, METRICS, Overlap
from autoseg.files import read_json, write_json

Json = dict[str, Any]


@dataclass(frozen=True)
class Volumes:
    """The volume of one class in one case, in millilitres."""

    reference: float
    predicted: float


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case.

    Attributes:
        case: its name.
        reference_file: the label map that is the truth.
        prediction_file: the label map that was scored.
        labels: the scores of every class, by its name.
        volume_ml: the volumes of every class, by its name.
    """

    case: str
    reference_file: str
    prediction_file: str
    labels: dict[str, Overlap]
    volume_ml: dict[str, Volumes]

    def mean(self, metric: str = "Dice") -> float | None:
        """The mean of a metric over the classes that have one."""
        return Statistic.of(value_of(scores, metric) for scores in self.labels.values()).mean


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
        return Statistic(statistics.fmean(known), std, statistics.median(known), len(known))


@dataclass(frozen=True)
class Summary:
    """The scores of all cases of an evaluation.

    Attributes:
        cases: the scored cases, all with the same classes.
        missing: cases with a truth but without a prediction; they count in no mean.
    """

    cases: tuple[CaseScores, ...]
    missing: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.cases[0].labels) if self.cases else ()

    def values(self, label: str, metric: str = "Dice") -> list[float | None]:
        """One metric of one class in every case."""
        return [value_of(case.labels[label], metric) for case in self.cases]

    def statistic(self, label: str, metric: str = "Dice") -> Statistic:
        """One metric of one class over the cases."""
        return Statistic.of(self.values(label, metric))

    def foreground_mean(self, metric: str = "Dice") -> float | None:
        """The mean over the classes of the mean over the cases."""
        return self._over_labels(metric).mean

    def _over_labels(self, metric: str) -> Statistic:
        return Statistic.of(self.statistic(label, metric).mean for label in self.labels)

    def to_json(self) -> Json:
        """The content of `summary.json`: null where there is no number."""
        found = {label: {m: self.statistic(label, m) for m in METRICS} for label in self.labels}
        overall = {metric: self._over_labels(metric) for metric in METRICS}
        return {
            "foreground_mean": _figures(overall, "mean"),
            "mean": {label: _figures(of, "mean") for label, of in found.items()},
            "std": {label: _figures(of, "std") for label, of in found.items()},
            "median": {label: _figures(of, "median") for label, of in found.items()},
            "metric_per_case": [_case_to_json(case) for case in self.cases],
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
            return Summary.from_json(found)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is not a summary of autoseg_evaluate ({type(error).__name__}: {error}); "
                "evaluate again"
            ) from error

    @staticmethod
    def from_json(found: Json) -> Summary:
        """The summary that `to_json` gave; the means are computed again from the cases."""
        cases = tuple(_case_from_json(case) for case in found["metric_per_case"])
        return Summary(cases, tuple(found["missing"]))


def combine(summaries: Sequence[Summary]) -> Summary:
    """One summary of the cases of several, for example of the folds of a cross-validation.

    Raises:
        DataError: the summaries have different classes, or a case is in two of them.
    """
    classes = {summary.labels for summary in summaries if summary.cases}
    if len(classes) > 1:
        lists = " and ".join(sorted(", ".join(names) for names in classes))
        raise DataError(f"the summaries have different classes: {lists}; evaluate them alike")
    cases = sorted((c for summary in summaries for c in summary.cases), key=lambda c: c.case)
    times = Counter(case.case for case in cases)
    if twice := [name for name, n in times.items() if n > 1]:
        raise DataError(
            f"{len(twice)} cases are in more than one summary ({twice[0]}, ...): "
            "the folds come from different splits; train them anew"
        )
    missing = {name for summary in summaries for name in summary.missing} - times.keys()
    return Summary(tuple(cases), tuple(sorted(missing)))


def value_of(scores: Overlap, metric: str) -> float | None:
    """A metric by its name in tables, for example `Dice`."""
    value: float | None = getattr(scores, METRICS[metric])
    return value


def _figures(of: dict[str, Statistic], figure: str) -> Json:
    """One figure of each metric, and beside it how many numbers it is of."""
    figures: Json = {metric: getattr(statistic, figure) for metric, statistic in of.items()}
    figures["n"] = {metric: statistic.n for metric, statistic in of.items()}
    return figures


def _case_to_json(case: CaseScores) -> Json:
    names = METRICS | COUNTS
    return {
        "case": case.case,
        "reference_file": case.reference_file,
        "prediction_file": case.prediction_file,
        "metrics": {
            label: {name: getattr(scores, attribute) for name, attribute in names.items()}
            for label, scores in case.labels.items()
        },
        "volume_ml": {label: asdict(volumes) for label, volumes in case.volume_ml.items()},
    }


def _case_from_json(found: Json) -> CaseScores:
    names = METRICS | COUNTS
    return CaseScores(
        case=found["case"],
        reference_file=found["reference_file"],
        prediction_file=found["prediction_file"],
        labels={
            label: Overlap(**{attribute: scores[name] for name, attribute in names.items()})
            for label, scores in found["metrics"].items()
        },
        volume_ml={label: Volumes(**volumes) for label, volumes in found["volume_ml"].items()},
    )
