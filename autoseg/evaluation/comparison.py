"""Compares two predictions of the same cases, case by case.

For each class and metric: the mean of the differences A - B with a 95 % confidence interval
(bias-corrected and accelerated bootstrap over the cases, Efron 1987; 9999 resamples with a fixed
seed), and the p value of a two-sided Wilcoxon signed-rank test (1945) without the cases that do not
differ. p values are corrected by Holm's method (1979) over the classes of a metric, not over the
metrics: these measure the same predictions, and the metric of interest should be chosen beforehand.
For metrics that are best at zero, such as a volume difference, the absolute values are compared.

The interval and the test cover the variation between cases, not between repeated trainings. The
cases must be independent, unlike several scans of one patient.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import DegenerateDataWarning, bootstrap, wilcoxon

from autoseg.common.arrays import mean_of_known
from autoseg.common.errors import DataError
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import TEXT, CaseScores, Summary
from autoseg.evaluation.tables import COMPARED, DASH, Row, Table, metric_name, number

CONFIDENCE = 0.95
RESAMPLES = 9999
BATCH = 1000  # bounds memory
SEED = 0
MIN_CASES = 6  # with fewer differences the test cannot reach a p value below 0.05
SHOWN = ("Dice", "NSD", "HD95_mm")  # on the terminal

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """One metric of one class: A against B on the cases where it is defined in both.

    Attributes:
        metric: a key of `METRICS`.
        label: the class, or a merged row.
        values: A - B of each such case.
        mean_a: the mean of A over these cases; None without cases.
        mean_b: the mean of B.
        single: cases where the metric is defined in only one of the two; they are left out.
        interval: confidence interval of the mean difference; None below `MIN_CASES` cases.
        p: of the signed-rank test; None below `MIN_CASES` cases, or if no case differs.
        p_holm: p corrected over the classes of the metric.
    """

    metric: str
    label: str
    values: tuple[float, ...]
    mean_a: float | None
    mean_b: float | None
    single: int
    interval: Interval | None
    p: float | None
    p_holm: float | None = None

    @property
    def n(self) -> int:
        """The number of cases where the metric is defined in both."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """The mean of A - B."""
        return mean_of_known(self.values)

    @property
    def ties(self) -> int:
        """The number of cases where A equals B."""
        return sum(value == 0 for value in self.values)

    def better(self) -> str:
        """`A` or `B` if the interval excludes zero, else an empty text."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        higher = METRICS[self.metric].better == "higher"
        return "A" if (self.interval[0] > 0) == higher else "B"

    def note(self) -> str:
        """Restrictions that a reader of the numbers must know."""
        notes = []
        if self.n < MIN_CASES:
            notes.append(f"too few cases: at least {MIN_CASES} are needed")
        elif self.n == self.ties:
            notes.append("no case differs")
        elif self.n - self.ties < MIN_CASES:
            notes.append(f"only {self.n - self.ties} cases differ: no p below 0.05 is possible")
        if self.single:
            notes.append(f"{self.single} left out: defined in only one of the two")
        return "; ".join(notes)

    def row(self) -> Row:
        """The row of a table."""
        bars = "|" * (METRICS[self.metric].better == "zero")
        head = (f"{bars}{metric_name(self.metric)}{bars}", self.label, str(self.n), str(self.ties))
        means = map(number, (self.mean_a, self.mean_b, self.mean))
        interval = DASH if self.interval is None else " to ".join(map(number, self.interval))
        p = ("< 0.0001" if p is not None and p < 1e-4 else number(p) for p in (self.p, self.p_holm))
        return (*head, *means, interval, *p, self.better(), self.note())


class Comparison(NamedTuple):
    """A against B.

    Attributes:
        a: the name of one.
        b: the name of the other.
        differences: by metric, then by class.
        only_a: cases that only A has.
        only_b: cases that only B has.
        left_out: descriptions of what could not be compared.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def of(self, metric: str) -> list[Difference]:
        """One metric of all classes."""
        return [each for each in self.differences if each.metric == metric]

    def table(self, metrics: Sequence[str] = tuple(METRICS)) -> Table:
        """The differences as a table."""
        rows = [each.row() for metric in metrics for each in self.of(metric)]
        left_out = "".join(f" Left out: {what}." for what in self.left_out)
        title = f"{self.a} against {self.b}, case by case"
        note = COMPARED["note"].format(self.a, self.b) + left_out
        return Table(title, [tuple(COMPARED["columns"]), *rows], note=note)


def compare(a: Summary, b: Summary, names: tuple[str, str]) -> Comparison:
    """Compare two evaluations of the same cases, matched by name.

    Raises:
        DataError: they share no case or no class.
    """
    a_cases, b_cases = ({case.case: case for case in summary.cases} for summary in (a, b))
    shared = [name for name in a_cases if name in b_cases]
    labels = [label for label in a.labels if label in b.labels]
    if not shared or not labels:
        raise DataError(TEXT("nothing shared", names=names, what="class" if shared else "case"))
    left_out = [f"class {label}" for label in (*a.labels, *b.labels) if label not in labels]
    metrics = list(METRICS)
    if a.tolerance_mm and b.tolerance_mm and a.tolerance_mm != b.tolerance_mm:
        metrics.remove("NSD")
        left_out.append("NSD (different tolerances)")
    pairs = [(a_cases[name], b_cases[name]) for name in shared]
    found = (holm([_difference(metric, of, pairs) for of in labels]) for metric in metrics)
    only_a = tuple(name for name in a_cases if name not in b_cases)
    only_b = tuple(name for name in b_cases if name not in a_cases)
    return Comparison(*names, tuple(chain(*found)), only_a, only_b, tuple(left_out))


def _difference(
    metric: str, label: str, cases: Sequence[tuple[CaseScores, CaseScores]]
) -> Difference:
    pairs = [(a.value(label, metric), b.value(label, metric)) for a, b in cases]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if METRICS[metric].better == "zero":
        known = [(abs(a), abs(b)) for a, b in known]
    # Rounded: floating-point noise would break ties between ranks.
    values = tuple(round(a - b, 12) for a, b in known)
    a, b = map(mean_of_known, zip(*known, strict=True)) if known else (None, None)
    single = sum((a is None) != (b is None) for a, b in pairs)
    interval, p = bootstrap_interval(values), signed_rank_p(values)
    return Difference(metric, label, values, a, b, single, interval, p)


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """Correct the p values for multiple comparisons (Holm 1979)."""
    tested = sorted((each.p, i) for i, each in enumerate(differences) if each.p is not None)
    corrected = list(differences)
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        corrected[i] = replace(differences[i], p_holm=highest)
    return corrected


def bootstrap_interval(differences: ArrayLike, resamples: int = RESAMPLES) -> Interval | None:
    """The confidence interval of the mean; None below `MIN_CASES` values."""
    values = np.asarray(differences, float)
    if len(values) < MIN_CASES:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    options = {"n_resamples": resamples, "batch": BATCH, "confidence_level": CONFIDENCE}
    for method in ("BCa", "percentile"):  # BCa is undefined if nearly all values are equal
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.simplefilter("ignore", DegenerateDataWarning)
            seeded = np.random.default_rng(SEED)
            found = bootstrap((values,), np.mean, method=method, random_state=seeded, **options)
        low, high = map(float, found.confidence_interval)
        if isfinite(low) and isfinite(high):
            break
    return low, high


def signed_rank_p(differences: ArrayLike) -> float | None:
    """The p value of Wilcoxon's test; None below `MIN_CASES` values, or if all are zero."""
    values = np.asarray(differences, float)
    if len(values) < MIN_CASES or not values.any():
        return None
    return float(wilcoxon(values, zero_method="wilcox").pvalue)
