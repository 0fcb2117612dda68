"""The scores of many cases, and what they are on average: the file `summary.json`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.common.files import check_fields, read_json, write_json
from autoseg.evaluation.lesions import Lesions, pool
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import CaseScores, Json, from_json, lesions_to_json, to_json


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
            check_fields(made)
            return made
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
