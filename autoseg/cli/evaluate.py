"""`autoseg_evaluate`: scores predictions, or puts the folds of a cross-validation together."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoseg import __version__
from autoseg.cli import common
from autoseg.errors import AutosegError, DataError
from autoseg.files import read_json
from autoseg.workspace import Workspace

if TYPE_CHECKING:
    from autoseg.evaluation.report import Tables
    from autoseg.evaluation.summary import Summary


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return common.run(make_parser, evaluate, argv)


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = common.parser(
        "autoseg_evaluate",
        "Score a folder of predictions (-g and -p), or gather the cross-validation of a trained "
        "task (TASK): tables, figures and a report.",
    )
    made.add_argument("task", nargs="?", metavar="TASK", help="name of a task, or its beginning")
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
    made.add_argument("--plan", metavar="NAME", help="with TASK: which plan, if it has several")
    common.add_processes(made)
    common.add_workspace(made)
    return made


def evaluate(arguments: argparse.Namespace) -> int:
    """Do what the arguments say."""
    folders = (arguments.truth, arguments.predicted)
    if arguments.task is not None:
        if any(folders) or arguments.images or arguments.out:
            raise AutosegError("give either TASK or -g and -p (with -i and -o), not both")
        return _evaluate_task(arguments)
    if not all(folders):
        raise AutosegError("give either TASK, or both -g TRUTH_DIR and -p PREDICTED_DIR")
    if arguments.plan or arguments.workspace:
        raise AutosegError("--plan and --workspace go with TASK, not with -g and -p")
    return _evaluate_folders(arguments)


def _evaluate_folders(arguments: argparse.Namespace) -> int:
    from autoseg.evaluation.evaluate import choose_labels, evaluate_folders
    from autoseg.evaluation.examples import draw_examples

    truth, predicted, images = arguments.truth, arguments.predicted, arguments.images
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: no such folder; -i names the folder of the scans")
    out = arguments.out or predicted
    labels = choose_labels(truth, predicted)
    summary = evaluate_folders(
        truth, predicted, labels.values, arguments.processes, ignore_label=labels.ignore
    )
    _write_tables(out, summary)
    pictures = draw_examples(summary, images, labels.values, out) if images else []
    for picture in pictures:
        print(f"picture: {picture}")
    facts = {"truth": str(truth), "predicted": str(predicted)}
    _write_report(out, f"Evaluation of {predicted.resolve().name}", summary, pictures, facts)
    return common.DONE


def _evaluate_task(arguments: argparse.Namespace) -> int:
    from autoseg.evaluation.cross_validation import fold_rows, gather

    workspace = Workspace.find(arguments.workspace)
    task = workspace.find_task_name(arguments.task)
    plan = _find_plan(workspace.models(task), task, arguments.plan)
    folder = workspace.models(task, plan)
    validation = gather(folder, _fold_count(workspace, task, plan))
    combined = validation.combined
    tables = {"Dice of the folds": fold_rows(validation)}
    out = folder / "cross_validation"
    missing = ", ".join(map(str, validation.missing))
    _write_tables(out, combined, tables)
    if missing:
        print(f"missing folds: {missing}")
    facts = {
        "task": task,
        "plan": plan,
        "folds": ", ".join(map(str, validation.folds)),
        "missing folds": missing or "none",
    }
    _write_report(out, f"Cross-validation of {task}", combined, [], facts, tables)
    return common.DONE


def _find_plan(models: Path, task: str, given: str | None) -> str:
    found = sorted({path.parts[-4] for path in models.glob("*/fold_*/validation/summary.json")})
    if given in found:
        return str(given)
    if not found:
        raise AutosegError(f"{task} has no validated fold in {models}; run: autoseg_train {task} 0")
    if given is not None:
        raise AutosegError(f"plan {given!r} has no validated fold; there: {', '.join(found)}")
    if len(found) > 1:
        raise AutosegError(f"{task} has the plans {', '.join(found)}; choose with --plan NAME")
    return found[0]


def _fold_count(workspace: Workspace, task: str, plan: str) -> int:
    """How many folds the splits have; 0 if the splits are not in this workspace."""
    file = workspace.preprocessed(task, plan) / "splits.json"
    return len(read_json(file)) if file.is_file() else 0


def _write_tables(out: Path, summary: Summary, tables: Tables | None = None) -> None:
    """Write the tables; show them and where they are."""
    from autoseg.evaluation.report import write_tables
    from autoseg.evaluation.tables import print_rows, print_table

    paths = write_tables(out, summary, tables or {})
    for rows in (tables or {}).values():
        print_rows(rows)
        print()
    print_table(summary)
    for path in paths:
        print(f"{path.stem}: {path}")


def _write_report(
    out: Path,
    title: str,
    summary: Summary,
    pictures: Sequence[Path],
    facts: Mapping[str, str],
    tables: Tables | None = None,
) -> None:
    from autoseg.evaluation.report import write_report
    from autoseg.evaluation.tables import number

    facts = {
        **facts,
        "cases": str(len(summary.cases)),
        "missing cases": str(len(summary.missing)),
        "foreground mean Dice": number(summary.foreground_mean()),
        "made by": f"autoseg {__version__}",
    }
    path = out / "report.html"
    write_report(path, title, summary, pictures, facts, tables or {})
    print(f"report: {path}")


if __name__ == "__main__":
    raise SystemExit(main())
