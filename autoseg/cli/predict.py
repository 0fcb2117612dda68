"""`autoseg_predict -i in/ -o out/`: segment new scans on their own grid."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from autoseg.cli import common


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = common.parser(
        "autoseg_predict",
        "Segment scans with a trained model: one label map a scan, on the scan's own grid.",
    )
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="IN", help="a scan, or a folder of scans"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the label maps"
    )
    parser.add_argument(
        "-t", "--task", metavar="TASK", help="which task's model, if several are trained"
    )
    parser.add_argument("-p", "--plan", metavar="NAME", help="which plan's model")
    parser.add_argument(
        "-m", "--model", type=Path, metavar="DIR", help="a model folder anywhere (models/TASK/PLAN)"
    )
    parser.add_argument(
        "-f",
        "--folds",
        nargs="+",
        metavar="K",
        help="which folds to average (default: all trained)",
    )
    parser.add_argument(
        "--tta", action="store_true", help="average over mirror images on the axes the plan allows"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="predict what is there already, too"
    )
    common.add_device(parser)
    common.add_workspace(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command `autoseg_predict`."""
    return common.run(make_parser, _predict, argv)


def _predict(arguments: argparse.Namespace) -> int:
    from autoseg.prediction.batch import predict_cases
    from autoseg.prediction.inputs import find_inputs
    from autoseg.prediction.predictor import Predictor
    from autoseg.progress import say

    predictor = Predictor(
        _model_folder(arguments), arguments.folds, arguments.device, arguments.tta
    )
    inputs = find_inputs(arguments.input, predictor.plan.channels)
    outcome = predict_cases(predictor, inputs, arguments.output, arguments.overwrite)
    say(
        f"{len(outcome.predicted)} predicted, {len(outcome.skipped)} were there already, "
        f"{len(outcome.failed)} refused"
    )
    for name, reason in outcome.failed.items():
        say(f"refused {name}: {reason}")
    print(arguments.output)
    return common.BAD_INPUT if outcome.failed else common.DONE


def _model_folder(arguments: argparse.Namespace) -> Path:
    """The folder given, or the workspace's only trained model that fits."""
    from autoseg.errors import AutosegError
    from autoseg.workspace import Workspace

    if arguments.model is not None:
        if arguments.task or arguments.plan:
            raise AutosegError("-m names a model already; leave out -t and -p")
        model: Path = arguments.model
        return model
    workspace = Workspace.find(arguments.workspace)
    trained = workspace.trained()
    if arguments.task:
        task = workspace.find_task_name(arguments.task)
        trained = [pair for pair in trained if pair[0] == task]
    if arguments.plan:
        trained = [pair for pair in trained if pair[1] == arguments.plan]
    if len(trained) == 1:
        return workspace.models(*trained[0])
    if not trained:
        raise AutosegError(
            f"no trained model fits in {workspace.root / 'models'}; run autoseg_train first, or "
            "name a folder with -m"
        )
    names = ", ".join(f"-t {task} -p {plan}" for task, plan in trained)
    raise AutosegError(f"several models are trained; choose one: {names}")


if __name__ == "__main__":
    raise SystemExit(main())
