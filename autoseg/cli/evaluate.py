"""`autoseg_evaluate`: score predictions, or summarise the folds of a cross-validation."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from autoseg.cli import common
from autoseg.common.errors import AutosegError


def make_parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = common.parser(
        "autoseg_evaluate",
        "Score a folder of predictions (-g and -p), or summarise the cross-validation of a trained "
        "task (TASK): tables, figures and a report.",
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


def _evaluate(arguments: argparse.Namespace) -> int:
    _check(arguments)

    from autoseg.workflow.evaluation import compare_plans, evaluate_task, score_folders

    if arguments.task is None:
        is_complete = score_folders(
            arguments.reference,
            arguments.predicted,
            arguments.out,
            images=arguments.images,
            against=arguments.against,
            maps=arguments.map or (),
            merges=arguments.merge or (),
            tolerance=arguments.tolerance,
            processes=arguments.processes,
        )
        return common.DONE if is_complete else common.BAD_INPUT
    workspace = common.find_workspace(arguments)
    if arguments.compare:
        compare_plans(workspace, arguments.task, arguments.compare)
    else:
        evaluate_task(workspace, arguments.task, arguments.plan, arguments.processes)
    return common.DONE


def _check(arguments: argparse.Namespace) -> None:
    """Raise an AutosegError if options do not go together."""
    if arguments.more:
        names = " ".join([arguments.task, *arguments.more])
        raise AutosegError(f"{names!r}: give one TASK, or two folders as -g REFERENCE -p PREDICTED")
    if arguments.task is None:
        if not (arguments.reference and arguments.predicted):
            raise AutosegError("give either TASK, or both -g REFERENCE and -p PREDICTED")
        if arguments.plan or arguments.workspace or arguments.compare:
            raise AutosegError("--plan, --compare and --workspace need TASK, not -g and -p")
        return
    if arguments.map or arguments.merge or arguments.tolerance:
        raise AutosegError("--map, --merge and --tolerance need -g and -p, not TASK")
    folders = ("reference", "predicted", "images", "out", "against")
    if any(getattr(arguments, name) for name in folders):
        raise AutosegError("give either TASK or -g and -p (with -i, -o and --against), not both")
    if arguments.compare and arguments.plan:
        raise AutosegError("--compare names both plans; leave out --plan")


main = partial(common.run, make_parser, _evaluate)

if __name__ == "__main__":
    raise SystemExit(main())
