"""The comparisons of `autoseg_evaluate`: two plans of a task, or two folders of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autoseg.common.errors import AutosegError
from autoseg.common.progress import counted, say
from autoseg.dataset.problems import some
from autoseg.evaluation.comparison import SHOWN, compare
from autoseg.evaluation.cross_validation import gather
from autoseg.evaluation.report.task_files import Trained, save_comparison
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import print_rows


def different_names(one: Path, other: Path) -> tuple[str, str]:
    """The last parts of two folders' paths, as many as it takes to tell them apart."""
    parts = one.resolve().parts, other.resolve().parts
    for length in range(1, 1 + max(map(len, parts))):
        names = "_".join(parts[0][-length:]), "_".join(parts[1][-length:])
        if names[0] != names[1]:
            return names
    raise AutosegError(f"{other} cannot be compared with itself; name two different folders")


def compare_plans(a: Path, b: Path) -> None:
    """Compare the cross-validations of two plans, given by the folders of their models.

    Raises:
        AutosegError: they are the same, or have nothing in common.
    """
    names = different_names(a, b)
    found = (gather(a).combined, gather(b).combined)
    write_comparison(*found, names, a / "cross_validation", Trained(a, None).colours)


def write_comparison(
    a: Summary, b: Summary, names: tuple[str, str], out: Path, colours: Mapping[str, str]
) -> None:
    """Compare, write what was found, and show the metrics that people ask for first."""
    found = compare(a, b, names)
    for name, only in ((found.a, found.only_a), (found.b, found.only_b)):
        if only:
            cases = counted(len(only), "case")
            say(f"warning: {cases} scored for {name} alone, left out: {some(only)}")
    table = found.table(SHOWN)
    print()
    print_rows(table.rows)
    print(table.note)
    for path in save_comparison(found, out, colours):
        print(f"comparison: {path}")
