"""`autoseg_evaluate`: score predictions, or summarise the folds of a cross-validation."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cli import common
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.progress import counted, say

if TYPE_CHECKING:
    from autoseg.evaluation.cross_validation import CrossValidation
    from autoseg.evaluation.report.page import Report, Tables
    from autoseg.evaluation.scores import Summary
    from autoseg.workflow.workspace import Workspace


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = common.parser(
        "autoseg_evaluate",
        "Score a folder of predictions (-g and -p), or summarise the cross-validation of a trained "
        "task (TASK): tables, figures and a report.",
        common.NNUNET_EVALUATE,
    )
    parser.add_argument(
        "task", nargs="?", metavar="TASK", help="name of a trained task, or a unique prefix of it"
    )
    parser.add_argument("more", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument(
        "-g", dest="reference", type=Path, metavar="DIR", help="folder of reference label maps"
    )
    parser.add_argument(
        "-p", dest="predicted", type=Path, metavar="DIR", help="folder of predicted label maps"
    )
    parser.add_argument(
        "-i",
        dest="images",
        type=Path,
        metavar="DIR",
        help="folder of the scans, to draw the worst, the median and the best case",
    )
    parser.add_argument(
        "-o", dest="out", type=Path, metavar="DIR", help="output folder (default: that of -p)"
    )
    parser.add_argument(
        "--map",
        nargs="+",
        metavar="P:R",
        help="label P of the predictions is label R of the references, as in 3:1; only mapped "
        "labels are scored",
    )
    parser.add_argument(
        "--merge",
        nargs="+",
        metavar="NAME=A,B",
        help="add a row for several classes, given by name or label, with the mean of each metric, "
        "as in lungs=1,2",
    )
    parser.add_argument(
        "--tolerance",
        metavar="MM",
        help="tolerance of the normalised surface Dice, as in 1 or lungs=1,infection=3 "
        "(default: that of the model's plan, or 1 mm)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="with -g and -p: second folder of predictions, compared with -p case by case",
    )
    parser.add_argument(
        "--plan", metavar="NAME", help="with TASK: name of the plan (default: the only one)"
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar="PLAN",
        help="with TASK: compare the cross-validations of two plans case by case, with confidence "
        "intervals and statistical tests",
    )
    common.add_processes(parser)
    common.add_workspace(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command; returns the exit status."""
    return common.run(make_parser, _evaluate, argv, prog)


def _evaluate(arguments: argparse.Namespace) -> int:
    if arguments.more:
        names = " ".join([arguments.task, *arguments.more])
        raise AutosegError(f"{names!r}: give one TASK, or two folders as -g REFERENCE -p PREDICTED")
    folders = (arguments.reference, arguments.predicted)
    if arguments.task is not None:
        if arguments.map or arguments.merge or arguments.tolerance:
            raise AutosegError("--map, --merge and --tolerance need -g and -p, not TASK")
        if any(folders) or arguments.images or arguments.out or arguments.against:
            raise AutosegError(
                "give either TASK or -g and -p (with -i, -o and --against), not both"
            )
        return _compare_plans(arguments) if arguments.compare else _evaluate_task(arguments)
    if not all(folders):
        raise AutosegError("give either TASK, or both -g REFERENCE and -p PREDICTED")
    if arguments.plan or arguments.workspace or arguments.compare:
        raise AutosegError("--plan, --compare and --workspace need TASK, not -g and -p")
    return _evaluate_folders(arguments)


def _evaluate_folders(arguments: argparse.Namespace) -> int:
    from autoseg.evaluation.evaluate import choose_labels, evaluate_folders
    from autoseg.evaluation.figures.overlay import draw_examples
    from autoseg.evaluation.labels import read_wishes
    from autoseg.evaluation.report.contents import folder_report, worst_exhibits

    reference, predicted = arguments.reference, arguments.predicted
    images, processes = arguments.images, arguments.processes
    if images is not None and not images.is_dir():
        raise DataError(f"-i {images}: no such folder; give the folder of the scans")
    out = arguments.out or predicted
    names = different_names(predicted, arguments.against) if arguments.against else None
    options = read_wishes(arguments.map or (), arguments.merge or (), arguments.tolerance)
    labels = choose_labels(reference, predicted, options, processes)
    summary = evaluate_folders(reference, predicted, labels, processes)
    _write_tables(out, summary)
    if images:
        for picture in draw_examples(summary, images, labels, out):
            print(f"picture: {picture}")
    exhibits = worst_exhibits(summary, images, labels) if images else []
    report = folder_report(reference, predicted, summary, exhibits, labels, processes)
    _write_report(out, report)
    if names is not None:
        other = evaluate_folders(reference, arguments.against, labels, processes)
        _write_comparison(summary, other, names, out, labels.colours)
    return common.DONE


def _evaluate_task(arguments: argparse.Namespace) -> int:
    from autoseg.dataset.splits import FILE_NAME, count_folds
    from autoseg.evaluation.cross_validation import fold_rows, gather
    from autoseg.evaluation.report.contents import cross_validation_report
    from autoseg.evaluation.report.task_files import Trained, write_cross_validation

    workspace = common.find_workspace(arguments)
    task = workspace.find_task_name(arguments.task)
    plan = _find_plan(workspace, task, arguments.plan)
    folder, planned = workspace.models(task, plan), workspace.preprocessed(task, plan)
    splits = planned / FILE_NAME
    fold_count = count_folds(splits) if splits.is_file() else 0  # unknown in this workspace
    validation = gather(folder, fold_count)
    tables: Tables = {
        "Dice of the folds": fold_rows(validation),
        **_learn_postprocessing(folder, validation, fold_count, arguments.processes),
    }
    out = folder / "cross_validation"
    _write_tables(out, validation.combined, tables)
    if validation.missing:
        print(f"missing folds: {', '.join(map(str, validation.missing))}")
    trained = Trained(folder, workspace.raw_folder(arguments.task))
    exhibits = trained.exhibits(validation.combined)
    for path in write_cross_validation(trained, validation, out, arguments.processes, exhibits):
        print(f"{path.parent.name}: {path}")
    report = cross_validation_report(
        trained, validation, exhibits, planned / "fingerprint.json", tables, arguments.processes
    )
    _write_report(out, report)
    return common.DONE


def _learn_postprocessing(
    folder: Path, validation: CrossValidation, fold_count: int, processes: int
) -> Tables:
    """A table of the candidates; empty if nothing can be learned, as before all folds are there."""
    from autoseg.evaluation.learn_postprocessing import update

    try:
        learned = update(folder, validation, fold_count, processes)
    except AutosegError as error:
        say(f"no postprocessing was learned: {error}")
        return {}
    return {"Postprocessing (the scores elsewhere are without it)": learned.rows()}


def _find_plan(workspace: Workspace, task: str, given: str | None) -> str:
    """The given plan, or the only one with a validated fold."""
    from autoseg.models.folder import EVERY_FOLD, SUMMARY

    models = workspace.models(task)
    found = sorted({path.parts[-4] for path in models.glob(f"*/{EVERY_FOLD}/{SUMMARY}")})
    if given in found:
        return str(given)
    if not found:
        raise AutosegError(f"{models} has no validated fold; run: autoseg_train {task} 0")
    if given is not None:
        raise AutosegError(
            f"plan {given!r} has no validated fold; run: autoseg_train {task} 0 --plan {given} "
            f"(with --resume if it was stopped), or choose one of {', '.join(found)}"
        )
    if len(found) > 1:
        raise AutosegError(f"{task} has the plans {', '.join(found)}; choose one with --plan NAME")
    return found[0]


def _write_tables(out: Path, summary: Summary, tables: Tables | None = None) -> None:
    """Write and print the tables, and print their paths."""
    from autoseg.evaluation.report.page import write_tables
    from autoseg.evaluation.tables import metric_rows, print_rows, print_table

    paths = write_tables(out, summary, tables or {})
    for heading, rows in (tables or {}).items():
        print(f"{heading}:")
        print_rows(rows)
        print()
    print_table(summary)
    print()
    print_rows(metric_rows(summary))
    for path in paths:
        print(f"{path.stem}: {path}")


def _write_report(out: Path, report: Report) -> None:
    from autoseg.evaluation.report.page import write_report

    path = out / "report.html"
    write_report(path, report)
    print(f"report: {path}")


def different_names(one: Path, other: Path) -> tuple[str, str]:
    """The shortest ends of two paths that differ, with underscores between their parts.

    Raises:
        AutosegError: both are the same folder.
    """
    parts = one.resolve().parts, other.resolve().parts
    for length in range(1, 1 + max(map(len, parts))):
        names = "_".join(parts[0][-length:]), "_".join(parts[1][-length:])
        if names[0] != names[1]:
            return names
    raise AutosegError(f"{other} cannot be compared with itself; give two different folders")


def _compare_plans(arguments: argparse.Namespace) -> int:
    from autoseg.evaluation.cross_validation import gather
    from autoseg.evaluation.report.task_files import Trained

    if arguments.plan:
        raise AutosegError("--compare names both plans; leave out --plan")
    workspace = common.find_workspace(arguments)
    task = workspace.find_task_name(arguments.task)
    a, b = (workspace.models(task, _find_plan(workspace, task, name)) for name in arguments.compare)
    names = different_names(a, b)
    scores = gather(a).combined, gather(b).combined
    _write_comparison(*scores, names, a / "cross_validation", Trained(a, None).colours)
    return common.DONE


def _write_comparison(
    a: Summary, b: Summary, names: tuple[str, str], out: Path, colours: Mapping[str, str]
) -> None:
    """Compare two sets of scores, write the result, and print the most common metrics."""
    from autoseg.dataset.problems import some
    from autoseg.evaluation.comparison import SHOWN, compare
    from autoseg.evaluation.report.task_files import save_comparison
    from autoseg.evaluation.tables import print_rows

    found = compare(a, b, names)
    for name, only in ((found.a, found.only_a), (found.b, found.only_b)):
        if only:
            cases = counted(len(only), "case")
            say(f"warning: {cases} scored only for {name}, left out: {some(only)}")
    table = found.table(SHOWN)
    print()
    print_rows(table.rows)
    print(table.note)
    for path in save_comparison(found, out, colours):
        print(f"comparison: {path}")


if __name__ == "__main__":
    raise SystemExit(main())
