"""Two ways of predicting the same cases, compared case by case.

For every class and metric: the mean of the differences A - B with a 95 % confidence interval
(bias-corrected and accelerated bootstrap over the cases, Efron 1987; 9999 resamples, always the
same), and the p value of a Wilcoxon signed-rank test (two-sided, 1945), which leaves out the cases
without a difference. p values are corrected by Holm's method (1979) over the classes of a metric,
not over the metrics: these measure the same predictions in other words, and whoever compares by one
of them chooses it beforehand. For metrics that are best at zero, such as a difference of volumes,
the absolute values are compared.

The interval and the test say what other cases would change, not what training anew would; the cases
must be independent, which several scans of one patient are not.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoseg.common.errors import DataError
from autoseg.evaluation.metrics import METRICS
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import NOTHING, Row, Table, metric_name, number

CONFIDENCE = 0.95
RESAMPLES = 9999
BATCH = 1000  # bounds memory
SEED = 0
FEWEST = 6  # differences: with fewer no p value of the test is below 0.05
SHOWN = ("Dice", "NSD", "HD95_mm")  # on the terminal

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """One metric of one class: A against B on the cases where both have a number.

    Attributes:
        metric: a key of `METRICS`.
        label: the class, or a merged row.
        values: A - B of every such case.
        mean_a: the mean of A over these cases; None without cases.
        mean_b: the mean of B.
        single: cases where only one of the two has a number; they are left out.
        interval: of the mean difference; None below `FEWEST` cases.
        p: of the signed-rank test; None below `FEWEST` cases, or if no case differs.
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
        """Cases where both have a number."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """The mean of A - B."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def ties(self) -> int:
        """Cases where A equals B."""
        return sum(value == 0 for value in self.values)

    def better(self) -> str:
        """`A` or `B` where the interval leaves out zero, else nothing."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        higher = METRICS[self.metric].better == "higher"
        return "A" if (self.interval[0] > 0) == higher else "B"

    def note(self) -> str:
        """What a reader must know about the numbers."""
        notes = []
        if self.n < FEWEST:
            notes.append(f"too few cases for a statement: {FEWEST} are needed")
        elif self.n == self.ties:
            notes.append("no case differs")
        elif self.n - self.ties < FEWEST:
            notes.append(f"only {self.n - self.ties} cases differ: no p below 0.05 is possible")
        if self.single:
            notes.append(f"{self.single} left out: a number in one only")
        return "; ".join(notes)


@dataclass(frozen=True)
class Comparison:
    """A against B.

    Attributes:
        a: the name of one.
        b: the name of the other.
        differences: metric by metric, class by class.
        only_a: cases that only A has.
        only_b: cases that only B has.
        left_out: what could not be compared, in words.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def of(self, metric: str) -> list[Difference]:
        """One metric of every class."""
        return [each for each in self.differences if each.metric == metric]

    def table(self, metrics: Sequence[str] = tuple(METRICS)) -> Table:
        """All numbers as a table."""
        header: Row = (
            *("metric", "class", "n", "equal", "A", "B", "A - B", "95 % CI"),
            *("p", "p (Holm)", "better", "note"),
        )
        rows = [_row(each) for metric in metrics for each in self.of(metric)]
        cases = f"A: {self.a}. B: {self.b}. n: cases with both. "
        how = (
            "CI: bootstrap (BCa). p: Wilcoxon signed-rank test, Holm: over the classes of a metric."
        )
        left = "".join(f" Left out: {what}." for what in self.left_out)
        return Table(
            f"{self.a} against {self.b}, case by case", [header, *rows], note=cases + how + left
        )


def compare(a: Summary, b: Summary, names: tuple[str, str]) -> Comparison:
    """Compare two evaluations of the same cases, which are matched by their names.

    Raises:
        DataError: they share no case or no class.
    """
    of_a, of_b = ({case.case: case for case in summary.cases} for summary in (a, b))
    shared = [name for name in of_a if name in of_b]
    labels = [label for label in a.labels if label in b.labels]
    if not shared or not labels:
        what = "class" if shared else "case"
        raise DataError(
            f"{names[0]} and {names[1]} share no {what}, so there is nothing to compare; "
            "evaluate both on the same cases"
        )
    left_out = [f"class {label}" for label in (*a.labels, *b.labels) if label not in labels]
    metrics = list(METRICS)
    if a.tolerance_mm and b.tolerance_mm and a.tolerance_mm != b.tolerance_mm:
        metrics.remove("NSD")
        left_out.append("NSD, whose tolerances differ")
    found: list[Difference] = []
    for metric in metrics:
        pairs = {
            label: [(of_a[n].value(label, metric), of_b[n].value(label, metric)) for n in shared]
            for label in labels
        }
        found += holm([_difference(metric, label, of) for label, of in pairs.items()])
    only_a, only_b = (
        tuple(name for name in one if name not in other)
        for one, other in ((of_a, of_b), (of_b, of_a))
    )
    return Comparison(*names, tuple(found), only_a, only_b, tuple(left_out))


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with their p values corrected for being several (Holm 1979)."""
    tested = sorted((each.p, i) for i, each in enumerate(differences) if each.p is not None)
    corrected = list(differences)
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        corrected[i] = replace(differences[i], p_holm=highest)
    return corrected


def bootstrap_interval(differences: ArrayLike) -> Interval | None:
    """The confidence interval of the mean; None below `FEWEST` numbers."""
    values = np.asarray(differences, float)
    if len(values) < FEWEST:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = _bootstrap(values, "BCa")
    # BCa has no answer where hardly a number differs from the others.
    return found if all(map(isfinite, found)) else _bootstrap(values, "percentile")


def signed_rank_p(differences: ArrayLike) -> float | None:
    """The p value of Wilcoxon's test; None below `FEWEST` numbers, or if all are zero."""
    from scipy.stats import wilcoxon

    values = np.asarray(differences, float)
    if len(values) < FEWEST or not values.any():
        return None
    return float(wilcoxon(values, zero_method="wilcox").pvalue)


def _bootstrap(values: NDArray[np.float64], method: str) -> Interval:
    from scipy.stats import DegenerateDataWarning, bootstrap

    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)  # the caller looks for it
        low, high = bootstrap(
            (values,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=BATCH,
            confidence_level=CONFIDENCE,
            method=method,
            random_state=np.random.default_rng(SEED),
        ).confidence_interval
    return float(low), float(high)


def _difference(
    metric: str, label: str, pairs: Sequence[tuple[float | None, float | None]]
) -> Difference:
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    single = sum((a is None) != (b is None) for a, b in pairs)
    if METRICS[metric].better == "zero":
        known = [(abs(a), abs(b)) for a, b in known]
    # Without the noise of binary fractions, which would break ties between ranks.
    values = tuple(round(a - b, 12) for a, b in known)
    return Difference(
        metric=metric,
        label=label,
        values=values,
        mean_a=float(np.mean([a for a, _ in known])) if known else None,
        mean_b=float(np.mean([b for _, b in known])) if known else None,
        single=single,
        interval=bootstrap_interval(values),
        p=signed_rank_p(values),
    )


def _row(of: Difference) -> Row:
    name = metric_name(of.metric)
    interval = NOTHING if of.interval is None else " to ".join(map(number, of.interval))
    return (
        f"|{name}|" if METRICS[of.metric].better == "zero" else name,
        of.label,
        str(of.n),
        str(of.ties),
        *(number(value) for value in (of.mean_a, of.mean_b, of.mean)),
        interval,
        _probability(of.p),
        _probability(of.p_holm),
        of.better(),
        of.note(),
    )


def _probability(p: float | None) -> str:
    return "< 0.0001" if p is not None and p < 1e-4 else number(p)
