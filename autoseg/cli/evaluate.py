"""`autoseg_evaluate`: scores predictions, or puts the folds of a cross-validation together."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg.cli import common
from autoseg.common.errors import AutosegError, DataError
from autoseg.common.progress import counted, say
from autoseg.dataset.problems import some
from autoseg.evaluation.comparison import SHOWN, compare
from autoseg.evaluation.cross_validation import gather
from autoseg.evaluation.report.task_files import Trained, save_comparison
from autoseg.evaluation.scores import Summary
from autoseg.evaluation.tables import print_rows
from autoseg.workflow.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.evaluation.cross_validation import CrossValidation
    from autoseg.evaluation.report.page import Report, Tables
    from autoseg.evaluation.scores import Summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return common.run(make_parser, evaluate, argv)


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = common.parser(
        "autoseg_evaluate",
        "Score a folder of predictions (-g and -p), or gather the cross-validation of a trained "
        "task (TASK): tables, figures and a report.",
        common.EVALUATE,
    )
    made.add_argument("task", nargs="?", metavar="TASK", help="name of a task, or its beginning")
    made.add_argument("more", nargs="*", help=argparse.SUPPRESS)
    made.add_argument("-g", dest="truth", type=Path, metavar="DIR", help="folder of true labels")
    made.add_argument("-p", dest="predicted", type=Path, metavar="DIR", help="folder to score")
    made.add_argument(
        "-i",
        dest="images",
        type=Path,
        metavar="DIR",
        help="folder of the scans: draws the worst, the median and the best case",
    )
    made.add_argument(
        "-o", dest="out", type=Path, metavar="DIR", help="where to write (default: that of -p)"
    )
    made.add_argument(
        "--map",
        nargs="+",
        metavar="P:T",
        help="what is P in the predictions is T in the truth, such as 3:1; only the mapped labels "
        "are scored",
    )
    made.add_argument(
        "--merge",
        nargs="+",
        metavar="NAME=A,B",
        help="a further row for several classes, by name or label: the mean of each metric, such "
        "as lungs=1,2",
    )
    made.add_argument(
        "--tolerance",
        metavar="MM",
        help="how far surfaces may lie apart in the normalised surface Dice: 1, or "
        "lungs=1,infection=3 (default: as the model's plan says, else 1 mm)",
    )
    made.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="with -g and -p: a second folder of predictions, to compare -p with case by case",
    )
    made.add_argument("--plan", metavar="NAME", help="with TASK: which plan, if it has several")
    made.add_argument(
        "--compare",
        nargs=2,
        metavar="PLAN",
        help="with TASK: compare the cross-validations of two plans case by case, with confidence "
        "intervals and tests",
    )
    common.add_processes(made)
    common.add_workspace(made)
    return made


def evaluate(arguments: argparse.Namespace) -> int:
    """Do what the arguments say."""
    if arguments.more:
        names = " ".join([arguments.task, *arguments.more])
        raise AutosegError(f"{names!r}: give one TASK, or two folders as -g TRUTH -p PREDICTED")
    folders = (arguments.truth, arguments.predicted)
    wishes = (arguments.map, arguments.merge, arguments.tolerance)
    if arguments.task is not None:
        if any(wishes):
            raise AutosegError("--map, --merge and --tolerance go with -g and -p, not with TASK")
        if any(folders) or arguments.images or arguments.out or arguments.against:
            raise AutosegError(
                "give either TASK or -g and -p (with -i, -o and --against), not both"
            )
        return _compare_plans(arguments) if arguments.compare else _evaluate_task(arguments)
    if not all(folders):
        raise AutosegError("give either TASK, or both -g TRUTH_DIR and -p PREDICTED_DIR")
    if arguments.plan or arguments.workspace or arguments.compare:
        raise AutosegError("--plan, --compare and --workspace go with TASK, not with -g and -p")
    return _evaluate_folders(arguments)


def _evaluate_folders(arguments: argparse.Namespace) -> int:
    from autoseg.evaluation.evaluate import choose_labels, evaluate_folders
    from autoseg.evaluation.figures.overlay import draw_examples
    from autoseg.evaluation.labels import read_wishes
    from autoseg.evaluation.report.contents import folder_report, worst_exhibits

    truth, predicted, images = arguments.truth, arguments.predicted, arguments.images
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: no such folder; -i names the folder of the scans")
    out = arguments.out or predicted
    names = different_names(predicted, arguments.against) if arguments.against else None
    wishes = read_wishes(arguments.map or (), arguments.merge or (), arguments.tolerance)
    labels = choose_labels(truth, predicted, wishes, arguments.processes)
    summary = evaluate_folders(truth, predicted, labels, arguments.processes)
    _write_tables(out, summary)
    pictures = draw_examples(summary, images, labels, out) if images else []
    for picture in pictures:
        print(f"picture: {picture}")
    exhibits = worst_exhibits(summary, images, labels) if images else []
    report = folder_report(truth, predicted, summary, exhibits, labels, arguments.processes)
    _write_report(out, report)
    if names is not None:
        other = evaluate_folders(truth, arguments.against, labels, arguments.processes)
        write_comparison(summary, other, names, out, labels.colours)
    return common.DONE


def _compare_plans(arguments: argparse.Namespace) -> int:

    if arguments.plan:
        raise AutosegError("--compare names both plans; leave --plan out")
    workspace = Workspace.find(arguments.workspace)
    task = workspace.find_task_name(arguments.task)
    models = workspace.models(task)
    a, b = (_find_plan(models, task, name) for name in arguments.compare)
    compare_plans(models / a, models / b)
    return common.DONE


def _evaluate_task(arguments: argparse.Namespace) -> int:
    from autoseg.evaluation.cross_validation import fold_rows, gather
    from autoseg.evaluation.report.contents import cross_validation_report
    from autoseg.evaluation.report.task_files import Trained, write_cross_validation

    workspace = Workspace.find(arguments.workspace)
    task = workspace.find_task_name(arguments.task)
    plan = _find_plan(workspace.models(task), task, arguments.plan)
    folder = workspace.models(task, plan)
    fold_count = _fold_count(workspace, task, plan)
    validation = gather(folder, fold_count)
    combined = validation.combined
    tables: Tables = {
        "Dice of the folds": fold_rows(validation),
        **_learn_postprocessing(folder, validation, fold_count, arguments.processes),
    }
    out = folder / "cross_validation"
    _write_tables(out, combined, tables)
    if validation.missing:
        print(f"missing folds: {', '.join(map(str, validation.missing))}")
    trained = Trained(folder, _raw_task(workspace, arguments.task))
    exhibits = trained.exhibits(combined)
    for path in write_cross_validation(trained, validation, out, arguments.processes, exhibits):
        print(f"{path.parent.name}: {path}")
    fingerprint = workspace.preprocessed(task, plan) / "fingerprint.json"
    report = cross_validation_report(
        trained, validation, exhibits, fingerprint, tables, arguments.processes
    )
    _write_report(out, report)
    return common.DONE


def _learn_postprocessing(
    folder: Path, validation: CrossValidation, fold_count: int, processes: int
) -> Tables:
    """A table of what was tried; none where it cannot be learned, such as before all folds."""
    from autoseg.common.progress import say
    from autoseg.evaluation.learn_postprocessing import update

    try:
        learned = update(folder, validation, fold_count, processes)
    except AutosegError as error:
        say(f"no postprocessing was learned: {error}")
        return {}
    return {"Postprocessing (the scores elsewhere are without it)": learned.rows()}


def _raw_task(workspace: Workspace, given: str) -> Path | None:
    """The folder of the raw task; None if it is not there any more."""
    try:
        return workspace.find_task_folder(given)
    except AutosegError:
        return None


def _find_plan(models: Path, task: str, given: str | None) -> str:
    from autoseg.models.folder import EVERY_FOLD, SUMMARY

    found = sorted({path.parts[-4] for path in models.glob(f"*/{EVERY_FOLD}/{SUMMARY}")})
    if given in found:
        return str(given)
    if not found:
        raise AutosegError(f"{task} has no validated fold in {models}; run: autoseg_train {task} 0")
    if given is not None:
        raise AutosegError(
            f"plan {given!r} has no validated fold; run: autoseg_train {task} 0 --plan {given} "
            f"(with --resume if it was stopped), or choose one of {', '.join(found)}"
        )
    if len(found) > 1:
        raise AutosegError(f"{task} has the plans {', '.join(found)}; choose with --plan NAME")
    return found[0]


def _fold_count(workspace: Workspace, task: str, plan: str) -> int:
    """How many folds the splits have; 0 if the splits are not in this workspace."""
    from autoseg.dataset.splits import count_folds

    file = workspace.preprocessed(task, plan) / "splits.json"
    return count_folds(file) if file.is_file() else 0


def _write_tables(out: Path, summary: Summary, tables: Tables | None = None) -> None:
    """Write the tables; show them and where they are."""
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


if __name__ == "__main__":
    raise SystemExit(main())


# The comparisons of `autoseg_evaluate`: two plans of a task, or two folders of predictions.


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
