"""`autoseg_evaluate`: score predictions, or summarise the folds of a cross-validation."""

import argparse

from autoseg.cli import common
from autoseg.common.errors import AutosegError


def _evaluate(arguments: argparse.Namespace) -> int:
    _check(arguments)

    from autoseg.workflow import evaluation

    if arguments.task is None:
        score = evaluation.score_folders
        is_complete = score(**common.named_in(score, arguments))
        return common.DONE if is_complete else common.BAD_INPUT
    workspace, task = common.find_workspace(arguments), arguments.task
    if arguments.corrections:
        evaluation.correct_labels(workspace, task, arguments.corrections, arguments.processes)
    if arguments.compare:
        evaluation.compare_plans(workspace, task, arguments.compare)
    else:
        processes, volumes = arguments.processes, arguments.volumes
        evaluation.evaluate_task(workspace, task, arguments.plan, processes, volumes)
    return common.DONE


def _check(arguments: argparse.Namespace) -> None:
    """Raise an AutosegError if options do not go together."""
    if arguments.words:
        common.take_task(arguments, ", or two folders as -g REFERENCE -p PREDICTED")
    if arguments.task is not None and arguments.predicted and not arguments.reference:
        arguments.plan, arguments.predicted = arguments.plan or str(arguments.predicted), None
    if arguments.task is None:
        if not (arguments.reference and arguments.predicted):
            raise AutosegError("give either TASK, or both -g REFERENCE and -p PREDICTED")
        only = ("plan", "workspace", "compare", "corrections")
        if given := [f"--{name}" for name in only if getattr(arguments, name)]:
            raise AutosegError(f"{given[0]} needs TASK, not -g and -p")
        return
    if arguments.maps or arguments.merges or arguments.tolerance or arguments.classes:
        raise AutosegError("--labels, --map, --merge and --tolerance need -g and -p, not TASK")
    folders = ("reference", "predicted", "images", "out", "against")
    if any(getattr(arguments, name) for name in folders):
        raise AutosegError("give either TASK or -g and -p (with -i, -o and --against), not both")
    if arguments.compare and arguments.plan:
        raise AutosegError("--compare names both plans; leave out --plan")


main = common.command("autoseg_evaluate", _evaluate)

if __name__ == "__main__":
    raise SystemExit(main())
